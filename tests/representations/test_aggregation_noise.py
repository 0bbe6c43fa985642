import jax
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from bioimg_jax.representations.aggregation_noise import AggregationNoiseRepresentation
from bioimg_jax.representations.representation import KINDS, stream_features


def draw(index, width=16, seed=0):
    floor = AggregationNoiseRepresentation(width, seed=seed)
    batch = {"image": None, "index": np.asarray(index), "mask": np.ones(len(index), bool)}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        values = np.asarray(floor.features(batch)["noise"])
    assert values.shape == (len(index), floor.layers["noise"])
    return values


def test_values_do_not_depend_on_batching():
    index = np.random.default_rng(0).permutation(1000)[:60]
    whole = draw(index)
    np.testing.assert_array_equal(draw(index[::-1])[::-1], whole)
    np.testing.assert_array_equal(np.concatenate([draw(index[:7]), draw(index[7:])]), whole)
    np.testing.assert_array_equal(draw(index[3:4]), whole[3:4])
    assert not np.isin(draw(index, seed=1), whole).any()


def test_padding_of_a_stream_is_dropped():
    floor = AggregationNoiseRepresentation(16)
    batches = [
        {"image": None, "index": np.array([4, 9, 2]), "mask": np.array([True, True, True])},
        {"image": None, "index": np.array([7, -1, -1]), "mask": np.array([True, False, False])},
    ]
    rows = np.concatenate([layers["noise"] for _, layers in stream_features(floor, batches)])
    np.testing.assert_array_equal(rows, draw([4, 9, 2, 7]))


def test_values_are_standard_normal_and_independent():
    values = draw(np.arange(4000))
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.cov(values.T), np.eye(16), atol=5 * np.sqrt(2 / 4000))
    neighbours = np.mean(values[1:] * values[:-1])  # examples one after another
    assert abs(neighbours) < 5 / np.sqrt(values.size)


@pytest.fixture(scope="module")
def wells():
    """Means over the cells of 200 wells of 40 cells and 200 of 160; every other well trains."""
    cells = draw(np.arange(200 * (40 + 160)), width=20)
    few, many = cells[: 200 * 40], cells[200 * 40 :]
    means = [few.reshape(200, 40, 20).mean(axis=1), many.reshape(200, 160, 20).mean(axis=1)]
    features, labels = np.concatenate(means), np.repeat([0, 1], 200)
    train = np.arange(400) % 2 == 0
    return features, labels, train


def score(classifier, features, labels, train):
    return classifier.fit(features[train], labels[train]).score(features[~train], labels[~train])


def test_numbers_of_cells_are_told_apart_by_the_spread_of_their_means(wells):
    """By one number, the sum of squares, and by a linear probe on the absolute values.

    The sum of 20 squares is chi-squared over 40 or over 160; the best threshold between the two is
    right with probability 0.984.
    """
    features, labels, train = wells
    threshold = np.linspace(1, 80, 1000)
    right = stats.chi2.sf(threshold, 20) + stats.chi2.cdf(4 * threshold, 20)
    assert np.max(right) / 2 == pytest.approx(0.984, abs=5e-4)
    squares = 40 * np.square(features).sum(axis=1, keepdims=True)
    assert score(LogisticRegression(C=10), squares, labels, train) == pytest.approx(0.984, abs=0.02)
    absolute = np.sqrt(40) * np.abs(features)
    assert score(LogisticRegression(C=1), absolute, labels, train) > 0.95


def test_a_linear_probe_does_not_see_a_spread(wells):
    features, labels, train = wells
    assert score(LogisticRegression(), np.sqrt(40) * features, labels, train) < 0.6


def test_is_noise():
    floor = AggregationNoiseRepresentation(8)
    assert (floor.name, floor.kind) == ("aggregation_noise", "noise") and floor.kind in KINDS

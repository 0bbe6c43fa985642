import itertools

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from bioimg_jax.errors import InputError
from bioimg_jax.probes import knn


def problem(n, d, n_classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    labels[:n_classes] = np.arange(n_classes)
    centres = rng.normal(size=(n_classes, d))
    features = rng.normal(size=(n, d)) + 0.7 * centres[labels] + rng.normal(size=d)
    return features.astype(np.float32), labels


@pytest.fixture
def small_blocks(monkeypatch):
    """A few hundred rows are several blocks of both kinds."""
    monkeypatch.setattr(knn, "TRAIN_BLOCK", 256)
    monkeypatch.setattr(knn, "TEST_BLOCK", 64)


def test_agrees_with_scikit_learn(small_blocks):
    features, labels = problem(1_000, 24, 5)
    train, test = slice(None, 700), slice(700, None)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        probe = knn.fit_knn(features[train], labels[train], 5)
        scores = probe.scores(features[test])
    assert probe.used_ks == probe.ks == knn.KS
    assert scores.shape == (6, 300, 5)
    for i, k in enumerate(knn.KS):
        peer = KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(features[train].astype(np.float64), labels[train])
        expected = peer.predict_proba(features[test].astype(np.float64))
        np.testing.assert_allclose(scores[i], expected, atol=2e-5)
        assert (scores[i].argmax(axis=1) == expected.argmax(axis=1)).all()


def tied_problem(kind):
    features, labels = problem(600, 6, 4, seed=3)
    rng = np.random.default_rng(4)
    if kind == "one-hot":
        features = np.eye(6, dtype=np.float32)[rng.integers(0, 6, 600)]
    elif kind == "whole numbers":
        features = rng.integers(-1, 2, (600, 3)).astype(np.float32)  # rows of zeros among them
    elif kind == "one column":
        features = features[:, :1]
    elif kind == "repeated":
        features = features[rng.integers(0, 50, 600)]
    return features, labels


@pytest.mark.parametrize("kind", ["plain", "one-hot", "whole numbers", "one column", "repeated"])
def test_order_of_rows_changes_no_bit(kind, small_blocks):
    features, labels = tied_problem(kind)
    some = features[::3]
    train_order, test_order = (np.random.default_rng(5).permutation(n) for n in (600, len(some)))
    probe = knn.fit_knn(features, labels, 4)
    shuffled = knn.fit_knn(features[train_order], labels[train_order], 4)
    # What enters the products is the same, whatever a device's products do with an order.
    np.testing.assert_array_equal(probe.rows, shuffled.rows)
    np.testing.assert_array_equal(probe.labels, shuffled.labels)
    scores = shuffled.scores(some[test_order])
    np.testing.assert_array_equal(probe.scores(some)[:, test_order], scores)


@pytest.mark.parametrize("seed", range(4))
def test_ties_are_the_mean_over_all_orders_of_the_rows(seed):
    rng = np.random.default_rng(seed)
    features = rng.integers(-1, 2, (6, 2)).astype(np.float64)
    labels = np.array([0, 1, 2, 0, 1, 1])
    row = np.array([[1.0, 1.0]])
    length = np.linalg.norm(features, axis=1) * np.sqrt(2)
    similarity = np.round(features @ row[0] / np.where(length > 0, length, 1), 9)
    ks = (1, 2, 3, 4, 6)
    expected = np.zeros((len(ks), 3))
    orders = list(itertools.permutations(range(6)))
    for order in orders:
        order = np.array(order)
        nearest = order[np.argsort(-similarity[order], kind="stable")]
        for i, k in enumerate(ks):
            votes = np.bincount(
                labels[nearest[:k]], np.exp(similarity[nearest[:k]] / 0.07), minlength=3
            )
            expected[i] += votes / votes.sum() / len(orders)
    scores = knn.fit_knn(features, labels, 3, ks=ks).scores(row)[:, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_tie_by_hand():
    # Similarities to (1, 0): 1, 0.8, 0.8, 0.8, 0; the third place is one of two left for three.
    features = np.array([[2.0, 0.0], [4.0, 3.0], [8.0, 6.0], [4.0, -3.0], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 1, 1])
    scores = knn.fit_knn(features, labels, 2, ks=(1, 2, 3)).scores(np.array([[1.0, 0.0]]))[:, 0]
    w = np.exp(-0.2 / 0.07)
    np.testing.assert_allclose(scores[0], [1.0, 0.0])
    np.testing.assert_allclose(scores[1], [(1 + w / 3) / (1 + w), 2 * w / 3 / (1 + w)], rtol=1e-5)
    np.testing.assert_allclose(
        scores[2], [(1 + 2 * w / 3) / (1 + 2 * w), 4 * w / 3 / (1 + 2 * w)], rtol=1e-5
    )


def test_a_tie_that_goes_on_beyond_what_is_kept_counts_every_row(small_blocks):
    group = np.random.default_rng(0).integers(0, 3, 1_000)
    labels = np.random.default_rng(1).integers(0, 4, 1_000)
    one_hot = np.eye(3, dtype=np.float32)
    scores = knn.fit_knn(one_hot[group], labels, 4, ks=(1, 5)).scores(one_hot)
    for i in range(3):
        share = np.bincount(labels[group == i], minlength=4) / np.sum(group == i)
        np.testing.assert_allclose(scores[:, i], [share, share], rtol=1e-6)


def test_zero_vectors_are_equally_far_from_everything():
    features = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [-3.0, 0.0]])
    labels = np.array([0, 0, 1, 1])
    scores = knn.fit_knn(features, labels, 2, ks=(1, 3)).scores(np.array([[0.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_allclose(scores[:, 0], [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(scores[0, 1], [1.0, 0.0])
    # Second and third place: (0, 2) and the zero vector, both at similarity 0.
    w = np.exp(-1 / 0.07)
    np.testing.assert_allclose(scores[1, 1], [(1 + w) / (1 + 2 * w), w / (1 + 2 * w)], rtol=1e-5)


def test_a_k_beyond_the_training_rows_is_all_of_them_and_recorded():
    features, labels = problem(30, 4, 3)
    probe = knn.fit_knn(features, labels, 3, ks=(100, 5, 30))
    assert probe.ks == (100, 5, 30) and probe.used_ks == (30, 5, 30)
    scores = probe.scores(features)
    np.testing.assert_array_equal(scores[0], scores[2])
    np.testing.assert_allclose(scores.sum(axis=2), 1.0, rtol=1e-6)


def test_length_of_a_row_does_not_matter_in_any_precision():
    features, labels = problem(200, 8, 3)
    features = features.astype(np.float16)
    scores = knn.fit_knn(features, labels, 3).scores(features)
    far = features.astype(np.float64) * 3e200
    np.testing.assert_array_equal(knn.fit_knn(far, labels, 3).scores(features), scores)
    large = (features / np.abs(features).max() * np.float16(6e4)).astype(np.float16)
    assert np.isfinite(knn.fit_knn(large, labels, 3).scores(large)).all()


def test_memory_does_not_grow_with_the_training_rows():
    def scratch(groups):
        train = jax.ShapeDtypeStruct((groups, 1024, 8), np.float32)
        rows = jax.ShapeDtypeStruct((256, 8), np.float32)
        compiled = knn._nearest.lower(train, np.int32(groups * 1024), rows, 201).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert scratch(64) <= scratch(4) + 4096 < 30 * 256 * 1225


def test_classes_that_tie_share_the_vote():
    scores = np.array([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1], [1 / 3, 1 / 3, 1 / 3 + 1e-9]], np.float32)
    votes = knn.expected_votes(scores)
    np.testing.assert_allclose(votes, [[0.5, 0.5, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 5}, "class 4 has no training example"),
        ({"n_classes": 3}, "label 3 of training row 3"),
        ({"ks": (5, 0)}, "at least 1"),
        ({"ks": (1.5,)}, "at least 1"),
        ({"ks": ()}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_input_is_refused(change, message):
    features, labels = problem(50, 5, 4)
    with pytest.raises(InputError, match=message):
        knn.fit_knn(features, labels, **{"n_classes": 4, **change})


def test_a_feature_that_is_not_finite_is_named():
    features, labels = problem(50, 5, 4)
    probe = knn.fit_knn(features, labels, 4)
    features[7, 2] = np.inf
    with pytest.raises(InputError, match="feature 2 of training row 7"):
        knn.fit_knn(features, labels, 4)
    with pytest.raises(InputError, match="feature 2 of row 7"):
        probe.scores(features)
    with pytest.raises(InputError, match="5 features"):
        probe.scores(features[:, :4])

import jax
import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.probes import few_shot


def problem(n_units, rows_a_unit, d, n_classes, seed=0):
    """Each unit holds one class; units have names, and 1 ... rows_a_unit rows each."""
    rng = np.random.default_rng(seed)
    unit_class = np.arange(n_units) % n_classes
    sizes = rng.integers(1, rows_a_unit + 1, n_units)
    units = np.repeat([f"unit {i}" for i in rng.permutation(n_units)], sizes)
    labels = np.repeat(unit_class, sizes)
    centres = rng.normal(size=(n_classes, d))
    shift = np.repeat(rng.normal(size=(n_units, d)), sizes, axis=0)
    features = 0.5 * centres[labels] + shift + rng.normal(size=(len(labels), d))
    features = features * np.exp(rng.normal(size=d)) + 5
    order = rng.permutation(len(labels))
    return features[order].astype(np.float32), labels[order], units[order]


def nearest_by_loop(probe, features, labels, units, new, n_classes, shot, draw, distance):
    """Scores [n, c] in float64, one class and row at a time."""
    mean, sd = features.astype(np.float64).mean(axis=0), features.astype(np.float64).std(axis=0)
    scores = np.empty((len(new), n_classes))
    for label in range(n_classes):
        rows_of_units = []
        for unit in probe.unit_names[probe.drawn[draw, label, :shot]]:
            rows = (features[(units == unit) & (labels == label)] - mean) / sd
            assert len(rows)
            rows_of_units.append(rows.mean(axis=0))
        assert len(rows_of_units) == shot
        centre = np.mean(rows_of_units, axis=0)
        for i, row in enumerate((new.astype(np.float64) - mean) / sd):
            if distance == "cosine":
                scores[i, label] = row @ centre / np.linalg.norm(row) / np.linalg.norm(centre)
            else:
                scores[i, label] = -np.linalg.norm(row - centre)
    return scores


@pytest.mark.parametrize("distance", few_shot.DISTANCES)
def test_agrees_with_a_plain_loop(distance, monkeypatch):
    monkeypatch.setattr(few_shot, "BLOCK", 64)  # several blocks of rows
    features, labels, units = problem(60, 5, 12, 3)
    new, _, _ = problem(60, 3, 12, 3, seed=1)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        probe = few_shot.fit_few_shot(
            features, labels, units, 3, seed=0, draws=4, distance=distance
        )
        predictions = probe.predictions(new)
    assert probe.shots == few_shot.SHOTS and probe.unavailable == {}
    assert predictions.shape == (5, 4, len(new)) and predictions.dtype == np.int32
    for i, shot in enumerate(probe.shots):
        votes = probe.votes(new, i)
        assert votes.shape == (4, len(new), 3)
        for draw in range(4):
            scores = nearest_by_loop(probe, features, labels, units, new, 3, shot, draw, distance)
            np.testing.assert_array_equal(predictions[i, draw], scores.argmax(axis=1))
            np.testing.assert_array_equal(votes[draw].argmax(axis=1), scores.argmax(axis=1))


def test_more_shots_are_better():
    features, labels, units = problem(150, 2, 30, 5)
    new, truth, _ = problem(150, 2, 30, 5)  # the same centres
    probe = few_shot.fit_few_shot(features, labels, units, 5, seed=0)
    accuracy = (probe.predictions(new) == truth).mean(axis=(1, 2))
    assert len(accuracy) == 5 and (np.diff(accuracy) > 0).all()


def test_small_sets_lie_inside_larger_ones_and_hold_distinct_units_of_the_class():
    features, labels, units = problem(60, 4, 3, 3)
    probe = few_shot.fit_few_shot(features, labels, units, 3, seed=0, shots=(16, 4, 1))
    assert probe.shots == (1, 4, 16) and probe.drawn.shape == (20, 3, 16)
    for draw in range(20):
        for label in range(3):
            names = probe.unit_names[probe.drawn[draw, label]]
            assert len(set(names)) == 16
            assert set(names) <= set(units[labels == label])
    # A larger maximum changes nothing about the smaller sets.
    small = few_shot.fit_few_shot(features, labels, units, 3, seed=0, shots=(4,))
    np.testing.assert_array_equal(small.drawn, probe.drawn[:, :, :4])
    np.testing.assert_array_equal(small.class_means[0], probe.class_means[1])


def test_draws_are_keyed_by_seed_and_draw():
    features, labels, units = problem(60, 2, 3, 3)

    def drawn(seed, draws):
        return few_shot.fit_few_shot(features, labels, units, 3, seed=seed, draws=draws).drawn

    np.testing.assert_array_equal(drawn(0, 20)[:5], drawn(0, 5))
    assert (drawn(0, 5) != drawn(1, 5)).any()
    assert len({sets.tobytes() for sets in drawn(0, 20)[:, 0]}) == 20


def test_order_of_rows_changes_nothing():
    features, labels, units = problem(60, 4, 8, 3)
    new, _, _ = problem(60, 4, 8, 3, seed=1)
    order, new_order = (np.random.default_rng(2).permutation(len(x)) for x in (features, new))
    probe = few_shot.fit_few_shot(features, labels, units, 3, seed=0)
    shuffled = few_shot.fit_few_shot(features[order], labels[order], units[order], 3, seed=0)
    np.testing.assert_array_equal(probe.drawn, shuffled.drawn)
    np.testing.assert_array_equal(probe.unit_names, shuffled.unit_names)
    np.testing.assert_allclose(probe.class_means, shuffled.class_means, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(
        probe.predictions(new)[:, :, new_order], shuffled.predictions(new[new_order])
    )


def test_a_shot_count_that_a_class_cannot_fill_is_left_out_and_recorded():
    features, labels, units = problem(45, 2, 4, 3)
    last = np.unique(units[labels == 2])
    few = (labels != 2) | np.isin(units, last[:3])
    probe = few_shot.fit_few_shot(features[few], labels[few], units[few], 3, seed=0)
    assert probe.shots == (1, 2)
    assert probe.unavailable == {4: (2,), 8: (2,), 16: (0, 1, 2)}
    assert probe.class_means.shape == (2, 20, 3, 4)
    assert (probe.drawn[:, 2, :3] >= 0).all() and (probe.drawn[:, 2, 3:] == -1).all()
    assert (probe.drawn[:, :2, :15] >= 0).all()
    none = few_shot.fit_few_shot(features[few], labels[few], units[few], 3, seed=0, shots=(16,))
    assert none.shots == () and none.predictions(features).shape == (0, 20, len(features))


def test_a_unit_counts_once_however_many_rows_it_has():
    features = np.array([[0.0], [0.0], [0.0], [8.0], [20.0], [20.0]])
    labels, units = np.array([0, 0, 0, 0, 1, 1]), np.array([1, 1, 1, 2, 3, 4])
    probe = few_shot.fit_few_shot(features, labels, units, 2, seed=0, shots=(2,), draws=1)
    means = probe.class_means[0, 0, :, 0] / probe.inverse_scale + probe.mean
    np.testing.assert_allclose(means, [4.0, 20.0], rtol=1e-6)


def test_a_unit_of_several_classes_lends_a_class_its_own_rows_only():
    features = np.array([[1.0], [2.0], [10.0], [20.0]])
    labels, units = np.array([0, 0, 1, 1]), np.array(["p", "q", "p", "q"])
    probe = few_shot.fit_few_shot(features, labels, units, 2, seed=0, shots=(1, 2), draws=1)
    means = probe.class_means[1, 0, :, 0] / probe.inverse_scale + probe.mean
    np.testing.assert_allclose(means, [1.5, 15.0], rtol=1e-6)


@pytest.mark.parametrize("distance", few_shot.DISTANCES)
def test_features_that_say_nothing_tie_all_classes(distance):
    _, labels, units = problem(60, 2, 4, 3)
    constant = np.full((len(labels), 4), 7.0, np.float16)
    probe = few_shot.fit_few_shot(constant, labels, units, 3, seed=0, distance=distance)
    np.testing.assert_allclose(probe.votes(constant, 2), 1 / 3, rtol=1e-6)
    assert (probe.predictions(constant) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 4}, "class 3 has no training example"),
        ({"n_classes": 2}, "label 2 of training row"),
        ({"shots": (0, 1)}, "at least 1"),
        ({"shots": (1.5,)}, "at least 1"),
        ({"shots": ()}, "at least 1"),
        ({"draws": 0}, "0 draws"),
        ({"seed": -1}, "seed=-1"),
        ({"distance": "city"}, "'city' is none of"),
    ],
)
def test_bad_input_is_refused(change, message):
    features, labels, units = problem(30, 2, 4, 3)
    with pytest.raises(InputError, match=message):
        few_shot.fit_few_shot(features, labels, units, **{"n_classes": 3, "seed": 0, **change})


def test_bad_rows_are_named():
    features, labels, units = problem(30, 2, 4, 3)
    with pytest.raises(InputError, match="labels and"):
        few_shot.fit_few_shot(features, labels, units[1:], 3, seed=0)
    probe = few_shot.fit_few_shot(features, labels, units, 3, seed=0)
    with pytest.raises(InputError, match="4 features"):
        probe.predictions(features[:, :3])
    features[7, 2] = np.nan
    with pytest.raises(InputError, match="feature 2 of training row 7"):
        few_shot.fit_few_shot(features, labels, units, 3, seed=0)
    with pytest.raises(InputError, match="feature 2 of row 7"):
        probe.predictions(features)

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score

from bioimg_jax.statistics.resampling import pseudo_values
from bioimg_jax.statistics.unit_metric import (
    by_pseudo_values,
    metric_value,
    unit_metric,
    unit_r2,
)


def test_agrees_with_scikit_learn_inside_each_unit():
    rng = np.random.default_rng(0)
    labels, guesses, units = rng.integers(0, [[4], [4], [3]], (3, 300))
    balanced = unit_metric(labels, guesses, units, "balanced_accuracy")
    accuracy = unit_metric(labels, guesses, units, "accuracy")
    for unit in range(3):
        y, guess = labels[units == unit], guesses[units == unit]
        assert balanced[unit] == pytest.approx(balanced_accuracy_score(y, guess))
        assert accuracy[unit] == pytest.approx(np.mean(y == guess))


def test_units_that_lack_classes_have_pseudo_values_of_the_whole():
    rng = np.random.default_rng(1)
    units = rng.integers(0, 12, 400)
    labels = units % 4  # a unit holds one class, and there are three of each
    labels[units == 0] = rng.integers(0, 4, (units == 0).sum())  # one unit holds all
    guesses = np.where(rng.random(400) < 0.6, labels, rng.integers(0, 4, 400))

    def among(staying):
        rows = np.isin(units, staying)
        return balanced_accuracy_score(labels[rows], guesses[rows])

    found = unit_metric(labels, guesses, units, "balanced_accuracy")
    np.testing.assert_allclose(list(found.values()), pseudo_values(among, 12))
    assert by_pseudo_values(labels, units, "balanced_accuracy")
    assert not by_pseudo_values(labels, units, "accuracy")
    assert metric_value(labels, guesses, units, "balanced_accuracy") == pytest.approx(
        balanced_accuracy_score(labels, guesses)
    )
    # One answer for all is at 1/c, however many units of each class there are.
    answer = np.full(400, 2)
    assert np.mean(
        list(unit_metric(labels, answer, units, "balanced_accuracy").values())
    ) == pytest.approx(0.25)


def test_the_value_of_units_that_hold_every_class_is_their_mean():
    rng = np.random.default_rng(2)
    labels, guesses, units = rng.integers(0, [[3], [3], [5]], (3, 400))
    for metric in ("balanced_accuracy", "accuracy"):
        inside = list(unit_metric(labels, guesses, units, metric).values())
        assert metric_value(labels, guesses, units, metric) == pytest.approx(np.mean(inside))
    assert not by_pseudo_values(labels, units, "balanced_accuracy")


def test_classes_absent_from_a_unit_do_not_count():
    labels = np.array([0, 0, 3, 3])
    guesses = np.array([0, 2, 3, 3])
    assert unit_metric(labels, guesses, np.full(4, 7), "balanced_accuracy") == {7: 0.75}


def test_a_split_vote_counts_by_its_share():
    # Unit 0: one row of each class; the row of class 1 gives class 1 a quarter of its vote.
    labels, guesses = np.array([0, 1, 1]), np.array([0, 0, 1])
    weights, units = np.array([1.0, 0.75, 0.25]), np.zeros(3, int)
    for metric in ("balanced_accuracy", "accuracy"):
        assert unit_metric(labels, guesses, units, metric, weights)[0] == (1 + 0.25) / 2


def test_r2_of_units_are_pseudo_values_of_the_whole():
    rng = np.random.default_rng(3)
    units, values = rng.integers(0, 9, 200), rng.normal(size=200)
    guesses = values + rng.normal(size=200)
    constant = np.full(200, values.mean())

    def among(staying):
        rows = np.isin(units, staying)
        missed = np.square(values - guesses)[rows].sum()
        return 1 - missed / np.square(values - values.mean())[rows].sum()

    found = unit_r2(values, guesses, constant, units)
    assert list(found) == list(range(9))
    assert list(found.values()) == pytest.approx(pseudo_values(among, 9))
    whole = unit_r2(values, guesses, constant, np.zeros(200, int))
    assert whole == {0: pytest.approx(r2_score(values, guesses))}
    order = rng.permutation(200)
    assert unit_r2(values[order], guesses[order], constant, units[order]) == found


def test_r2_of_values_that_are_all_the_constant_is_zero():
    ones = np.ones(6)
    assert unit_r2(ones, 2 * ones, ones, np.arange(6) % 2) == {0: 0.0, 1: 0.0}

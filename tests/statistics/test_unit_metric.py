import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from bioimg_jax.statistics.unit_metric import unit_metric


def test_agrees_with_scikit_learn_inside_each_unit():
    rng = np.random.default_rng(0)
    labels, guesses, units = rng.integers(0, [[4], [4], [3]], (3, 300))
    labels[units == 2] %= 2  # a unit that holds two of the four classes
    guesses[units == 2] %= 2
    balanced = unit_metric(labels, guesses, units, "balanced_accuracy")
    accuracy = unit_metric(labels, guesses, units, "accuracy")
    for unit in range(3):
        y, guess = labels[units == unit], guesses[units == unit]
        assert balanced[unit] == pytest.approx(balanced_accuracy_score(y, guess))
        assert accuracy[unit] == pytest.approx(np.mean(y == guess))


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

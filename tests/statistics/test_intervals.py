import numpy as np
import pytest
from scipy import stats

from bioimg_jax.statistics.intervals import t_interval, train_overlap


def test_agrees_with_scipy():
    values = [0.4, 0.55, 0.61, 0.7, 0.52]
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(t_interval(values), expected)


def test_overlap_widens_by_nadeau_bengio():
    values = [0.4, 0.55, 0.61, 0.7, 0.52]
    low, high = t_interval(values)
    wide_low, wide_high = t_interval(values, train_overlap=5 / 3)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(np.sqrt(1 + 5 / 3))
    assert wide_high + wide_low == pytest.approx(high + low)


def test_fewer_than_four_units_have_no_interval():
    assert t_interval([0.1, 0.2, 0.3]) is None
    assert t_interval([]) is None
    assert t_interval([0.5] * 4) == (0.5, 0.5)


def test_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    limits = [t_interval(rng.normal(0.6, 0.06, 5)) for _ in range(2_000)]
    covered = np.mean([low <= 0.6 <= high for low, high in limits])
    assert 0.935 < covered < 0.965


def test_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="value 1 is not finite"):
        t_interval([0.1, np.nan, 0.3, 0.4])


def test_overlap_of_leave_one_out_folds():
    blocks = np.arange(50).reshape(5, 10)
    train = [np.concatenate(np.delete(blocks, [i, (i + 1) % 5], axis=0)) for i in range(5)]
    assert train_overlap(train, list(blocks)) == pytest.approx(5 * 10 / 30)
    assert train_overlap([blocks[0]], [blocks[1]]) == 0.0
    assert train_overlap([blocks[0], blocks[1]], [blocks[2], blocks[3]]) == 0.0

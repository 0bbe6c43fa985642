import numpy as np
import pytest
from scipy import stats

from bioimg_jax.data.splits import Fold
from bioimg_jax.statistics.intervals import ratio_interval, t_interval, train_overlap


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

    def fold(train, test):
        return Fold("", train, blocks[0][:0], test, ("plate",))

    train = [np.concatenate(np.delete(blocks, [i, (i + 1) % 5], axis=0)) for i in range(5)]
    folds = [fold(*parts) for parts in zip(train, blocks, strict=True)]
    assert train_overlap(folds) == pytest.approx(5 * 10 / 30)
    assert train_overlap(folds[:1]) == 0.0
    apart = [fold(blocks[0], blocks[2]), fold(blocks[1], blocks[3])]
    assert train_overlap(apart) == 0.0


def test_fieller_is_the_set_of_ratios_that_a_t_test_does_not_refuse():
    rng = np.random.default_rng(1)
    under = rng.normal(0.4, 0.08, 9)
    over = 0.3 * under + rng.normal(0.02, 0.05, 9)
    ratio, limits = ratio_interval(over, under)
    assert ratio == pytest.approx(over.mean() / under.mean())
    assert limits[0] < ratio < limits[1]
    for limit in limits:
        assert stats.ttest_1samp(over - limit * under, 0.0).pvalue == pytest.approx(0.05)


@pytest.mark.parametrize("units", [4, 6, 20])
def test_fieller_covers_the_ratio_as_often_as_it_says(units):
    rng = np.random.default_rng(units)
    covered = []
    for _ in range(2_000):
        floor = rng.normal(0.6, 0.08, units)
        encoder = floor + rng.normal(0.1, 0.06, units)
        found = ratio_interval(encoder - floor, 1.0 - floor)  # a quarter of what is left
        if found is not None:
            covered.append(found[1][0] <= 0.25 <= found[1][1])
    assert len(covered) > 1_900
    assert 0.935 < np.mean(covered) < 0.965


@pytest.mark.parametrize("units", [4, 6, 20])
def test_fieller_covers_over_a_ceiling_that_was_measured(units):
    """By the truth, which is noisy unit by unit and shares the effects of units."""
    rng = np.random.default_rng(100 + units)
    measured, taken_as_known = [], []
    for _ in range(2_000):
        effect = rng.normal(0.0, 0.05, units)
        ceiling = 0.8 + effect + rng.normal(0.0, 0.12, units)
        floor = 0.4 + effect + rng.normal(0.0, 0.06, units)
        encoder = 0.7 + effect + rng.normal(0.0, 0.06, units)
        for top, covered in ((ceiling, measured), (ceiling.mean(), taken_as_known)):
            found = ratio_interval(encoder - floor, top - floor)
            if found is not None:
                covered.append(found[1][0] <= 0.75 <= found[1][1])
    assert len(measured) > 1_900
    assert 0.935 < np.mean(measured) < 0.965
    assert np.mean(taken_as_known) < 0.90  # its error counts


def test_a_measured_ceiling_must_be_clear_of_the_floor_by_its_own_error_too():
    rng = np.random.default_rng(5)
    floor = rng.normal(0.5, 0.01, 12)
    noise = rng.normal(0.0, 1.0, 12)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * np.sqrt(12)  # a standard error of 1
    gain = rng.normal(0.02, 0.01, 12)
    room = 0.1
    assert ratio_interval(gain, floor + room + 0.01 * noise - floor) is not None
    assert ratio_interval(gain, floor + room + 0.04 * noise - floor) is None
    assert ratio_interval(gain, np.full(12, room)) is not None  # known, not measured


def test_fieller_covers_over_folds_with_common_training_rows_only_with_their_overlap():
    rng = np.random.default_rng(3)
    g, share = 10, 0.1
    covered = {0.0: [], g / (g - 1): []}
    for _ in range(1_500):
        # Floor and encoder of a fold, each correlated 1 / g between folds.
        common, own = rng.standard_normal((2, 2, 1)), rng.standard_normal((2, 2, g))
        effect = np.sqrt(share) * common[0] + np.sqrt(1 - share) * own[0]
        floor, gain = 0.6 + 0.06 * effect[0], 0.1 + 0.06 * effect[1]
        for overlap, hits in covered.items():
            _, (low, high) = ratio_interval(gain, 1.0 - floor, train_overlap=overlap)
            hits.append(low <= 0.25 <= high)
    assert np.mean(covered[0.0]) < 0.90
    assert 0.93 < np.mean(covered[g / (g - 1)]) < 0.98


def test_a_ratio_is_given_only_over_a_denominator_clear_of_zero():
    rng = np.random.default_rng(2)
    noise = rng.normal(0.0, 1.0, 30)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * np.sqrt(30)  # a standard error of 1
    over = rng.normal(1.0, 1.0, 30)
    assert ratio_interval(over, noise + 3.1) is not None
    assert ratio_interval(over, noise + 2.9) is None
    assert ratio_interval(over, noise - 9.0) is None
    assert ratio_interval(over[:3], noise[:3] + 99.0) is None
    few = np.array([0.1, -0.1, 0.1, -0.1])  # t is 3.18 with 3 degrees of freedom
    assert ratio_interval(few, few + 3.1 * few.std(ddof=1) / 2) is None
    assert ratio_interval(over, noise + 3.1, df=2) is None


def test_what_seeds_add_to_the_numerator_widens_the_ratio():
    rng = np.random.default_rng(4)
    over, under = rng.normal(0.1, 0.06, 12), rng.normal(0.4, 0.06, 12)
    error = over.std(ddof=1) / np.sqrt(12)
    same = ratio_interval(over, under, numerator_error=error, df=11)
    assert same[1] == pytest.approx(ratio_interval(over, under)[1])
    low, high = ratio_interval(over, under, numerator_error=2 * error, df=3)[1]
    assert low < same[1][0] and high > same[1][1]

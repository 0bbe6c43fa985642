"""Inference on per-unit differences, against SciPy and by hand."""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from bioimg_jax.statistics import resampling
from bioimg_jax.statistics.resampling import (
    Paired,
    n_resamples,
    pseudo_values,
    query_interval,
    redrawn_units,
    sign_flip_p,
)


def differences(units: int, seed: int = 0, mean: float = 0.02) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.06, units)


def test_t_is_scipys() -> None:
    d = differences(9)
    paired = Paired.of(d, resamples=100)
    theirs = stats.ttest_1samp(d, 0.01, alternative="greater")
    assert float(paired.p_greater(0.01)) == pytest.approx(theirs.pvalue, rel=1e-12)
    less = stats.ttest_1samp(d, 0.01, alternative="less")
    assert float(paired.p_less(0.01)) == pytest.approx(less.pvalue, rel=1e-12)
    low, high = stats.ttest_1samp(d, 0.0).confidence_interval(0.95)
    assert float(paired.lower(0.975)) == pytest.approx(low, rel=1e-9)
    assert float(paired.upper(0.975)) == pytest.approx(high, rel=1e-9)


def test_overlap_widens_as_nadeau_and_bengio_have_it() -> None:
    d = differences(5)
    narrow, wide = Paired.of(d, resamples=100), Paired.of(d, resamples=100, overlap=1.25)
    assert float(wide.error / narrow.error) == pytest.approx(np.sqrt(2.25))


def test_seeds_add_their_variance_and_take_degrees_of_freedom() -> None:
    d = differences(12)
    units = d.var(ddof=1) / 12
    paired = Paired.of(d, resamples=100, seed_variance=np.array(0.001), seed_df=2)
    assert float(paired.error) == pytest.approx(np.sqrt(units + 0.001))
    satterthwaite = (units + 0.001) ** 2 / (units**2 / 11 + 0.001**2 / 2)
    assert float(paired.df) == pytest.approx(satterthwaite)


def test_from_20_units_on_p_is_the_larger_and_limits_are_the_wider() -> None:
    rng = np.random.default_rng(1)
    d = rng.exponential(0.06, (40, 20)) - 0.03  # skewed: t and bootstrap differ
    paired = Paired.of(d, resamples=4_000)
    error = d.std(axis=1, ddof=1) / np.sqrt(20)
    t_low = d.mean(axis=1) - error * stats.t.ppf(0.975, 19)
    t_high = d.mean(axis=1) + error * stats.t.ppf(0.975, 19)
    assert (paired.lower(0.975) <= t_low + 1e-12).all()
    assert (paired.upper(0.975) >= t_high - 1e-12).all()
    assert (paired.upper(0.975) > t_high + 1e-3).mean() > 0.5  # a long right tail
    t_p = stats.t.sf(d.mean(axis=1) / error, 19)
    assert (paired.p_greater() >= t_p - 1e-12).all()


def test_bootstrap_pivots_are_those_of_redrawn_units() -> None:
    d = differences(20)[None]
    (counts,) = redrawn_units(20, 50)
    pivots = resampling.bootstrap_pivots(d, 50)[:, 0]
    for row, pivot in zip(counts.astype(int), pivots, strict=True):
        redrawn = np.repeat(d[0], row)
        expected = (redrawn.mean() - d.mean()) / (redrawn.std() / np.sqrt(19))
        assert pivot == pytest.approx(expected, rel=1e-3)


def test_units_are_redrawn_uniformly_and_independently() -> None:
    # More than one block of each, and one drawn block short.
    for g, resamples in ((7, 60_000), (300, 2_000)):
        blocks = list(redrawn_units(g, resamples))
        counts = np.concatenate(blocks)
        assert len(blocks) > 1 and counts.shape == (resamples, g) and counts.dtype == np.float32
        assert (counts.sum(axis=1) == g).all()
        np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=5 / np.sqrt(resamples))
        np.testing.assert_allclose(counts.var(), 1 - 1 / g, rtol=0.02)
        together = np.mean(counts[:, 0] * counts[:, -1]) - 1.0
        assert together == pytest.approx(-1 / g, abs=5 / np.sqrt(resamples))
        assert len(np.unique(counts[:2_000], axis=0)) > 600  # no block is drawn twice
        ends = np.cumsum([len(block) for block in blocks])
        assert not np.array_equal(blocks[0][:100], counts[ends[0] : ends[0] + 100])


def test_a_resample_depends_on_nothing_but_its_number() -> None:
    d = np.random.default_rng(5).exponential(0.06, (6, 90))
    many = resampling.bootstrap_pivots(d, 9_000)
    np.testing.assert_allclose(resampling.bootstrap_pivots(d, 5_000), many[:5_000], atol=1e-4)
    np.testing.assert_allclose(resampling.bootstrap_pivots(d[2:3], 9_000), many[:, 2:3], atol=1e-4)


def test_no_size_of_a_block_changes_p_or_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    d = np.random.default_rng(6).exponential(0.06, (5, 24)) - 0.03

    def found() -> list[np.ndarray]:
        paired = Paired.of(d, resamples=6_000)
        return [paired.p_greater(), paired.p_less(), paired.lower(0.975), paired.upper(0.99)]

    resampling._pivots_of_few.cache_clear()
    whole = found()
    for pivots, kept in ((12_000, 1 << 26), (1, 1 << 25), (1 << 22, 0)):
        monkeypatch.setattr(resampling, "BLOCK_VALUES", pivots)
        monkeypatch.setattr(resampling, "KEPT_VALUES", kept)
        resampling._pivots_of_few.cache_clear()
        for one, other in zip(found(), whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)


def test_memory_is_bounded_whatever_the_units_and_the_family() -> None:
    # 1,500 units and 60,000 resamples: the counts alone would be 360 MB of float32.
    resampling._kept_counts.cache_clear()
    d = np.random.default_rng(7).normal(0.02, 0.06, (9, 1_500))
    tracemalloc.start()
    try:
        paired = Paired.of(d, resamples=60_000)
        paired.p_greater()
        paired.upper(0.975)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    # What is kept between calls, at most: a byte each.
    kept = resampling._kept_counts.cache_info()
    assert kept.currsize == 0 and kept.maxsize * resampling.DRAWN_VALUES == 1 << 26


def test_p_is_the_larger_of_t_and_bootstrap_wherever_it_lies() -> None:
    d = 0.075 - np.random.default_rng(8).exponential(0.06, (30, 20))
    plain, both = Paired.of(d, resamples=0), Paired.of(d, resamples=4_000)
    drawn = resampling.bootstrap_pivots(d, 4_000)
    pivots = d.mean(axis=1) / (d.std(axis=1, ddof=1) / np.sqrt(20))
    tail = (1 + (drawn >= pivots).sum(axis=0)) / 4_001
    np.testing.assert_allclose(
        both.p_greater(), np.maximum(plain.p_greater(), tail), atol=3 / 4_001
    )
    assert (both.p_greater() > plain.p_greater() + 0.01)[plain.p_greater() > 0.1].any()
    spared = Paired.of(d, resamples=4_000, sparing=True).p_greater()
    decisive = plain.p_greater() < resampling.DECISIVE
    assert decisive.any() and not decisive.all()
    np.testing.assert_array_equal(spared, np.where(decisive, both.p_greater(), plain.p_greater()))


def test_p_and_limit_of_the_bootstrap_say_the_same() -> None:
    d = np.random.default_rng(3).normal(0.02, 0.06, (60, 24))
    paired = Paired.of(d, resamples=4_000)
    for null in (-0.01, 0.0, 0.01):
        significant = paired.p_greater(null) < 0.025
        beyond = paired.lower(0.975) > null
        assert (significant == beyond).mean() > 0.97  # the limit is a quantile, p is a count


def test_sign_flips_are_exact() -> None:
    d = differences(7, seed=4)
    patterns = np.array(list(itertools.product([-1, 1], repeat=7)))
    expected = np.mean(patterns @ np.abs(d) >= d.sum() - 1e-12)
    assert sign_flip_p(d) == pytest.approx(expected)
    assert sign_flip_p(np.ones(6)) == 2**-6
    assert sign_flip_p(np.ones(21)) is None


def test_pseudo_values_of_a_mean_are_the_values() -> None:
    d = differences(6)
    values = pseudo_values(lambda kept: float(d[list(kept)].mean()), 6)
    np.testing.assert_allclose(values, d, atol=1e-12)


def test_pseudo_values_of_a_variance_give_its_unbiased_estimate() -> None:
    d = differences(15, seed=2)
    values = pseudo_values(lambda kept: float(d[list(kept)].var()), 15)
    assert values.mean() == pytest.approx(d.var(ddof=1), rel=1e-9)


def test_resamples_follow_the_family() -> None:
    assert n_resamples(5, 8) == 32_000
    assert n_resamples(20, 8) == 128_000
    assert n_resamples(1, 1) == 4_000


def test_constant_differences_are_seen() -> None:
    d = np.stack([np.full(6, 0.1), differences(6), np.zeros(6)])
    assert Paired.of(d, resamples=10).constant.tolist() == [True, False, True]


def test_halls_transformation_asks_more_where_a_tail_may_be_missing() -> None:
    rng = np.random.default_rng(2)
    long = rng.exponential(0.06, 20)
    plain = Paired.of(long, resamples=0)
    assert float(plain.sample_skewness) == pytest.approx(stats.skew(long))
    guarded = dataclasses.replace(plain, skewness=plain.sample_skewness)
    null = float(long.mean() + 2 * plain.error)  # the mean seems to lie below it
    assert float(guarded.p_less(null)) > 1.5 * float(plain.p_less(null))
    t, a = -2.0, stats.skew(long) / np.sqrt(20)
    expected = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6  # Hall 1992, written out
    assert float(guarded.p_less(null)) == pytest.approx(stats.t.cdf(expected, 19), rel=1e-6)
    few = dataclasses.replace(Paired.of(long[:19], resamples=0), skewness=np.array(1.0))
    assert float(few.p_less(null)) == float(Paired.of(long[:19], resamples=0).p_less(null))


def queries(rng: np.random.Generator, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Skewed values of 1 to about 10 queries a unit, of mean 0.25, with effects of units."""
    sizes = 1 + rng.poisson(4, units)
    level = np.repeat(rng.beta(1, 3, units), sizes)
    return rng.beta(4 * level + 0.01, 4 * (1 - level) + 0.03), np.repeat(np.arange(units), sizes)


@pytest.mark.parametrize("units", [4, 8, 20])
def test_query_intervals_cover_and_queries_taken_one_by_one_do_not(units: int) -> None:
    rng = np.random.default_rng(units)
    truth = float(np.mean([np.mean(queries(rng, 4_000)[0]) for _ in range(5)]))
    whole, single = [], []
    for _ in range(800):
        values, names = queries(rng, units)
        for name, hits in ((names, whole), (np.arange(len(values)), single)):
            low, high = query_interval(values, name, resamples=600).interval or (1.0, 0.0)
            hits.append(low <= truth <= high)
    assert np.mean(whole) > 0.93
    assert np.mean(single) < 0.90


def test_query_intervals_agree_with_scipy_where_units_are_many() -> None:
    rng = np.random.default_rng(1)
    values, names = queries(rng, 400)
    sums, sizes = np.bincount(names, weights=values), np.bincount(names)

    def mean(s: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return s.sum(axis=axis) / n.sum(axis=axis)

    theirs = stats.bootstrap(
        (sums, sizes), mean, paired=True, n_resamples=4_000, rng=np.random.default_rng(0)
    ).confidence_interval
    mine = query_interval(values, names, resamples=4_000)
    assert mine.value == pytest.approx(values.mean())
    assert (mine.n_queries, mine.n_units) == (len(values), 400)
    assert "shown only" in mine.kind
    width = theirs.high - theirs.low
    assert mine.interval == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_query_intervals_are_a_function_of_the_values_of_units_not_of_their_order() -> None:
    values, names = queries(np.random.default_rng(5), 12)
    order = np.random.default_rng(6).permutation(len(values))
    first = query_interval(values, names, resamples=500)
    assert query_interval(values[order], names[order], resamples=500) == first


def test_query_intervals_say_nothing_of_too_few_units_or_of_no_variance() -> None:
    assert query_interval([0.1, 0.4, 0.2, 0.9], list("aabc"), resamples=100).interval is None
    assert query_interval([0.3] * 8, list("aabbccdd"), resamples=100).interval is None
    with pytest.raises(ValueError, match="query 1 is not finite"):
        query_interval([0.1, np.nan], ["a", "b"], resamples=100)
    with pytest.raises(ValueError, match="2 values of queries for 1 units"):
        query_interval([0.1, 0.2], ["a"], resamples=100)

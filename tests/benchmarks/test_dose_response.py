import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from bioimg_jax.benchmarks import dose_response
from bioimg_jax.benchmarks.dose_response import dose_responses, fit_hill, jonckheere
from bioimg_jax.errors import InputError

DOSES = np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])


def curve(dose, bottom, top, ec50, hill):
    with np.errstate(divide="ignore"):
        return bottom + (top - bottom) / (1 + (ec50 / dose) ** hill)


def series(replicates=3, sd=0.1, seed=0, bottom=1.0, top=3.0, ec50=0.5, hill=1.3):
    dose = np.repeat(DOSES, replicates)
    noise = np.random.default_rng(seed).normal(0, sd, len(dose))
    return curve(dose, bottom, top, ec50, hill) + noise, dose


@pytest.mark.parametrize("hill", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("bottom", "top"), [(1.0, 3.0), (5.0, -1.0)])
def test_an_exact_curve_is_found(bottom, top, hill):
    y, dose = series(sd=0.0, bottom=bottom, top=top, hill=hill)
    with_controls = np.append(y, [bottom] * 4), np.append(dose, np.zeros(4))
    for values, doses in ((y, dose), with_controls):
        found = fit_hill(values, doses)
        assert found.failure == ""
        assert found.ec50 == pytest.approx(0.5, rel=1e-4)
        assert found.hill == pytest.approx(hill, rel=1e-4)
        assert (found.bottom, found.top) == pytest.approx((bottom, top), abs=1e-3)
        assert found.r2 == pytest.approx(1.0)
        assert found.interval == pytest.approx((0.5, 0.5), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_curve_fit(seed):
    y, dose = series(seed=seed)
    found = fit_hill(y, dose)
    start, bounds = (y.min(), y.max(), 1.0, 1.0), ([-9, -9, 0.01, 0.25], [9, 9, 30, 8])
    expected, _ = optimize.curve_fit(curve, dose, y, start, bounds=bounds, xtol=1e-12, ftol=1e-12)
    np.testing.assert_allclose(
        [found.bottom, found.top, found.ec50, found.hill], expected, rtol=1e-4
    )
    residual = y - curve(dose, *expected)
    assert found.r2 == pytest.approx(1 - residual.var() / y.var())


def test_the_interval_ends_where_f_says():
    y, dose = series()
    found = fit_hill(y, dose)

    def least(ec50):
        def of(x):
            return np.square(y - curve(dose, x[0], x[1], ec50, x[2])).sum()

        start = (found.bottom, found.top, found.hill)
        return optimize.minimize(of, start, method="Nelder-Mead", options={"xatol": 1e-9}).fun

    n = len(y)
    limit = least(found.ec50) * (1 + stats.f.ppf(0.95, 1, n - 4) / (n - 4))
    for end in found.interval:
        assert least(end) == pytest.approx(limit, rel=1e-5)


def test_the_interval_covers():
    hits = [
        low <= 0.5 <= high
        for low, high in (
            fit_hill(*series(replicates=2, sd=0.3, seed=s)).interval for s in range(100)
        )
    ]
    assert stats.binomtest(sum(hits), 100, 0.95).pvalue > 0.01


def test_failures_say_why():
    y, dose = series(sd=0.0, ec50=60.0)
    found = fit_hill(y, dose)
    assert found.ec50 is None and found.failure == "the EC50 is beyond the doses 0.01 ... 30"
    assert 0 < found.interval[0] <= 30 and found.interval[1] == math.inf
    y, dose = series(sd=0.05, ec50=0.0001)
    found = fit_hill(y, dose)
    assert found.ec50 is None and found.failure
    assert found.interval[0] == 0.0
    assert fit_hill(np.full(24, 0.1), dose).failure == "all values are equal"
    few = np.repeat(DOSES[:3], 4)
    assert fit_hill(few, few).failure == "12 wells at 3 doses, expected 5 or more at 4"
    assert fit_hill(DOSES[:4], DOSES[:4]).failure == "4 wells at 4 doses, expected 5 or more at 4"
    noise = np.random.default_rng(2).normal(size=8)
    found = fit_hill(noise, DOSES)
    assert found.failure == "doses 0.01 ... 30 do not determine the EC50"
    assert found.interval == (0.0, math.inf)


def test_compounds_are_fitted_one_by_one_and_noise_has_no_ec50():
    y, dose = series()
    noise = np.random.default_rng(0).normal(size=24)
    values = np.concatenate([y, noise, [1.0, 2.0], [1.0, 5.0, 2.0, 7.0]])
    doses = np.concatenate([dose, dose, [1.0, 1.0], [1.0, 2.0, 1.0, 2.0]])
    compounds = ["b"] * 24 + ["noise"] * 24 + ["one dose"] * 2 + ["two doses"] * 4
    found = dose_responses(values, doses, compounds)
    assert found.excluded == {"one dose": "2 wells at one dose, expected two doses or more"}
    first, second, third = found.compounds
    assert (first.compound, second.compound, third.compound) == ("b", "noise", "two doses")
    assert first.ec50 == pytest.approx(fit_hill(y, dose).ec50) and first.failure == ""
    assert (first.n_wells, first.n_doses, first.trend_exact) == (24, 8, True)
    assert first.trend_p < 1e-9 and first.trend > 0.9
    assert second.ec50 is None and second.trend_p > 0.05
    assert third.failure == "4 wells at 2 doses, expected 5 or more at 4"
    assert third.trend == 1.0 and third.trend_p == pytest.approx(1 / 6)
    order = np.random.default_rng(1).permutation(len(values))
    again = dose_responses(values[order], doses[order], np.array(compounds)[order])
    assert again == found


def test_noise_seldom_has_an_ec50_and_a_falling_curve_has_one():
    rng, dose = np.random.default_rng(0), np.repeat(DOSES, 2)
    compounds = np.repeat(np.arange(60), 16)
    found = dose_responses(rng.normal(size=960), np.tile(dose, 60), compounds).compounds
    assert sum(c.ec50 is not None for c in found) <= 8  # 5 % of 60 is 3
    assert any(c.failure.startswith("no trend with dose (p = ") for c in found)
    y, dose = series(bottom=3.0, top=1.0)
    (falling,) = dose_responses(y, dose, ["a"] * 24).compounds
    assert falling.ec50 and falling.top < falling.bottom
    assert falling.trend < 0 and falling.trend_p > 0.99


def test_doses_that_differ_by_rounding_are_one():
    dose = np.array([0.1 + 0.2, 0.3, 1.0, 1.0])
    (found,) = dose_responses([1.0, 2.0, 3.0, 4.0], dose, ["a"] * 4).compounds
    assert found.n_doses == 2 and found.trend_p == pytest.approx(1 / 6)


def slow_trend(y, dose):
    """J of all arrangements of the doses."""

    def j(doses):
        return sum(
            (y[b] > y[a]) + 0.5 * (y[b] == y[a])
            for a in range(len(y))
            for b in range(len(y))
            if doses[a] < doses[b]
        )

    drawn = [j(doses) for doses in set(itertools.permutations(dose))]
    most = sum(a < b for a in dose for b in dose)
    return 2 * j(dose) / most - 1, np.mean([x >= j(dose) for x in drawn])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("doses", [(1, 1, 2, 2, 3, 3), (0, 0, 0, 1, 5, 9), (1, 2, 3, 4, 5, 6)])
def test_trend_is_exact(doses, seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=6) + 0.3 * np.arange(6)
    trend, p, exact = jonckheere(y, np.array(doses))
    assert exact and (trend, p) == pytest.approx(slow_trend(y, doses))
    tied = np.round(y)
    trend, p, exact = jonckheere(tied, np.array(doses), draws=4_999)
    own_trend, own_p = slow_trend(tied, doses)
    assert not exact and trend == pytest.approx(own_trend)
    assert p == pytest.approx(own_p, abs=4 * np.sqrt(own_p * (1 - own_p) / 5_000) + 1e-3)


def test_trend_of_two_doses_is_mann_whitney():
    rng = np.random.default_rng(0)
    low, high = rng.normal(size=20), rng.normal(0.5, 1, size=30)
    y, dose = np.append(low, high), np.repeat([1.0, 2.0], [20, 30])
    peer = stats.mannwhitneyu(high, low, alternative="greater", method="exact")
    trend, p, exact = jonckheere(y, dose)
    assert exact and p == pytest.approx(peer.pvalue, rel=1e-9)
    assert trend == pytest.approx(2 * peer.statistic / 600 - 1)


def test_many_wells_are_drawn_and_agree_with_exact(monkeypatch):
    y, dose = series(replicates=4, sd=8.0, seed=3)
    exact = jonckheere(y, dose)
    monkeypatch.setattr(dose_response, "EXACT_PAIRS", 10)
    monkeypatch.setattr(dose_response, "BLOCK", 10_000)
    drawn = jonckheere(y, dose, draws=4_999)
    assert exact[2] and not drawn[2] and drawn[0] == exact[0] and 0.01 < exact[1] < 0.99
    assert drawn[1] == pytest.approx(exact[1], abs=4 * np.sqrt(0.25 / 5_000))


def test_equal_values_have_no_trend():
    assert jonckheere(np.full(8, 0.1), DOSES, draws=99) == (0.0, 1.0, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": [1.0, np.nan]}, "value of row 1 is nan, expected a finite number"),
        ({"doses": [1.0, np.nan]}, "dose of row 1 is nan"),
        ({"doses": [1.0, -2.0]}, "dose of row 1 is -2, expected 0 or more"),
        ({"doses": ["1 uM", 2.0]}, "dose of row 0 is '1 uM', expected a finite number"),
        ({"doses": [1.0]}, r"dose: a column of shape \(1,\) for 2 rows"),
        ({"compounds": ["a", None]}, "row 1 has no compound"),
        ({"confidence": 95}, "dose response: confidence 95 and draws 9999, expected between"),
        ({"draws": 0}, "dose response: confidence 0.95 and draws 0"),
    ],
)
def test_wrong_input_is_one_line(change, said):
    given = {"values": [1.0, 2.0], "doses": [1.0, 2.0], "compounds": ["a", "a"]} | change
    with pytest.raises(InputError, match=said):
        dose_responses(**given)
    with pytest.raises(InputError, match="two doses or more"):
        jonckheere(np.arange(3.0), np.ones(3))

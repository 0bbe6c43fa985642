"""What a design can reach, against simulation."""

import json

import numpy as np
import pytest
from scipy import stats

from bioimg_jax.statistics.plan import Design, plan, plan_table
from bioimg_jax.statistics.resampling import Paired
from bioimg_jax.statistics.verdict import ALPHA, p_above, p_same


def simulated(units: int, gain: float, sets: int = 4_000) -> Paired:
    d = np.random.default_rng(units).normal(gain, 0.06, (sets, 1, units))
    return Paired.of(d, resamples=0)


@pytest.mark.parametrize("units", [5, 12, 19])
def test_the_detectable_gain_is_found_in_four_of_five_runs(units: int) -> None:
    alone, family = plan(units, floors=1, family=8).detectable or (0.0, 0.0)
    assert (p_above(simulated(units, alone)) < ALPHA).mean() == pytest.approx(0.8, abs=0.025)
    found = p_above(simulated(units, family)) < ALPHA / 8
    assert found.mean() == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize("floors", [1, 5, 9])
@pytest.mark.parametrize("units", [6, 20])
def test_the_detectable_gain_is_over_that_many_tied_floors(units: int, floors: int) -> None:
    # Scores of an encoder and its floors, correlated 0.5, and SciPy's paired t test of each.
    rng = np.random.default_rng([units, floors])
    common = rng.standard_normal((6_000, 1, units))
    scores = 0.06 * (common + rng.standard_normal((6_000, 1 + floors, units))) / np.sqrt(2)
    found = plan(units, floors=floors, family=8).detectable or (0.0, 0.0)
    for gain, alpha in zip(found, (ALPHA, ALPHA / 8), strict=True):
        tests = stats.ttest_rel(scores[:, :1] + gain, scores[:, 1:], axis=2, alternative="greater")
        beaten = (tests.pvalue < alpha).all(axis=1)
        assert beaten.mean() == pytest.approx(0.8, abs=0.02)


def test_over_one_floor_the_detectable_gain_is_the_noncentral_ts() -> None:
    alone, family = plan(9, floors=1, family=8).detectable or (0.0, 0.0)
    for gain, alpha in ((alone, ALPHA), (family, ALPHA / 8)):
        power = stats.nct.sf(stats.t.ppf(1 - alpha, 8), 8, gain / 0.06 * 3)
        assert power == pytest.approx(0.8, abs=1e-9)


def test_the_power_of_same_is_simulations() -> None:
    for units in (12, 19):
        expected = (p_same(simulated(units, 0.0), 0.05) < 0.05).mean()
        found = plan(units, floors=1, family=1, delta=0.05).power_same
        assert found == pytest.approx(expected, abs=0.025)


def test_units_for_same_are_the_smallest_that_do() -> None:
    found = plan(10, floors=5, family=1)
    assert found.units_same is not None
    assert plan(found.units_same, floors=5, family=1).power_same >= 0.8
    assert plan(found.units_same - 1, floors=5, family=1).power_same < 0.8
    assert plan(10, floors=5, family=1, overlap=1.0).units_same > found.units_same


def test_a_design_says_what_it_can_say() -> None:
    few = plan(3, floors=4, family=2)
    assert few.detectable is None and few.power_same == 0.0
    assert "3 units: always cannot tell" in few.sentence()
    text = plan(6, floors=4, family=5).sentence()
    assert text.startswith("6 units: 'above' finds gains from 0.1")
    assert "(in this family) over 4 tied floors in 80% of runs" in text
    assert "over one floor in" in plan(6, floors=1, family=5).sentence()


def test_a_run_is_a_table_whose_family_is_all_of_its_tests() -> None:
    designs = [
        Design("compound", "linear", 24, floors=4),
        Design("compound", "knn", 24, floors=4, delta=0.05),
        Design("patient", "linear", 3, floors=2),
    ]
    rows = plan_table(designs, encoders=2)
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["target"], row["benchmark"], row["n_units"]) for row in rows] == [
        ("compound", "linear", 24), ("compound", "knn", 24), ("patient", "linear", 3),
    ]  # fmt: skip
    alone = plan(24, floors=4, family=6)
    assert (rows[0]["detectable_alone"], rows[0]["detectable_family"]) == alone.detectable
    assert rows[0]["units_same"] == alone.units_same
    assert rows[0]["detectable_alone"] < rows[0]["detectable_family"]
    assert rows[0]["power_same"] < rows[1]["power_same"] and "± 0.05" in rows[1]["sentence"]
    assert rows[2]["detectable_alone"] is None and "always cannot tell" in rows[2]["sentence"]

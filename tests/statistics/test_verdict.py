"""The verdicts, one rule after the other, and which of two wins."""

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bioimg_jax.errors import InputError
from bioimg_jax.statistics import verdict
from bioimg_jax.statistics.resampling import Paired
from bioimg_jax.statistics.verdict import (
    ALPHA,
    Case,
    Verdict,
    _binomial_bound,
    holm,
    judge,
    units_needed,
)

UNITS = [f"plate{i:02d}" for i in range(12)]
NOISE = np.random.default_rng(7).normal(0.0, 0.02, (8, 40))


def scores(mean: float, row: int = 0, units: int = 12) -> dict[str, float]:
    return {f"plate{i:02d}": float(mean + NOISE[row, i]) for i in range(units)}


def wells(*given: Any, **more: Any) -> dict[str, dict[str, float]]:
    """What the metadata score, as a case takes it."""
    return {"well": scores(*given, **more)}


def case(**changes: Any) -> Case:
    """An encoder 0.1 above its two floors on 12 plates; `changes` replace fields."""
    usual: dict[str, Any] = {
        "benchmark": "compound",
        "encoder": "mae",
        "values": [scores(0.6)],
        "floors": {"pixels": scores(0.5, 1), "twin": scores(0.45, 2)},
        "ceiling": 1.0,
    }
    return Case(**{**usual, **changes})


def one(**changes: Any) -> Verdict:
    (found,) = judge([case(**changes)])
    return found


def flat(value: float) -> dict[str, float]:
    return dict.fromkeys(UNITS, value)


def test_above_below_same_and_cannot_tell() -> None:
    above = one()
    assert above.word == "above" and above.nearest == "pixels"
    assert above.gain == pytest.approx(0.1, abs=0.02)
    assert above.interval is not None and above.interval[0] > 0
    below = one(floors={"pixels": scores(0.7, 1), "twin": scores(0.45, 2)})
    assert below.word == "below" and "pixels" in below.why
    same = one(floors={"pixels": scores(0.6, 1)}, delta=0.06)
    assert same.word == "same"
    unclear = one(floors={"pixels": scores(0.6, 1)}, delta=0.005)
    assert unclear.word == "cannot tell" and f"{unclear.units_needed} units" in unclear.why


def test_the_tests_are_made_of_the_tests_against_each_floor() -> None:
    found = one(delta=0.02)
    values = np.array([scores(0.6)[u] for u in UNITS])
    p = {"greater": [], "less": []}
    limits = []
    for floor in (scores(0.5, 1), scores(0.45, 2)):
        d = values - np.array([floor[u] for u in UNITS])
        for side, collected in p.items():
            collected.append(stats.ttest_1samp(d, 0, alternative=side).pvalue)
        error = d.std(ddof=1) / np.sqrt(12)
        limits.append(
            (d.mean() - error * stats.t.ppf(0.975, 11),
             d.mean() + error * stats.t.ppf(1 - 0.025 / 2, 11))
        )  # fmt: skip
    assert found.p_above == pytest.approx(max(p["greater"]))
    assert found.p_below == pytest.approx(min(1, 2 * min(p["less"])))
    assert found.interval == pytest.approx(tuple(np.min(limits, axis=0)))


def test_lower_is_better_turns_everything_round() -> None:
    found = one(higher_is_better=False, ceiling=None)
    assert found.word == "below" and found.gain is not None and found.gain < 0
    turned = one(
        higher_is_better=False,
        ceiling=0.0,
        floors={"pixels": scores(0.7, 1), "twin": scores(0.8, 2)},
    )
    assert turned.word == "above"


# In order of precedence: what makes a case meet the rule, whatever else it meets, then the word and
# a part of the reason by which the verdict is known.
RULES: dict[str, tuple[dict[str, Any], str, str]] = {
    "nuisance": ({"nuisance": True}, "", "nuisance column"),
    "no direction": ({"higher_is_better": None}, "", "no direction"),
    "confounded": ({"confounded": "compound is the well"}, "confounded", "is the well"),
    "too few permutations": ({"permutations": 24}, "cannot tell", "24 distinct permutations"),
    "a missing floor": ({"missing": True}, "", "have not been run: twin"),
    "saturated": ({"ceiling": 0.5}, "saturated", "the ceiling is"),
    "same": ({"delta": 0.3, "ceiling": None}, "same", "between ± 0.3"),
    "below": ({"floors": {"pixels": scores(0.7, 1)}}, "below", "does better"),
    "above": ({"metadata": wells(0.5, 3)}, "above", "above every floor"),
    "cannot tell": (
        {"floors": {"pixels": scores(0.6, 1)}, "delta": 0.001}, "cannot tell", "interval",
    ),
}  # fmt: skip
# Nothing can meet both: the tests that they are made of exclude each other.
EXCLUSIVE = {("below", "above"), ("same", "cannot tell"), ("below", "cannot tell"),
             ("above", "cannot tell")}  # fmt: skip
PAIRS = [pair for pair in itertools.combinations(RULES, 2) if pair not in EXCLUSIVE]


def meets(*rules: str) -> Verdict:
    """The verdict of a case that meets all of these rules."""
    changes: dict[str, Any] = {}
    for rule in reversed(rules):  # of two that set the same field, the first has its way
        changes |= RULES[rule][0]
    if changes.pop("missing", False):
        changes["floors"] = {**changes.get("floors", {"pixels": scores(0.5, 1)}), "twin": None}
    return one(**changes)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_precedence(first: str, second: str) -> None:
    alone, both = meets(second), meets(first, second)
    assert alone.word == RULES[second][1] and RULES[second][2] in alone.why
    assert both.word == RULES[first][1] and RULES[first][2] in both.why


# Rules that stand on other evidence than those above; each case meets both of its name.
PRECEDENCE = {
    "confounded before too few units": (
        {"confounded": "compound is the well", "values": [scores(0.6, units=3)],
         "floors": {"pixels": scores(0.5, 1, units=3)}}, "confounded",
    ),
    "too few units before a missing floor": (
        {"values": [scores(0.6, units=3)], "floors": {"pixels": None}}, "cannot tell",
    ),
    "too few units before saturated": (
        {"values": [scores(0.99, units=3)], "floors": {"pixels": scores(0.99, 1, units=3)}},
        "cannot tell",
    ),
    "zero variance before saturated": (
        {"values": [flat(1.0)], "floors": {"pixels": flat(1.0)}}, "cannot tell",
    ),
    "saturated before the metadata": (
        {"ceiling": 0.5, "metadata": wells(0.62, 3)}, "saturated",
    ),
    "same before the metadata": ({"delta": 0.3, "metadata": wells(0.62, 3)}, "same"),
    "below before the metadata": (
        {"floors": {"pixels": scores(0.7, 1)}, "metadata": wells(0.62, 3)}, "below",
    ),
    "confounded by the metadata before above": ({"metadata": wells(0.62, 3)}, "confounded"),
    "not above, so not confounded by the metadata": (
        {"floors": {"pixels": scores(0.6, 1)}, "delta": 0.001, "metadata": wells(0.62, 3)},
        "cannot tell",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRECEDENCE)
def test_precedence_of_other_evidence(name: str) -> None:
    changes, word = PRECEDENCE[name]
    assert one(**changes).word == word


def test_a_detectable_sign_stands_beside_same() -> None:
    assert "detectably above" in one(floors={"pixels": scores(0.57, 1)}, delta=0.06).why
    assert "detectably below" in one(floors={"pixels": scores(0.63, 1)}, delta=0.06).why
    assert "detectably" not in one(floors={"pixels": scores(0.60, 1)}, delta=0.06).why


def test_above_must_beat_the_metadata_too() -> None:
    assert one(metadata=wells(0.5, 3)).word == "above"
    assert "metadata" in one(metadata=wells(0.6, 3)).why
    # Not even the best of them alone: every set of columns is a rival.
    several = {**wells(0.5, 3), "row and column": scores(0.6, 3), "plate": scores(0.25, 3)}
    assert one(metadata=several).word == "confounded"


def test_holm_is_the_textbooks() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(holm([p[i] for i in order]), holm(p)[order])


def test_a_family_pays_and_cases_that_the_audit_ruled_out_do_not_count() -> None:
    near = case(floors={"pixels": scores(0.578, 1)}, delta=0.001)
    (alone,) = judge([near])
    assert alone.word == "above" and 0.003 < (alone.p_above or 0) < 0.025
    others = [
        dataclasses.replace(near, encoder=f"other{i}", values=[scores(0.58, 3)]) for i in range(9)
    ]
    assert judge([near, *others])[0].word == "cannot tell"
    ruled_out = [dataclasses.replace(one, confounded="well") for one in others]
    assert judge([near, *ruled_out])[0].word == "above"


def test_zero_variance_is_settled_by_rows_inside_units_or_not_at_all() -> None:
    equal = {"values": [flat(0.75)], "floors": {"pixels": flat(0.75)}}
    assert one(**equal).word == "cannot tell"
    assert one(**equal, rows=dict.fromkeys(UNITS, 20)).word == "cannot tell"
    assert one(**equal, rows=dict.fromkeys(UNITS, 2_000)).word == "same"
    apart = {"values": [flat(0.75)], "floors": {"pixels": flat(0.5)}}
    assert one(**apart).word == "cannot tell"
    assert one(**apart, rows=dict.fromkeys(UNITS, 50)).word == "above"
    under = {"values": [flat(0.5)], "floors": {"pixels": flat(0.75)}}
    assert one(**under, rows=dict.fromkeys(UNITS, 50)).word == "below"


def nearly(value: float, off: float, odd: int, units: int = 32) -> dict[str, float]:
    return {f"plate{i:02d}": off if i < odd else value for i in range(units)}


@pytest.mark.parametrize("odd", [0, 1, 2, 3])
def test_an_encoder_that_misses_an_image_or_two_of_20_000_is_above_chance(odd: int) -> None:
    """Resamples without its odd plates have no variance: by them nobody could tell."""
    right, half = nearly(1.0, 1 - 1 / 630, odd), nearly(0.5, 0.5, 0)
    rows = dict.fromkeys(half, 630)
    about: dict[str, Any] = {"values": [right], "floors": {"chance": half}, "ceiling": None}
    found = one(**about, rows=rows)
    assert found.word == "above" and found.interval is not None
    assert found.interval[0] > 0.49 and found.interval[1] < 0.51
    assert one(values=[half], floors={"pixels": right}, ceiling=None, rows=rows).word == "below"
    if odd < 3:
        assert one(**about).word == "cannot tell"  # without rows there is no bound


def test_a_plate_that_is_far_off_is_not_settled_by_the_others() -> None:
    half = nearly(0.5, 0.5, 0)
    about: dict[str, Any] = {"values": [nearly(0.6, 0.0, 1)], "floors": {"chance": half}}
    assert one(**about, rows=dict.fromkeys(half, 2_000)).word == "cannot tell"


@pytest.mark.parametrize("share", [0.9999, 0.999, 0.99])
def test_equal_shares_near_one_are_seldom_told_apart(share: float) -> None:
    """Of 32 plates of 100 images both sides miss a few, or none: hardly any variance."""
    rng, rows, units, draws = np.random.default_rng(0), 100, 32, 4_000
    ours, floor = rng.binomial(rows, share, (2, draws, units)) / rows
    n = rows * units
    bounds = [_binomial_bound(a, b, n, ALPHA, exact=False)
              for a, b in zip(ours.mean(axis=1), floor.mean(axis=1), strict=True)]  # fmt: skip
    paired = dataclasses.replace(
        Paired.of(ours - floor, resamples=2_000, sparing=True), bounds=np.array(bounds)
    )
    error = 3 * np.sqrt(ALPHA * (1 - ALPHA) / draws)
    assert (paired.p_greater() < ALPHA).mean() <= ALPHA + error
    assert (paired.p_less() < ALPHA).mean() <= ALPHA + error


def test_a_settled_constant_floor_does_not_stand_in_the_way_of_another() -> None:
    # Twelve plates of 30 rows, all right; pixels miss a few rows of one plate.
    rows = dict.fromkeys(UNITS, 30)
    nearly = {"pixels": {**flat(1.0), "plate03": 0.9}}
    about: dict[str, Any] = {"values": [flat(1.0)], "rows": rows, "delta": 0.01}
    assert one(**about, floors=nearly).word == "saturated"
    assert one(**about, floors={**nearly, "chance": flat(0.5)}).word == "saturated"  # far beyond
    unclear = one(**about, floors={**nearly, "chance": flat(0.5)}, ceiling=None)
    assert unclear.word == "cannot tell" and "interval of the gain" in unclear.why
    open_ = {"chance": flat(0.5), **nearly, "twin": flat(0.995)}
    refused = one(**about, floors=open_)
    assert refused.word == "cannot tell"
    assert "the difference to twin is" in refused.why and "360 test rows" in refused.why
    bound = float(refused.why.split("± ")[1].split()[0])
    assert 0.005 < bound < 0.03  # twin's own, not that of a floor at one half
    # Smaller than delta whatever its error: settled too.
    wide = dict.fromkeys(UNITS, 3_000)
    assert one(**{**about, "rows": wide}, floors=open_).word == "saturated"


def test_a_constant_floor_left_open_does_not_hide_another_that_is_better() -> None:
    floors = {"twin": flat(0.74), "pixels": {u: v + 0.3 for u, v in scores(0.6).items()}}
    found = one(values=[flat(0.75)], floors=floors, rows=dict.fromkeys(UNITS, 30))
    assert found.word == "below" and found.nearest == "pixels"


def two_shares(n: int) -> np.ndarray:
    """All counts [..., 4] of n rows that both, only one, only the other and none got right."""
    return np.array([c for c in itertools.product(range(n + 1), repeat=4) if sum(c) == n])


def misses(n: int, bound: np.ndarray, steps: int) -> float:
    """Worst chance of two shares [n + 1, n + 1], however they go together, to be off by more."""
    counts, worst = two_shares(n), 0.0
    first, second = counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]
    for p in two_shares(steps) / steps:
        chance = stats.multinomial.pmf(counts, n, p)
        error = (p[1] - p[2]) - (first - second) / n
        for side in (error, -error):
            worst = max(worst, float(chance[side > bound[first, second] + 1e-12].sum()))
    return worst


def test_the_bound_of_a_difference_of_two_shares_covers_at_its_level() -> None:
    n, tail = 12, 0.025
    shares = np.arange(n + 1) / n
    bound = np.array(
        [[verdict._binomial_bound(a, b, n, tail, exact=False) for b in shares] for a in shares]
    )
    assert 0.5 * tail < misses(n, bound, 20) <= tail  # careful, and not twice as careful
    width = np.array([sum(verdict._off(share, n, tail)) for share in shares])
    assert misses(n, np.maximum(width[:, None], width[None, :]), 20) > tail  # the wider one alone


def test_a_floor_that_is_known_exactly_adds_nothing_to_the_bound() -> None:
    n, tail = 30, 0.025
    shares = np.arange(n + 1) / n
    bound = np.array([verdict._binomial_bound(a, 0.5, n, tail, exact=True) for a in shares])
    measured = [verdict._binomial_bound(a, 0.5, n, tail, exact=False) for a in shares]
    assert (bound < np.array(measured)).all()
    worst = 0.0
    for p in np.linspace(0.0, 1.0, 201):
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        for side in (p - shares, shares - p):
            worst = max(worst, float(chance[side > bound + 1e-12].sum()))
    assert 0.5 * tail < worst <= tail
    rows = dict.fromkeys(UNITS, 4)  # 48 in all: 0.2 is beyond one interval, not beyond two
    about: dict[str, Any] = {"values": [flat(0.75)], "rows": rows, "ceiling": None}
    assert one(**about, floors={"chance": flat(0.55)}).word == "above"
    assert one(**about, floors={"pixels": flat(0.55)}).word == "cannot tell"


def test_a_constant_difference_to_the_metadata_is_settled_the_same_way() -> None:
    rows = dict.fromkeys(UNITS, 50)
    offset = {unit: value - 0.2 for unit, value in scores(0.6).items()}
    assert one(metadata={"well": offset}).word == "cannot tell"
    assert one(metadata={"well": offset}, rows=rows).word == "above"
    assert one(metadata=wells(0.6), rows=rows).word == "confounded"


def test_seeds_are_averaged_and_a_method_pays_for_their_spread() -> None:
    seeds = [scores(0.6 + shift) for shift in (-0.06, 0.0, 0.06)]
    floors = {"pixels": scores(0.52, 1)}
    checkpoints = one(values=seeds, floors=floors)
    assert checkpoints.word == "above" and "these 3 checkpoints" in checkpoints.qualified_by
    method = one(values=seeds, floors=floors, method=True)
    assert method.word == "cannot tell" and "these 3 checkpoints" not in method.qualified_by
    assert method.gain == pytest.approx(checkpoints.gain)
    assert "this checkpoint" in one().qualified_by
    means = [np.mean(list(seed.values())) for seed in seeds]
    for found in (checkpoints, method):
        assert found.n_seeds == 3 and found.seed_sd == pytest.approx(np.std(means, ddof=1))
    assert one().n_seeds == 1 and one().seed_sd is None
    averaged = {unit: float(np.mean([seed[unit] for seed in seeds])) for unit in UNITS}
    single = one(values=[averaged], floors=floors)
    assert (single.gain, single.p_above) == pytest.approx((checkpoints.gain, checkpoints.p_above))


def test_row_and_floor_order_change_nothing() -> None:
    mixed = dict(reversed(scores(0.6).items()))
    floors = {"twin": scores(0.45, 2), "pixels": dict(reversed(scores(0.5, 1).items()))}
    first, second = one(), one(values=[mixed], floors=floors)
    assert first.to_row() == {**second.to_row(), "floors": first.floors}
    assert first.floors == second.floors


def test_no_order_changes_a_number_of_a_bootstrapped_family() -> None:
    units = [f"u{i:02d}" for i in range(40)]
    drawn = np.random.default_rng(3).exponential(0.06, (8, 40))

    def run(order: list[int], floors: list[int], cases: list[int]) -> dict[str, dict[str, Any]]:
        def values(row: int) -> dict[str, float]:
            return {units[i]: float(drawn[row, i]) for i in order}

        found = judge(
            [
                case(
                    encoder=f"mae{i}",
                    values=[values(i)],
                    floors={f"floor{j}": values(j) for j in floors},
                )
                for i in cases
            ]
        )
        return {verdict.encoder: verdict.to_row() for verdict in found}

    straight = run(list(range(40)), [3, 4, 5, 6, 7], [0, 1, 2])
    shuffled = np.random.default_rng(4).permutation(40).tolist()
    assert run(shuffled, [5, 7, 3, 6, 4], [2, 0, 1]) == straight


def test_the_gain_is_normalised_by_what_the_nearest_floor_leaves() -> None:
    found = one(ceiling=0.9)
    floor = np.array([scores(0.5, 1)[unit] for unit in UNITS])
    gain = np.array([scores(0.6)[unit] for unit in UNITS]) - floor
    assert found.normalised is not None and found.nearest == "pixels"
    assert found.normalised["value"] == pytest.approx(gain.mean() / (0.9 - floor).mean())
    low, high = found.normalised["interval"]
    assert low < found.normalised["value"] < high
    assert stats.ttest_1samp(gain - low * (0.9 - floor), 0.0).pvalue == pytest.approx(0.05)
    wide = one(ceiling=0.9, overlap=1.25).normalised
    assert wide is not None and wide["value"] == found.normalised["value"]
    assert wide["interval"][0] < low and wide["interval"][1] > high
    turned = one(
        values=[{unit: 1 - v for unit, v in scores(0.6).items()}],
        floors={"pixels": {unit: 1 - v for unit, v in scores(0.5, 1).items()}},
        higher_is_better=False,
        ceiling=0.1,
    )
    assert turned.normalised is not None
    assert turned.normalised["interval"] == pytest.approx([low, high])


def test_no_normalised_gain_without_a_ceiling_clearly_above_the_floor() -> None:
    assert one(ceiling=None).normalised is None
    assert one(ceiling=0.505).normalised is None
    assert one(ceiling=0.4).normalised is None
    equal = one(values=[flat(0.75)], floors={"pixels": flat(0.5)}, rows=dict.fromkeys(UNITS, 50))
    assert equal.word == "above" and equal.normalised is None  # no error, no interval


def test_a_measured_ceiling_enters_the_normalised_gain_unit_by_unit() -> None:
    truth = scores(0.9, 5)
    found = one(ceiling=truth)
    encoder, floor, top = (
        np.array([of[unit] for unit in UNITS]) for of in (scores(0.6), scores(0.5, 1), truth)
    )
    gain = encoder - floor
    assert found.word == "above" and found.normalised is not None
    assert found.normalised["value"] == pytest.approx(gain.mean() / (top - floor).mean())
    for limit in found.normalised["interval"]:
        assert stats.ttest_1samp(gain - limit * (top - floor), 0.0).pvalue == pytest.approx(0.05)
    mirrored = one(
        values=[{unit: 1 - v for unit, v in scores(0.6).items()}],
        floors={"pixels": {unit: 1 - v for unit, v in scores(0.5, 1).items()}},
        higher_is_better=False,
        ceiling={unit: 1 - v for unit, v in truth.items()},
    )
    assert mirrored.normalised is not None
    assert mirrored.normalised["interval"] == pytest.approx(found.normalised["interval"])
    # The same in every unit is the same number as one that is known.
    same, known = one(ceiling=flat(0.9)), one(ceiling=0.9)
    assert same.normalised == known.normalised and same.to_row() == known.to_row()
    assert one(ceiling=scores(0.5, 5)).normalised is None  # not above the floor
    parallel = {unit: value + 0.4 for unit, value in scores(0.5, 1).items()}
    assert one(ceiling=parallel).normalised is None  # its error is unknown


def test_saturation_by_a_measured_ceiling_is_paired_unit_by_unit() -> None:
    wide = {unit: 0.7 + 20 * (v - 0.5) for unit, v in scores(0.5, 1).items()}  # sd 0.4
    shifted = {unit: v + 0.1 + 0.1 * NOISE[4, i] for i, (unit, v) in enumerate(wide.items())}
    about: dict[str, Any] = {"floors": {"pixels": wide}, "values": [scores(0.6)]}
    # Between units the floor's mean is uncertain by more than it lacks; the difference is not.
    assert one(**about, ceiling=float(np.mean(list(shifted.values())))).word == "saturated"
    assert one(**about, ceiling=shifted).word != "saturated"
    near = {unit: v + 0.02 + 0.1 * NOISE[4, i] for i, (unit, v) in enumerate(wide.items())}
    found = one(**about, ceiling=near)
    assert found.word == "saturated"
    assert "pixels, may come within 0.0" in found.why
    assert f"on average {np.mean(list(near.values())):.3f}" in found.why
    under = {unit: v - 0.05 + 0.1 * NOISE[4, i] for i, (unit, v) in enumerate(wide.items())}
    assert "pixels, may reach what" in one(**about, ceiling=under).why
    turned = one(
        values=[{unit: 1 - v for unit, v in scores(0.6).items()}],
        floors={"pixels": {unit: 1 - v for unit, v in wide.items()}},
        higher_is_better=False,
        ceiling={unit: 1 - v for unit, v in near.items()},
    )
    assert turned.word == "saturated"


def test_the_limit_to_a_measured_ceiling_is_that_of_the_paired_t() -> None:
    truth = scores(0.6, 5)
    d = np.array([scores(0.5, 1)[u] - truth[u] for u in UNITS])
    limit = d.mean() + stats.t.ppf(0.975, 11) * d.std(ddof=1) / np.sqrt(12)
    # Another encoder far above, so that "same" is not in the way.
    about: dict[str, Any] = {"values": [scores(0.9)], "floors": {"pixels": scores(0.5, 1)}}
    assert one(**about, ceiling=truth, delta=-limit + 1e-6).word == "saturated"
    assert one(**about, ceiling=truth, delta=-limit - 1e-6).word == "above"
    folds = one(**about, ceiling=truth, delta=-limit - 1e-6, overlap=0.5)  # a wider limit
    assert folds.word == "saturated"


def test_without_variance_the_bound_covers_floor_and_measured_ceiling() -> None:
    about: dict[str, Any] = {"values": [scores(0.968)], "floors": {"pixels": flat(0.92)}}
    rows = dict.fromkeys(UNITS, 10)  # 120: 0.92 is up to 0.962, and 0.99 down to 0.955
    assert one(**about, ceiling=flat(0.99)).word != "saturated"
    assert one(**about, ceiling=0.9925, rows=rows, delta=0.02).word != "saturated"
    assert one(**about, ceiling=flat(0.9925), rows=rows, delta=0.02).word == "saturated"
    many = dict.fromkeys(UNITS, 1_000)
    assert one(**about, ceiling=flat(0.9925), rows=many, delta=0.02).word != "saturated"
    chance: dict[str, Any] = {"values": [scores(0.968)], "floors": {"chance": flat(0.92)}}
    known = one(**chance, ceiling=0.9925, rows=rows, delta=0.02)
    measured = one(**chance, ceiling=flat(0.9925), rows=rows, delta=0.05)
    assert known.word != "saturated" and measured.word == "saturated"
    assert measured.normalised is None  # the truth above chance by the same in every unit


def test_odd_units_of_the_truth_are_refused() -> None:
    with pytest.raises(InputError, match="the truth and mae differ in unit 'plate11'"):
        one(ceiling=scores(0.9, units=11))


def test_what_qualifies_a_verdict_is_said() -> None:
    found = one(omitted={"layout": "no images behind the table"})
    assert "without layout: no images behind the table" in found.qualified_by
    assert "assumes symmetric unit effects" in found.qualified_by
    assert found.floors["pixels"]["sign_flip_p"] == pytest.approx(2**-12)


def test_a_verdict_says_of_which_benchmark_and_target_it_is() -> None:
    row = one(benchmark="linear", target="compound").to_row()
    assert (row["benchmark"], row["target"]) == ("linear", "compound")
    assert one().target == ""


def test_no_direction_no_ladder() -> None:
    assert one(higher_is_better=None).word == ""


def test_units_needed_is_the_smallest_number() -> None:
    g = units_needed(0.06, 0.03)
    half = [stats.t.ppf(0.975, n - 1) * 0.06 / np.sqrt(n) for n in (g - 1, g)]
    assert half[0] > 0.03 >= half[1]
    assert units_needed(0.06, 0.03, overlap=1.0) > g
    assert units_needed(0.0001, 0.03) == verdict.MIN_UNITS


@pytest.mark.parametrize("sd", [0.02, 0.06, 0.3, 0.7, 2.0])
def test_units_needed_is_the_smallest_number_however_large(sd: float) -> None:
    g = units_needed(sd, 0.03)
    half = [stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n) for n in (g - 1, g)]
    assert half[0] > 0.03 >= half[1]


def test_units_that_are_nearly_all_alike_have_a_verdict_that_json_takes() -> None:
    units = [f"c{i:02d}" for i in range(24)]
    encoder = dict.fromkeys(units, 1.0) | {"c07": 0.6690382619316148}
    case = Case("activity", "encoder", [encoder], {"chance": dict.fromkeys(units, 0.0)})
    (found,) = judge([case])
    assert found.word in ("above", "cannot tell")
    assert found.interval is None and found.units_needed == units_needed(0.06, found.delta)
    row = json.loads(json.dumps(found.to_row(), allow_nan=False))
    assert None in (row["floors"]["chance"]["low"], row["floors"]["chance"]["high"])


def test_without_an_observed_sd_the_units_needed_are_those_of_the_usual_one() -> None:
    few = {"values": [scores(0.6, units=3)], "floors": {"pixels": scores(0.5, 1, units=3)}}
    assert one(**few).units_needed == units_needed(verdict.UNIT_SD, verdict.DELTA)
    folds = one(**few, delta=0.02, overlap=0.5)
    assert folds.units_needed == units_needed(verdict.UNIT_SD, 0.02, overlap=0.5)
    equal = one(values=[flat(0.75)], floors={"pixels": flat(0.75)})
    assert equal.word == "cannot tell"
    assert equal.units_needed == units_needed(verdict.UNIT_SD, verdict.DELTA)


def test_odd_units_and_values_are_refused() -> None:
    with pytest.raises(InputError, match="pixels and mae differ in unit 'plate11'"):
        one(floors={"pixels": scores(0.5, 1, units=11)})
    with pytest.raises(InputError, match="no finite value in unit 'plate00'"):
        one(floors={"pixels": {**scores(0.5, 1), "plate00": float("nan")}})


def test_above_is_one_claim_about_floors_and_metadata_in_one_family() -> None:
    # Eight encoders far above their floors, each in truth as good as what the metadata score.
    rng = np.random.default_rng(3)
    any_above = 0
    for _ in range(200):
        family = [
            case(
                encoder=f"mae{i}",
                values=[{u: 0.8 + float(x) for u, x in zip(UNITS, own, strict=True)}],
                metadata={"well": {u: 0.8 + float(x) for u, x in zip(UNITS, well, strict=True)}},
                ceiling=None,
            )
            for i, (own, well) in enumerate(rng.normal(0.0, 0.04, (8, 2, 12)))
        ]
        words = {found.word for found in judge(family)}
        assert words <= {"above", "confounded"}
        any_above += "above" in words
    assert any_above <= 12  # 5 expected at 0.025; each at 0.025 by itself would give 37
    alone = one(metadata=wells(0.5, 3))
    assert alone.word == "above" and alone.holm_metadata is not None
    assert one().holm_metadata is None


def test_metadata_that_nobody_can_compare_matter_for_above_alone() -> None:
    constant = {"well": scores(0.6 - 0.2)}  # the encoder less 0.2, in every unit
    refused = one(metadata=constant)
    assert refused.word == "cannot tell" and "well is the same in every unit" in refused.why
    worse = one(floors={"pixels": scores(0.7, 1)}, metadata=constant)
    assert worse.word == "below"
    assert one(metadata=constant, rows=dict.fromkeys(UNITS, 200)).word == "above"


def test_a_floor_that_was_not_run_leaves_no_gain_over_the_others() -> None:
    found = one(floors={"pixels": scores(0.5, 1), "twin": None})
    assert found.word == "" and "twin" in found.why
    assert found.gain is None and found.interval is None and found.nearest is None
    assert (found.p_above, found.p_below, found.p_same) == (None, None, None)
    assert set(found.floors) == {"pixels"}  # what was compared stays


def test_a_constant_floor_is_saturated_by_its_binomial_limit() -> None:
    close = {"values": [scores(0.968)], "floors": {"pixels": flat(0.9666)}}
    assert one(**close).word != "saturated"
    few = one(**close, rows=dict.fromkeys(UNITS, 5))  # 58 of 60: up to 0.996
    assert few.word == "saturated" and "0.99" in few.why


def test_a_difference_that_varies_by_rounding_alone_asks_for_units_as_if_unknown() -> None:
    values = {u: 0.75 + 1e-13 * i for i, u in enumerate(UNITS)}
    about = {"values": [values], "floors": {"pixels": flat(0.74)}, "ceiling": None}
    found = one(**about, rows=dict.fromkeys(UNITS, 20_000), delta=0.001)
    assert found.units_needed == units_needed(verdict.UNIT_SD, 0.001)

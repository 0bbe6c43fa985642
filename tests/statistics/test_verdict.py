"""The verdicts, one rule after the other, and which of two wins."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bioimg_jax.statistics import verdict
from bioimg_jax.statistics.verdict import Case, Verdict, holm, judge, units_needed

UNITS = [f"plate{i:02d}" for i in range(12)]
NOISE = np.random.default_rng(7).normal(0.0, 0.02, (8, 40))


def scores(mean: float, row: int = 0, units: int = 12) -> dict[str, float]:
    return {f"plate{i:02d}": float(mean + NOISE[row, i]) for i in range(units)}


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


# Each case meets both rules of its name; the first of the two must win.
PRECEDENCE = {
    "nuisance before confounded": ({"nuisance": True, "confounded": "well"}, ""),
    "confounded before cannot tell": (
        {"confounded": "compound is the well", "values": [scores(0.6, units=3)],
         "floors": {"pixels": scores(0.5, 1, units=3)}}, "confounded",
    ),
    "confounded before a missing floor": (
        {"confounded": "compound is the well", "floors": {"pixels": None}}, "confounded",
    ),
    "confounded before saturated": (
        {"confounded": "compound is the well", "floors": {"pixels": scores(0.99, 1)}},
        "confounded",
    ),
    "confounded before above": ({"confounded": "compound is the well"}, "confounded"),
    "confounded before below": (
        {"confounded": "compound is the well", "floors": {"pixels": scores(0.7, 1)}},
        "confounded",
    ),
    "confounded before same": (
        {"confounded": "x", "floors": {"pixels": scores(0.6, 1)}, "delta": 0.06}, "confounded",
    ),
    "too few units before a missing floor": (
        {"values": [scores(0.6, units=3)], "floors": {"pixels": None}}, "cannot tell",
    ),
    "too few units before saturated": (
        {"values": [scores(0.99, units=3)], "floors": {"pixels": scores(0.99, 1, units=3)}},
        "cannot tell",
    ),
    "too few permutations before above": ({"permutations": 24}, "cannot tell"),
    "zero variance before saturated": (
        {"values": [flat(1.0)], "floors": {"pixels": flat(1.0)}}, "cannot tell",
    ),
    "a missing floor before saturated": (
        {"floors": {"pixels": scores(0.99, 1), "twin": None}}, "",
    ),
    "a missing floor before above": ({"floors": {"pixels": scores(0.5, 1), "twin": None}}, ""),
    "saturated before same": (
        {"values": [scores(0.99)], "floors": {"pixels": scores(0.99, 1)}, "delta": 0.06},
        "saturated",
    ),
    "saturated before below": (
        {"values": [scores(0.7)], "floors": {"pixels": scores(0.99, 1)}}, "saturated",
    ),
    "saturated before above": (
        {"floors": {"pixels": scores(0.5, 1)}, "ceiling": 0.52}, "saturated",
    ),
    "same before below": (
        {"floors": {"pixels": scores(0.63, 1)}, "delta": 0.06}, "same",
    ),
    "same before above": ({"floors": {"pixels": scores(0.57, 1)}, "delta": 0.06}, "same"),
    "confounded by the metadata before above": ({"metadata": scores(0.62, 3)}, "confounded"),
    "below before the metadata": (
        {"floors": {"pixels": scores(0.7, 1)}, "metadata": scores(0.62, 3)}, "below",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRECEDENCE)
def test_precedence(name: str) -> None:
    changes, word = PRECEDENCE[name]
    assert one(**changes).word == word


def test_a_detectable_sign_stands_beside_same() -> None:
    assert "detectably above" in one(floors={"pixels": scores(0.57, 1)}, delta=0.06).why
    assert "detectably below" in one(floors={"pixels": scores(0.63, 1)}, delta=0.06).why
    assert "detectably" not in one(floors={"pixels": scores(0.60, 1)}, delta=0.06).why


def test_above_must_beat_the_metadata_too() -> None:
    assert one(metadata=scores(0.5, 3)).word == "above"
    assert "metadata" in one(metadata=scores(0.6, 3)).why


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


def test_a_constant_difference_to_the_metadata_is_settled_the_same_way() -> None:
    rows = dict.fromkeys(UNITS, 50)
    offset = {unit: value - 0.2 for unit, value in scores(0.6).items()}
    assert one(metadata=offset).word == "cannot tell"
    assert one(metadata=offset, rows=rows).word == "above"
    assert one(metadata=scores(0.6), rows=rows).word == "confounded"


def test_seeds_are_averaged_and_a_method_pays_for_their_spread() -> None:
    seeds = [scores(0.6 + shift) for shift in (-0.06, 0.0, 0.06)]
    floors = {"pixels": scores(0.52, 1)}
    checkpoints = one(values=seeds, floors=floors)
    assert checkpoints.word == "above" and "these 3 checkpoints" in checkpoints.qualified_by
    method = one(values=seeds, floors=floors, method=True)
    assert method.word == "cannot tell" and "these 3 checkpoints" not in method.qualified_by
    assert method.gain == pytest.approx(checkpoints.gain)
    assert "this checkpoint" in one().qualified_by


def test_row_and_floor_order_change_nothing() -> None:
    mixed = dict(reversed(scores(0.6).items()))
    floors = {"twin": scores(0.45, 2), "pixels": dict(reversed(scores(0.5, 1).items()))}
    first, second = one(), one(values=[mixed], floors=floors)
    assert first.to_row() == {**second.to_row(), "floors": first.floors}
    assert first.floors == second.floors
    many = {f"u{i:02d}": float(v) for i, v in enumerate(NOISE[4])}
    floor = {f"u{i:02d}": float(v) - 0.01 for i, v in enumerate(NOISE[5])}
    a = one(values=[many], floors={"p": floor})
    b = one(values=[dict(reversed(many.items()))], floors={"p": floor})
    assert (a.p_above, a.interval) == (b.p_above, b.interval)


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


def test_odd_units_and_values_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels and mae differ in unit 'plate11'"):
        one(floors={"pixels": scores(0.5, 1, units=11)})
    with pytest.raises(ValueError, match="no finite value in unit 'plate00'"):
        one(floors={"pixels": {**scores(0.5, 1), "plate00": float("nan")}})

"""A check must hold where it should, and fail where it should."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bioimg_jax.known_truth import expectations as ex

UNITS = [f"P{i:02d}" for i in range(12)]


def shown(name: str, value: float, kind: str = "pixels", spread: float = 0.01) -> ex.Shown:
    """Units around a mean that is `value` exactly."""
    noise = np.random.default_rng(list(name.encode())).normal(0, spread, len(UNITS))
    values = value + noise - noise.mean()
    return ex.Shown(name, kind, value, None, dict(zip(UNITS, values.tolist(), strict=True)))


def outcome(*of: ex.Shown, **changes: Any) -> ex.Outcome:
    about: dict[str, Any] = {
        "preset": "density_only",
        "benchmark": "linear",
        "target": "treatment",
        "metric": "balanced_accuracy",
        "chance": 0.5,
        "ceiling": 0.9,
        "n_test": 12_000,
        "n_units": len(UNITS),
        "confounded": "",
        "verdicts": {"mae": "same"},
        "shown": of,
    }
    return ex.Outcome(**{**about, **changes})


@pytest.mark.parametrize(("value", "holds"), [(0.87, True), (0.855, False), (0.5, False)])
def test_a_floor_reaches_the_ceiling_by_what_lies_above_chance(value: float, holds: bool) -> None:
    """0.86 is 90 % of what 0.9 lies above 0.5."""
    assert ex.reaches("nuclei")(outcome(shown("nuclei", value))).holds is holds
    assert ex.reaches("nuclei", at_least=False)(outcome(shown("nuclei", value))).holds is not holds


def test_the_best_of_several_floors_is_taken() -> None:
    two = outcome(shown("nuclei", 0.6), shown("layout", 0.88))
    assert ex.some_reaches(("nuclei", "layout"))(two).holds


@pytest.mark.parametrize(
    ("verdicts", "nobody", "everybody", "confounded"),
    [
        ({"mae": "same", "dino": "saturated"}, True, False, False),
        ({"mae": "above"}, False, True, False),
        ({"mae": "above", "dino": "same"}, False, False, False),
        ({"mae": "confounded"}, True, False, True),
        ({"mae": "confounded", "dino": "same"}, True, False, False),
        ({"mae": ""}, False, False, False),  # a floor is missing: nothing was said
        ({}, False, False, False),
    ],
)
def test_verdicts_are_read(
    verdicts: Mapping[str, str], nobody: bool, everybody: bool, confounded: bool
) -> None:
    found = outcome(shown("pixels", 0.9), verdicts=verdicts)
    assert ex.nobody_above(found).holds is nobody
    assert ex.all_above(found).holds is everybody
    assert ex.all_confounded(found).holds is confounded


def test_the_truth_of_a_protocol_is_the_best_and_no_encoder() -> None:
    words = {ex.DIALS: "above", "mae": "below"}
    truth, floor = shown(ex.DIALS, 0.9, "truth"), shown("pixels", 0.7)
    held = outcome(truth, floor, shown("mae", 0.6, "trained"), verdicts=words)
    assert all(ask(held).holds for ask in (ex.truth_above, ex.truth_leads, ex.nobody_above))
    beaten = outcome(truth, shown("pixels", 0.94), verdicts={ex.DIALS: "below"}, ceiling=0.9)
    assert not ex.truth_above(beaten).holds and not ex.truth_leads(beaten).holds
    says_nothing = outcome(truth, shown("pixels", 0.5), ceiling=0.52)
    assert not ex.truth_leads(says_nothing).holds
    assert not ex.truth_above(outcome(truth, floor)).holds


def test_what_is_asked_of_a_target_is_asked_by_name() -> None:
    about = {"preset": "mixed_screen_profiles", "benchmark": "profiles, none"}
    found = [
        outcome(shown(ex.DIALS, 0.9, "truth"), shown("pixels", value), target=target, **about,
                verdicts={ex.DIALS: "above", "mae": "below"})
        for target, value in (("nsc", 0.6), ("activity", 0.95))
    ]  # fmt: skip
    checks = {(one.preset, one.expected): one.holds for one in ex.expectations(found, [])}
    first, second = "mixed_screen_profiles, nsc", "mixed_screen_profiles, activity"
    assert checks[first, "nothing scores more than the truth"]
    assert not checks[second, "nothing scores more than the truth"]
    assert checks[second, "the truth is above its floors"]
    assert (first, "the truth is above its floors") not in checks


def test_an_encoder_above_a_floor_at_the_ceiling_is_seen_whatever_the_word() -> None:
    words = {"mae": "saturated"}
    for value, holds in ((0.92, True), (0.94, False)):
        found = outcome(shown("pixels", 0.9), shown("mae", value, "trained"), verdicts=words)
        assert ex.nobody_above(found).holds is holds


@pytest.mark.parametrize(("value", "holds"), [(0.85, True), (0.87, False)])
def test_where_no_floor_may_reach_the_ceiling_an_encoder_may(value: float, holds: bool) -> None:
    found = outcome(shown("pixels", value), shown("nuclei", 0.6), shown("mae", 0.9, "trained"))
    assert ex.none_reaches(found).holds is holds
    empty = dataclasses.replace(found, ceiling=found.chance)
    assert not ex.none_reaches(empty).holds


def test_encoders_must_score_high_and_nothing_be_called_confounded() -> None:
    high = outcome(shown("mae", 0.95, "trained"), shown("pixels", 0.6))
    assert ex.high_and_not_confounded("mae", 0.9)(high).holds
    assert not ex.high_and_not_confounded("mae", 0.96)(high).holds
    for change in ({"confounded": "confounded"}, {"verdicts": {"other": "confounded"}}):
        said = dataclasses.replace(high, **change)
        assert not ex.high_and_not_confounded("mae", 0.9)(said).holds


def test_one_floor_beats_another_by_a_paired_test() -> None:
    clear = outcome(shown("layout", 0.9), shown("pixels", 0.8))
    assert ex.beats("layout", "pixels")(clear).holds
    assert not ex.beats("layout", "pixels", expected=False)(clear).holds
    unclear = outcome(shown("layout", 0.801, spread=0.05), shown("pixels", 0.8, spread=0.05))
    assert not ex.beats("layout", "pixels")(unclear).holds
    assert ex.beats("layout", "pixels", expected=False)(unclear).holds
    folds = [dataclasses.replace(s, interval=(s.value - 0.2, s.value + 0.2)) for s in clear.shown]
    assert not ex.beats("layout", "pixels")(dataclasses.replace(clear, shown=folds)).holds
    nothing = outcome(shown("layout", 0.5, spread=0.05), shown("pixels", 0.5, spread=0.05))
    assert not ex.beats("layout", "pixels", expected=False)(nothing).holds


@pytest.mark.parametrize(
    ("value", "spread", "n_test", "holds"),
    [
        (0.5, 0.01, 12_000, True),
        (0.512, 0.01, 12_000, True),
        (0.519, 0.01, 12_000, False),  # inside, but its limit is not
        (0.481, 0.01, 12_000, False),
        (0.5, 0.06, 12_000, False),  # chance, and too noisy to say so
        (0.5, 0.01, 9_999, False),
    ],
)
def test_equivalence_to_chance_needs_both_limits_inside(
    value: float, spread: float, n_test: int, holds: bool
) -> None:
    found = outcome(shown("pixels", value, spread=spread), n_test=n_test)
    assert ex.equivalent_to_chance("pixels")(found).holds is holds


def test_a_layer_that_sees_it_is_no_chance_although_validation_chose_another() -> None:
    layers = {"pixels": [shown("pixels", 0.5), shown("pixels", 0.54)]}
    found = outcome(shown("pixels", 0.5), layers=layers)
    assert not ex.equivalent_to_chance("pixels")(found).holds
    assert ex.equivalent_to_chance("pixels")(outcome(shown("pixels", 0.5))).holds


def test_equivalence_is_claimed_falsely_one_time_in_twenty() -> None:
    """At the border of the margin, where the two tests have their level: 2,000 simulations."""
    rng = np.random.default_rng(0)
    false = 0
    for values in rng.normal(0.5 + ex.EQUIVALENT, 0.02, (2000, 12)):
        low, high = ex.equivalence_limits(values.tolist())
        false += low > 0.5 - ex.EQUIVALENT and high < 0.5 + ex.EQUIVALENT
    assert 0.03 < false / 2000 < 0.07


def test_nothing_beats_chance_counts_everything_but_the_truth() -> None:
    at_chance = [shown(f"floor_{i}", 0.5) for i in range(5)]
    truth = shown("truth_lot", 0.9, "truth")
    assert ex.none_beats_chance(outcome(*at_chance, truth)).holds
    assert not ex.none_beats_chance(outcome(*at_chance, shown("pixels", 0.55))).holds
    always_right = shown("metadata", 1.0, "metadata", spread=0.0)
    assert not ex.none_beats_chance(outcome(*at_chance, always_right)).holds
    assert ex.none_beats_chance(outcome(*at_chance, shown("metadata", 0.5, spread=0.0))).holds


def test_what_is_above_chance_goes_by_the_interval_of_the_score() -> None:
    """Folds that learn from each other vary more than their units say."""
    lucky = shown("pixels", 0.53, spread=0.04)
    assert not ex.none_beats_chance(outcome(lucky, chance=0.5)).holds
    wide = dataclasses.replace(lucky, interval=(0.49, 0.57))
    assert ex.none_beats_chance(outcome(wide, chance=0.5)).holds


def test_names_are_found_by_how_they_begin() -> None:
    two = outcome(
        shown("supervised_resnet", 0.9, "trained"),
        shown("supervised_resnet_step0", 0.5, "untrained"),
    )
    assert two.score("supervised").value == 0.9
    with pytest.raises(KeyError, match="0 representations are called 'pixels'"):
        two.score("pixels")


@pytest.mark.parametrize(
    ("expected", "count", "holds"), [(True, 200, True), (True, 199, False), (False, 0, True),
                                     (False, 1, False)],
)  # fmt: skip
def test_a_design_is_always_confounded_or_never(expected: bool, count: int, holds: bool) -> None:
    row = {
        "design": "position_only", "target": "treatment", "seeds": 200, "confounded": count,
        "interval": [0.0, 1.0], "expected": expected,
    }  # fmt: skip
    (check,) = ex.expectations([], [row])
    assert check.holds is holds


def test_every_preset_of_the_config_has_checks_of_its_own() -> None:
    import runpy

    config = runpy.run_path("configs/calibrate.py")["get_config"]()
    assert set(config.presets) <= set(ex.CHECKS)
    asked = {preset for preset, _ in ex.OF_TARGETS}
    assert {*config.screens, *config.genes} == asked
    (genes,) = config.genes.values()
    assert {target for preset, target in ex.OF_TARGETS if preset in config.genes} == {
        *genes.drivers
    }


def test_a_target_that_was_not_run_is_no_silence() -> None:
    about = {"preset": "tissue_genes", "benchmark": "expression"}
    found = [outcome(shown("pixels", 0.5), target=name, **about) for name in ("layout", "texture")]
    missing = [check for check in ex.expectations(found, []) if check.expected == ex.WAS_RUN]
    names = {"tissue_genes, composition", "tissue_genes, nothing"}
    assert {check.preset for check in missing} >= names
    assert not any(check.holds for check in missing)
    assert not ex.expectations([], [])


def test_no_encoder_above_a_floor_goes_by_that_floor() -> None:
    best, count = shown("layout", 0.97), shown("nuclei", 0.9)
    low, high = shown("mae", 0.92, "trained"), shown("other", 0.94, "trained")
    assert ex.none_above("nuclei")(outcome(best, count, low)).holds
    assert not ex.none_above("nuclei")(outcome(best, count, low, high)).holds
    assert not ex.none_above("nuclei")(outcome(best, count)).holds  # nobody was asked


def test_a_preset_without_a_ceiling_is_told_and_no_error() -> None:
    found = outcome(shown("pixels", 0.9), ceiling=None)
    assert "of no ceiling" in ex.reaches("pixels")(found).found
    assert not ex.none_reaches(found).holds


def test_what_nobody_may_find_is_asked_of_every_benchmark() -> None:
    floors = [shown(name, 0.5) for name in ex.BLIND]
    first = dataclasses.replace(
        outcome(*floors, shown("supervised_resnet", 1.0, "trained")), preset="handedness_only"
    )
    leaking = [shown(name, 0.5) for name in ex.BLIND if name != "pixels"] + [shown("pixels", 0.6)]
    second = dataclasses.replace(outcome(*leaking), preset="handedness_only", benchmark="ridge")
    found = ex.expectations([first, second], [])
    asked = [check for check in found if check.preset == "handedness_only, ridge"]
    assert len(asked) == len(ex.BLIND)
    assert [check.expected.split()[0] for check in asked if not check.holds] == ["pixels"]
    assert len(found) == len(ex.RELATIONAL) + len(ex.BLIND)

"""What must come out of generated experiments whose truth is known, and whether it did."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from bioimg_jax.benchmarks.ladder import TRUTH
from bioimg_jax.representations.representation import ENCODERS
from bioimg_jax.statistics.intervals import t_interval
from bioimg_jax.statistics.verdict import ABOVE, CONFOUNDED, DELTA, NONE

DIALS = "dials"  # the truth where it takes part as an encoder, and how names of parts of it begin
REACHED = 0.9  # of what the ceiling lies above chance
WAS_RUN = "everything that is asked about was run"
EQUIVALENT = 0.02  # to chance, on either side
EQUIVALENT_ALPHA = 0.05  # of each of the two one-sided tests
LEAST_TEST = 10_000  # images behind a claim of equivalence


@dataclasses.dataclass(frozen=True)
class Shown:
    """The score of one representation, of the layer that validation chose."""

    representation: str
    kind: str
    value: float
    interval: Sequence[float] | None
    per_unit: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one benchmark made of one target of one preset.

    factors: what the label was drawn from (`Target.truth`). ceiling: the truth's own score.
    confounded: what the metadata audit said. verdicts: encoder -> word. layers: representation ->
    the score of each of its layers.
    """

    preset: str
    benchmark: str
    target: str
    metric: str
    chance: float
    ceiling: float | None
    n_test: int
    n_units: int
    confounded: str
    verdicts: Mapping[str, str]
    shown: Sequence[Shown]
    factors: Sequence[str] = ()
    layers: Mapping[str, Sequence[Shown]] = dataclasses.field(default_factory=dict)

    def score(self, name: str) -> Shown:
        """Of a representation by its name, or by how its name begins where only one does."""
        exact = [one for one in self.shown if one.representation == name]
        begins = [one for one in self.shown if one.representation.startswith(name)]
        found = exact or [one for one in begins if one.kind == "trained"] or begins
        if len(found) != 1:
            raise KeyError(f"{self.preset}: {len(found)} representations are called {name!r}")
        return found[0]

    def of_ceiling(self, one: Shown) -> str:
        """A score beside the ceiling, in words."""
        ceiling = "no ceiling" if self.ceiling is None else f"{self.ceiling:.3f}"
        return f"{one.value:.3f} of {ceiling}: {self.share(one):.0%}"

    def share(self, one: Shown) -> float:
        """How much of what the ceiling lies above chance a score reaches."""
        room = (1.0 if self.ceiling is None else self.ceiling) - self.chance
        return (one.value - self.chance) / room if room > 0 else 0.0

    def to_row(self) -> dict[str, Any]:
        """As plain JSON, with what each score reaches of the ceiling (`share`)."""
        row = dataclasses.asdict(self)
        del row["layers"]  # results.json of the preset has them
        for shown, one in zip(row["shown"], self.shown, strict=True):
            shown["share"] = self.share(one)
            shown["reaches"] = one.kind != TRUTH and shown["share"] >= REACHED
        return row


@dataclasses.dataclass(frozen=True)
class Check:
    """One sentence that must hold, what was found, and whether it holds."""

    preset: str
    expected: str
    found: str
    holds: bool


def expectations(outcomes: Sequence[Outcome], audits: Sequence[Mapping[str, Any]]) -> list[Check]:
    """The checks of everything that was run; a preset that was not run has none.

    What a floor reaches is asked of the first target by the first benchmark, what nobody may find
    (`EVERYWHERE`) of the first target by every benchmark, and what stands in `OF_TARGETS` of the
    targets that it names, each of which must have been run.
    """
    first: dict[str, Outcome] = {}
    found = []
    ran = {(outcome.preset, outcome.target) for outcome in outcomes}
    for preset, target in OF_TARGETS:
        if (preset, target) not in ran and preset in {name for name, _ in ran}:
            name = f"{preset}, {target}"
            found.append(Check(name, WAS_RUN, f"{target} has no score", False))
    for outcome in outcomes:
        for check in OF_TARGETS.get((outcome.preset, outcome.target), ()):
            name = f"{outcome.preset}, {outcome.target}"
            found.append(dataclasses.replace(_asked(check, outcome), preset=name))
        primary = first.setdefault(outcome.preset, outcome)
        if outcome is not primary and outcome.benchmark == primary.benchmark:
            continue  # another target of it
        for check in CHECKS.get(outcome.preset, ()):
            if outcome is not primary and check not in EVERYWHERE:
                continue
            one = _asked(check, outcome)
            where = "" if outcome is primary else f", {outcome.benchmark}"
            found.append(dataclasses.replace(one, preset=f"{outcome.preset}{where}"))
    return found + [_audit_check(row) for row in audits]


def _asked(check: Callable[[Outcome], Check], outcome: Outcome) -> Check:
    try:
        return check(outcome)
    except KeyError as error:  # a run without one of the floors cannot say
        return Check(outcome.preset, WAS_RUN, str(error.args[0]), False)


def reaches(name: str, *, at_least: bool = True) -> Callable[[Outcome], Check]:
    """A floor gets to 90 % of the ceiling, or must not."""

    def check(outcome: Outcome) -> Check:
        one = outcome.score(name)
        share = outcome.share(one)
        least = f"{'at least' if at_least else 'less than'} {REACHED:.0%} of the ceiling"
        return Check(
            outcome.preset,
            f"{name} reaches {least}",
            outcome.of_ceiling(one),
            (share >= REACHED) == at_least,
        )

    return check


def some_reaches(names: Sequence[str]) -> Callable[[Outcome], Check]:
    """The best of some floors does."""

    def check(outcome: Outcome) -> Check:
        best = max((outcome.score(name) for name in names), key=lambda one: one.value)
        share = outcome.share(best)
        return Check(
            outcome.preset,
            f"{' or '.join(names)} reaches at least {REACHED:.0%} of the ceiling",
            f"{best.representation} {outcome.of_ceiling(best)}",
            share >= REACHED,
        )

    return check


def none_reaches(outcome: Outcome) -> Check:
    """The truth is there, and no floor says what it says."""
    best = _best_floor(outcome)
    share = outcome.share(best)
    return Check(
        outcome.preset,
        f"no floor reaches {REACHED:.0%} of the ceiling",
        f"{best.representation} {outcome.of_ceiling(best)}",
        share < REACHED and outcome.ceiling is not None and outcome.ceiling > outcome.chance,
    )


def _best_floor(outcome: Outcome) -> Shown:
    floors = [
        one
        for one in outcome.shown
        if one.kind not in (TRUTH, *ENCODERS) and not one.representation.startswith(DIALS)
    ]
    return max(floors, key=lambda one: one.value)


def nobody_above(outcome: Outcome) -> Check:
    """Every encoder has a verdict, none is called above its floors, and none scores above the best
    of them by `DELTA`: where a floor is at the ceiling the word is "saturated", whatever an encoder
    scores."""
    found = {word for name, word in outcome.verdicts.items() if name != DIALS}
    encoders = [one.value for one in outcome.shown if one.kind in ENCODERS]
    floor = _best_floor(outcome)
    highest = max(encoders, default=floor.value)
    holds = bool(found) and not found & {ABOVE, NONE} and highest <= floor.value + DELTA
    scores = f"{highest:.3f}, {floor.representation} {floor.value:.3f}"
    return Check(
        outcome.preset, "no encoder is above its floors", f"{_words(outcome)}; {scores}", holds
    )


def none_above(name: str) -> Callable[[Outcome], Check]:
    """No encoder scores above this floor by `DELTA`."""

    def check(outcome: Outcome) -> Check:
        floor = outcome.score(name)
        encoders = [one for one in outcome.shown if one.kind in ENCODERS]
        scores = ", ".join(f"{one.representation} {one.value:.3f}" for one in encoders)
        return Check(
            outcome.preset,
            f"no encoder is above {name}",
            f"{scores or 'no encoder'}; {name} {floor.value:.3f}",
            bool(encoders) and all(one.value <= floor.value + DELTA for one in encoders),
        )

    return check


def all_above(outcome: Outcome) -> Check:
    """The positive control: what no floor sees is called above them."""
    holds = set(outcome.verdicts.values()) == {ABOVE}
    return Check(outcome.preset, "the trained encoder is above its floors", _words(outcome), holds)


def truth_above(outcome: Outcome) -> Check:
    """The positive control of a protocol: the truth, taken for an encoder, is above the floors."""
    word = outcome.verdicts.get(DIALS, NONE)
    return Check(outcome.preset, "the truth is above its floors", word or "none", word == ABOVE)


def truth_leads(outcome: Outcome) -> Check:
    """No floor and no encoder says more than the truth, which says something."""
    others = [one for one in outcome.shown if not one.representation.startswith(DIALS)]
    best = max(others, key=lambda one: one.value)
    ceiling = outcome.chance if outcome.ceiling is None else outcome.ceiling
    return Check(
        outcome.preset,
        "nothing scores more than the truth",
        f"{best.representation} {best.value:.3f}, the truth {ceiling:.3f}",
        outcome.chance + DELTA < ceiling and best.value <= ceiling + DELTA,
    )


def all_confounded(outcome: Outcome) -> Check:
    holds = set(outcome.verdicts.values()) == {CONFOUNDED}
    return Check(outcome.preset, "every encoder's verdict is confounded", _words(outcome), holds)


def _words(outcome: Outcome) -> str:
    return ", ".join(f"{k}: {v or 'none'}" for k, v in outcome.verdicts.items()) or "no encoder"


def high_and_not_confounded(name: str, least: float) -> Callable[[Outcome], Check]:
    """With the metadata withheld: nothing is said, and an encoder scores high."""

    def check(outcome: Outcome) -> Check:
        value = outcome.score(name).value
        return Check(
            outcome.preset,
            f"{name} scores at least {least} and nothing is called confounded",
            f"{value:.3f}; audit: {outcome.confounded or 'no objection'}; {_words(outcome)}",
            value >= least
            and not outcome.confounded
            and CONFOUNDED not in outcome.verdicts.values(),
        )

    return check


def beats(first: str, second: str, *, expected: bool = True) -> Callable[[Outcome], Check]:
    """One floor is better than another by the paired t test over units at 0.025, or is not.

    The error of the difference is widened as the intervals of the two scores are (`_p_above`).
    Where it must not be, the other one has to say something: it gets half way from chance to the
    ceiling. Two floors at chance would show nothing.
    """

    def check(outcome: Outcome) -> Check:
        one, other = outcome.score(first), outcome.score(second)
        difference = np.array([one.per_unit[u] - other.per_unit[u] for u in sorted(one.per_unit)])
        interval = t_interval(difference.tolist())
        if interval is not None:
            half = (interval[1] - interval[0]) / 2 * max(map(_widening, (one, other)))
            interval = float(difference.mean()) - half, float(difference.mean()) + half
        better = interval is not None and interval[0] > 0
        limits = "no interval" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
        says = f"{first} beats {second}"
        holds = better
        if not expected:
            says = f"{first} does not beat {second}, which gets half way to the ceiling"
            holds = interval is not None and not better and outcome.share(other) >= 0.5
        return Check(
            outcome.preset,
            says,
            f"{one.value:.3f} and {other.value:.3f}, difference {difference.mean():.3f} {limits}",
            holds,
        )

    return check


def equivalent_to_chance(name: str) -> Callable[[Outcome], Check]:
    """Two one-sided t tests over units (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).

    Of the layer that validation chose, and of every other one.
    """

    def check(outcome: Outcome) -> Check:
        one = outcome.score(name)
        layers = outcome.layers.get(one.representation, ())
        limits = [equivalence_limits(list(shown.per_unit.values())) for shown in (one, *layers)]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        inside = outcome.chance - EQUIVALENT < low and high < outcome.chance + EQUIVALENT
        several = f" over {len(layers)} layers" if len(layers) > 1 else ""
        return Check(
            outcome.preset,
            f"{name} is chance, ± {EQUIVALENT} on at least {LEAST_TEST:,} test images",
            f"{one.value:.4f} [{low:.4f}, {high:.4f}]{several} on {outcome.n_test:,}",
            inside and outcome.n_test >= LEAST_TEST,
        )

    return check


def equivalence_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of the mean, one-sided 95 % each; the mean itself where units do not vary."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return -np.inf, np.inf
    half = stats.t.ppf(1 - EQUIVALENT_ALPHA, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    return mean - float(half), mean + float(half)


def none_beats_chance(outcome: Outcome) -> Check:
    """Of everything shown nothing is above chance at 0.05 over all of it (Bonferroni)."""
    names, worst = [], 0.0
    others = [one for one in outcome.shown if one.kind != TRUTH]
    for one in others:
        if _p_above(one, outcome.chance) * len(others) < 0.05:
            names.append(one.representation)
        worst = max(worst, one.value)
    return Check(
        outcome.preset,
        "nothing is above chance",
        f"highest score {worst:.3f}, chance {outcome.chance:.3f}"
        + (f"; above: {', '.join(names)}" if names else ""),
        not names,
    )


def _p_above(one: Shown, chance: float) -> float:
    """One-sided p of a t test over units, by the error that the score's own interval has.

    That of cross-validation is wider than units alone would make it: what noise is learned from one
    unit and found in another is found the other way round too (Nadeau & Bengio, Machine Learning
    52, 2003). Without an interval the units are all there is.
    """
    error = _error(one) * _widening(one)
    if not error:
        return float(one.value <= chance)
    return float(stats.t.sf((one.value - chance) / error, len(one.per_unit) - 1))


def _error(one: Shown) -> float:
    """Of the mean over units."""
    values = list(one.per_unit.values())
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _widening(one: Shown) -> float:
    """How much wider the score's interval is than that of its units by themselves."""
    error, n = _error(one), len(one.per_unit)
    if one.interval is None or not error:
        return 1.0
    return (one.interval[1] - one.interval[0]) / (2 * float(stats.t.ppf(0.975, n - 1)) * error)


def _audit_check(row: Mapping[str, Any]) -> Check:
    low, high = row["interval"]
    word = "always" if row["expected"] else "never"
    wanted = row["seeds"] if row["expected"] else 0
    return Check(
        row["design"],
        f"the metadata audit of {row['target']} says confounded {word}",
        f"{row['confounded']} of {row['seeds']} seeds, 95 % [{low:.3f}, {high:.3f}]",
        row["confounded"] == wanted,
    )


BLIND = ("pixels", "nuclei", "layout", "texture_bank_mirrored", "metadata")
AT_CHANCE = tuple(map(equivalent_to_chance, BLIND))
RELATIONAL = (*AT_CHANCE, reaches("supervised"), all_above)
EVERYWHERE = {*AT_CHANCE, nobody_above, all_confounded, none_beats_chance}
CHECKS: dict[str, tuple[Callable[[Outcome], Check], ...]] = {
    "default": (none_reaches,),
    "mixed_screen": (none_reaches,),
    "density_only": (reaches("nuclei"), none_above("nuclei"), nobody_above),
    "intensity_only": (reaches("pixels"), nobody_above),
    "texture_only": (some_reaches(("pixels", "texture_bank")),),
    "colocalisation_only": (
        reaches("pixels"),
        reaches("pixels_no_cross", at_least=False),
        nobody_above,
    ),
    "cells_per_well_only": (reaches("aggregation_noise"), nobody_above),
    "position_only": (all_confounded,),
    "position_withheld": (high_and_not_confounded("supervised", 0.9),),
    "batch_confounded": (all_confounded,),
    "handedness_only": RELATIONAL,
    "handedness_only, flipped": (equivalent_to_chance("supervised"),),
    "neighbour_agreement_only": RELATIONAL,
    "tissue_composition": (reaches("pixels"), reaches("layout")),
    "tissue_layout": (beats("layout", "pixels"),),
    "tissue_texture": (beats("layout", "pixels", expected=False),),
    "tissue_null": (none_beats_chance,),
}
# Preset and target -> what is asked of them, whatever the benchmark.
KNOWN = (truth_leads, nobody_above)
OF_SCREEN, OF_GENES = "mixed_screen_profiles", "tissue_genes"
OF_TARGETS: dict[tuple[str, str], tuple[Callable[[Outcome], Check], ...]] = {
    (OF_SCREEN, "nsc"): KNOWN,
    (OF_SCREEN, "activity"): (truth_above, *KNOWN),
    (OF_SCREEN, "consistency"): KNOWN,
    (OF_SCREEN, "recall_same_class"): KNOWN,
    (OF_SCREEN, "retrieval_across_plates"): (truth_above, *KNOWN),
    (OF_GENES, "composition"): (truth_above, *KNOWN),
    (OF_GENES, "layout"): KNOWN,
    (OF_GENES, "texture"): KNOWN,
    (OF_GENES, "nothing"): (none_beats_chance,),
}

"""Verdicts: is an encoder above, below or the same as the best of its floors, or can nobody tell?

The gain of an encoder on a benchmark is

    Delta = min over floors k of (score of the encoder - score of floor k),   paired, unit by unit

over a closed list of floors that was named before the run. Its tests are made of the paired tests
against each floor, p_k one-sided:

    above   p = max_k p_k                    intersection-union: no price for the number of floors
    below   p = min(1, K min_k p_k)          of the opposite side
    same    the larger of two: no floor is better by delta, and some floor is not worse by delta

and its interval is [min_k L_k(0.975), min_k U_k(1 - 0.025/K)]. The maximum over floors is never
taken inside a resample: that counts its selection twice against the encoder.

`calibrate.py` checks all of this by simulation.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.intervals import MIN_UNITS, ratio_interval
from bioimg_jax.statistics.resampling import DECISIVE, Paired, n_resamples, sign_flip_p

ABOVE, BELOW, SAME = "above", "below", "same"
CONFOUNDED, SATURATED, CANNOT_TELL, NONE = "confounded", "saturated", "cannot tell", ""
ALPHA = 0.025  # of "above" and of "below", each over the whole family
ALPHA_SAME = 0.05
SKEWNESS = 2.0  # times the sample's, in the test of "same"; costs it 2 % of its power at 40 units
FAMILY_SKEWNESS = 1.75  # likewise, in "above" and "below" of a family of several tests
DELTA = 0.03  # equivalence margin, in units of the metric
UNIT_SD = 0.06  # of a difference, where none was observed
NOT_RUN = "listed floors have not been run"
UNCORRECTED = "not corrected for"  # in the note of `secondary`
CHANCE = "chance"  # the floor that is known, not measured
MIN_PERMUTATIONS = math.ceil(1 / ALPHA)  # with fewer no permutation p can be significant

PerUnit = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Case:
    """One encoder on the primary metric of one benchmark, with everything it is judged by.

    benchmark, target: the protocol ("linear") and what it predicts ("compound").
    values: a mapping unit -> score for each training seed, all over the same units.
    floors: floor id -> unit -> score, over the same units; None for a listed floor that has not
      been run.
    omitted: floor id -> why it cannot apply; named in the verdict.
    confounded: what the metadata audit says, "" where it has no objection.
    metadata: columns -> unit -> score of these nuisance columns alone; "above" has to beat each.
    nuisance: the target is itself a nuisance column: scores, no verdict.
    delta: equivalence margin, absolute.
    ceiling: the best possible score where it is known; unit -> score where it was measured, by the
      truth that the labels were drawn from: then it has an error of its own.
    overlap: J · n_test / n_train of cross-validation folds with common training rows, else 0.
    rows: unit -> test rows behind its score, where the score is a share of right answers; their sum
      bounds a difference that is the same in every unit.
    permutations: distinct label permutations, for a benchmark that is judged by them.
    method: the claim is about the training method, not about these checkpoints; needs 2 seeds.
    """

    benchmark: str
    encoder: str
    values: Sequence[PerUnit]
    floors: Mapping[str, PerUnit | None]
    target: str = ""
    higher_is_better: bool | None = True
    omitted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    confounded: str = ""
    metadata: Mapping[str, PerUnit] = dataclasses.field(default_factory=dict)
    nuisance: bool = False
    delta: float = DELTA
    ceiling: float | PerUnit | None = None
    overlap: float = 0.0
    rows: Mapping[str, int] | None = None
    permutations: int | None = None
    method: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict and its reasons.

    word: "above", "below", "same", "confounded", "saturated", "cannot tell", or "" for none.
    why: one sentence; qualified_by: assumptions and omissions that go with it.
    gain, interval: Delta and its unadjusted 95 % interval, None where a limit is infinite; nearest:
      the floor that decides it.
    normalised: {"value", "interval"}: gain / (ceiling - nearest floor), with Fieller's 95 %
      interval; None where the ceiling is unknown or not far enough away (`intervals`), or measured
      and above the floor by the same in every unit: then its error is unknown.
    n_seeds, seed_sd: training seeds, and the sd of the encoder's score over them; None for one.
    p_above, p_below: over the floors, of this test alone; holm_above, holm_below: in the family of
      the run; holm_metadata: of "above the floors and above the metadata", likewise, None without
      metadata; p_same. Each from 20 units on the larger of t's and the bootstrap's, wherever it
      lies; a family's are guarded against skewness as well.
    floors: floor id -> mean difference, lower and upper 95 % limit, exact sign-flip p.
    units_needed: units at which the half-width of the gain's interval would be at most delta, were
      it to shrink as that of one difference does; from `UNIT_SD` where no test could be formed.
    """

    benchmark: str
    encoder: str
    word: str
    why: str
    n_units: int
    target: str = ""
    gain: float | None = None
    interval: tuple[float, float] | None = None
    nearest: str | None = None
    normalised: dict[str, Any] | None = None
    n_seeds: int = 1
    seed_sd: float | None = None
    p_above: float | None = None
    p_below: float | None = None
    p_same: float | None = None
    holm_above: float | None = None
    holm_below: float | None = None
    holm_metadata: float | None = None
    floors: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    units_needed: int | None = None
    delta: float = DELTA
    qualified_by: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The verdict as JSON takes it."""
        row = dataclasses.asdict(self)
        row["interval"] = None if self.interval is None else list(self.interval)
        row["qualified_by"] = list(self.qualified_by)
        return row


@dataclasses.dataclass(frozen=True)
class Gain:
    """The tests of many gains at once: fields [...] of differences [..., k, g] to k floors.

    family_above, family_below: what Holm is given where the test is one of several.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_above: np.ndarray
    p_below: np.ndarray
    p_same: np.ndarray
    family_above: np.ndarray
    family_below: np.ndarray


def assess(paired: Paired, delta: float) -> Gain:
    """`Gain` of paired differences [..., k, g]: encoder minus each of k floors."""
    k = paired.mean.shape[-1]
    return Gain(
        value=paired.mean.min(axis=-1),
        low=paired.lower(1 - ALPHA).min(axis=-1),
        high=paired.upper(1 - ALPHA / k).min(axis=-1),
        p_above=p_above(paired),
        p_below=p_below(paired),
        p_same=p_same(paired, delta),
        family_above=p_above(paired, guard=FAMILY_SKEWNESS),
        family_below=p_below(paired, guard=FAMILY_SKEWNESS),
    )


def p_above(
    paired: Paired,
    null: float | np.ndarray = 0.0,
    among: np.ndarray | bool = True,
    *,
    guard: float | None = None,
) -> np.ndarray:
    """p [...] of "Delta is at most `null`" (a number, or [..., 1]): each floor must be beaten.

    `among` bool [...]: where the p can matter; of `sparing` differences it is t's elsewhere.
    `guard`: how many times the skewness of the differences the test guards against. One test at
    0.025 needs none; the first of a family lies so far out in the tail that t and the bootstrap no
    longer know it (8 tests, 20 units of exponential differences: some false "above" in 0.08).
    """
    if guard is not None:
        paired = dataclasses.replace(paired, skewness=guard * paired.sample_skewness)

    def needed(p: np.ndarray) -> np.ndarray:  # one floor that is not beaten decides for all
        undecided = (p.max(axis=-1) < DECISIVE) & among
        return np.broadcast_to(undecided[..., None], p.shape)

    return paired.p_greater(null, needed).max(axis=-1)


def p_below(
    paired: Paired,
    null: float | np.ndarray = 0.0,
    among: np.ndarray | bool = True,
    *,
    guard: float | None = 1.0,
) -> np.ndarray:
    """p [...] of "Delta is at least `null`": some floor must beat the encoder, Bonferroni.

    Of many means of skewed differences the least is of a sample that lacks its long tail, and such
    a sample shows no skewness either (20 units and 20 floors of exponential differences: false
    "below" in 0.06 of runs). Floors share the encoder's unit effects, so their mean skewness tells
    what the chosen one hides: the test guards against the greater of the two. `guard` multiplies a
    floor's own; None is for limits, which take none.
    """
    k = paired.mean.shape[-1]
    if guard is not None:
        own = paired.sample_skewness
        pooled = own.mean(axis=-1, keepdims=True)
        paired = dataclasses.replace(paired, skewness=np.maximum(guard * own, pooled))

    def needed(p: np.ndarray) -> np.ndarray:
        among_floors = np.broadcast_to(among, p.shape[:-1])[..., None]
        return (k * p < DECISIVE) & among_floors

    return np.minimum(1.0, k * paired.p_less(null, needed).min(axis=-1))


def p_same(paired: Paired, delta: float) -> np.ndarray:
    """p [...] of "Delta is at most -delta or at least delta": two one-sided tests.

    With t and bootstrap alone, skewed differences were called the same too often (0.06 to 0.08
    instead of 0.05 for exponential ones and 20 units): `SKEWNESS` guards against it.
    """
    plain = dataclasses.replace(paired, resamples=0)  # by t, the smaller p
    both = p_above(plain, -delta, guard=SKEWNESS) < DECISIVE
    both &= p_below(plain, delta, guard=SKEWNESS) < DECISIVE
    above = p_above(paired, -delta, both, guard=SKEWNESS)
    return np.maximum(above, p_below(paired, delta, both, guard=SKEWNESS))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979) of a family [m]."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def units_needed(sd: float, delta: float, *, overlap: float = 0.0) -> int:
    """Fewest units whose two-sided 95 % half-width of a mean difference is at most delta."""

    def enough(g: int) -> bool:
        return bool(stats.t.ppf(0.975, g - 1) * sd * math.sqrt((1 + overlap) / g) <= delta)

    low, high = MIN_UNITS, MIN_UNITS
    while not enough(high):
        low, high = high + 1, 2 * high
    while low < high:  # every number below `low` is too small, `high` is not
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def judge(cases: Sequence[Case]) -> list[Verdict]:
    """The verdicts of a run.

    The cases that a test decides are one family: Holm at 0.025 a direction, and from two of them
    on each test is guarded against skewness. Not in it are those that the audit, made before and
    without any score, has ruled out.

    Raises:
      InputError: units of a floor that are not the encoder's, a value that is not finite; a user's
        own benchmark may return them.
    """
    evidence = [_Evidence.of(case, family=len(cases)) for case in cases]
    tested = [
        i
        for i, (case, e) in enumerate(zip(cases, evidence, strict=True))
        if e.gain is not None and not (e.missing or case.confounded or case.nuisance)
    ]
    gains = [gain for i in tested if (gain := evidence[i].gain) is not None]
    several = len(gains) > 1
    above = [float(gain.family_above if several else gain.p_above) for gain in gains]
    below = [float(gain.family_below if several else gain.p_below) for gain in gains]
    metadata = [evidence[i].metadata_p(several) for i in tested]
    both = np.maximum(above, [0.0 if p is None else p for p in metadata])
    adjusted = {
        i: _Adjusted(float(a), float(b), float(c))
        for i, a, b, c in zip(tested, holm(above), holm(below), holm(both), strict=True)
    }
    return [
        _decide(case, e, adjusted.get(i))
        for i, (case, e) in enumerate(zip(cases, evidence, strict=True))
    ]


def secondary(verdicts: Sequence[Verdict], what: str) -> list[Verdict]:
    """Verdicts of a family beside the primary one, which say so: "a secondary alignment".

    Each of several families has its own 0.025, so that an encoder has as many chances of "above" as
    there are alignments, or variants of a protocol. Only the first was named as the question.
    """
    note = f"a secondary {what}, {UNCORRECTED}"
    return [dataclasses.replace(v, qualified_by=(*v.qualified_by, note)) for v in verdicts]


@dataclasses.dataclass(frozen=True)
class _Adjusted:
    """p-values in the family of the run: of the floors, and of floors and metadata together.

    "Above" is one claim about both, and its family is of such claims: the metadata tested at 0.025
    each let some false "above" through in 0.20 of runs with 8 encoders. That of the floors alone
    only says what to call an encoder which the metadata hold back.
    """

    above: float
    below: float
    above_both: float


@dataclasses.dataclass(frozen=True)
class _Evidence:
    """What a case's numbers say, before the family is known."""

    units: list[str]
    missing: list[str]  # listed floors that have not been run
    refusal: str = ""  # why no test can be formed
    gain: Gain | None = None
    paired: Paired | None = None
    names: tuple[str, ...] = ()
    floors: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    room: np.ndarray | None = None  # ceiling - floor [k, g], where a ceiling is known
    metadata: Paired | None = None  # the encoder minus each set of nuisance columns
    metadata_refusal: str = ""  # why nobody can tell whether it is above them
    ceiling: float = math.nan  # mean over units
    reach: float | None = None  # upper limit of best floor minus ceiling, where there is a ceiling
    best: str = ""

    @classmethod
    def of(cls, case: Case, *, family: int) -> "_Evidence":
        units = sorted(case.values[0])
        values = np.stack([_aligned(case, case.encoder, seed, units) for seed in case.values])
        # By name: the order of a config's list changes no number, not even in its last digit.
        listed = sorted(case.floors.items())
        run = {k: _aligned(case, k, v, units) for k, v in listed if v is not None}
        missing = [name for name, value in case.floors.items() if value is None]
        if case.permutations is not None and case.permutations < MIN_PERMUTATIONS:
            return cls(units, missing, f"there are only {case.permutations} distinct permutations")
        if len(units) < MIN_UNITS:
            return cls(units, missing, f"{len(units)} units are fewer than {MIN_UNITS}")
        if not run or case.higher_is_better is None:
            return cls(units, missing)
        names, sign = tuple(run), 1.0 if case.higher_is_better else -1.0
        resamples = n_resamples(len(names), family)
        paired = _against(case, values, run, resamples, sign, units)
        gain = assess(paired, case.delta)
        each = _per_floor(case, paired, names)
        if refusal := _unsettled(case, paired, names, gain):
            return cls(units, missing, refusal)
        against, metadata_refusal = None, ""
        if case.metadata:
            rivals = {name: _aligned(case, name, of, units) for name, of in case.metadata.items()}
            against = _against(case, values, rivals, resamples, sign, units)
            metadata_refusal = _unsettled(case, against, tuple(rivals))
        best = max(names, key=lambda name: sign * run[name].mean())
        ceiling, reach = _ceiling(case, units), None
        if ceiling is not None:
            reach = _reach(case, best, run[best], ceiling, resamples, sign, units)
        return cls(
            units,
            missing,
            gain=gain,
            paired=paired,
            names=names,
            floors=each,
            room=None if ceiling is None else sign * (ceiling - np.stack(list(run.values()))),
            metadata=against,
            metadata_refusal=metadata_refusal,
            ceiling=math.nan if ceiling is None else float(ceiling.mean()),
            reach=reach,
            best=best,
        )

    def metadata_p(self, several: bool) -> float | None:
        """p of "not above every set of nuisance columns"; None without any."""
        if self.metadata is None:
            return None
        if self.metadata_refusal:
            return 1.0
        return float(p_above(self.metadata, guard=FAMILY_SKEWNESS if several else None))


def _aligned(case: Case, name: str, values: PerUnit, units: list[str]) -> np.ndarray:
    if sorted(values) != units:
        odd = sorted(set(values) ^ set(units))
        raise InputError(f"{case.benchmark}: {name} and {case.encoder} differ in unit {odd[0]!r}")
    array = np.array([values[unit] for unit in units], np.float64)
    if not np.isfinite(array).all():
        unit = units[int(np.argmin(np.isfinite(array)))]
        raise InputError(f"{case.benchmark}: {name} has no finite value in unit {unit!r}")
    return array


def _ceiling(case: Case, units: list[str]) -> np.ndarray | None:
    """The best possible score of each unit [g]."""
    if isinstance(case.ceiling, Mapping):
        return _aligned(case, "the truth", case.ceiling, units)
    return None if case.ceiling is None else np.full(len(units), case.ceiling)


def _reach(
    case: Case,
    name: str,
    floor: np.ndarray,
    ceiling: np.ndarray,
    resamples: int,
    sign: float,
    units: list[str],
) -> float:
    """Upper confidence limit of a floor minus the ceiling [g], paired unit by unit.

    Where the difference is the same in every unit, binomial: the floor's share may be better than
    it looks, and a ceiling that was measured worse.
    """
    above = Paired.of(sign * (floor - ceiling)[None], resamples=resamples, overlap=case.overlap)
    if case.rows is not None:
        n, better = sum(case.rows[unit] for unit in units), 1 if sign > 0 else 0
        off = 0.0 if name == CHANCE else _off(float(floor.mean()), n, ALPHA)[better]
        if isinstance(case.ceiling, Mapping):
            off += _off(float(ceiling.mean()), n, ALPHA)[1 - better]
        above = dataclasses.replace(above, bounds=np.array([off]))
    return float(above.upper(1 - ALPHA)[0])


def _against(
    case: Case,
    values: np.ndarray,
    floors: Mapping[str, np.ndarray],
    resamples: int,
    sign: float,
    units: list[str],
) -> Paired:
    """Encoder [seeds, g] minus floors [g]: seeds are averaged; a method pays for their spread.

    Without variance between units there is no t; `_binomial_bound` says how far the difference of
    two shares of right answers may be off, at 0.025 / k on either side.
    """
    seeds, k = len(values), len(floors)
    differences = sign * (values[:, None, :] - np.stack(list(floors.values()))[None])
    pays = case.method and seeds > 1
    paired = Paired.of(
        differences.mean(axis=0),
        resamples=resamples,
        overlap=case.overlap,
        seed_variance=differences.mean(axis=2).var(axis=0, ddof=1) / seeds if pays else 0.0,
        seed_df=seeds - 1 if pays else 0,
    )
    if case.rows is None:
        return paired
    n, tail = sum(case.rows[unit] for unit in units), ALPHA / k
    bounds = [
        _binomial_bound(values.mean(), floor.mean(), n, tail, exact=name == CHANCE)
        for name, floor in floors.items()
    ]
    return dataclasses.replace(paired, bounds=np.array(bounds))


def _unsettled(case: Case, paired: Paired, names: Sequence[str], gain: Gain | None = None) -> str:
    """Why nobody can tell, where a difference is the same in every unit; "" where one can.

    Its bound settles a difference that is beyond it, or surely smaller than delta. One that is
    neither matters only while nothing else decides.
    """
    constant = paired.constant
    if not constant.any():
        return ""
    if paired.bounds is None or case.rows is None:
        name = names[int(np.argmax(constant))]
        return f"the difference to {name} is the same in every unit, so its error is unknown"
    if gain is None or min(gain.p_above, gain.p_below, gain.p_same) < DECISIVE:
        return ""
    size = np.abs(paired.mean)
    open_ = constant & (size <= paired.bounds) & (size + paired.bounds >= case.delta)
    if not open_.any():
        return ""
    first = int(np.argmax(open_))
    return (
        f"the difference to {names[first]} is the same in every unit, and "
        f"{sum(case.rows.values()):,} test rows bound it to ± {paired.bounds[first]:.3f} only"
    )


def _binomial_bound(share: float, floor: float, n: int, tail: float, *, exact: bool) -> float:
    """How far the difference of two shares of n may be off, on either side with chance `tail`.

    It is off by what one share may be too low plus what the other may be too high: half-widths of
    Clopper-Pearson intervals, whichever pair is the longer. Nothing is assumed of how the two go
    together. An `exact` floor is no share of n and adds nothing.
    """
    low, high = _off(share, n, tail)
    floor_low, floor_high = (0.0, 0.0) if exact else _off(floor, n, tail)
    return max(high + floor_low, low + floor_high)


def _off(share: float, n: int, tail: float) -> tuple[float, float]:
    """How far a share of n right answers lies above its lower Clopper-Pearson limit, and below its
    upper one.
    """
    share = min(max(share, 0.0), 1.0)
    right = share * n
    low = 0.0 if right <= 0 else float(stats.beta.ppf(tail, right, n - right + 1))
    high = 1.0 if right >= n else float(stats.beta.ppf(1 - tail, right + 1, n - right))
    return share - low, high - share


def _decide(case: Case, evidence: _Evidence, adjusted: _Adjusted | None) -> Verdict:
    """The first rule that applies, in the order of precedence."""
    notes = _notes(case, evidence)
    base = Verdict(
        case.benchmark, case.encoder, NONE, "", len(evidence.units), case.target,
        n_seeds=len(case.values), seed_sd=_seed_sd(case, evidence.units), delta=case.delta,
        floors=evidence.floors, qualified_by=notes,
    )  # fmt: skip
    gain, paired = evidence.gain, evidence.paired
    if gain is not None and paired is not None and not evidence.missing:
        nearest, units = int(np.argmin(paired.mean)), len(evidence.units)
        sd = UNIT_SD if paired.constant[nearest] else _observed_sd(case, gain, units)
        sd = sd if math.isfinite(sd) else UNIT_SD
        base = dataclasses.replace(
            base,
            gain=float(gain.value),
            interval=_finite(gain),
            nearest=evidence.names[nearest],
            normalised=None if case.nuisance else _normalised(case, paired, evidence.room, nearest),
            p_above=float(gain.p_above),
            p_below=float(gain.p_below),
            p_same=float(gain.p_same),
            holm_above=None if adjusted is None else adjusted.above,
            holm_below=None if adjusted is None else adjusted.below,
            holm_metadata=None
            if adjusted is None or evidence.metadata is None
            else adjusted.above_both,
            units_needed=units_needed(sd, case.delta, overlap=case.overlap),
        )

    def verdict(word: str, why: str) -> Verdict:
        return dataclasses.replace(base, word=word, why=why)

    if case.nuisance:
        return verdict(NONE, "the target is a nuisance column: scores, no verdict")
    if case.higher_is_better is None:
        return verdict(NONE, "no direction of this metric is better: shown, not ranked")
    if case.confounded:
        return verdict(CONFOUNDED, case.confounded)
    if evidence.refusal:
        needed = units_needed(UNIT_SD, case.delta, overlap=case.overlap)
        refused = verdict(CANNOT_TELL, evidence.refusal)
        return dataclasses.replace(refused, units_needed=needed)
    if evidence.missing or gain is None or adjusted is None:
        names = ", ".join(evidence.missing) or "any floor"
        return verdict(NONE, f"{NOT_RUN}: {names}")
    if evidence.reach is not None and evidence.reach >= -case.delta:
        return verdict(SATURATED, _saturated(case, evidence, evidence.reach))
    detected = _detected(adjusted)
    if gain.p_same < ALPHA_SAME:
        return verdict(SAME, f"the gain is between ± {case.delta:g}{detected}")
    if adjusted.below < ALPHA:
        return verdict(BELOW, f"{base.nearest} does better by {-float(gain.value):.3f}")
    if adjusted.above_both < ALPHA:
        return verdict(ABOVE, f"above every floor, {base.nearest} by {float(gain.value):.3f}")
    if adjusted.above < ALPHA and evidence.metadata_refusal:
        return verdict(CANNOT_TELL, evidence.metadata_refusal)
    if adjusted.above < ALPHA:
        return verdict(
            CONFOUNDED,
            "above its floors, but not above what the metadata alone predict "
            f"(p = {adjusted.above_both:.3g})",
        )
    if base.interval is None:
        return verdict(
            CANNOT_TELL,
            "nearly all units differ from a floor by the same, so that resamples have no variance "
            "and the gain no interval; expected units that vary, or more of them",
        )
    units = len(evidence.units)
    more = f"its half-width is at most {case.delta:g} already"
    if base.units_needed is not None and base.units_needed > units:
        more = f"{base.units_needed} units would bring its half-width to {case.delta:g}"
    return verdict(
        CANNOT_TELL,
        f"the interval of the gain is [{float(gain.low):.3f}, {float(gain.high):.3f}]; {more}",
    )


def _saturated(case: Case, evidence: _Evidence, reach: float) -> str:
    if isinstance(case.ceiling, Mapping):
        near = "reach" if reach >= 0 else f"come within {-reach:.3f} of"
        return (
            f"the best floor, {evidence.best}, may {near} what the truth scores unit by unit, "
            f"on average {evidence.ceiling:.3f}"
        )
    highest = evidence.ceiling + (reach if case.higher_is_better else -reach)
    return (
        f"the best floor, {evidence.best}, reaches up to {highest:.3f}; the ceiling is "
        f"{evidence.ceiling:.3f}"
    )


def _limit(value: np.ndarray) -> float | None:
    """None where it is infinite: of units that are nearly all alike resamples have no variance."""
    return float(value) if math.isfinite(value) else None


def _finite(gain: Gain) -> tuple[float, float] | None:
    low, high = _limit(gain.low), _limit(gain.high)
    return None if low is None or high is None else (low, high)


def _observed_sd(case: Case, gain: Gain, units: int) -> float:
    """The sd of one difference whose interval would be as wide as the gain's."""
    half = float(gain.high - gain.low) / 2
    return half * math.sqrt(units / (1 + case.overlap)) / float(stats.t.ppf(0.975, units - 1))


def _normalised(
    case: Case, paired: Paired, room: np.ndarray | None, nearest: int
) -> dict[str, Any] | None:
    """The share of what the nearest floor leaves to gain; None where it is not worth saying."""
    if room is None or paired.constant[nearest]:
        return None
    if isinstance(case.ceiling, Mapping) and np.ptp(room[nearest]) <= 1e-9:
        return None  # measured, and yet without an error
    found = ratio_interval(
        paired.differences[nearest],
        room[nearest],
        train_overlap=case.overlap,
        numerator_error=float(paired.error[nearest]),
        df=float(paired.df[nearest]),
    )
    return None if found is None else {"value": found[0], "interval": list(found[1])}


def _seed_sd(case: Case, units: list[str]) -> float | None:
    means = [np.mean([seed[unit] for unit in units]) for seed in case.values]
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def _detected(adjusted: _Adjusted) -> str:
    if adjusted.above < ALPHA:
        return ", and detectably above zero"
    if adjusted.below < ALPHA:
        return ", and detectably below zero"
    return ""


def _notes(case: Case, evidence: _Evidence) -> tuple[str, ...]:
    notes = [f"without {name}: {why}" for name, why in case.omitted.items()]
    units, seeds = len(evidence.units), len(case.values)
    if evidence.gain is not None and units < 20:
        notes.append("assumes symmetric unit effects")
    if evidence.gain is not None and not (case.method and seeds > 1):
        notes.append("this checkpoint" if seeds == 1 else f"these {seeds} checkpoints")
    return tuple(notes)


def _per_floor(
    case: Case, paired: Paired, names: tuple[str, ...]
) -> dict[str, dict[str, float | None]]:
    """The paired comparison with each floor that has been run, in the order of the case."""
    low, high, p = paired.lower(1 - ALPHA), paired.upper(1 - ALPHA), paired.p_greater()
    return {
        name: {
            "difference": float(paired.mean[i]),
            "low": _limit(low[i]),
            "high": _limit(high[i]),
            "p_above": float(p[i]),
            "sign_flip_p": sign_flip_p(paired.differences[i]),
        }
        for name in case.floors
        if name in names
        for i in (names.index(name),)
    }

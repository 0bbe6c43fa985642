"""Conditional scores: what a score says beyond a confound, such as a cell count.

"Beyond count", never "corrected for count": a count is often an effect of the treatment. In order
of what they are worth, all on the same rows, those of one `Overlap`:

1. `conditional_permutation`: the predictions stay, the labels are permuted inside strata of the
   confound; the score minus the mean of that null.
2. `added_value`: the score of [floor, encoder] minus that of [floor], out of fold, by one flexible
   model, paired by unit.
3. `residualised`: features less their linear fit on the confound. Descriptive only: what is not
   linear stays, and nearest neighbours find it.

Where labels and strata do not overlap (each compound in one week) nothing of this exists, and
`find_overlap` refuses.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl

from bioimg_jax.data.levels import QUANTILE_BINS, is_numeric
from bioimg_jax.data.splits import PARTS, Fold
from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.probes.linear import moments, standardise
from bioimg_jax.probes.ridge import ALPHAS, fit_ridge
from bioimg_jax.statistics.intervals import MIN_UNITS, t_interval, train_overlap
from bioimg_jax.statistics.resampling import Paired, n_resamples
from bioimg_jax.statistics.unit_metric import METRICS, by_pseudo_values, unit_metric, unit_r2

N_PERMUTATIONS = 999
# Blocks of a quantile bin from where there are more than 20 such bins. Predictions from nothing but
# a count that labels follow in waves, 1,600 blocks, 40 simulations: in 20 bins they scored 0.011
# beyond it, p <= 0.05 in 25; in bins of 16 0.001, in 5. A true 0.185 beyond it was 0.170 there.
SET = 16
# Of fewer than 80 blocks 20 bins would hold one to three, hardly two labels among them.
COMPANY = 4
MOST = 10**9  # distinct permutations are counted up to here
LENGTHS = (1.0, 0.3, 0.1)  # of the kernels, in root mean square distances of the training rows
WAVES = 128  # random Fourier features of a kernel
GONE = 1e-6  # share of a feature's spread and mean that rounding in float32 may leave of it
BLOCK = 1 << 22  # float64 at a time, 32 MiB
WEIGHTS = (0.0, 0.1, 1.0, 10.0)  # of the encoder's kernel beside the floor's
DESCRIPTIVE = "descriptive only: what is not linear in the confound is still in the features"

# Labels [m] of the retained rows, as `Overlap.labels` -> the value of each unit of independence.
UnitScore = Callable[[np.ndarray], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Overlap:
    """The rows on which labels and strata of a confound overlap: what a conditional score is of.

    Every label lies in two strata or more of those given (but for labels that are numbers, which
    hardly come twice), and every stratum holds two such labels or more.

    rows: int [m], their positions among the rows given, ascending; strata, blocks: int [m].
    labels: int [m], positions in `names`; of labels that are numbers float64 [m], without names.
    n: rows given; n_missing: of them without a label or a confound.
    single: label -> its rows, of labels with no row left: they lie in a single stratum, or alone in
    all of theirs.
    permutations: distinct labellings of the blocks inside their strata, at most `MOST`.
    """

    confound: str
    rows: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    strata: np.ndarray
    blocks: np.ndarray
    n: int
    n_missing: int
    n_strata: int
    single: dict[str, int]
    permutations: int


def find_overlap(
    labels: np.ndarray | pd.Series,
    confound: pd.DataFrame,
    blocks: np.ndarray | pd.Series,
    *,
    bins: int | None = None,
    numbers: Collection[str] = (),
    within: pd.DataFrame | None = None,
    once: bool = False,
) -> Overlap:
    """The rows whose label the confound leaves open.

    Strata are the joint values of the confound's columns. A number is cut into quantile bins: one
    of more than `levels.MANY_LEVELS` values or one that is not whole. Everything else is a name:
    categories, weeks, matched sets. Rows without a label or a confound leave first, then labels
    that lie in a single stratum, whose confound cannot be told from them, then strata that hold a
    single label, where nothing is left to permute.

    Args:
      labels: [n]. Classes; only those of a float dtype can be numbers, by the same rule.
      confound: [n, columns], of different names.
      blocks: [n], what the label was given to, by name: the well of a treatment, the patient of a
        diagnosis; a name of its own for each row where rows have labels of their own. Rows of a
        block are permuted together (one by one they would count as evidence many times), have one
        label and one category, and their mean number.
      bins: of a number; by default 20, or more of `SET` blocks each, or fewer of `COMPANY`.
      numbers: columns of the confound that are numbers even where their values are few and whole,
        such as a count.
      within: [n, columns], names; labels are permuted inside their joint value too, and bins of a
        number are those of the blocks there, so that a plate is not cut by the bins of all.
      once: each label is of one block, as a gene's name is, and what is asked is which labels go
        together: then a label need not lie in two strata, and like numbers they only need company.

    Raises:
      InputError: nothing overlaps, lengths that differ, a number that is infinite, a block of two
        labels or categories.
    """
    n, name = len(labels), " and ".join(map(str, confound.columns))
    if not confound.columns.is_unique:
        raise InputError(f"conditional score: two confounds of one name, of {name}")
    if not len(confound.columns) or len(confound) != n or len(blocks) != n:
        raise InputError(
            f"conditional score: {n} labels, {len(confound)} rows of {len(confound.columns)} "
            f"confounds and {len(blocks)} blocks, expected as many rows of one confound or more"
        )
    if bins is not None and bins < 2:
        raise InputError(f"conditional score: {bins} quantile bins, expected 2 or more")
    known = confound.reset_index(drop=True)
    label = pd.Series(np.asarray(labels), name="label")
    if pd.isna(np.asarray(blocks, object)).any():
        row = int(np.argmax(pd.isna(np.asarray(blocks, object))))
        raise InputError(f"conditional score: row {row} has no block, expected its name")
    for column in (label, *(known[c] for c in known.columns)):
        _refuse_infinite(column)
    inside = pd.DataFrame(index=known.index) if within is None else within.reset_index(drop=True)
    both = pd.concat([label, known, inside], axis=1)
    used = np.flatnonzero((both.notna() & both.astype(str).ne("")).all(axis=1))
    if not len(used):
        raise InputError(f"nothing can be said beyond {name}: 0 of {n} rows have it and a label")
    label, known = label.iloc[used], known.iloc[used]
    block = pd.factorize(np.asarray(blocks, object)[used].astype(str), sort=True)[0]

    number = pd.api.types.is_float_dtype(label) and _is_number(label)
    given = _of_blocks(label, block, number)
    codes = np.zeros((len(given), 0), int)
    for column in inside.columns:
        names_of = _of_blocks(inside[column].iloc[used], block, number=False)
        codes = np.column_stack([codes, pd.factorize(names_of, sort=True)[0]])
    group = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    for column in known.columns:
        is_number = column in numbers or _is_number(known[column])
        values = _of_blocks(known[column], block, is_number)
        if is_number:
            values = _binned(values, group, bins)
        codes = np.column_stack([codes, pd.factorize(values, sort=True)[0]])
    stratum = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    kind, names = pd.factorize(given, sort=True)
    kept = _overlapping(stratum, kind, number or once)

    rows_of = np.bincount(block, minlength=len(given))
    whole = np.bincount(kind, rows_of, len(names)).astype(int)
    left = np.bincount(kind[kept], rows_of[kept], len(names)).astype(int)
    single = {str(k): int(w) for k, w, m in zip(names, whole, left, strict=True) if not m}
    if len(np.unique(kind[kept])) < 2:
        example = "" if number else f", as {next(iter(single))!r} does"
        raise InputError(
            f"nothing can be said beyond {name}: labels do not overlap between its "
            f"{len(np.unique(stratum))} strata, and 0 of {n} rows are left; expected strata of two "
            f"labels or more, and labels that do not live in a single stratum{example}"
        )
    mine = kept[block]
    present, code = np.unique(kind[block[mine]], return_inverse=True)
    return Overlap(
        confound=name,
        rows=used[mine],
        labels=given[block[mine]] if number else code,
        names=() if number else tuple(map(str, names[present])),
        strata=np.unique(stratum[block[mine]], return_inverse=True)[1],
        blocks=np.unique(block[mine], return_inverse=True)[1],
        n=n,
        n_missing=n - len(used),
        n_strata=len(np.unique(stratum[kept])),
        single={} if number else single,
        permutations=_distinct(stratum[kept], kind[kept]),
    )


@dataclasses.dataclass(frozen=True)
class ConditionalScore:
    """A score less what the confound alone explains of it, as permutation inside strata says.

    value: observed - null, the mean of `per_unit`; interval: 95 % by t over units, None for fewer
    than `MIN_UNITS`.
    null, null_sd: mean and sd of the score over the permutations.
    p: one-sided, (1 + #{null ≥ observed}) / (1 + permutations drawn); small where the score is more
      than the confound explains (or, with `higher_is_better` false, less).
    permutations: distinct ones; with few no p can be small.
    n_retained: of n rows; n_missing, single: as in `Overlap`.
    """

    confound: str
    value: float
    observed: float
    null: float
    null_sd: float
    p: float
    per_unit: dict[str, float]
    interval: tuple[float, float] | None
    n_permutations: int
    permutations: int
    n: int
    n_retained: int
    n_missing: int
    single: dict[str, int]
    method: str = "conditional permutation"

    @property
    def says(self) -> str:
        return f"beyond {self.confound}"


def conditional_permutation(
    overlap: Overlap,
    score: UnitScore,
    *,
    null: Callable[[np.ndarray], float] | None = None,
    higher_is_better: bool = True,
    n_permutations: int = N_PERMUTATIONS,
    train_overlap: float = 0.0,
    seed: int = 0,
) -> ConditionalScore:
    """The score of predictions that stay, less its mean over labels permuted inside strata.

    Exact for any score: if labels are exchangeable inside a stratum given the predictions, the
    observed score is one draw of the null. A bin of a number is not quite a stratum: inside it the
    label may still lean on the number: where it has a threshold there, or in the wide bins of a
    tail. The conditional score of the confound's own predictions shows how much that is; more bins
    leave less.

    Args:
      score: labels of `overlap.rows` -> per-unit values, the same units each time: a metric of
        their predictions (`answers`), or a retrieval score of their profiles.
      null: labels -> the mean of such values, where that is faster, or where other labels leave
        units without one; the mean of all draws is then every unit's.
      n_permutations: draws; they depend on the seed and the names of the blocks alone.
      train_overlap: of the folds that the predictions come from (`intervals.train_overlap`).

    Raises:
      InputError: no permutation asked for, or a score that is not finite.
    """
    if n_permutations < 1:
        raise InputError(f"conditional permutation: {n_permutations} draws, expected 1 or more")
    observed = _values(score(overlap.labels))
    rng = np.random.default_rng(seed)
    first = np.unique(overlap.blocks, return_index=True)[1]  # a row of each block
    strata, given = overlap.strata[first], overlap.labels[first]
    home = np.argsort(strata, kind="stable")
    mine, whole = np.array(list(observed.values())), float(np.mean(list(observed.values())))
    sums, means = np.zeros(len(mine)), np.empty(n_permutations)
    for i in range(n_permutations):
        permuted = np.empty_like(given)
        permuted[home] = given[np.lexsort((rng.random(len(strata)), strata))]
        if null is not None:
            means[i] = null(permuted[overlap.blocks])
            sums += means[i]
            continue
        values = _values(score(permuted[overlap.blocks]))
        if values.keys() != observed.keys():
            raise ValueError("the score has other units under other labels: give a `null`")
        drawn = np.array([values[unit] for unit in observed])
        means[i] = drawn.mean()
        sums += drawn
    by_unit = sums / n_permutations
    slack = 1e-12 * max(1.0, abs(whole))
    sign = 1.0 if higher_is_better else -1.0
    above = int(np.sum(sign * (means - whole) >= -slack))
    beyond = mine - by_unit
    return ConditionalScore(
        confound=overlap.confound,
        value=float(beyond.mean()),
        observed=float(whole),
        null=float(means.mean()),
        null_sd=float(means.std(ddof=1)) if n_permutations > 1 else math.nan,
        p=(1 + above) / (1 + n_permutations),
        per_unit=dict(zip(observed, beyond.tolist(), strict=True)),
        interval=t_interval(beyond, train_overlap=train_overlap),
        n_permutations=n_permutations,
        permutations=overlap.permutations,
        n=overlap.n,
        n_retained=len(overlap.rows),
        n_missing=overlap.n_missing,
        single=overlap.single,
    )


def answers(
    overlap: Overlap,
    predictions: np.ndarray,
    units: np.ndarray | pd.Series,
    *,
    metric: str = "balanced_accuracy",
) -> UnitScore:
    """The `score` of predictions out of fold: class names [n], or numbers [n] for metric "r2".

    units: [n], the unit of independence of each row. An answer that is no label of the retained
    rows is wrong, whatever the label. "r2" counts from the mean of the retained labels.

    Raises:
      InputError: lengths other than n, a predicted number that is not finite, no prediction that is
        a label.
    """
    for what, side in (("predictions", predictions), ("units", units)):
        if len(side) != overlap.n:
            raise InputError(f"conditional score: {len(side)} {what} for {overlap.n} labels")
    _checked_metric(overlap, metric)
    answer, unit = np.asarray(predictions)[overlap.rows], np.asarray(units, object)[overlap.rows]
    if metric == "r2":
        answer = answer.astype(np.float64)
        check_finite(answer[:, None], "prediction", column="column")
        constant = np.full(len(answer), overlap.labels.mean())
        names, position = np.unique(unit.astype(str), return_inverse=True)

        def score(labels: np.ndarray) -> dict[str, float]:
            values = unit_r2(labels, answer, constant, position)
            return {str(names[u]): value for u, value in values.items()}

        return score
    answer = answer.astype(str).astype(object)
    code = pd.Index(overlap.names, dtype=object).get_indexer(pd.Index(answer))
    if (code < 0).all():  # 0.0 for 0, say
        raise InputError(
            f"conditional score: no prediction is a label; row {overlap.rows[0]} has "
            f"{answer[0]!r}, expected one like {overlap.names[0]!r}"
        )
    return counted(overlap.labels, code, unit, metric=metric)


def counted(
    labels: np.ndarray,
    answer: np.ndarray,
    units: np.ndarray,
    *,
    metric: str,
    row: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> UnitScore:
    """The `score` of answers that stay: labels of the rows, int [m] -> the metric of each unit.

    Every draw is counted as the labels that were given are: by pseudo-values if some unit lacks a
    class of theirs, inside units if none does, whatever classes a draw leaves a unit.

    Args:
      labels: int [m], those that were given. units: [m], by name.
      answer: int [a], the class of each answer; row: int [a], which of the m rows it is to, by
        default one to each; weights: float [a], as `unit_metric`.
    """
    row = np.arange(len(labels)) if row is None else row
    names, position = np.unique(units.astype(str), return_inverse=True)
    unit = position[row]
    pseudo = by_pseudo_values(labels[row], unit, metric)

    def score(labels: np.ndarray) -> dict[str, float]:
        values = unit_metric(labels[row], answer, unit, metric, weights, pseudo=pseudo)
        return {str(names[u]): value for u, value in values.items()}

    return score


def p_of_gain(gain: np.ndarray, overlap: float = 0.0) -> float | None:
    """One-sided p of "nothing added" by gains of units [g]; None for fewer than `MIN_UNITS`, or
    where nothing varies.

    overlap: of the folds that they come from (`intervals.train_overlap`).
    """
    if len(gain) < MIN_UNITS:
        return None
    paired = Paired.of(gain, resamples=n_resamples(1, 1), overlap=overlap)
    return None if bool(paired.constant) else float(paired.p_greater())


def retained(folds: Sequence[Fold], rows: np.ndarray, confound: str) -> list[Fold]:
    """Folds with those of their rows alone that are among `rows`.

    Raises:
      InputError: a part of a fold without a row.
    """
    found = []
    for fold in folds:
        parts = {of: getattr(fold, of)[np.isin(getattr(fold, of), rows)] for of in PARTS}
        for part, left in parts.items():
            if not len(left):
                raise InputError(
                    f"fold {fold.name!r} has no row left in its part {part!r} beyond {confound}"
                )
        found.append(dataclasses.replace(fold, **parts))
    return found


@dataclasses.dataclass(frozen=True)
class AddedValue:
    """The score of [floor, encoder] less that of [floor], on rows that no fit has seen.

    value: joint - floor, the mean of `per_unit`; interval: 95 % by t over units, p: one-sided of
    "nothing added"; both None for fewer than `MIN_UNITS` units, p also where nothing varies.
    folds: what validation chose: {"fold", "floor_alpha", "alpha", "weight" of the encoder; 0 is the
    floor alone}.
    """

    confound: str
    metric: str
    value: float
    joint: float
    floor: float
    per_unit: dict[str, float]
    interval: tuple[float, float] | None
    p: float | None
    folds: tuple[dict[str, Any], ...]
    n: int
    n_retained: int
    n_missing: int
    single: dict[str, int]
    method: str = "added value"

    @property
    def says(self) -> str:
        return f"beyond {self.confound}"


def added_value(
    overlap: Overlap,
    floor: np.ndarray,
    encoder: np.ndarray | Sequence[np.ndarray],
    folds: Sequence[Fold],
    units: np.ndarray | pd.Series,
    *,
    metric: str = "balanced_accuracy",
    seed: int = 0,
) -> AddedValue:
    """How much better the encoder and the floor predict together than the floor does alone.

    The model is kernel ridge regression (on one-hot labels, where they are classes) with a kernel
    for each side, linear and Gaussian at three `LENGTHS` in equal parts, and a Gaussian one of both
    sides together: k_floor, or k_floor + weight (k_encoder + k_both). So the floor alone may be as
    curved as it likes, a single column of it does not drown among those of an encoder, and a weight
    of 0 lets validation refuse an encoder that adds nothing. Gaussian kernels are random Fourier
    features (Rahimi & Recht, NeurIPS 2007), so that a fit is one decomposition for all alphas and
    any number of classes. Weight and alpha minimise the squared error on validation rows.

    A floor that was measured with error leaves some of what it measures for the encoder to add.

    Args:
      floor, encoder: features [n, p] and [n, d], raw; or of the encoder those of each fold, where
        folds chose other layers.
      folds: of the n rows; the retained ones of each part are used.
      units: [n], the unit of independence of each row.
      metric: of `unit_metric`, or "r2" for labels that are numbers.

    Raises:
      InputError: lengths other than n, a feature that is not finite, a part of a fold without a
        retained row, a class without a training row.
    """
    floor = np.asarray(floor)
    encoders = [encoder] * len(folds) if isinstance(encoder, np.ndarray) else list(encoder)
    for what, side in (("floor", floor), *(("encoder", one) for one in encoders)):
        if side.ndim != 2 or len(side) != overlap.n:
            raise InputError(f"added value: {what} {side.shape}, expected [{overlap.n}, columns]")
        check_finite(side, f"{what} row")
    if len(units) != overlap.n:
        raise InputError(f"added value: {len(units)} units for {overlap.n} labels")
    number = _checked_metric(overlap, metric) == "r2"
    classes, code = overlap.names, overlap.labels
    place = np.full(overlap.n, -1)
    place[overlap.rows] = np.arange(len(overlap.rows))
    goal = overlap.labels[:, None] if number else np.eye(len(classes))[code]  # [m, targets]

    kept = retained(folds, overlap.rows, overlap.confound)
    chosen, answered, constant = [], [], []
    for fold, mine in zip(kept, encoders, strict=True):
        train, validation, test = (place[getattr(fold, part)] for part in PARTS)
        absent = np.setdiff1d(np.empty(0, int) if number else code, code[train])
        if len(absent):
            raise InputError(
                f"added value: class {classes[absent[0]]!r} has no training row in fold "
                f"{fold.name!r} beyond {overlap.confound}"
            )
        rows = np.concatenate([fold.train, fold.validation, fold.test])
        kernels = _kernels(floor[rows], mine[rows], len(train), seed)
        answer, settings = _answered(*kernels, goal[train], goal[validation])
        answered.append(answer)
        constant.append(np.full(len(test), goal[train].mean()))
        chosen.append({"fold": fold.name, **settings})
    tested = place[np.concatenate([fold.test for fold in kept])]
    both = np.concatenate(answered, axis=1)  # [floor or joint, rows, targets]
    unit, names = pd.factorize(
        np.asarray(units, object)[overlap.rows[tested]].astype(str), sort=True
    )
    if number:
        base = np.concatenate(constant)
        values = [unit_r2(goal[tested, 0], side[:, 0], base, unit) for side in both]
    else:
        values = [unit_metric(code[tested], side.argmax(axis=1), unit, metric) for side in both]
    alone, joint = (np.array(list(of.values())) for of in values)
    gain, shared = joint - alone, train_overlap(kept)
    return AddedValue(
        confound=overlap.confound,
        metric=metric,
        value=float(gain.mean()),
        joint=float(joint.mean()),
        floor=float(alone.mean()),
        per_unit={str(names[u]): float(v) for u, v in zip(values[0], gain, strict=True)},
        interval=t_interval(gain, train_overlap=shared),
        p=p_of_gain(gain, shared),
        folds=tuple(chosen),
        n=overlap.n,
        n_retained=len(overlap.rows),
        n_missing=overlap.n_missing,
        single=overlap.single,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Residuals:
    """features: [n, d], float64 of float64 and else float32; removed: the share of the training
    rows' variance that left."""

    features: np.ndarray
    removed: float
    note: str = DESCRIPTIVE
    method: str = "linear residualisation"


def residualised(features: np.ndarray, confound: np.ndarray, train: np.ndarray) -> Residuals:
    """Features [n, d] less their least-squares fit on the confound [n, p] and an intercept.

    Fitted on the training rows, int [t], alone; a category goes in as one-hot columns. A feature of
    which nothing but rounding is left is 0. For any
    benchmark to score, and for no verdict: features that hold nothing but a count still score by
    nearest neighbours, because a line takes only the line out of them.

    Raises:
      InputError: lengths that differ, a value that is not finite, no more training rows than
        columns of the confound.
    """
    features, confound = np.asarray(features), np.asarray(confound)
    if features.ndim != 2 or confound.ndim != 2 or len(features) != len(confound):
        raise InputError(
            f"residuals: features {features.shape} and confound {confound.shape}, "
            "expected [n, d] and [n, p]"
        )
    check_finite(features, "row")
    check_finite(confound, "row", column="confound")
    if len(train) <= confound.shape[1] + 1:
        raise InputError(
            f"residuals: {len(train)} training rows for {confound.shape[1]} columns of the "
            f"confound, expected {confound.shape[1] + 2} or more"
        )
    z = confound.astype(np.float64)
    centre, spread = z[train].mean(axis=0), z[train].std(axis=0)
    z = (z - centre) / np.where(spread > 1e-12 * np.abs(centre), spread, np.inf)
    inverse = np.linalg.pinv(z[train], rcond=np.finfo(float).eps * max(z[train].shape))
    left = np.empty(features.shape, np.float64 if features.dtype == np.float64 else np.float32)
    kept = total = 0.0
    step = max(1, BLOCK // len(features))
    for first in range(0, features.shape[1], step):  # float64 of some columns at a time
        x = features[:, first : first + step].astype(np.float64)
        mean, sd = x[train].mean(axis=0), x[train].std(axis=0)
        x -= mean
        total += np.square(x[train]).sum()
        x -= z @ (inverse @ x[train])
        # What is only rounding is nothing: it is a function of the confound, and probes
        # standardise it.
        x[:, x[train].std(axis=0) <= GONE * (sd + np.abs(mean))] = 0.0
        kept += np.square(x[train]).sum()
        left[:, first : first + step] = x
    return Residuals(left, float(1.0 - kept / total) if total else 0.0)


def _checked_metric(overlap: Overlap, metric: str) -> str:
    """ "r2" for labels that are numbers, one of `unit_metric` for classes; else an `InputError`."""
    possible = METRICS if overlap.names else ("r2",)
    if metric not in possible:
        kind = "classes" if overlap.names else "numbers"
        raise InputError(
            f"conditional score: metric {metric!r} for labels that are {kind}, expected "
            f"{' or '.join(possible)}"
        )
    return metric


def _is_number(column: pd.Series) -> bool:
    """Of many values or not whole, as `find_overlap` says; a name otherwise."""
    if not pd.api.types.is_float_dtype(column):
        return is_numeric(column)
    return is_numeric(column) or bool((column.dropna() % 1 != 0).any())


def _refuse_infinite(column: pd.Series) -> None:
    if pd.api.types.is_float_dtype(column) and np.isinf(column.to_numpy()).any():
        row = int(np.argmax(np.isinf(column.to_numpy())))
        raise InputError(f"conditional score: {column.name!r} of row {row} is not finite")


def _of_blocks(column: pd.Series, block: np.ndarray, number: bool) -> np.ndarray:
    """The mean, float64, or the one name, text, of each block [g]; `InputError` for two names."""
    order = np.argsort(block, kind="stable")
    first = np.unique(block[order], return_index=True)[1]
    if number:
        values = column.to_numpy(np.float64)
        order = np.lexsort((values, block))  # sums that do not depend on the order of rows
        return np.add.reduceat(values[order], first) / np.bincount(block) if len(first) else values
    names = column.astype(str).to_numpy(object)
    one = names[order][first]
    odd = np.flatnonzero(names != one[block])
    if len(odd):
        row = odd[0]
        raise InputError(
            f"conditional score: row {column.index[row]} has the {column.name} {names[row]!r}, and "
            f"another row of its block {one[block[row]]!r}; expected one a block"
        )
    return one


def _binned(values: np.ndarray, group: np.ndarray, bins: int | None) -> np.ndarray:
    """Quantile bins of numbers [g], of each group on its own; int [g]."""
    found = np.zeros(len(values), int)
    for name in np.unique(group):
        here = np.flatnonzero(group == name)
        if np.ptp(values[here]) == 0.0:
            continue  # one bin, of which pandas makes none
        few = max(2, min(QUANTILE_BINS, len(here) // COMPANY))
        number = bins or max(few, len(here) // SET)
        found[here] = pd.qcut(values[here], number, labels=False, duplicates="drop")
    return found


def _overlapping(stratum: np.ndarray, kind: np.ndarray, once: bool) -> np.ndarray:
    """Which blocks stay, bool [g]: first labels of one stratum leave, then strata of one label.

    once: of labels that come once, only the latter.
    """
    pairs = np.unique(np.stack([stratum, kind]), axis=1)
    kept = np.full(len(kind), once) | (np.bincount(pairs[1])[kind] > 1)
    pairs = np.unique(np.stack([stratum[kept], kind[kept]]), axis=1)
    return kept & (np.bincount(pairs[0], minlength=int(stratum.max()) + 1)[stratum] > 1)


def _distinct(stratum: np.ndarray, kind: np.ndarray) -> int:
    """Π over strata of (blocks)! / Π over labels (blocks of the label)!, at most `MOST`."""
    sizes = np.unique(stratum, return_counts=True)[1]
    cells = np.unique(np.stack([stratum, kind]), axis=1, return_counts=True)[1]
    log = sum(math.lgamma(s + 1) for s in sizes) - sum(math.lgamma(c + 1) for c in cells)
    return MOST if log > math.log(MOST) else round(math.exp(log))


def _values(of: Mapping[str, float]) -> dict[str, float]:
    for unit, value in of.items():
        if not math.isfinite(value):
            raise InputError(f"conditional score: unit {unit!r} has the score {value}")
    return dict(of)


def _answered(
    alone: np.ndarray, beside: np.ndarray, train: np.ndarray, validation: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """Predictions of the test rows [2, n_test, targets] by floor and by both, and what was chosen.

    alone, beside: of training, validation and test rows in this order; train, validation: targets.
    """
    n_train, n_fitted = len(train), len(train) + len(validation)
    both = np.empty((len(alone), alone.shape[1] + beside.shape[1]), np.float32)
    both[:, : alone.shape[1]] = alone
    candidates = []  # (error, weight, alpha, predictions), the simplest first
    for weight in WEIGHTS:
        np.multiply(beside, np.float32(math.sqrt(weight)), out=both[:, alone.shape[1] :])
        x = both if weight else alone
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            probe = fit_ridge(x[:n_train], train, alphas=ALPHAS)
            predicted = probe.predictions(x[n_train:])  # [alphas, rows, targets]
        for alpha, of in zip(probe.alphas, predicted, strict=True):
            error = float(np.square(of[: len(validation)] - validation).mean())
            candidates.append((error, weight, alpha, of[n_fitted - n_train :]))
    joint = min(candidates, key=lambda candidate: candidate[0])  # of equals the first
    floor = min(candidates[: len(ALPHAS)], key=lambda candidate: candidate[0])
    settings = {"floor_alpha": floor[2], "alpha": joint[2], "weight": joint[1]}
    return np.stack([floor[3], joint[3]]), settings


def _kernels(
    floor: np.ndarray, encoder: np.ndarray, n_train: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features whose products are k_floor and k_encoder + k_both, float32 [n, ...].

    Each kernel is 1 on average at a row with itself, so that widths do not weigh. Float32, because
    an encoder's tokens are ten thousands of columns; the regression on them is float64 in blocks.
    """
    rng = np.random.default_rng(seed)
    scaled = []
    for side in (floor, encoder):
        mean, inverse = moments(side[:n_train], np.ones(n_train))
        z = standardise(side, mean, inverse)
        z /= np.float32(math.sqrt(max(int((inverse > 0).sum()), 1)))  # mean square distance 2
        scaled.append(z)
    waves = [[_waves([z], length, rng) for length in LENGTHS] for z in scaled]
    together = _waves(scaled, math.sqrt(2.0), rng)
    for z in scaled:
        z /= np.float32(math.sqrt(1 + len(LENGTHS)))
    alone, own = (
        [z, *(wave / np.float32(math.sqrt(1 + len(LENGTHS))) for wave in of)]
        for z, of in zip(scaled, waves, strict=True)
    )
    return np.hstack(alone), np.hstack([*own, together])


def _waves(parts: Sequence[np.ndarray], length: float, rng: np.random.Generator) -> np.ndarray:
    """Float32 [n, WAVES] whose products tend to exp(-‖x - y‖² / (2 (√2 length)²)).

    parts: the columns of the rows x, float32, side by side.
    """
    phases = np.zeros((len(parts[0]), WAVES))
    for z in parts:
        frequencies = rng.normal(size=(z.shape[1], WAVES)) / (math.sqrt(2.0) * length)
        phases += z @ frequencies.astype(np.float32)
    phases += rng.uniform(0.0, 2.0 * math.pi, WAVES)[None, :]
    return (math.sqrt(2.0 / WAVES) * np.cos(phases)).astype(np.float32)

"""How well features know plate, batch, well and site, and counts: probes with held-out groups.

Beside the scores of biology, and in no ladder: `higher_is_better` is None. How mixed the batches
lie is in `statistics.batch_mixing` and `statistics.robustness`.

The probe is linear and a closed form for names and numbers alike: ridge regression, on one-hot
names, with alpha chosen on validation groups. What is asked is how much a line can read, under
every alignment, and no verdict is about it; the logistic probe (`benchmarks/linear.py`) took a
minute for each alignment of 632 wells. Of few features a line may pass a name by that lies between
two others: then it reads less than the logistic probe would.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.classification import split_text
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, make_folds, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import MemoryTable
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.probes.linear import moments, standardise
from bioimg_jax.probes.ridge import fit_ridge
from bioimg_jax.statistics.intervals import t_interval, train_overlap
from bioimg_jax.statistics.unit_metric import unit_r2

N_FOLDS = 5
# Column -> who is held out: groups that leave every value of the column in training.
HELD_OUT: Mapping[str, tuple[str, ...]] = {
    "plate": ("plate", "well"),
    "batch": ("plate",),
    "well_row": ("plate",),
    "well_column": ("plate",),
    "site": ("plate", "well"),
    "count": ("plate",),
    "intensity": ("plate",),
}
NUMBERS = ("count", "intensity")
WELL = re.compile(r"([A-Za-z]{1,2})0*([1-9][0-9]?)")  # A1, A01, AF48
WELL_PARTS = ("well_row", "well_column")
_LAYER = "features"


@dataclasses.dataclass(frozen=True)
class NuisanceScore:
    """What a probe reads of one nuisance column in units that it has not seen.

    metric: "balanced_accuracy" for a name, "r2" for a number. value is the mean of `per_unit`:
    pseudo-values where a unit has not every class, and for "r2".
    chance: of the best constant answer, 0 for "r2".
    n: rows with a value of the column; n_missing: without.
    """

    column: str
    metric: str
    value: float
    chance: float
    per_unit: dict[str, float]
    interval: tuple[float, float] | None
    unit: tuple[str, ...]
    split: str
    n: int
    n_missing: int
    n_classes: int | None
    folds: tuple[dict[str, Any], ...]
    higher_is_better: None = None


def nuisance_scores(
    features: np.ndarray,
    metadata: pd.DataFrame,
    *,
    held_out: Mapping[str, Sequence[str]] = HELD_OUT,
    numbers: Collection[str] = NUMBERS,
    n_folds: int = N_FOLDS,
) -> tuple[list[NuisanceScore], dict[str, str]]:
    """The scores of the nuisance columns that are there, and column -> why not of the others.

    Args:
      features: [n, d], raw.
      metadata: [n]; "well_row" and "well_column" are read from "well" where they are not columns.
      held_out: column -> columns whose joint value is held out, dealt into folds.
      numbers: columns that are regressed on; all others are classes.

    Raises:
      InputError: lengths that differ, a feature that is not finite, fewer than 3 folds, a number
        that is none or infinite. What a column lacks (groups, a second value, a class in training,
        wells that are a row and a column) is no error, but its reason.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != len(metadata):
        raise InputError(
            f"nuisance probes: features {features.shape} for {len(metadata)} rows of metadata, "
            "expected [n, d]"
        )
    if n_folds < 3:
        raise InputError(f"nuisance probes: {n_folds} folds, expected 3 or more")
    check_finite(features, "row")
    obs, why = metadata.reset_index(drop=True), ""
    try:
        obs = _with_well_parts(obs)
    except InputError as error:
        why = str(error)
    for column in sorted(set(numbers) & set(obs.columns) & set(held_out)):
        obs = obs.assign(**{column: _numbers(obs[column])})
    scores, skipped = [], {}
    for column, unit in held_out.items():
        absent = [name for name in (column, *unit) if name not in obs.columns]
        if absent:
            of_well = absent[0] in WELL_PARTS and why
            skipped[column] = why if of_well else f"the metadata have no column {absent[0]!r}"
            continue
        try:
            probe = _regressed if column in numbers else _classified
            scores.append(probe(features, obs, column, tuple(unit), n_folds))
        except InputError as error:
            skipped[column] = str(error)
    return scores, skipped


def _classified(
    features: np.ndarray, obs: pd.DataFrame, column: str, unit: tuple[str, ...], n_folds: int
) -> NuisanceScore:
    target = _target(obs, column, unit, n_folds)
    folds = make_folds(obs, target)
    table = MemoryTable(Path(), obs, {_LAYER: features.shape[1]}, _LAYER, {}, features)
    about: dict[str, Any] = {
        "representation": "",
        "kind": "",
        "seed": 0,
        "exposure": "",
        "settings": {},
    }
    used = _used(folds)
    (score,) = Ridge().scores(table, folds, target, **about)
    assert score.chance is not None
    return NuisanceScore(
        column=column,
        metric=score.metric,
        value=score.value,
        chance=score.chance,
        per_unit=score.per_unit,
        interval=score.interval,
        unit=unit,
        split=score.split,
        n=len(used),
        n_missing=len(obs) - len(used),
        n_classes=obs[column].iloc[used].astype(str).nunique(),
        folds=tuple(score.settings["folds"]),
    )


def _regressed(
    features: np.ndarray, obs: pd.DataFrame, column: str, unit: tuple[str, ...], n_folds: int
) -> NuisanceScore:
    """Ridge on standardised features; alpha by the squared error on validation rows."""
    values = obs[column].to_numpy(np.float64)
    # One class for all, so that units are dealt evenly, and no class can lack in training.
    there = obs.assign(**{column: pd.Series("number", obs.index).where(~np.isnan(values))})
    target = _target(there, column, unit, n_folds)
    folds = make_folds(there, target)
    used = _used(folds)
    if np.ptp(values[used]) == 0:
        raise InputError(f"column {column!r} has a single value, {values[used[0]]:g}")
    answers, constants, about = [], [], []
    for fold in folds:
        mean, inverse = moments(features[fold.train], np.ones(len(fold.train)))
        train, validation, test = (
            standardise(features[rows], mean, inverse)
            for rows in (fold.train, fold.validation, fold.test)
        )
        probe = fit_ridge(train, values[fold.train, None])
        missed = probe.predictions(validation)[:, :, 0] - values[fold.validation]
        best = int(np.square(missed).mean(axis=1).argmin())  # of equals the strongest
        answers.append(probe.predictions(test, best)[:, 0])
        constants.append(np.full(len(test), values[fold.train].mean()))
        about.append({"fold": fold.name, "alpha": probe.alphas[best]})
    tested = np.concatenate([fold.test for fold in folds])
    position, names = pd.factorize(unit_names(obs.iloc[tested], unit), sort=True)
    found = unit_r2(values[tested], np.concatenate(answers), np.concatenate(constants), position)
    per_unit = {str(names[u]): value for u, value in found.items()}
    each = list(per_unit.values())
    return NuisanceScore(
        column=column,
        metric="r2",
        value=float(np.mean(each)),
        chance=0.0,
        per_unit=per_unit,
        interval=t_interval(each, train_overlap=train_overlap(folds)),
        unit=unit,
        split=split_text(target, len(folds)),
        n=len(used),
        n_missing=len(obs) - len(used),
        n_classes=None,
        folds=tuple(about),
    )


def _target(obs: pd.DataFrame, column: str, unit: tuple[str, ...], n_folds: int) -> Target:
    """Units are dealt into folds; where there are no more of them than folds, each is a fold."""
    for name in unit:
        missing = np.flatnonzero((obs[name].isna() & obs[column].notna()).to_numpy())
        if len(missing):
            raise InputError(
                f"column {name!r} has no value in row {missing[0]}; expected the name of its group"
            )
    few = len(set(unit_names(obs[obs[column].notna()], unit))) <= n_folds
    split = {"split": "leave_one_out"} if few else {"split": "k_fold", "n_folds": n_folds}
    return Target(column, column, unit, nuisance=True, **split)


def _used(folds: Sequence[Fold]) -> np.ndarray:
    return np.unique(np.concatenate([rows for f in folds for rows in (f.train, f.test)]))


def _numbers(column: pd.Series) -> np.ndarray:
    """float64 [n], nan where there is none."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    odd = np.flatnonzero((np.isnan(values) & column.notna().to_numpy()) | np.isinf(values))
    if len(odd):
        value = str(column.iloc[odd[0]])
        raise InputError(f"column {column.name!r} of row {odd[0]} is {value!r}, expected a number")
    return values


def _with_well_parts(obs: pd.DataFrame) -> pd.DataFrame:
    """With "well_row" and "well_column" of "well": "B" and "7" of "B07"."""
    absent = [part for part in WELL_PARTS if part not in obs]
    if "well" not in obs or not absent:
        return obs
    read: dict[str, list[str | None]] = {part: [] for part in WELL_PARTS}
    for row, name in enumerate(obs["well"]):
        part = None if pd.isna(name) else WELL.fullmatch(str(name).strip())
        if part is None and not pd.isna(name):
            raise InputError(
                f"column 'well' of row {row} is {name!r}, expected a row and a column like 'B07'"
            )
        for i, values in enumerate(read.values(), start=1):
            values.append(part and part.group(i).upper())
    return obs.assign(**{part: read[part] for part in absent})

"""Metadata and a target's declaration in, folds of example indices out. Pure functions."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """One split of one target. The three parts hold example indices, ascending int64."""

    name: str  # "plate=SQ00015198", "fold=2", "fixed"
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    unit: tuple[str, ...]  # metadata columns of the target's unit of independence

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each part's indices."""
        return [hashlib.sha256(getattr(self, part).tobytes()).hexdigest() for part in PARTS]


def rows_of(folds: Sequence[Fold]) -> np.ndarray:
    """Every index that is in some part of some fold, ascending int64."""
    return np.unique(np.concatenate([getattr(fold, part) for fold in folds for part in PARTS]))


def unit_names(metadata: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Each row's joint value of `columns` as one text: "A01" or "P1/A01/3"; object [n]."""
    parts = [metadata[column].astype(str).to_numpy(dtype=object) for column in columns]
    return np.array(["/".join(values) for values in zip(*parts, strict=True)], dtype=object)


def has_value(column: pd.Series) -> np.ndarray:
    """Which rows of a column are neither missing nor an empty text, bool [n]."""
    return np.asarray(column.notna() & (column.astype(str) != ""))


def target_rows(metadata: pd.DataFrame, target: Target) -> np.ndarray:
    """Indices of the rows a target is about: its `where` holds and its label is not empty."""
    for column in (target.column, *target.unit, *(column for column, _ in target.where)):
        _require(metadata, column, f"column {column!r} of target {target.name!r}")
    keep = has_value(metadata[target.column])
    for column, values in target.where:
        keep &= metadata[column].astype(str).isin(values).to_numpy()
    return np.flatnonzero(keep)


def make_folds(metadata: pd.DataFrame, target: Target) -> list[Fold]:
    """The folds of a target, in a fixed order that depends on the metadata alone.

    Whole units go to train, validation or test. Raises `InputError` where a declared column is
    missing, a part would be empty, or a class has no training example in a fold.
    """
    rows = target_rows(metadata, target)
    if not len(rows):
        raise InputError(f"target {target.name!r} has no example: check its label and its filter")
    part = metadata.iloc[rows]
    labels = part[target.column].astype(str).to_numpy(dtype=object)
    units = unit_names(part, target.unit)
    if target.split == "fixed":
        folds = [_fixed_fold(part, rows, target)]
    elif target.split == "leave_one_out":
        names = sorted(set(units))
        group = pd.Index(names).get_indexer(units)
        fold_names = [f"{'/'.join(target.unit)}={name}" for name in names]
        folds = _rotate(rows, group, fold_names, target)
    else:
        group = _deal(units, labels, target)
        folds = _rotate(rows, group, [f"fold={i}" for i in range(target.n_folds)], target)
    for fold in folds:
        check_classes(metadata, fold, target, labels)
    return folds


def _rotate(rows: np.ndarray, group: np.ndarray, names: list[str], target: Target) -> list[Fold]:
    """Fold i tests group i, validates on the next group and trains on all others."""
    if len(names) < 3:
        raise InputError(
            f"target {target.name!r} needs at least 3 groups of {'/'.join(target.unit)} for train, "
            f"validation and test, not {len(names)}"
        )
    folds = []
    for i, name in enumerate(names):
        test = group == i
        validation = group == (i + 1) % len(names)
        fold = Fold(name, rows[~(test | validation)], rows[validation], rows[test], target.unit)
        if not (len(fold.train) and len(fold.validation) and len(fold.test)):
            raise InputError(f"target {target.name!r}: a part of fold {name!r} is empty")
        folds.append(fold)
    return folds


def _deal(units: np.ndarray, labels: np.ndarray, target: Target) -> np.ndarray:
    """The k_fold group of every row: the units of each class dealt round like cards.

    A unit with several classes is dealt among those with the same set of classes. The start goes
    on from class to class, so that small classes do not all land in the first group.
    """
    classes_of: dict[str, set[str]] = {}
    for unit, label in zip(units, labels, strict=True):
        classes_of.setdefault(unit, set()).add(label)
    strata: dict[str, list[str]] = {}
    for unit in sorted(classes_of):
        strata.setdefault(json.dumps(sorted(classes_of[unit])), []).append(unit)
    rng = np.random.default_rng(zlib.crc32(target.name.encode()))
    group_of, start = {}, 0
    for stratum in sorted(strata):
        for offset, i in enumerate(rng.permutation(len(strata[stratum]))):
            group_of[strata[stratum][i]] = (start + offset) % target.n_folds
        start += len(strata[stratum])
    return np.array([group_of[unit] for unit in units])


def _fixed_fold(part: pd.DataFrame, rows: np.ndarray, target: Target) -> Fold:
    what = f"split column {target.split_column!r} of target {target.name!r}"
    _require(part, target.split_column, what)
    value = part[target.split_column].astype(str).to_numpy(dtype=object)
    strange = set(value) - set(PARTS)
    if strange:
        raise InputError(f"{what} holds {sorted(strange)[0]!r}; expected one of {PARTS}")
    for name in PARTS:
        if name not in value:
            raise InputError(f"{what} has no row that says {name!r}")
    parts_of: dict[str, set[str]] = {}
    for unit, name in zip(unit_names(part, target.unit), value, strict=True):
        parts_of.setdefault(unit, set()).add(name)
    for unit in sorted(parts_of):
        if len(parts_of[unit]) > 1:
            raise InputError(
                f"{what} puts {'/'.join(target.unit)} {unit!r} into "
                f"{' and '.join(sorted(parts_of[unit]))}; a unit belongs to one part"
            )
    train, validation, test = (rows[value == name] for name in PARTS)
    return Fold("fixed", train, validation, test, target.unit)


def check_classes(
    metadata: pd.DataFrame, fold: Fold, target: Target, classes: Iterable[str]
) -> None:
    """`InputError` for a class without a training example in the fold."""
    seen = set(metadata[target.column].iloc[fold.train].astype(str))
    unseen = sorted(set(classes) - seen)
    if unseen:
        raise InputError(
            f"class {unseen[0]!r} of target {target.name!r} has no training example in fold "
            f"{fold.name!r}"
        )


def _require(metadata: pd.DataFrame, column: str, what: str) -> None:
    if column not in metadata.columns:
        raise InputError(
            f"{what} does not exist; the metadata columns are: {', '.join(metadata.columns)}"
        )


def pretraining_indices(
    metadata: pd.DataFrame, declaration: Declaration, hold_out: Fold | None = None
) -> np.ndarray:
    """What pre-training may see, ascending int64.

    Every image, or the rows of the fixed split's train part; less, where `hold_out` is given, *all*
    rows of the units that fold tests on (the whole plate, not only its control wells).
    """
    keep = np.ones(len(metadata), dtype=bool)
    if declaration.pretraining == "train":
        fixed = (t.split_column for t in declaration.targets if t.split == "fixed")
        column = declaration.pretraining_column or next(fixed)
        _require(metadata, column, f"split column {column!r} of data set {declaration.name!r}")
        keep &= (metadata[column].astype(str) == "train").to_numpy()
    if hold_out is not None:
        units = unit_names(metadata, hold_out.unit)
        keep &= ~pd.Index(units).isin(set(units[hold_out.test]))
    indices = np.flatnonzero(keep)
    if not len(indices):
        raise InputError(f"data set {declaration.name!r} leaves no image for pre-training")
    return indices


def class_labels(metadata: pd.DataFrame, target: Target) -> tuple[np.ndarray, tuple[str, ...]]:
    """Every row's class of a target as a number, int32 [n], and the classes' names in that order.

    Classes are sorted as text; -1 where the target says nothing of the row.
    """
    rows = target_rows(metadata, target)
    names, codes = np.unique(
        metadata[target.column].iloc[rows].astype(str).to_numpy(dtype=object), return_inverse=True
    )
    labels = np.full(len(metadata), -1, dtype=np.int32)
    labels[rows] = codes
    return labels, tuple(names)


def labelled_indices(
    metadata: pd.DataFrame,
    declaration: Declaration,
    target: Target,
    folds: Sequence[Fold],
    hold_out: Fold | None = None,
) -> np.ndarray:
    """What pre-training *with the labels* of a target may see, ascending int64.

    The train part of the target's fixed split, or of `hold_out` where that is a fold of this
    target; less what `pretraining_indices` withholds. Validation rows are left alone, because
    benchmarks choose by them. Raises `InputError` for a cross-validated target none of whose folds
    is held out: whatever it were trained on, some fold tests on it.
    """
    if target.split == "fixed":
        fold = folds[0]
    else:
        same = [
            fold
            for fold in folds
            if hold_out is not None
            and (fold.name, fold.unit) == (hold_out.name, hold_out.unit)
            and np.array_equal(fold.test, hold_out.test)
        ]
        if not same:
            raise InputError(
                f"target {target.name!r} is cross-validated ({target.split}), and each of its rows "
                "is tested by some fold; expected a target with a fixed split, or a training that "
                "holds out one of this target's folds"
            )
        fold = same[0]
    indices = np.intersect1d(fold.train, pretraining_indices(metadata, declaration, hold_out))
    if not len(indices):
        raise InputError(
            f"the train part of target {target.name!r} leaves no image for pre-training"
        )
    return indices


def write_folds(path: Path, folds: dict[str, list[Fold]]) -> None:
    """Index lists as `target/i/part`, fold names as `target/names`; no pickle."""
    arrays = {}
    for target, target_folds in folds.items():
        arrays[f"{target}/names"] = np.array([fold.name for fold in target_folds])
        arrays[f"{target}/unit"] = np.array(target_folds[0].unit)
        for i, fold in enumerate(target_folds):
            for part in PARTS:
                arrays[f"{target}/{i}/{part}"] = getattr(fold, part)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_folds(path: Path, target: str) -> list[Fold]:
    """The folds of one target as `write_folds` left them."""
    with np.load(path, allow_pickle=False) as arrays:
        unit = tuple(str(column) for column in arrays[f"{target}/unit"])
        folds = []
        for i, name in enumerate(arrays[f"{target}/names"]):
            train, validation, test = (arrays[f"{target}/{i}/{part}"] for part in PARTS)
            folds.append(Fold(str(name), train, validation, test, unit))
        return folds

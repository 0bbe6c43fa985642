"""What a probe's score on frozen features says beyond a confound, such as the number of cells.

Three ways, in order of what they are worth (`statistics/conditional.py`):

1. conditional permutation: the answers to the test rows stay, the labels are permuted inside strata
   of the confound and counted again.
2. added value: confound and features together, less the confound alone, by one flexible model out
   of fold, on the layer that validation chose.
3. linear residualisation: the benchmark itself on features without their linear fit on the
   confound, made on the training rows of each fold. Descriptive only.

The first is of the test rows that `find_overlap` leaves, the others of the rows of all parts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.answers import Answers
from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.confound import (
    ADDED,
    PERMUTATION,
    RESIDUALISED,
    Confound,
    conditional_row,
    rows_by_method,
)
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import PARTS, Fold, has_value, rows_of, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable, MemoryTable
from bioimg_jax.statistics.conditional import (
    Overlap,
    UnitScore,
    added_value,
    conditional_permutation,
    counted,
    find_overlap,
    residualised,
    retained,
)
from bioimg_jax.statistics.intervals import t_interval, train_overlap

NO_ANSWERS = "the benchmark keeps no answers to its test rows"
WELLS = (("plate", "well"), ("plate", "well", "site"))  # what labels are given to, by the field


@dataclasses.dataclass(frozen=True, eq=False)
class Probed:
    """A benchmark and what it was given: table [n], its folds, and a target.

    blocks: [n], by name: what a label was given to.
    """

    benchmark: Benchmark
    table: FeatureTable
    folds: Sequence[Fold]
    target: Target
    blocks: np.ndarray

    @property
    def test(self) -> np.ndarray:
        """Test rows of all folds, ascending, int [t]."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))

    @property
    def units(self) -> np.ndarray:
        return unit_names(self.table.obs, self.target.unit)

    def overlap(self, confound: Confound, rows: np.ndarray) -> Overlap:
        """Among these rows, int [r], ascending; its own rows are positions in `rows`."""
        labels = self.table.obs[self.target.column].astype(str)
        values = confound.values.reset_index(drop=True).iloc[rows]
        return find_overlap(
            labels.to_numpy(object)[rows],
            values.to_frame(confound.name),
            self.blocks[rows],
            numbers=(confound.name,) if confound.is_number else (),
        )


def label_blocks(
    obs: pd.DataFrame, folds: Sequence[Fold], target: Target, columns: Sequence[str] = ()
) -> tuple[str, np.ndarray]:
    """What the labels were given to: the columns in words, and each row's block by name [n].

    columns: as the config names them. Without them the first of the target's unit, plate and well,
    and plate, well and site whose every group in the folds has a single label; else each row has a
    label of its own.

    Raises:
      InputError: a column that is not there.
    """
    for column in columns:
        if column not in obs:
            raise InputError(
                f"evaluate.beyond_blocks: no column {column!r} among {', '.join(obs.columns)}"
            )
    if columns:
        return "/".join(columns), unit_names(obs, columns)
    rows = rows_of(folds)
    labels = obs[target.column].astype(str).to_numpy(object)[rows]
    for candidate in (target.unit, *WELLS):
        if all(column in obs for column in candidate):
            names = unit_names(obs, candidate)
            if (pd.Series(labels).groupby(names[rows]).nunique() == 1).all():
                return "/".join(candidate), names
    return "row", np.array([f"row {row}" for row in range(len(obs))], object)


def beyond_probe(
    probed: Probed,
    confound: Confound,
    *,
    answers: Answers | None,
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of "method", `COLUMNS` and "refused", why a method has none of them, else "".

    value: beyond the confound; of the residualised the score itself. observed: the score on the
    retained rows. alone: the mean under permutations, or the score of the confound.

    Args:
      answers: of the probe that is asked about, on rows of the table.
    """
    return rows_by_method(
        {
            PERMUTATION: lambda: _permuted(probed, answers, confound, permutations, seed),
            ADDED: lambda: _added(probed, answers, confound, seed),
            RESIDUALISED: lambda: _residualised(probed, answers, confound),
        }
    )


def beyond_itself(
    probed: Probed, confound: Confound, *, answers: Answers | None, permutations: int, seed: int
) -> list[dict[str, Any]]:
    """What the same probe of the confound alone scores beyond it: how coarse the strata are.

    answers: of the benchmark to any table: where it kept none it would be run in vain.
    """

    def row() -> dict[str, Any]:
        _told(answers)
        known = np.flatnonzero(has_value(confound.values))
        alone = _in_memory(probed.table, np.nan_to_num(confound.columns), confound.name)
        folds = retained(probed.folds, known, confound.name)
        mine = dataclasses.replace(probed, table=alone, folds=folds)
        return _permuted(mine, _probed_again(mine, folds), confound, permutations, seed)

    return rows_by_method({PERMUTATION: row})


def _permuted(
    probed: Probed, answers: Answers | None, confound: Confound, permutations: int, seed: int
) -> dict[str, Any]:
    rows = probed.test
    overlap = probed.overlap(confound, rows)
    found = conditional_permutation(
        overlap,
        _counted(_told(answers), rows[overlap.rows], overlap.labels, overlap.names, probed),
        n_permutations=permutations,
        train_overlap=train_overlap(probed.folds),
        seed=seed,
    )
    about = {"observed": found.observed, "alone": found.null, "p": found.p}
    return conditional_row(PERMUTATION, found.value, found.interval, overlap, **about)


def _added(
    probed: Probed, answers: Answers | None, confound: Confound, seed: int
) -> dict[str, Any]:
    rows = rows_of(probed.folds)
    overlap = probed.overlap(confound, rows)
    held = {layer: probed.table.layer(layer)[rows] for layer in set(_told(answers).layers)}
    found = added_value(
        overlap,
        np.nan_to_num(confound.columns[rows]),  # rows without a value are not retained
        [held[layer] for layer in _told(answers).layers],
        [_among(fold, rows) for fold in probed.folds],
        probed.units[rows],
        metric=probed.target.metric,
        seed=seed,
    )
    about = {"observed": found.joint, "alone": found.floor, "p": found.p}
    return conditional_row(ADDED, found.value, found.interval, overlap, **about)


def _residualised(probed: Probed, answers: Answers | None, confound: Confound) -> dict[str, Any]:
    rows = rows_of(probed.folds)
    overlap = probed.overlap(confound, rows)
    folds = retained(probed.folds, rows[overlap.rows], confound.name)
    columns = np.nan_to_num(confound.columns)
    parts = []
    for fold, layer in zip(folds, _told(answers).layers, strict=True):
        left = residualised(probed.table.layer(layer), columns, fold.train)
        table = _in_memory(probed.table, left.features, layer)
        parts.append(_probed_again(dataclasses.replace(probed, table=table), [fold]))
    whole = Answers(
        rows=np.concatenate([part.rows for part in parts]),
        predictions=np.concatenate([
            np.array([overlap.names.index(name) for name in part.classes])[part.predictions]
            for part in parts
        ]),
        weights=np.concatenate([part.weights for part in parts]),
        classes=overlap.names,
        layers=_told(answers).layers,
    )  # fmt: skip
    tested = np.isin(rows[overlap.rows], whole.rows)
    labels = overlap.labels[tested]
    score = _counted(whole, rows[overlap.rows][tested], labels, overlap.names, probed)
    values = np.array(list(score(labels).values()))
    interval = t_interval(values, train_overlap=train_overlap(folds))
    about = {"observed": None, "alone": None, "p": None}
    return conditional_row(RESIDUALISED, float(values.mean()), interval, overlap, **about)


def _told(answers: Answers | None) -> Answers:
    if answers is None:
        raise InputError(NO_ANSWERS)
    return answers


def _probed_again(probed: Probed, folds: Sequence[Fold]) -> Answers:
    """The benchmark's answers on a table of one layer."""
    scores = probed.benchmark.scores(
        probed.table, folds, probed.target, representation="", kind="", seed=0, exposure="",
        settings={}, permute_labels_seed=None,
    )  # fmt: skip
    return _told(scores[-1].answers)


def _counted(
    answers: Answers, rows: np.ndarray, labels: np.ndarray, names: Sequence[str], probed: Probed
) -> UnitScore:
    """`counted` of the rows, int [m], and their labels, int [m], positions in `names`.

    An answer that is no label of these rows is wrong, whatever the label.
    """
    place = np.full(len(probed.table.obs), -1)
    place[rows] = np.arange(len(rows))
    mine = place[answers.rows] >= 0
    code = {name: i for i, name in enumerate(names)}
    answer = np.array([code.get(name, -1) for name in answers.classes])[answers.predictions[mine]]
    return counted(
        labels, answer, probed.units[rows], metric=probed.target.metric,
        row=place[answers.rows[mine]], weights=answers.weights[mine],
    )  # fmt: skip


def _in_memory(like: FeatureTable, features: np.ndarray, layer: str) -> MemoryTable:
    """Features [n, d] as the only layer of a table."""
    return MemoryTable(
        path=like.path, obs=like.obs, widths={layer: features.shape[1]}, default=layer,
        provenance=like.provenance, features=features,
    )  # fmt: skip


def _among(fold: Fold, rows: np.ndarray) -> Fold:
    """A fold of a table's rows as one of positions in `rows`, which holds them all, ascending."""
    parts = {part: np.searchsorted(rows, getattr(fold, part)) for part in PARTS}
    return dataclasses.replace(fold, **parts)

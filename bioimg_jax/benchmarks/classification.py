"""Classification of frozen features by any probe, scored unit of independence by unit.

For each layer and fold a probe is fitted on the training rows with all its candidate settings; one
is chosen on the validation rows and the test rows are scored once. The extra row "selected" chooses
layer and setting together, again on validation rows, fold by fold: its test rows never take part.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import stats
from sklearn import metrics

from bioimg_jax.benchmarks.answers import Answers
from bioimg_jax.benchmarks.score import SELECTED, Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, rows_of, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.statistics.intervals import t_interval, train_overlap
from bioimg_jax.statistics.unit_metric import (
    METRICS,
    by_pseudo_values,
    counted_answers,
    metric_value,
    unit_metric,
)

MAX_PERMUTATIONS = 100
PSEUDO_VALUES = "pseudo-values"  # in `settings["per_unit"]`, where `unit_metric` gives them


class Fitted(Protocol):
    """A probe fitted to the training rows of a fold with every candidate setting.

    Votes are float [n, c]: the share of its vote that a row gives each class. One-hot for a single
    answer; classes that tie, and draws that disagree, share it.
    """

    @property
    def candidates(self) -> Sequence[Mapping[str, Any]]:
        """Settings as plain JSON, the simplest first: of equals validation takes the first."""

    def votes(self, features: np.ndarray) -> Iterable[np.ndarray]:
        """Votes on raw features [n, d], for one candidate after the other."""

    def answer(self, features: np.ndarray, candidate: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Votes of one candidate, and scores [n, c] for AUROC, by which each class ranks rows."""


# Raw features [n, d], labels int [n], units int [n] (in the order of their names), classes.
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Fitted]


def classification_scores(
    table: FeatureTable,
    folds: Sequence[Fold],
    target: Target,
    *,
    fit: Fit,
    benchmark: str,
    probe: Mapping[str, Any],
    representation: str,
    kind: str,
    seed: int,
    exposure: str,
    settings: Mapping[str, Any] | None = None,
    permute_labels_seed: int | None = None,
) -> list[Score]:
    """One score for each layer and, where there are several layers, one for the selected layer.

    Args:
      table: features; its row i is example i of the folds. In a tie the earlier layer is selected.
      probe: what every candidate of the probe shares, as plain JSON; goes into every row.
      settings: goes into every row beside them.
      permute_labels_seed: replaces the labels by permuted ones, for a run that must be at chance.

    Raises:
      InputError: fewer than two classes, or a class without a training example.
    """
    layers = list(table.widths)
    task = Task.of(table, folds, target, permute_labels_seed)
    overlap = train_overlap(folds)
    runs: dict[str, list[_Run]] = {}
    for layer in layers:
        features = table.layer(layer)
        runs[layer] = [_run(features, layer, task, fold, fit, target.metric) for fold in folds]
        if len(folds) > 1:  # whose units are whose: the ladder chooses fold by fold
            for run, fold in zip(runs[layer], folds, strict=True):
                units = np.unique(task.units[fold.test])
                run.settings["units"] = [task.unit_names[unit] for unit in units]
    budgets = {layer: max(run.n_candidates for run in of) for layer, of in runs.items()}

    pseudo = task.by_pseudo_values(folds, target.metric)
    unit_rows = _unit_rows(task, folds, pseudo)
    shared: dict[str, Any] = {"probe": benchmark, **probe}
    if pseudo:
        shared["per_unit"] = PSEUDO_VALUES
    if permute_labels_seed is not None:
        shared["permute_labels_seed"] = permute_labels_seed
    shared.update(settings or {})

    def score(chosen: list[_Run], block: str, pooling: str, budget: int) -> Score:
        per_unit, pooled = _test_metrics(task, folds, chosen, target.metric)
        values = list(per_unit.values())
        return Score(
            benchmark=benchmark,
            target=target.name,
            split=split_text(target, len(folds)),
            metric=target.metric,
            higher_is_better=True,
            chance=_chance(task, folds, target.metric),
            ceiling=1.0,
            representation=representation,
            kind=kind,
            block=block,
            pooling=pooling,
            seed=seed,
            value=float(np.mean(values)),
            per_unit=per_unit,
            interval=t_interval(values, train_overlap=overlap),
            n_units=len(values),
            unit=target.unit,
            exposure=exposure,
            search_budget=budget,
            other_metrics=pooled,
            unit_rows=unit_rows,
            settings={**shared, "folds": settings_of(chosen, block)},
            answers=_answers_of(task, folds, chosen) if is_final(block) else None,
        )

    def is_final(block: str) -> bool:
        return block == SELECTED or len(layers) == 1

    def settings_of(chosen: list[_Run], block: str) -> list[dict[str, Any]]:
        if not (pseudo and len(folds) > 1 and kind == "untrained" and is_final(block)):
            return [run.settings for run in chosen]
        # The ladder may take another member of the family in every fold, and pseudo-values are of
        # all folds' answers together.
        return [
            {**run.settings, "answers": _unit_answers(task, fold, run)}
            for run, fold in zip(chosen, folds, strict=True)
        ]

    scores = []
    for layer, chosen in runs.items():
        block, _, pooling = layer.rpartition("/")
        scores.append(score(chosen, block or layer, pooling if block else "", budgets[layer]))
    if len(layers) > 1:
        best = [
            max(
                (runs[layer][i] for layer in layers),
                key=lambda run: (run.validation, -run.candidate),
            )
            for i in range(len(folds))
        ]
        scores.append(score(best, SELECTED, SELECTED, sum(budgets.values())))
    return scores


def check_target(target: Target) -> None:
    """`InputError` for a metric that is not computed inside a unit."""
    if target.metric not in METRICS:
        raise InputError(f"target {target.name!r}: metric {target.metric!r} is none of {METRICS}")


def split_text(target: Target, n_folds: int) -> str:
    """The split in words, as results and the report show it."""
    unit = "/".join(target.unit)
    if target.split == "leave_one_out":
        return f"leave one {unit} out, {n_folds} folds"
    if target.split == "k_fold":
        return f"held-out {unit}, {n_folds} folds"
    return f"fixed by column {target.split_column}"


@dataclasses.dataclass(frozen=True)
class Task:
    """The labels and units of a table's rows; −1 where a row belongs to no fold."""

    classes: list[str]
    labels: np.ndarray  # int [n], position in classes
    units: np.ndarray  # int [n], position in unit_names
    unit_names: list[str]

    @classmethod
    def of(
        cls, table: FeatureTable, folds: Sequence[Fold], target: Target, permute_seed: int | None
    ) -> "Task":
        check_target(target)
        used = rows_of(folds)
        obs = table.obs.iloc[used]
        classes, labels = np.unique(
            obs[target.column].astype(str).to_numpy(str), return_inverse=True
        )
        if len(classes) < 2:
            raise InputError(f"target {target.name!r} has a single class, {str(classes[0])!r}")
        names, units = np.unique(unit_names(obs, target.unit).astype(str), return_inverse=True)
        absent = np.full(len(table.obs), -1)
        task = cls(classes.tolist(), absent.copy(), absent.copy(), names.tolist())
        task.labels[used], task.units[used] = labels, units
        if permute_seed is not None:
            rng = np.random.default_rng(permute_seed)
            for _ in range(MAX_PERMUTATIONS):  # few units may leave a class out of training
                task.labels[used] = permute_labels(labels, units, rng)
                if not any(len(task.untrained_classes(fold)) for fold in folds):
                    break
        return task

    def by_pseudo_values(self, folds: Sequence[Fold], metric: str) -> bool:
        """Whether a unit's value is a pseudo-value of the metric over all test rows."""
        rows = np.concatenate([fold.test for fold in folds])
        return by_pseudo_values(self.labels[rows], self.units[rows], metric)

    def untrained_classes(self, fold: Fold) -> np.ndarray:
        """Classes without a training example in this fold."""
        return np.setdiff1d(np.arange(len(self.classes)), self.labels[fold.train])

    def check_training(self, fold: Fold) -> None:
        """`InputError` for a class without a training example in this fold."""
        missing = self.untrained_classes(fold)
        if len(missing):
            raise InputError(
                f"class {self.classes[missing[0]]!r} has no training example in fold {fold.name!r}"
            )


def permute_labels(labels: np.ndarray, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels [n] permuted inside each unit, where every unit holds several classes.

    Where every unit holds one class, whole units swap labels; where some do, all rows are permuted.
    """
    ids, first, position = np.unique(units, return_index=True, return_inverse=True)
    same = np.bincount(position, labels == labels[first][position]) == np.bincount(position)
    if same.all():
        return rng.permutation(labels[first])[position]
    if same.any():
        return rng.permutation(labels)
    permuted = labels.copy()
    for unit in range(len(ids)):
        rows = np.flatnonzero(position == unit)
        permuted[rows] = labels[rng.permutation(rows)]
    return permuted


@dataclasses.dataclass(frozen=True)
class _Run:
    """One layer in one fold, at the candidate setting that validation chose."""

    validation: float
    candidate: int
    n_candidates: int
    votes: np.ndarray  # float [n_test, c]
    auroc: float | None
    settings: dict[str, Any]


def _run(features: np.ndarray, layer: str, task: Task, fold: Fold, fit: Fit, metric: str) -> _Run:
    task.check_training(fold)
    fitted = fit(
        features[fold.train], task.labels[fold.train], task.units[fold.train], len(task.classes)
    )
    validation = [
        metric_value(
            *_answers(task, fold.validation, votes), metric=metric, weights=votes[votes > 0]
        )
        for votes in fitted.votes(features[fold.validation])
    ]
    best = int(np.argmax(validation))  # the first of equals: the simplest
    votes, ranking = fitted.answer(features[fold.test], best)
    return _Run(
        validation=validation[best],
        candidate=best,
        n_candidates=len(validation),
        votes=votes,
        auroc=None if ranking is None else _auroc(task.labels[fold.test], ranking),
        settings={
            "fold": fold.name,
            "layer": layer,
            "validation": validation[best],
            **fitted.candidates[best],
            "n_train": len(fold.train),
            "n_validation": len(fold.validation),
            "n_test": len(fold.test),
        },
    )


def one_hot(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Labels int [n] as float32 [n, c]: votes for one class each, or targets of a regression."""
    return (labels[:, None] == np.arange(n_classes)).astype(np.float32)


def _answers(
    task: Task, rows: np.ndarray, votes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, answer and unit of every vote that a row gives; their weights are votes[votes > 0]."""
    row, predictions = (votes > 0).nonzero()
    return task.labels[rows[row]], predictions, task.units[rows[row]]


def _test_metrics(
    task: Task, folds: Sequence[Fold], runs: Sequence[_Run], metric: str
) -> tuple[dict[str, float], dict[str, float | None]]:
    """The metric of each test unit, and what is computed over all test rows together."""
    rows = np.concatenate([fold.test for fold in folds])
    votes = np.concatenate([run.votes for run in runs])
    labels, predictions, units = _answers(task, rows, votes)
    weights = votes[votes > 0].astype(np.float64)
    per_unit = unit_metric(labels, predictions, units, metric, weights)
    aurocs = [run.auroc for run in runs if run.auroc is not None]
    present = np.unique(labels)
    pooled = {
        "accuracy": float(np.average(predictions == labels, weights=weights)),
        "balanced_accuracy": float(metrics.recall_score(
            labels, predictions, labels=present, average="macro", zero_division=0.0,
            sample_weight=weights,
        )),
        "macro_f1": float(metrics.f1_score(
            labels, predictions, labels=present, average="macro", zero_division=0.0,
            sample_weight=weights,
        )),
        "auroc": float(np.mean(aurocs)) if aurocs else None,
    }  # fmt: skip
    return {task.unit_names[unit]: value for unit, value in per_unit.items()}, pooled


def _answers_of(task: Task, folds: Sequence[Fold], runs: Sequence[_Run]) -> Answers:
    rows = np.concatenate([fold.test for fold in folds])
    votes = np.concatenate([run.votes for run in runs])
    return Answers.of_votes(rows, votes, task.classes, [run.settings["layer"] for run in runs])


def _unit_answers(task: Task, fold: Fold, run: _Run) -> dict[str, dict[str, list[float]]]:
    """Unit -> class -> [weight of right answers, weight of rows] on the fold's test side."""
    labels, predictions, units = _answers(task, fold.test, run.votes)
    weights = run.votes[run.votes > 0].astype(np.float64)
    names, counts, hits = counted_answers(labels, predictions, units, weights)
    return {
        task.unit_names[unit]: {
            task.classes[k]: [float(hits[u, k]), float(counts[u, k])]
            for k in np.flatnonzero(counts[u])
        }
        for u, unit in enumerate(names)
    }


def _unit_rows(task: Task, folds: Sequence[Fold], pseudo: bool) -> dict[str, int]:
    """Rows behind each test unit's value, as many as an even sample of its classes has: the
    smallest class of the unit, times its classes.

    Pseudo-values are of a mean recall over all rows, so there every class is thinned, over all
    units, to as many rows as the smallest has. No more errors hide behind that many right answers
    than behind the mean recall: at equal mean, equal shares have the largest variance, and the
    largest chance of no error at all.
    """
    rows = np.concatenate([fold.test for fold in folds])
    counts = np.zeros((len(task.unit_names), len(task.classes)), int)
    np.add.at(counts, (task.units[rows], task.labels[rows]), 1)
    if pseudo:
        total = counts.sum(axis=0)
        counts, total = counts[:, total > 0], total[total > 0]
        upto = np.cumsum(counts, axis=0) * total.min() // total
        thinned = np.diff(upto, axis=0, prepend=0).sum(axis=1)
        return {task.unit_names[u]: int(thinned[u]) for u in np.unique(task.units[rows])}
    return {
        task.unit_names[unit]: int(held.min() * len(held))
        for unit, held in ((u, counts[u][counts[u] > 0]) for u in np.unique(task.units[rows]))
    }


def _auroc(labels: np.ndarray, ranking: np.ndarray) -> float | None:
    """One class against the rest, mean over classes of the test rows; None with a single class."""
    present = np.unique(labels)
    if len(present) < 2:
        return None
    mine = labels[:, None] == present[None, :]  # [n, k]
    n = mine.sum(axis=0)
    # Of all pairs of a row of the class and another the share that is ranked rightly, ties by half:
    # Mann and Whitney's U. roc_auc_score says the same, class by class, sixty times as slowly.
    ranks = stats.rankdata(ranking[:, present], axis=0)
    u = (ranks * mine).sum(axis=0) - n * (n + 1) / 2
    return float(np.mean(u / (n * (len(labels) - n))))


def _chance(task: Task, folds: Sequence[Fold], metric: str) -> float:
    """The best constant answer: 1/c of balanced accuracy."""
    rows = np.concatenate([fold.test for fold in folds])
    labels, units = task.labels[rows], task.units[rows]
    return max(
        metric_value(labels, np.full_like(labels, k), units, metric)
        for k in range(len(task.classes))
    )

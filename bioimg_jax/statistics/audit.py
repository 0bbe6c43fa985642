"""The metadata audit: can the nuisance columns alone say what the target is, in this split?

If they can, no encoder can be judged on the target: what it knows about the well or the plate and
what it knows about the biology give the same answer.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from bioimg_jax.data.declaration import Target
from bioimg_jax.data.levels import readings
from bioimg_jax.data.splits import Fold, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.intervals import t_interval, train_overlap
from bioimg_jax.statistics.unit_metric import metric_value, unit_metric
from bioimg_jax.statistics.verdict import DELTA

CEILING = 1.0
ALL_COLUMNS = "all audited columns"
MAX_JOINED = 3  # columns whose joint value is tried as one key
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4)


def audit(
    metadata: pd.DataFrame, folds: Sequence[Fold], target: Target, *, delta: float = DELTA
) -> dict[str, Any]:
    """Scores of the columns of `target.audit`, each alone and all together, and what they mean.

    Numbers of many values are cut at quantiles; whole ones are tried value by value beside that
    (`data.levels.readings`), under a name of their own.

    The target is `confounded` when a column, or the joint value of up to three, *determines* it:
    in every fold each value stands for one class in training, every test value was seen there, and
    it gives the right class. (A tuple that names the well of a held-out plate is never seen in
    training and determines nothing.) It is also confounded when a probe on the one-hot columns,
    fitted on the training rows and scored on the test units, has its lower 95 % limit within
    `delta` of the ceiling.

    Returns:
      {"verdict": "confounded" or "", "reason": one sentence, "columns": the ones at fault, "score":
      of all columns together, "interval", "per_unit", "per_column": {column: {"score",
      "interval"}}, "best": {"columns", "score", "interval"} of the columns that say most, "rivals":
      {columns in words: per_unit}: everything that an encoder has to beat, "metric", "delta"};
      scores are None where there is nothing to score.

    Raises:
      InputError: an audit column that the metadata does not have.
    """
    result: dict[str, Any] = {
        "verdict": "",
        "reason": "",
        "columns": [],
        "score": None,
        "interval": None,
        "per_unit": {},
        "per_column": {},
        "best": None,
        "rivals": {},
        "metric": target.metric,
        "delta": delta,
    }
    for column in target.audit:
        if column not in metadata.columns:
            raise InputError(
                f"audit column {column!r} of target {target.name!r} does not exist; the metadata "
                f"columns are: {', '.join(metadata.columns)}"
            )
    if target.audit:
        task = _Task.of(metadata, folds, target)
        by_value = {
            columns: _vote(task, columns, folds, target.metric) for columns in task.joined()
        }
        for column in task.levels:
            score = by_value[(column,)]
            result["per_column"][column] = {"score": score.value, "interval": score.interval}
        joint = _probe(task, folds, target.metric)
        result.update(score=joint.value, interval=joint.interval, per_unit=joint.per_unit)
        everything = {ALL_COLUMNS: joint}
        everything |= {" and ".join(columns): score for columns, score in by_value.items()}
        best = max(everything, key=lambda name: everything[name].value)
        result["best"] = {
            "columns": best,
            "score": everything[best].value,
            "interval": everything[best].interval,
        }
        distinct: dict[tuple[float, ...], str] = {}  # columns that say the same are one rival
        for name, score in everything.items():
            distinct.setdefault(tuple(score.per_unit.values()), name)
        result["rivals"] = {name: everything[name].per_unit for name in distinct.values()}

    if target.nuisance:
        result["reason"] = "nuisance target: scores and no verdict"
        return result
    if not target.audit:
        result["reason"] = "no nuisance column is declared for this target"
        return result

    scores = [*by_value.items(), (target.audit, joint)]
    determining = [columns for columns, score in scores if score.determined]
    telling = [columns for columns, score in scores if score.reaches(CEILING - delta)]
    if determining or telling:
        columns = list((determining or telling)[0])
        said, one = " and ".join(columns), len(columns) == 1
        if determining:
            reason = (
                f"{said} determine{'s' if one else ''} {target.name}: each value seen in training "
                "names the right class on the test side"
            )
        else:
            reason = (
                f"{said} alone predict{'s' if one else ''} {target.name} on the test side to "
                f"within {delta:g} of the ceiling"
            )
        result.update(verdict="confounded", columns=columns, reason=reason)
        return result
    interval = result["best"]["interval"]
    shown = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    result["reason"] = (
        f"metadata alone does not settle {target.name}: at best {target.metric.replace('_', ' ')} "
        f"{result['best']['score']:.2f}{shown}, from {result['best']['columns']}"
    )
    return result


@dataclasses.dataclass(frozen=True)
class _Task:
    """Labels, units and audited columns as codes, one distinct combination a row, with its count.

    Thousands of cells of one well say the same about metadata, so they are one row here.
    """

    labels: np.ndarray  # int [m]
    units: np.ndarray  # int [m]
    unit_names: list[str]
    levels: dict[str, np.ndarray]  # reading of a column -> int [m]
    row_of: np.ndarray  # int [n]: example -> row; −1 in no fold

    @classmethod
    def of(cls, metadata: pd.DataFrame, folds: Sequence[Fold], target: Target) -> "_Task":
        used = np.unique(
            np.concatenate([p for f in folds for p in (f.train, f.validation, f.test)])
        )
        part = metadata.iloc[used]
        labels = pd.factorize(part[target.column].astype(str), sort=True)[0]
        units, names = pd.factorize(unit_names(part, target.unit), sort=True)
        read = {name: codes for c in target.audit for name, codes in readings(part[c]).items()}
        codes = np.stack([labels, units, *read.values()], axis=1)
        distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
        row_of = np.full(len(metadata), -1)
        row_of[used] = inverse
        levels = {name: distinct[:, 2 + i] for i, name in enumerate(read)}
        return cls(distinct[:, 0], distinct[:, 1], [str(n) for n in names], levels, row_of)

    def joined(self) -> list[tuple[str, ...]]:
        """The audited columns, one by one, then joined by two and by three."""
        sizes = range(1, min(MAX_JOINED, len(self.levels)) + 1)
        return [columns for k in sizes for columns in itertools.combinations(self.levels, k)]

    def one_hot(self) -> sparse.csr_array:
        """All audited columns [m, levels of all of them]; sparse: a level may stand for one row."""
        codes = np.stack(list(self.levels.values()), axis=1)
        sizes = codes.max(axis=0) + 1
        places = codes + np.cumsum(sizes) - sizes
        starts = np.arange(len(places) + 1) * places.shape[1]
        parts = (np.ones(places.size), places.ravel(), starts)
        return sparse.csr_array(parts, shape=(len(places), int(sizes.sum())))

    def counts(self, examples: np.ndarray) -> np.ndarray:
        """How many of the examples each distinct row stands for [m]."""
        return np.bincount(self.row_of[examples], minlength=len(self.labels))


@dataclasses.dataclass(frozen=True)
class _Scored:
    value: float
    interval: tuple[float, float] | None
    per_unit: dict[str, float]
    determined: bool = False  # each value stands for one class in training, and is right on test

    def reaches(self, level: float) -> bool:
        return self.interval is not None and self.interval[0] >= level


def _vote(task: _Task, columns: tuple[str, ...], folds: Sequence[Fold], metric: str) -> _Scored:
    """For each joint value the commonest class it has in training; the commonest one if unseen.

    This is where a linear probe on the one-hot joint value converges to.
    """
    stacked = np.stack([task.levels[column] for column in columns], axis=1)
    key = np.unique(stacked, axis=0, return_inverse=True)[1]
    guesses, determined = [], True
    for fold in folds:
        train = task.counts(fold.train)
        votes = np.zeros((key.max() + 1, task.labels.max() + 1))
        np.add.at(votes, (key, task.labels), train)
        unseen = votes.sum(axis=1) == 0
        votes[unseen] = votes.sum(axis=0)
        guess = votes.argmax(axis=1)[key]
        test = task.row_of[fold.test]
        functional = ((votes > 0).sum(axis=1) == 1)[key[test]]
        determined &= bool((functional & ~unseen[key[test]]).all())
        determined &= bool((guess[test] == task.labels[test]).all())
        guesses.append(guess)
    scored = _score(task, guesses, folds, metric)
    return dataclasses.replace(scored, determined=determined)


def _probe(task: _Task, folds: Sequence[Fold], metric: str) -> _Scored:
    """Logistic regression on all columns, one-hot; strength chosen on the validation units."""
    hot = task.one_hot()
    guesses = []
    for fold in folds:
        train = task.counts(fold.train)
        rows = np.flatnonzero(train)
        validation = task.row_of[fold.validation]
        best, chosen = -1.0, np.zeros(len(task.labels), int)
        model = LogisticRegression(max_iter=2_000, warm_start=True)
        for strength in STRENGTHS:  # from the strongest, whose solution the next one starts from
            model.set_params(C=1 / (strength * train.sum()))
            with threadpoolctl.threadpool_limits(1, user_api="blas"):
                model.fit(hot[rows], task.labels[rows], sample_weight=train[rows])
            guess = model.predict(hot)
            value = metric_value(
                task.labels[validation], guess[validation], task.units[validation], metric
            )
            if value > best:
                best, chosen = value, guess
        guesses.append(chosen)
    return _score(task, guesses, folds, metric)


def _score(
    task: _Task, guesses: Sequence[np.ndarray], folds: Sequence[Fold], metric: str
) -> _Scored:
    """Guesses [m] of each fold, scored inside the units of its test rows."""
    tests = [task.row_of[fold.test] for fold in folds]
    rows = np.concatenate(tests)
    predictions = np.concatenate([guess[t] for guess, t in zip(guesses, tests, strict=True)])
    per_unit = unit_metric(task.labels[rows], predictions, task.units[rows], metric)
    values = list(per_unit.values())
    overlap = train_overlap(folds)
    return _Scored(
        value=float(np.mean(values)),
        interval=t_interval(values, train_overlap=overlap),
        per_unit={task.unit_names[unit]: value for unit, value in per_unit.items()},
    )

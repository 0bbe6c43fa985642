"""What features say of gene expression beyond what is known of a spot without its image.

By HEST-Benchmark's own protocol, on the test spots that `find_overlap` leaves, in the three ways of
`statistics/conditional.py`:

1. conditional permutation: predictions stay, the counts of spots (all genes of a spot together)
   change places inside strata of the confound and inside their section. There is no p: neighbours
   are alike, so that spots are not exchangeable, and any smooth map would be "significant".
2. added value: the regression on the components of the features and the columns of the confound
   together, less the one on the columns alone, paired by unit.
3. linear residualisation: the protocol on features without their linear fit on the columns, made on
   the training spots of each fold. Descriptive only.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.confound import (
    ADDED,
    PERMUTATION,
    RESIDUALISED,
    conditional_row,
    refused_row,
)
from bioimg_jax.benchmarks.expression import (
    Experiment,
    Expression,
    official_predictions,
    scored_predictions,
)
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.conditional import (
    SET,
    Overlap,
    conditional_permutation,
    find_overlap,
    residualised,
)
from bioimg_jax.statistics.intervals import MIN_UNITS, t_interval, train_overlap
from bioimg_jax.statistics.resampling import Paired, n_resamples


@dataclasses.dataclass(frozen=True, eq=False)
class SpotConfound:
    """strata: numbers [n, 1 or 2] that are cut into bins inside each section; columns: what the
    regression is given of them [n, p].
    """

    name: str
    strata: np.ndarray
    columns: np.ndarray


def spot_confounds(
    x: np.ndarray, y: np.ndarray, totals: np.ndarray, audit: dict[str, np.ndarray]
) -> dict[str, SpotConfound]:
    """ "position" and "total_counts"; audit: `expression.audit_features` of the same spots."""
    total = audit["total_counts"]
    centred = total - total.mean()
    curve = np.hstack([centred, centred**2, centred**3])  # genes need not be linear in it
    place = np.stack([x, y], axis=1).astype(np.float64)
    return {
        "position": SpotConfound("position", place, audit["position"]),
        "total_counts": SpotConfound("total_counts", np.asarray(totals, float)[:, None], curve),
    }


def beyond_expression(
    features: np.ndarray,
    experiment: Experiment,
    confound: SpotConfound,
    *,
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of "method", `confound.COLUMNS` and "refused", why a method has none of them, else "".

    value: beyond the confound; of the residualised the score itself. alone: the mean under
    permutations, or the score of the columns.
    """
    methods: dict[str, Callable[[_Question], dict[str, Any]]] = {
        PERMUTATION: lambda ask: ask.permuted(permutations, seed),
        ADDED: lambda ask: ask.added(),
        RESIDUALISED: lambda ask: ask.residualised(),
    }
    try:
        ask = _Question.of(features, experiment, confound)
    except InputError as error:
        return [refused_row(name, error) for name in methods]
    found = []
    for name, method in methods.items():
        try:
            found.append(method(ask) | {"refused": ""})
        except InputError as error:
            found.append(refused_row(name, error))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    """targets: [n, g] of all spots; tested: the retained test spots of each fold, positions among
    its test spots; folds: with those alone.
    """

    features: np.ndarray
    experiment: Experiment
    confound: SpotConfound
    overlap: Overlap
    spots: np.ndarray  # the test spots of all folds, ascending
    targets: np.ndarray
    tested: list[np.ndarray]
    folds: list[Fold]

    @classmethod
    def of(
        cls, features: np.ndarray, experiment: Experiment, confound: SpotConfound
    ) -> "_Question":
        spots = np.unique(np.concatenate([fold.test for fold in experiment.folds]))
        sections = experiment.sections[spots]
        names = [f"{confound.name}_{i}" for i in range(confound.strata.shape[1])]
        size = len(spots) / len(np.unique(sections.astype(str)))
        bins = None if len(names) == 1 else max(2, int(math.sqrt(size / SET)))  # of each axis
        overlap = find_overlap(
            spots + 0.5,  # which spot the counts are of: numbers, no two alike
            pd.DataFrame(confound.strata[spots], columns=names),
            np.array([f"spot {spot}" for spot in spots], object),
            bins=bins,
            numbers=names,
            within=pd.DataFrame({"section": sections}),
        )
        kept = spots[overlap.rows]
        tested = [np.flatnonzero(np.isin(fold.test, kept)) for fold in experiment.folds]
        folds = [
            dataclasses.replace(fold, test=fold.test[mine])
            for fold, mine in zip(experiment.folds, tested, strict=True)
        ]
        values = experiment.counts[:, experiment.genes].toarray()
        targets = np.log1p(values)
        return cls(features, experiment, confound, overlap, spots, targets, tested, folds)

    def permuted(self, permutations: int, seed: int) -> dict[str, Any]:
        predictions = self._predicted(self.features)

        def score(labels: np.ndarray) -> dict[str, float]:
            source = np.arange(len(self.targets))
            source[self.spots[self.overlap.rows]] = np.floor(labels).astype(int)
            return self._scored(predictions, self.targets[source]).per_unit

        found = conditional_permutation(
            self.overlap, score, n_permutations=permutations,
            train_overlap=train_overlap(self.experiment.folds), seed=seed,
        )  # fmt: skip
        return self._row(
            PERMUTATION, found.value, found.interval, observed=found.observed, alone=found.null
        )

    def added(self) -> dict[str, Any]:
        columns = self.confound.columns
        alone = self._scored(self._predicted(columns), self.targets)
        joint = self._scored(self._predicted(self.features, beside=columns), self.targets)
        gain = np.array([joint.per_unit[unit] - alone.per_unit[unit] for unit in alone.per_unit])
        shared, p = train_overlap(self.experiment.folds), None
        if len(gain) >= MIN_UNITS:
            paired = Paired.of(gain, resamples=n_resamples(1, 1), overlap=shared)
            p = None if bool(paired.constant) else float(paired.p_greater())
        return self._row(
            ADDED, float(gain.mean()), t_interval(gain, train_overlap=shared),
            observed=joint.value, alone=alone.value, p=p,
        )  # fmt: skip

    def residualised(self) -> dict[str, Any]:
        predictions = []
        for i, (fold, mine) in enumerate(zip(self.experiment.folds, self.tested, strict=True)):
            left = residualised(self.features, self.confound.columns, fold.train)
            predictions.append(official_predictions(left.features, self.experiment, i)[mine])
        found = self._scored(predictions, self.targets)
        values = np.array(list(found.per_unit.values()))
        interval = t_interval(values, train_overlap=train_overlap(self.experiment.folds))
        return self._row(RESIDUALISED, found.value, interval)

    def _predicted(
        self, features: np.ndarray, beside: np.ndarray | None = None
    ) -> list[np.ndarray]:
        return [
            official_predictions(features, self.experiment, i, beside)[mine]
            for i, mine in enumerate(self.tested)
        ]

    def _scored(self, predictions: list[np.ndarray], targets: np.ndarray) -> Expression:
        return scored_predictions(self.experiment, self.folds, targets, predictions)

    def _row(
        self, method: str, value: float, interval: tuple[float, float] | None, **about: Any
    ) -> dict[str, Any]:
        known = {"observed": None, "alone": None, "p": None} | about
        return conditional_row(method, value, interval, self.overlap, **known)

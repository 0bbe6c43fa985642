"""What features say of gene expression beyond what is known of a spot without its image.

By HEST-Benchmark's own protocol, on the test spots that `find_overlap` leaves, in the three ways of
`statistics/conditional.py`:

1. conditional permutation: predictions stay, the counts of spots (all genes of a spot together)
   change places inside strata of the confound and inside their section. There is no p: neighbours
   are alike, so that spots are not exchangeable, and any smooth map would be "significant".
2. added value: the regression on the components of the features and the columns of the confound
   together, less the one on the columns alone, paired by unit. Training units that are held out in
   turn say whether a fold takes the features at all; where a fold trains on a single section it has
   to, and a loss means nothing.
3. linear residualisation: the protocol on features without their linear fit on the columns, made on
   the training spots of each fold. Descriptive only.

Features or a confound that say nothing, because they are the same everywhere or no numbers, and
folds of which no test spots are left have no value, but the reason.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.confound import (
    ADDED,
    PERMUTATION,
    RESIDUALISED,
    conditional_row,
    rows_by_method,
)
from bioimg_jax.benchmarks.expression import (
    Experiment,
    Expression,
    joint_predictions,
    official_predictions,
    scored_predictions,
)
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.statistics.conditional import (
    SET,
    Overlap,
    conditional_permutation,
    find_overlap,
    p_of_gain,
    residualised,
)
from bioimg_jax.statistics.intervals import t_interval, train_overlap


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

    value: beyond the confound, observed less alone; of the residualised the score itself. observed,
    alone: scores of the retained spots, of all units together as the protocol has it: of the
    predictions, of the mean permutation, or of the columns. The interval is of the units'
    pseudo-values, whose mean is the score.
    """
    ask = _Question(features, experiment, confound)
    return rows_by_method(
        {
            PERMUTATION: lambda: ask.permuted(permutations, seed),
            ADDED: ask.added,
            RESIDUALISED: ask.residualised,
        }
    )


def beyond_itself(
    experiment: Experiment, confound: SpotConfound, *, permutations: int, seed: int
) -> list[dict[str, Any]]:
    """What the confound's own columns score beyond it: how coarse the strata are."""
    ask = _Question(confound.columns, experiment, confound)
    return rows_by_method({PERMUTATION: lambda: ask.permuted(permutations, seed)})


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    features: np.ndarray
    experiment: Experiment
    confound: SpotConfound

    @functools.cached_property
    def spots(self) -> np.ndarray:
        """The test spots of all folds, ascending."""
        return np.unique(np.concatenate([fold.test for fold in self.experiment.folds]))

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """[n, g], of all spots."""
        return np.log1p(self.experiment.counts[:, self.experiment.genes].toarray())

    @functools.cached_property
    def overlap(self) -> Overlap:
        """Among the test spots. `InputError` for features and columns that say nothing."""
        spots, strata = self.spots, self.confound.strata
        for what, columns in (
            ("feature", self.features),
            (self.confound.name, self.confound.columns),
        ):
            self._check(what, columns)
        sections = self.experiment.sections[spots]
        name = self.confound.name
        names = [name] if strata.shape[1] == 1 else [f"{name} {axis}" for axis in "xy"]
        size = len(spots) / len(np.unique(sections.astype(str)))
        bins = None if len(names) == 1 else max(2, int(math.sqrt(size / SET)))  # of each axis
        return find_overlap(
            spots + 0.5,  # which spot the counts are of: numbers, no two alike
            pd.DataFrame(strata[spots], columns=names),
            np.array([f"spot {spot}" for spot in spots], object),
            bins=bins,
            numbers=names,
            within=pd.DataFrame({"section": sections}),
        )

    def _check(self, what: str, columns: np.ndarray) -> None:
        """`InputError` for columns [n, d] that are no numbers, or the same for all spots that some
        fold trains on: it would predict the same everywhere, a score of 0 that nobody earned."""
        n = len(self.experiment.sections)
        if columns.ndim != 2 or len(columns) != n or not columns.shape[1]:
            raise InputError(f"{what} {columns.shape}, expected [{n}, d]: a row a spot")
        check_finite(columns, "spot", column=what)
        for fold in self.experiment.folds:
            mine = columns[fold.train]
            if (mine == mine[0]).all():
                raise InputError(
                    f"every {what} is constant among the {len(mine)} training spots of fold "
                    f"{fold.name!r}, expected one that varies"
                )

    @functools.cached_property
    def tested(self) -> list[np.ndarray]:
        """Of each fold the retained test spots, positions among its test spots."""
        kept = self.spots[self.overlap.rows]
        found = [np.flatnonzero(np.isin(fold.test, kept)) for fold in self.experiment.folds]
        for fold, mine in zip(self.experiment.folds, found, strict=True):
            if len(mine) < 2:
                raise InputError(
                    f"fold {fold.name!r}: {len(mine)} of {len(fold.test)} test spots are left "
                    f"beyond {self.confound.name}, expected 2 or more"
                )
        return found

    @functools.cached_property
    def folds(self) -> list[Fold]:
        """With the retained test spots alone."""
        pairs = zip(self.experiment.folds, self.tested, strict=True)
        return [dataclasses.replace(fold, test=fold.test[mine]) for fold, mine in pairs]

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
        together = [
            joint_predictions(self.features, columns, self.experiment, i)[mine]
            for i, mine in enumerate(self.tested)
        ]
        joint = self._scored(together, self.targets)
        gain = np.array([joint.per_unit[unit] - alone.per_unit[unit] for unit in alone.per_unit])
        shared = train_overlap(self.experiment.folds)
        return self._row(
            ADDED, float(gain.mean()), t_interval(gain, train_overlap=shared),
            observed=joint.value, alone=alone.value, p=p_of_gain(gain, shared),
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

    def _predicted(self, features: np.ndarray) -> list[np.ndarray]:
        return [
            official_predictions(features, self.experiment, i)[mine]
            for i, mine in enumerate(self.tested)
        ]

    def _scored(self, predictions: list[np.ndarray], targets: np.ndarray) -> Expression:
        return scored_predictions(self.experiment, self.folds, targets, predictions)

    def _row(
        self, method: str, value: float, interval: tuple[float, float] | None, **about: Any
    ) -> dict[str, Any]:
        known = {"observed": None, "alone": None, "p": None} | about
        return conditional_row(method, value, interval, self.overlap, **known)

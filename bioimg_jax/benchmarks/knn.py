"""k nearest neighbours as a benchmark: every k at once, the best one chosen on validation.

Cosine, weighted by exp(similarity / temperature), on features standardised by the training rows. An
angle needs two columns, and many floors have one or few: to a narrow table a constant column of 1
is added after standardising, so that the angle orders the values of a column.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.classification import check_target, classification_scores
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.knn import KS, TEMPERATURE, KnnProbe, expected_votes, fit_knn
from bioimg_jax.probes.linear import moments, standardise
from bioimg_jax.statistics.neighbours import NARROW


@dataclasses.dataclass(frozen=True)
class Knn:
    """`probes.knn` over numbers of neighbours, none above the training rows; of equals the largest.

    A row whose classes tie splits its vote among them.
    """

    ks: tuple[int, ...] = KS
    temperature: float = TEMPERATURE
    name: str = "knn"
    tokens = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, **self._probe}

    @property
    def _probe(self) -> dict[str, Any]:
        return {
            "ks": sorted(self.ks, reverse=True),
            "temperature": self.temperature,
            "constant_column_below": NARROW,
        }

    @property
    def fits(self) -> int:
        """One search serves every k."""
        return 1

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """Every validation and test row meets every training row."""
        return 2 * len(fold.train) * (len(fold.validation) + len(fold.test)) * width

    def check(self, target: Target) -> None:
        check_target(target)

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        return classification_scores(
            table, folds, target, fit=self._fit, benchmark=self.name, probe=self._probe, **about
        )

    def _fit(
        self, features: np.ndarray, labels: np.ndarray, units: np.ndarray, n_classes: int
    ) -> "_Fitted":
        mean, inverse_scale = moments(features, np.ones(len(features)))
        constant = features.shape[1] < NARROW
        ks = sorted({min(k, len(features)) for k in self.ks}, reverse=True)
        rows = _directions(features, mean, inverse_scale, constant)
        probe = fit_knn(rows, labels, n_classes, ks=ks, temperature=self.temperature)
        return _Fitted(probe, mean, inverse_scale, constant)


def _directions(
    features: np.ndarray, mean: np.ndarray, inverse_scale: np.ndarray, constant: bool
) -> np.ndarray:
    """Standardised features [n, d] or, with the constant column, [n, d + 1]."""
    rows = standardise(features, mean, inverse_scale)
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=1.0) if constant else rows


@dataclasses.dataclass(frozen=True)
class _Fitted:
    probe: KnnProbe
    mean: np.ndarray
    inverse_scale: np.ndarray
    constant: bool

    @property
    def candidates(self) -> list[dict[str, Any]]:
        return [{"k": k, "constant_column": self.constant} for k in self.probe.ks]

    def votes(self, features: np.ndarray) -> Iterator[np.ndarray]:
        rows = _directions(features, self.mean, self.inverse_scale, self.constant)
        return map(expected_votes, self.probe.scores(rows))

    def answer(self, features: np.ndarray, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        k = self.probe.ks[candidate]
        rows = _directions(features, self.mean, self.inverse_scale, self.constant)
        (scores,) = dataclasses.replace(self.probe, ks=(k,), used_ks=(k,)).scores(rows)
        return expected_votes(scores), scores

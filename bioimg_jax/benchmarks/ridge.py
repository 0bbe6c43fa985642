"""Ridge regression on one-hot labels as a benchmark: the class of the largest output.

Features are standardised by the training rows; alpha is chosen on validation rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.classification import check_target, classification_scores, one_hot
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.linear import moments, standardise
from bioimg_jax.probes.ridge import ALPHAS, RidgeProbe, fit_ridge


@dataclasses.dataclass(frozen=True)
class Ridge:
    """`probes.ridge` over a grid of alphas from one decomposition; of equals the strongest."""

    alphas: tuple[float, ...] = ALPHAS
    name: str = "ridge"
    tokens = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, **self._probe}

    @property
    def _probe(self) -> dict[str, Any]:
        return {"alphas": sorted(map(float, self.alphas), reverse=True)}

    @property
    def fits(self) -> int:
        return len(self.alphas)

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """The Gram matrix, its decomposition (about 10 m^3) and a product an alpha."""
        rows = len(fold.train)
        side = min(rows, width)
        return 2 * rows * width * side + 10 * side**3 + 2 * self.fits * width * side * n_classes

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
        rows = standardise(features, mean, inverse_scale)
        probe = fit_ridge(rows, one_hot(labels, n_classes), alphas=self.alphas)
        return _Fitted(probe, mean, inverse_scale)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    probe: RidgeProbe
    mean: np.ndarray
    inverse_scale: np.ndarray

    @property
    def candidates(self) -> list[dict[str, Any]]:
        return [{"alpha": alpha} for alpha in self.probe.alphas]

    def votes(self, features: np.ndarray) -> Iterator[np.ndarray]:
        rows = standardise(features, self.mean, self.inverse_scale)
        for outputs in self.probe.predictions(rows):
            yield one_hot(outputs.argmax(axis=1), outputs.shape[1])

    def answer(self, features: np.ndarray, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        rows = standardise(features, self.mean, self.inverse_scale)
        outputs = self.probe.predictions(rows, candidate)
        return one_hot(outputs.argmax(axis=1), outputs.shape[1]), outputs

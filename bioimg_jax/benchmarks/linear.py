"""The linear probe as a benchmark: all strengths at once, the best one chosen on validation."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from bioimg_jax.benchmarks.classification import check_target, classification_scores, one_hot
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.linear import STRENGTHS, LinearProbe, fit_linear

ITERATIONS = 60  # of a strength, on the average of a grid


@dataclasses.dataclass(frozen=True)
class Linear:
    """`probes.linear` over a grid of strengths (lambda); of equals the strongest."""

    strengths: tuple[float, ...] = STRENGTHS
    name: str = "linear"
    tokens = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, "strengths": list(self.strengths)}

    @property
    def fits(self) -> int:
        return len(self.strengths)

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """Two products an iteration, and the covariance of the features."""
        rows = len(fold.train)
        return 4 * ITERATIONS * self.fits * rows * width * n_classes + 2 * rows * width**2

    def check(self, target: Target) -> None:
        check_target(target)

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        strengths = sorted(map(float, self.strengths), reverse=True)
        return classification_scores(
            table, folds, target, fit=self._fit, benchmark=self.name,
            probe={"strengths": strengths}, **about,
        )  # fmt: skip

    def _fit(
        self, features: np.ndarray, labels: np.ndarray, units: np.ndarray, n_classes: int
    ) -> "_Fitted":
        return _Fitted(fit_linear(features, labels, n_classes, strengths=self.strengths))


@dataclasses.dataclass(frozen=True)
class _Fitted:
    probe: LinearProbe

    @property
    def candidates(self) -> list[dict[str, Any]]:
        probe = self.probe
        unconverged = [
            strength
            for strength, done in zip(probe.strengths, probe.converged, strict=True)
            if not done
        ]
        return [
            {
                "strength": strength,
                "converged": bool(probe.converged[i]),
                "unconverged_strengths": unconverged,
                "iterations": int(probe.iterations[i]),
            }
            for i, strength in enumerate(probe.strengths)
        ]

    def votes(self, features: np.ndarray) -> Iterator[np.ndarray]:
        for logits in self.probe.logits(features):
            yield one_hot(logits.argmax(axis=1), logits.shape[1])

    def answer(self, features: np.ndarray, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        logits = self.probe.logits(features, candidate)
        return one_hot(logits.argmax(axis=1), logits.shape[1]), softmax(logits, axis=1)

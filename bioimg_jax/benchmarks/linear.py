"""The linear probe as a benchmark: all strengths at once, the best one chosen on validation."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bioimg_jax.benchmarks.classification import check_target, classification_scores
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.linear import STRENGTHS

ITERATIONS = 60  # of a strength, on the average of a grid


@dataclasses.dataclass(frozen=True)
class Linear:
    """`probes.linear` over a grid of strengths (lambda)."""

    strengths: tuple[float, ...] = STRENGTHS
    name: str = "linear"

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
        return classification_scores(table, folds, target, strengths=self.strengths, **about)

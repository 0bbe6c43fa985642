"""The attentive probe as a benchmark: a learned query looks at the tokens of the last block.

A representation without tokens is looked at as a single one, which makes it a linear probe of the
same features: so floors stand beside it, chosen in the same way.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from bioimg_jax.benchmarks.classification import check_target, classification_scores, one_hot
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.attentive import STRENGTHS, AttentiveProbe, fit_attentive
from bioimg_jax.representations.representation import is_tokens

EVALUATIONS = 80  # of loss and gradient for one strength, on the average of a grid


@dataclasses.dataclass(frozen=True)
class Attentive:
    """`probes.attentive` over a grid of strengths (lambda); of equals the strongest.

    seed: of the first query.
    """

    strengths: tuple[float, ...] = STRENGTHS
    seed: int = 0
    name: str = "attentive"
    tokens = True

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, "strengths": list(self.strengths), "seed": self.seed}

    @property
    def fits(self) -> int:
        return len(self.strengths)

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """Scores and weighted sum of the tokens, and twice that for the gradient."""
        return 3 * 4 * EVALUATIONS * self.fits * len(fold.train) * width

    def check(self, target: Target) -> None:
        check_target(target)

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        several = any(is_tokens(layer) for layer in table.widths)
        n_tokens = table.provenance["tokens"] if several else 1
        return classification_scores(
            table,
            folds,
            target,
            fit=functools.partial(self._fit, n_tokens=n_tokens),
            benchmark=self.name,
            probe={
                "strengths": sorted(map(float, self.strengths), reverse=True),
                "query_seed": self.seed,
            },
            **about,
        )

    def _fit(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        units: np.ndarray,
        n_classes: int,
        *,
        n_tokens: int,
    ) -> "_Fitted":
        tokens = features.reshape(len(features), n_tokens, -1)
        probe = fit_attentive(tokens, labels, n_classes, seed=self.seed, strengths=self.strengths)
        return _Fitted(probe, n_tokens)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    probe: AttentiveProbe
    n_tokens: int

    @property
    def candidates(self) -> list[dict[str, Any]]:
        return [
            {
                "strength": strength,
                "converged": bool(self.probe.converged[i]),
                "iterations": int(self.probe.iterations[i]),
            }
            for i, strength in enumerate(self.probe.strengths)
        ]

    def votes(self, features: np.ndarray) -> Iterator[np.ndarray]:
        for logits in self.probe.logits(self._tokens(features)):
            yield one_hot(logits.argmax(axis=1), logits.shape[1])

    def answer(self, features: np.ndarray, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        logits = self.probe.logits(self._tokens(features), candidate)
        return one_hot(logits.argmax(axis=1), logits.shape[1]), softmax(logits, axis=1)

    def _tokens(self, features: np.ndarray) -> np.ndarray:
        return features.reshape(len(features), self.n_tokens, -1)

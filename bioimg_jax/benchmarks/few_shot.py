"""Few-shot as a benchmark: the nearest class mean of a few labelled units, over many draws.

The value is the one with the most shots that every class can fill in every fold; a row declares the
count and carries the values with fewer. A shot is a unit of independence (`probes.few_shot`); every
representation is given the same draws. They are averaged as votes: the metric of a unit is linear
in votes, so it is the mean over draws.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.classification import Task, check_target, classification_scores
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.few_shot import BLOCK, DRAWS, SHOTS, FewShotProbe, fit_few_shot


@dataclasses.dataclass(frozen=True)
class FewShot:
    """`probes.few_shot` with each shot count; nothing is chosen on validation but the layer.

    seed: of the draws.
    """

    shots: tuple[int, ...] = SHOTS
    draws: int = DRAWS
    seed: int = 0
    distance: str = "euclidean"
    name: str = "few_shot"
    tokens = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self), "shots": sorted(self.shots)}

    @property
    def fits(self) -> int:
        return len(self.shots)

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """Every validation and test row meets every class mean of every draw."""
        means = self.fits * self.draws * n_classes
        return 2 * (len(fold.validation) + len(fold.test)) * width * means

    def check(self, target: Target) -> None:
        check_target(target)

    def scores(
        self,
        table: FeatureTable,
        folds: Sequence[Fold],
        target: Target,
        *,
        permute_labels_seed: int | None = None,
        **about: Any,
    ) -> list[Score]:
        """Raises `InputError` where some fold lacks the units for the smallest shot count."""
        task = Task.of(table, folds, target, permute_labels_seed)
        most = min(_units_of_rarest_class(task, fold) for fold in folds)
        filled = [k for k in sorted(self.shots) if k <= most]
        unfilled = [k for k in sorted(self.shots) if k > most]
        if not filled:
            raise InputError(
                f"target {target.name!r}: few-shot with {min(self.shots)} labelled "
                f"{'/'.join(target.unit)} a class, but a class has {most} in some fold"
            )
        by_shots = {
            k: classification_scores(
                table,
                folds,
                target,
                fit=functools.partial(self._fit, shots=k),
                benchmark=self.name,
                probe={
                    "shots": k,
                    "unfilled_shots": unfilled,
                    "draws": self.draws,
                    "draws_seed": self.seed,
                    "distance": self.distance,
                },
                permute_labels_seed=permute_labels_seed,
                **about,
            )
            for k in filled
        }
        return [
            dataclasses.replace(
                score,
                other_metrics={
                    **score.other_metrics,
                    **{f"shots_{k}": found[i].value for k, found in by_shots.items()},
                },
            )
            for i, score in enumerate(by_shots[filled[-1]])
        ]

    def _fit(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        units: np.ndarray,
        n_classes: int,
        *,
        shots: int,
    ) -> "_Fitted":
        probe = fit_few_shot(
            features, labels, units, n_classes, seed=self.seed, shots=(shots,), draws=self.draws,
            distance=self.distance,
        )  # fmt: skip
        return _Fitted(probe)


def _units_of_rarest_class(task: Task, fold: Fold) -> int:
    """Training units of the class that the fewest units hold."""
    task.check_training(fold)
    held = np.unique(np.stack([task.labels[fold.train], task.units[fold.train]]), axis=1)[0]
    return int(np.bincount(held, minlength=len(task.classes)).min())


@dataclasses.dataclass(frozen=True)
class _Fitted:
    probe: FewShotProbe  # with one shot count

    @property
    def candidates(self) -> list[dict[str, Any]]:
        return [{"shots": self.probe.shots[0]}]

    def votes(self, features: np.ndarray) -> Iterator[np.ndarray]:
        yield self.answer(features, 0)[0]

    def answer(self, features: np.ndarray, candidate: int) -> tuple[np.ndarray, None]:
        """No scores: an average over draws would rank as an ensemble that no draw is."""
        blocks = [features[first : first + BLOCK] for first in range(0, len(features), BLOCK)]
        votes = [self.probe.votes(rows, candidate).mean(axis=0, dtype=float) for rows in blocks]
        return np.concatenate(votes), None

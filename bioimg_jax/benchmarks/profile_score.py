"""Protocols on profiles, which fit nothing: no folds, no search, one value a unit."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.intervals import t_interval


class ProfileBenchmark:
    """What the benchmarks of profiles have alike, beside their `name` and `scores`.

    metric: what they score. settings: what made a score, which it shows; besides: what else it
    depends on. Both are plain JSON.
    """

    metric: ClassVar[str]
    tokens = False
    fits = 1

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def besides(self) -> dict[str, Any]:
        return {}

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, **self.settings, **self.besides}

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """Every row meets every other: wells, or treatments, of which there are no more."""
        return 2 * len(fold.test) ** 2 * width

    def check(self, target: Target) -> None:
        """`InputError` for a target of another metric."""
        if target.metric != self.metric:
            raise InputError(
                f"target {target.name!r}: metric {target.metric!r}; {self.name} is {self.metric}"
            )


def profile_score(
    benchmark: str,
    target: Target,
    units: Sequence[str],
    values: np.ndarray,
    value: float,
    *,
    chance: float,
    layer: str,
    about: Mapping[str, Any],
    other_metrics: Mapping[str, float | None],
    settings: Mapping[str, Any],
) -> Score:
    """The `Score` of one layer, higher is better and 1 the best.

    units, values: of each unit [g]; value: of the whole.
    about: the rest of what `Benchmark.scores` is given.
    """
    given = dict(about)
    if given.pop("permute_labels_seed", None) is not None:
        raise InputError(f"evaluate.permute_labels: {benchmark} has p-values of its own instead")
    block, _, pooling = layer.rpartition("/")
    return Score(
        benchmark=benchmark,
        target=target.name,
        split="no folds",
        metric=target.metric,
        higher_is_better=True,
        chance=chance,
        ceiling=1.0,
        block=block or layer,
        pooling=pooling if block else "",
        value=value,
        per_unit=dict(zip(units, values.tolist(), strict=True)),
        interval=t_interval(values),
        n_units=len(units),
        unit=target.unit,
        search_budget=1,
        other_metrics=dict(other_metrics),
        settings={**settings, **(given.pop("settings", None) or {}), "layer": layer},
        **given,
    )

"""The contract every benchmark keeps, and which layers of a table it gets to see."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.representations.representation import is_tokens


class Benchmark(Protocol):
    """A way to score a feature table on a target's folds."""

    @property
    def name(self) -> str:
        """Goes into `Score.benchmark`: "linear"."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its scores depend on besides table, folds and target, as plain JSON."""

    @property
    def tokens(self) -> bool:
        """Whether it looks at the tokens of an encoder and not at pooled features."""

    @property
    def fits(self) -> int:
        """Probe fits for one layer and fold."""

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        """About how many floating-point operations one layer of this width takes in the fold."""

    def check(self, target: Target) -> None:
        """`InputError` for a target that lacks what the benchmark needs."""

    def scores(
        self,
        table: FeatureTable,
        folds: Sequence[Fold],
        target: Target,
        *,
        representation: str,
        kind: str,
        seed: int,
        exposure: str,
        settings: Mapping[str, Any],
        permute_labels_seed: int | None,
    ) -> list[Score]:
        """One score a layer and, where there are several, one for the layer validation chose."""


def layers_for(benchmark: Benchmark, layers: Iterable[str]) -> list[str]:
    """Those of a table's layers that the benchmark scores.

    Tokens are for a benchmark that wants them, and it looks at nothing else; a representation that
    has none, like a floor, gives it each pooled layer as a single token.
    """
    layers = list(layers)
    tokens = [layer for layer in layers if is_tokens(layer)]
    if benchmark.tokens and tokens:
        return tokens
    return [layer for layer in layers if layer not in tokens]

"""An NNX module as two pure functions over plain nested dicts of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Variables = Mapping[str, Any]  # {"params": nested dict, "stats": nested dict}


class Functional:
    """Splits a module once, merges it inside every call; keeps no arrays.

    "params" is what an optimiser sees; "stats" are running statistics (BatchNorm), else empty.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]) -> None:
        self._make = make
        self._graph, self._params, self._stats = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> dict[str, Any]:
        """New variables, a function of `key` alone."""
        _, params, stats = _split(self._make(nnx.Rngs(key)))
        return {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}

    def apply(self, variables: Variables, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """What the module returns, and its "stats" after the call."""
        params = _filled(self._params, variables["params"])
        stats = _filled(self._stats, variables["stats"])
        module: Any = nnx.merge(self._graph, params, stats)
        out = module(*args, **kwargs)
        return out, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    return nnx.split(module, nnx.Param, nnx.BatchStat)  # type: ignore[return-value]


def _filled(abstract: nnx.State, values: Mapping[str, Any]) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: the next line writes into it
    nnx.replace_by_pure_dict(state, dict(values))
    return state

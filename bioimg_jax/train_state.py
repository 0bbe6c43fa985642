"""Everything a step changes, as one pytree, and how it comes into being on a mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioimg_jax.mesh import Mesh, state_shardings
from bioimg_jax.objectives import Objective
from bioimg_jax.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` int32 scalar: optimiser steps done. `params` is all the optimiser sees; `objective`
    is what the objective keeps beside it (running statistics, a teacher)."""

    step: jax.Array
    params: Any
    opt_state: Any
    objective: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """Where an encoder starts from instead of its seed.

    variables: {"params", "stats"} of the encoder, another training's. origin: what that checkpoint
    says of itself (`Run.meta`, and its step): the new one has seen what it saw.
    """

    variables: Mapping[str, Any]
    origin: Mapping[str, Any]


def initial_key(seed: int) -> jax.Array:
    """The key that weights are drawn from. Steps fold their number into another stream."""
    return jax.random.fold_in(jax.random.key(seed), 0)


def step_key(seed: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)


class StateFactory:
    """Shapes first, then shardings, then arrays: nothing is ever made whole on one device."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        mesh: Mesh,
        *,
        seed: int,
        fsdp: bool,
    ) -> None:
        def init(key: jax.Array) -> TrainState:
            params, state = objective.init(key)
            return TrainState(jnp.int32(0), params, optimizer.init(params), state)

        key = initial_key(seed)
        shapes = jax.eval_shape(init, key)
        self.shardings = state_shardings(shapes, mesh, fsdp=fsdp)
        self._init = jax.jit(init, out_shardings=self.shardings)
        self._key = key
        self.abstract: TrainState = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self.shardings,
        )

    def initial(self, start_from: Start | None = None) -> TrainState:
        """The state at step 0, a function of the seed and of what the encoder starts from."""
        state = self._init(self._key)
        if start_from is None:
            return state
        given = start_from.variables
        state = dataclasses.replace(
            state,
            params={**state.params, "encoder": given["params"]},
            objective={**state.objective, "stats": given["stats"]},
        )
        # A copy: a step gives its state away, and what was given belongs to the caller.
        return jax.device_put(state, self.shardings, may_alias=False)


def count_parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))

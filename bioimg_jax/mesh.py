"""Devices, and where every array lives on them.

One mesh with axes ("data", "model"). Batches are split over `data`; parameters are replicated, or
with `fsdp` each large one is split over `data` too. Under `jax.jit` a loss over the batch is a loss
over the *global* batch, so nothing here or in an objective knows how many devices there are.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bioimg_jax.errors import InputError
from bioimg_jax.memory import keep_memory

# Smaller arrays (biases, norms) cost more to gather than they save.
FSDP_MIN_SIZE = 2**12


def settle_cpu() -> None:
    """On CPU, makes the memory of one step the memory of the next; call it before anything runs.

    XLA asks for all intermediate arrays of a step as one block. Programs run in the main thread
    here, because that thread's memory alone can be kept (`memory.keep_memory`).
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu":
        keep_memory()


def make_mesh(*, model: int = 1, devices: int = 0) -> Mesh:
    """A mesh over all devices (or the first `devices`), `model` of them on the second axis."""
    available = jax.devices()
    n = devices or len(available)
    if not 0 < n <= len(available):
        raise InputError(f"mesh.devices: {n} wanted, {len(available)} present")
    if model < 1 or n % model:
        raise InputError(f"mesh.model: {model} does not divide the {n} devices present")
    # Auto, because the default (Explicit) refuses concatenation along a sharded axis.
    return jax.make_mesh(
        (n // model, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=available[:n],
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract: Any, mesh: Mesh, *, fsdp: bool) -> Any:
    """One `NamedSharding` a leaf of a tree of `ShapeDtypeStruct`.

    With `fsdp` the largest axis that the `data` axis divides is split; optimiser moments have the
    shapes of their parameters and so follow them.
    """
    n_data = mesh.shape["data"]

    def one(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % n_data == 0]
        if not fsdp or not axes or np.prod(leaf.shape) < FSDP_MIN_SIZE:
            return replicated(mesh)
        split = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*([None] * split), "data"))

    return jax.tree.map(one, abstract)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as arrays over the whole mesh."""
    sharding = batch_sharding(mesh)
    arrays = {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
    if sharding.mesh.devices.flat[0].platform == "cpu":
        # A program whose inputs are still on their way runs in another thread: see `settle_cpu`.
        jax.block_until_ready(arrays)
    return arrays

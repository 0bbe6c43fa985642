"""AdamW with warm-up and cosine decay, as `optax` builds it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax

from bioimg_jax.errors import InputError

Schedule = Callable[[Any], Any]
Optimizer: TypeAlias = optax.GradientTransformation


def decays(params: Any) -> Any:
    """True for the leaves that weight decay applies to: matrices and convolutions.

    By name, not by rank: blocks are stacked, so their biases and norms have two axes as well.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) == "kernel", params)


def _name(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", entry)))


def build_optimizer(
    config: Mapping[str, Any], *, batch_size: int, steps: int
) -> tuple[Optimizer, Schedule]:
    """The optimiser and its learning-rate schedule (step -> rate).

    `config.learning_rate` is per 256 images (linear scaling rule, Goyal et al., arXiv 1706.02677);
    it rises linearly over `warmup_steps` and falls on a cosine to zero at `steps`. Gradients are
    clipped to a global norm of `clip_norm` (0: not at all).
    """
    warmup_steps = int(config["warmup_steps"])
    if not 0 <= warmup_steps < steps:
        raise InputError(
            f"optimizer.warmup_steps: {warmup_steps}, expected at least 0 and fewer than "
            f"train.steps ({steps})"
        )
    peak = config["learning_rate"] * batch_size / 256
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=steps,
    )
    clip = [optax.clip_by_global_norm(config["clip_norm"])] if config["clip_norm"] else []
    adamw = optax.adamw(
        schedule,
        b1=config["b1"],
        b2=config["b2"],
        weight_decay=config["weight_decay"],
        mask=decays,
    )
    return optax.chain(*clip, adamw), schedule


def update(
    optimizer: Optimizer, gradients: Any, opt_state: Any, params: Any
) -> tuple[Any, Any, jax.Array]:
    """One step: (new params, new optimiser state, global norm of the gradients before clipping)."""
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, optax.tree.norm(gradients)

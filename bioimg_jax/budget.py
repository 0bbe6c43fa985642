"""What an evaluation is going to cost, before it starts: probe fits and minutes."""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bioimg_jax.benchmarks.benchmark import Benchmark, layers_for
from bioimg_jax.candidates import Candidate
from bioimg_jax.data.splits import Fold
from bioimg_jax.models import Encoder
from bioimg_jax.representations.representation import ENCODERS

PRODUCT_SIDE = 1024
# Of the rate of one large matrix product, measured on a ViT-S and on probes of 384 features.
SHARE_OF_RATE = 0.5


def budget(
    benchmarks: Sequence[Benchmark],
    to_score: Sequence[Candidate],
    folds: Mapping[str, Sequence[Fold]],
    n_classes: Mapping[str, int],
    *,
    n_images: int,
    crop_px: int,
    beyond: Mapping[str, int],
) -> str:
    """Both in one sentence; the minutes are those of encoders and probes on this machine now.

    folds, n_classes: of each target. Floors that are no encoders take minutes of their own where
    they segment nuclei; tables and scores that are finished already take none.
    beyond: of each target, the confounds it is asked about. A probe is fitted again to what is left
    of the layer that validation chose, counted as the widest, and to each confound alone.
    """
    fits, operations = 0, 0.0
    for candidate in to_score:
        if (encoder := candidate.encoder) is not None:
            operations += n_images * operations_of(encoder, crop_px)
        for target, parts in folds.items():
            allowed: Sequence[int] = range(len(parts))
            if candidate.folds is not None:
                allowed = candidate.folds.get(target, [])
            again = beyond[target] if candidate.kind in ENCODERS else 0
            for fold in (parts[i] for i in allowed):
                for benchmark in benchmarks:
                    layers = layers_for(benchmark, candidate.layers)
                    each = [
                        benchmark.operations(fold, candidate.layers[layer], n_classes[target])
                        for layer in layers
                    ]
                    fits += benchmark.fits * (len(layers) + again)
                    operations += sum(each) + again * max(each)
    if any(candidate.kind in ENCODERS for candidate in to_score):  # and of confounds by themselves
        fits += sum(
            b.fits * beyond[t] * len(parts) for t, parts in folds.items() for b in benchmarks
        )
    minutes = operations / (product_rate() * SHARE_OF_RATE) / 60
    return (
        f"evaluating {len(to_score)} representations on {len(folds)} targets by "
        f"{', '.join(b.name for b in benchmarks)}: {n_images:,} images, {fits:,} probe fits, about "
        f"{max(1, round(minutes)):,} min, audits and pictures not counted, if this machine does "
        "nothing else"
    )


def product_rate() -> float:
    """Floating-point operations a second of a float32 matrix product on the default device."""
    x = jnp.ones((PRODUCT_SIDE, PRODUCT_SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * PRODUCT_SIDE**3 / min(seconds)


@functools.cache
def operations_of(encoder: Encoder, crop_px: int) -> float:
    """Floating-point operations an image takes, by XLA's own count of the program."""

    def encode(variables: Any, images: jax.Array) -> Any:
        return encoder.apply(variables, images, train=False)

    variables = jax.eval_shape(encoder.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, crop_px, crop_px, len(encoder.channels)), jnp.float32)
    analysis: Any = jax.jit(encode).lower(variables, image).cost_analysis()
    return float((analysis or {}).get("flops", 0.0))

"""Gaussian noise in place of features: what averaging alone gives away about a label.

The images are not looked at. Every example has features of its own, standard normal, which go
through the same aggregation as an encoder's. Means over 40 and over 160 cells then differ in spread
by a factor of two: in 20 features the sum of squares tells them apart 98 times in 100, in more
features always. A class that comes with its own number of cells is recognised without any biology.
A linear probe sees a spread only where it is told: profiles of this kind have it as a layer of its
own (`features.aggregate`), and validation chooses between the two.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax.representations.representation import Batch


class AggregationNoiseRepresentation:
    """Standard normal features in one layer, "noise".

    They are a function of the seed and the example's index: not of its batch, nor of its image.
    """

    name = "aggregation_noise"
    kind = "noise"
    dtype = "float16"

    def __init__(self, width: int, *, seed: int = 0) -> None:
        self.layers = {"noise": width}
        self._width = width
        self._key = jax.random.key(seed)

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        # Indices of padded rows are -1 and wrap round, like those of any 64 bits.
        index = np.asarray(batch["index"]).astype(np.uint32)
        return {"noise": standard_normal(self._key, index, width=self._width)}


@functools.partial(jax.jit, static_argnames="width")
def standard_normal(key: jax.Array, index: jax.Array, *, width: int) -> jax.Array:
    """Independent N(0, 1) draws [b, width], row by row from the key and index uint32 [b]."""

    def draw(i: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, i), (width,), jnp.float32)

    return jax.vmap(draw)(index)

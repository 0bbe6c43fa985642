"""A random projection of the standardised pixels to an encoder's width: nothing learned or local.

Squared distances among n images survive up to a factor of about 1 +- sqrt(8 log(n) / width)
(Johnson & Lindenstrauss 1984): this floor holds what raw pixels say at the width of the encoder.
The matrix is of independent signs over sqrt(width), for which this holds as for a Gaussian one
(Achlioptas, "Database-friendly random projections", J. Comput. Syst. Sci. 66 (2003), 671-687). One
random number makes 32 of its entries; on a CPU a Gaussian matrix takes five times as long to draw
as to multiply with 256 images.
"""

import functools

import jax
import jax.numpy as jnp

from bioimg_jax.data import transforms
from bioimg_jax.representations.representation import Batch


class RandomProjectionRepresentation:
    """Pixels [h w c] times a sign matrix [h w c, width], in one layer, "projection".

    Its kind is "texture": in the list of floors it stands beside the texture bank.

    Args:
      width: of the encoder that this is the floor of.
      seed: of the matrix.
      block: how many of its rows are in memory at a time.
    """

    name = "random_projection"
    kind = "texture"
    dtype = "float16"

    def __init__(self, width: int, *, seed: int = 0, block: int = 4096) -> None:
        self.layers = {"projection": width}
        self._width = width
        self._key = jax.random.key(seed)
        self._block = block

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        projected = random_projection(
            batch["image"], self._key, width=self._width, block=self._block
        )
        return {"projection": projected}


@functools.partial(jax.jit, static_argnames=("width", "block"))
def random_projection(
    images: jax.Array, key: jax.Array, *, width: int, block: int = 4096
) -> jax.Array:
    """[b, width] of images [b, h, w, c] of any dtype, standardised here.

    Entries of the matrix depend on the key and their position only: another block changes nothing
    but the order of the sums.
    """
    pixels = transforms.standardise(images).reshape(images.shape[0], -1)  # [b, h w c]
    block = min(block, pixels.shape[1])
    n_blocks = -(-pixels.shape[1] // block)
    pixels = jnp.pad(pixels, ((0, 0), (0, n_blocks * block - pixels.shape[1])))

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        part = jax.lax.dynamic_slice_in_dim(pixels, start, block, axis=1)
        matrix = _signs(key, start + jnp.arange(block, dtype=jnp.int32), width)
        # A floor should not lose to the rounding of an accelerator's quick products.
        return total + jnp.matmul(part, matrix, precision="highest"), None

    zeros = jnp.zeros((pixels.shape[0], width), jnp.float32)
    total, _ = jax.lax.scan(add, zeros, block * jnp.arange(n_blocks, dtype=jnp.int32))
    return total / jnp.sqrt(jnp.float32(width))


def _signs(key: jax.Array, rows: jax.Array, width: int) -> jax.Array:
    """Rows [rows, width] of the matrix of +1 and -1, each from the bits of its own key."""

    def bits_of(row: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, row), (-(-width // 32),), jnp.uint32)

    bits = jax.vmap(bits_of)(rows)[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]
    signs = 1.0 - 2.0 * (bits & jnp.uint32(1)).astype(jnp.float32)
    return signs.reshape(len(rows), -1)[:, :width]

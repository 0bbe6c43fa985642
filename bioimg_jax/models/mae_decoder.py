"""The light decoder of a masked autoencoder (He et al., arXiv 2111.06377)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bioimg_jax.models.functional import Functional, Variables
from bioimg_jax.models.transformer import Blocks, Linear, Norm, sincos_positions


class _Decoder(nnx.Module):
    def __init__(
        self,
        *,
        encoder_width: int,
        outputs: int,
        width: int,
        depth: int,
        heads: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.width = width
        self.dtype = dtype
        self.embed = Linear(encoder_width, width, dtype, rngs)
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))
        self.blocks = Blocks(depth, width, heads, dtype=dtype, rngs=rngs)
        self.norm = Norm(width, rngs)
        self.predict = Linear(width, outputs, dtype, rngs)

    def __call__(self, visible: jax.Array, order: jax.Array, grid: tuple[int, int]) -> jax.Array:
        b, n = order.shape
        x = self.embed(visible.astype(self.dtype))  # [b, 1 + k, width], cls first
        hidden = n + 1 - x.shape[1]
        token = self.mask_token[...].astype(x.dtype)[None, None, :]
        x = jnp.concatenate([x, jnp.broadcast_to(token, (b, hidden, self.width))], axis=1)
        positions = jnp.asarray(sincos_positions(*grid, self.width))[order]  # [b, n, width]
        positions = jnp.pad(positions, ((0, 0), (1, 0), (0, 0)))  # cls has position zero
        x, _ = self.blocks(x + positions.astype(x.dtype))
        return self.predict(self.norm(x[:, -hidden:])).astype(jnp.float32)


class MaeDecoder:
    """Predicts the masked patches' pixels from the visible patches' tokens."""

    def __init__(
        self, *, encoder_width: int, outputs: int, width: int, depth: int, heads: int, dtype: str
    ) -> None:
        self._functional = Functional(
            lambda rngs: _Decoder(
                encoder_width=encoder_width,
                outputs=outputs,
                width=width,
                depth=depth,
                heads=heads,
                dtype=jnp.dtype(dtype),
                rngs=rngs,
            )
        )

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The parameters: a plain nested dict."""
        return self._functional.init(key)["params"]

    def apply(
        self, params: Variables, visible: jax.Array, order: jax.Array, grid: tuple[int, int]
    ) -> jax.Array:
        """Tokens [b, 1 + k, d] of cls and the k visible patches -> [b, n - k, outputs] float32.

        `order` int32 [b, n] lists the patches, visible ones first in the order of `visible`; the
        predictions are for the rest, in this order. A transformer does not care for the order of
        its tokens, so they are never sorted back. `grid`: rows and columns of patches.
        """
        predicted, _ = self._functional.apply({"params": params, "stats": {}}, visible, order, grid)
        return predicted

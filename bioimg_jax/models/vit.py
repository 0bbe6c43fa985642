"""Vision transformer (Dosovitskiy et al., arXiv 2010.11929) for any number of channels."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bioimg_jax.errors import InputError
from bioimg_jax.models.transformer import Blocks, Linear, Norm, sincos_positions

# Variant -> width, depth, heads (arXiv 2010.11929, 2012.12877).
VARIANTS = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
POSITIONS = ("sincos", "learned")


def patchify(images: jax.Array, patch_px: int) -> jax.Array:
    """[b, h, w, c] -> [b, n, patch_px * patch_px * c], patches row by row, channels innermost."""
    b, h, w, c = images.shape
    p = patch_px
    x = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: jax.Array, patch_px: int, rows: int) -> jax.Array:
    """The inverse of `patchify`: [b, n, patch_px * patch_px * c] -> [b, h, w, c]."""
    b, n, values = patches.shape
    p, columns, c = patch_px, n // rows, values // patch_px**2
    x = patches.reshape(b, rows, columns, p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * p, columns * p, c)


class Vit(nnx.Module):
    """Images [b, h, w, c] -> tokens [b, 1 + n, d] after the final norm, cls first."""

    def __init__(
        self,
        *,
        n_channels: int,
        image_px: int,
        patch_px: int,
        width: int,
        depth: int,
        heads: int,
        positions: str,
        layerscale: float | None,
        stochastic_depth: float,
        dtype: Any,
        init: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.patch_px = patch_px
        self.image_px = image_px
        self.width = width
        self.dtype = dtype
        n = (image_px // patch_px) ** 2
        normal = nnx.initializers.normal(0.02)
        self.embed = Linear(patch_px**2 * n_channels, width, dtype, rngs, init=init)
        self.cls = nnx.Param(normal(rngs.params(), (width,)))
        self.mask_token = nnx.Param(normal(rngs.params(), (width,)))
        self.positions = (
            nnx.Param(normal(rngs.params(), (1 + n, width))) if positions == "learned" else None
        )
        self.blocks = Blocks(
            depth,
            width,
            heads,
            layerscale=layerscale,
            stochastic_depth=stochastic_depth,
            dtype=dtype,
            init=init,
            rngs=rngs,
        )
        self.norm = Norm(width, rngs)

    def __call__(
        self,
        images: jax.Array,
        *,
        keep: jax.Array | None = None,
        token_mask: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Final tokens [b, 1 + n, d] and the blocks' raw outputs [depth, b, 1 + n, d].

        `keep` int32 [b, k]: only these patches are embedded and seen, in this order.
        `token_mask` bool [b, n]: these patches are replaced by the mask token.
        """
        b, h, w, _ = images.shape
        if h % self.patch_px or w % self.patch_px:
            raise InputError(
                f"images of {h} x {w} px cannot be cut into patches of {self.patch_px} px"
            )
        patches = patchify(images.astype(self.dtype), self.patch_px)  # [b, n, p * p * c]
        cls_position, positions = self._positions(h // self.patch_px, w // self.patch_px)
        if keep is not None:
            patches = jnp.take_along_axis(patches, keep[:, :, None], axis=1)
            positions = positions[keep]  # [b, k, d]
        else:
            positions = positions[None]
        x = self.embed(patches)
        if token_mask is not None:
            mask_token = self.mask_token[...].astype(x.dtype)[None, None, :]
            x = jnp.where(token_mask[:, :, None], mask_token, x)
        x = x + positions.astype(x.dtype)
        cls = (self.cls[...] + cls_position).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls[None, None, :], (b, 1, self.width)), x], axis=1)
        x, blocks = self.blocks(x, key if train else None)
        return self.norm(x), blocks

    def _positions(self, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
        """Of the cls token [d] (zero where they are fixed) and of the patches [n, d]."""
        if self.positions is None:
            fixed = jnp.asarray(sincos_positions(rows, columns, self.width))
            return jnp.zeros(self.width), fixed
        learned = self.positions[...]
        if rows != columns or 1 + rows * columns != learned.shape[0]:
            raise InputError(
                f"learned positions are for images of {self.image_px} x {self.image_px} px, not "
                f"{rows * self.patch_px} x {columns * self.patch_px}"
            )
        return learned[0], learned[1:]

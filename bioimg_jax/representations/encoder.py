"""An encoder's pooled features at evenly spaced depths; trained, twin, random or imported alike."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from bioimg_jax.data import transforms
from bioimg_jax.representations.representation import TOKENS, Batch

if TYPE_CHECKING:
    from bioimg_jax.models import Encoder


class EncoderRepresentation:
    """Features of one encoder with one set of variables, frozen.

    Layers are "block03/mean" (third block, patch mean) for evenly spaced blocks, and
    "final/mean" for the last block after the final norm. All poolings of the encoder are kept:
    which block and pooling to use is decided on validation groups, not here. With the pooling
    "tokens" there is a layer "final/tokens" too, [b, tokens x width], for the attentive probe.

    Args:
      variables: {"params", "stats"}; `encoder.init(key)` for an untrained one. Normalisation
        statistics are used as they are and never estimated on the images at hand.
      blocks: how many depths, the last one included; 0 for all.
      poolings: a subset of `encoder.pooled_keys`, None for all; "tokens" beside them.
      image_px: side of the images, which "tokens" needs.
      epsilon: of the self-standardisation of each image and channel.
    """

    dtype = "float16"

    def __init__(
        self,
        name: str,
        kind: str,
        encoder: "Encoder",
        variables: Mapping[str, Any],
        *,
        blocks: int = 4,
        poolings: Sequence[str] | None = None,
        image_px: int | None = None,
        epsilon: float = 1e-6,
    ) -> None:
        self.name = name
        self.kind = kind
        self._variables = variables
        poolings = tuple(encoder.pooled_keys if poolings is None else poolings)
        depths = evenly_spaced(len(encoder.block_widths), blocks)
        self.layers = layers_of(encoder, blocks, poolings, image_px)
        self._extract = _extractor(encoder, depths, poolings, epsilon)

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        return self._extract(self._variables, batch["image"])


def layers_of(
    encoder: "Encoder", blocks: int, poolings: Sequence[str], image_px: int | None = None
) -> dict[str, int]:
    """Layer name -> width, as `EncoderRepresentation.layers`, without any weights."""
    depth = len(encoder.block_widths)
    layers: dict[str, int] = {}
    if TOKENS in poolings:
        if image_px is None:
            raise ValueError("tokens are counted on images of some size: image_px is missing")
        layers[f"final/{TOKENS}"] = token_count(encoder, image_px) * encoder.width
    return layers | {
        f"{_block_name(position, depth)}/{pooling}": (
            encoder.block_widths[position] * (2 if pooling == "mean_std" else 1)
        )
        for position in evenly_spaced(depth, blocks)
        for pooling in poolings
        if pooling != TOKENS
    }


@functools.cache
def token_count(encoder: "Encoder", image_px: int) -> int:
    """Tokens of an image of that side, the cls token included where there is one."""

    def encode(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return encoder.apply(variables, images, train=False)[0].tokens

    shape = (1, image_px, image_px, len(encoder.channels))
    variables = jax.eval_shape(encoder.init, jax.random.key(0))
    return jax.eval_shape(encode, variables, jax.ShapeDtypeStruct(shape, jnp.float32)).shape[1]


def evenly_spaced(depth: int, blocks: int) -> tuple[int, ...]:
    """Positions of `blocks` of `depth` blocks (0: all), evenly spaced, ending with the last one."""
    blocks = min(depth, blocks or depth)
    return tuple(-(-(i + 1) * depth // blocks) - 1 for i in range(blocks))


def _block_name(position: int, depth: int) -> str:
    return "final" if position == depth - 1 else f"block{position + 1:02d}"


_Extractor = Callable[[Mapping[str, Any], jax.Array], dict[str, jax.Array]]
_compiled: dict[str, _Extractor] = {}


def _extractor(
    encoder: "Encoder", depths: tuple[int, ...], poolings: tuple[str, ...], epsilon: float
) -> _Extractor:
    """One jitted function per architecture: twins and other seeds share its compiled program."""
    key = json.dumps(
        [encoder.name, encoder.config, encoder.channels, depths, poolings, epsilon], sort_keys=True
    )
    if key not in _compiled:
        extract = functools.partial(_extract, encoder, depths, poolings, epsilon)
        # XLA may keep in float32 what a bfloat16 encoder says is rounded between blocks, where it
        # fuses them. A layer's features would then depend on which other layers are asked for.
        narrow = encoder.config.get("dtype") == "bfloat16"
        options: dict[str, Any] = {"xla_allow_excess_precision": False} if narrow else {}
        _compiled[key] = jax.jit(extract, compiler_options=options)
    return _compiled[key]


def _extract(
    encoder: "Encoder",
    depths: tuple[int, ...],
    poolings: tuple[str, ...],
    epsilon: float,
    variables: Mapping[str, Any],
    images: jax.Array,
) -> dict[str, jax.Array]:
    encoded, _ = encoder.apply(variables, transforms.standardise(images, epsilon), train=False)
    depth = len(encoder.block_widths)
    features = {}
    for position in depths:
        pooled = encoded.pooled if position == depth - 1 else encoded.blocks[position]
        for pooling in poolings:
            if pooling == TOKENS:
                if position == depth - 1:
                    features[f"final/{TOKENS}"] = encoded.tokens.reshape(len(images), -1)
                continue
            features[f"{_block_name(position, depth)}/{pooling}"] = pooled[pooling]
    return features

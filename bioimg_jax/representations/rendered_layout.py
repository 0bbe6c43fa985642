"""The layout as a picture: the mask of the nuclei, looked at by an encoder.

What an encoder makes of where the nuclei are and how they are shaped, and of nothing else. Through
an untrained encoder it is one more floor; through the trained one it says how much of the trained
one's own score the layout alone is worth to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from bioimg_jax.models import build_encoder
from bioimg_jax.representations.encoder import EncoderRepresentation, layers_of
from bioimg_jax.representations.layout import rendered_mask
from bioimg_jax.representations.nuclei import Segmenter
from bioimg_jax.representations.representation import Batch

if TYPE_CHECKING:
    from bioimg_jax.models import Encoder

RENDERED = ("mask", "distance")  # what `layout.render_mask` gives
UNTRAINED = {"name": "resnet", "depth": 18, "channels": list(RENDERED)}
SEED = 0


class RenderedLayoutRepresentation:
    """Pooled features of an encoder that is shown the mask instead of the image.

    Args:
      segmenter: shared with `nuclei` and `layout`, so that an image is segmented once for all.
      variables: of the encoder, called when the first batch comes.
      paint: [2, c]: how much of the mask, and of the distance to its edge in pixels, goes into each
        channel of the encoder. Each channel is then standardised, as those of images are.
    """

    kind = "layout"
    dtype = "float16"

    def __init__(
        self,
        name: str,
        segmenter: Segmenter,
        encoder: "Encoder",
        variables: Callable[[], Mapping[str, Any]],
        paint: np.ndarray,
        *,
        blocks: int = 4,
        poolings: Sequence[str] = ("mean",),
        image_px: int | None = None,
    ) -> None:
        if paint.shape != (len(RENDERED), len(encoder.channels)):
            raise ValueError(f"paint {paint.shape} for {len(encoder.channels)} channels")
        self.name = name
        self.segmenter = segmenter
        self.layers = layers_of(encoder, blocks, poolings, image_px)
        self._encoder, self._variables, self._paint = encoder, variables, paint
        self._options: dict[str, Any] = {
            "blocks": blocks,
            "poolings": poolings,
            "image_px": image_px,
        }
        self._look: EncoderRepresentation | None = None

    @classmethod
    def untrained(cls, segmenter: Segmenter) -> "RenderedLayoutRepresentation":
        """Through a random ResNet-18 with a channel for the mask and one for its distances."""
        encoder = build_encoder(UNTRAINED)
        init = jax.jit(encoder.init)
        return cls(
            "layout_rendered",
            segmenter,
            encoder,
            lambda: init(jax.random.key(SEED)),
            np.eye(len(RENDERED), dtype=np.float32),
        )

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        if self._look is None:
            self._look = EncoderRepresentation(
                self.name, self.kind, self._encoder, self._variables(), **self._options
            )
        images = batch["image"]
        b, h, w = images.shape[:3]
        rendered = self.segmenter.measure(batch, rendered_mask, h * w * len(RENDERED))
        painted = rendered.reshape(b, h, w, len(RENDERED)) @ self._paint
        where = images.sharding if isinstance(images, jax.Array) else None
        return self._look.features({**batch, "image": jax.device_put(painted, where)})

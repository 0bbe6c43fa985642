"""Masked autoencoder (He et al., arXiv 2111.06377)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioimg_jax.data import transforms
from bioimg_jax.errors import InputError
from bioimg_jax.models import Encoder, MaeDecoder
from bioimg_jax.models.vit import patchify, unpatchify
from bioimg_jax.objectives.objective import Aux

PATCH_EPSILON = 1e-6  # added to a patch's variance, as in the authors' code


@dataclasses.dataclass(frozen=True)
class Mae:
    """Hides most patches, encodes the rest, and predicts the hidden ones' pixels.

    Args:
      mask_ratio: share of patches hidden; int(n * (1 - mask_ratio)) stay visible.
      normalise_targets: predict each patch less its own mean, over its own standard deviation.
      augment: intensity augmentations (`transforms.augment_intensity`) on the images.
    """

    encoder: Encoder
    mask_ratio: float = 0.75
    decoder_width: int = 256
    decoder_depth: int = 4
    decoder_heads: int = 8
    normalise_targets: bool = True
    augment: bool = False

    separable_over_batch = True
    target = ""

    def __post_init__(self) -> None:
        if self.encoder.patch_px is None:
            raise InputError(
                f"objective mae needs an encoder with patches, not {self.encoder.name}"
            )
        if not 0 < self.mask_ratio < 1:
            raise InputError(f"objective.mask_ratio: {self.mask_ratio}, expected between 0 and 1")
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise InputError(
                f"objective.decoder_width: {self.decoder_width} must be a multiple of 4 and of "
                f"decoder_heads ({self.decoder_heads})"
            )

    @functools.cached_property
    def decoder(self) -> MaeDecoder:
        return MaeDecoder(
            encoder_width=self.encoder.width,
            outputs=self._patch_px**2 * len(self.encoder.channels),
            width=self.decoder_width,
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            dtype=self.encoder.config["dtype"],
        )

    @property
    def _patch_px(self) -> int:
        assert self.encoder.patch_px is not None  # checked on construction
        return self.encoder.patch_px

    @property
    def augmentations(self) -> tuple[str, ...]:
        return ("intensity",) if self.augment else ()

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        encoder_key, decoder_key = jax.random.split(key)
        variables = self.encoder.init(encoder_key)
        params = {"encoder": variables["params"], "decoder": self.decoder.init(decoder_key)}
        return params, {"stats": variables["stats"]}

    def views(self, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """ "image" float32 [b, h, w, c] and "noise" [b, n], whose order is the masking."""
        image_key, noise_key = jax.random.split(key)
        images = transforms.standardise(batch["image"])
        if self.augment:
            images = transforms.augment_intensity(images, image_key)
        rows, columns = self._grid(images)
        noise = jax.random.uniform(noise_key, (images.shape[0], rows * columns))
        return {"image": images, "noise": noise}

    def loss(
        self, params: Any, state: Any, inputs: Mapping[str, jax.Array], *, key: jax.Array, step: Any
    ) -> tuple[jax.Array, Aux]:
        predicted, patches, order, stats = self._predict(params, state, inputs, key)
        hidden = predicted.shape[1]
        target = jnp.take_along_axis(patches, order[:, -hidden:, None], axis=1)
        if self.normalise_targets:
            mean, scale = _patch_scale(target)
            target = (target - mean) / scale
        # Every image hides the same number of patches: the mean over all is the mean of images.
        loss = jnp.square(predicted - target).mean()
        return loss, Aux(metrics={}, updates={"stats": stats})

    def after_step(self, state: Any, aux: Aux, params: Any, step: Any) -> Any:
        return {"stats": aux.updates["stats"]}

    def reconstruct(
        self, params: Any, state: Any, inputs: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Pictures for the report, all float32 [b, h, w, c], in units of the standardised input.

        "masked" is NaN where patches are hidden; "reconstruction" keeps the visible patches and
        gives predictions of normalised patches their true mean and standard deviation back.
        """
        predicted, patches, order, _ = self._predict(params, state, inputs, None)
        n_hidden = predicted.shape[1]
        hidden = order[:, -n_hidden:]
        if self.normalise_targets:
            mean, scale = _patch_scale(jnp.take_along_axis(patches, hidden[:, :, None], axis=1))
            predicted = predicted * scale + mean
        rows, _ = self._grid(inputs["image"])
        image = jnp.arange(len(hidden))[:, None]
        as_images = functools.partial(unpatchify, patch_px=self._patch_px, rows=rows)
        return {
            "input": inputs["image"],
            "masked": as_images(patches.at[image, hidden].set(jnp.nan)),
            "reconstruction": as_images(patches.at[image, hidden].set(predicted)),
        }

    def _predict(
        self, params: Any, state: Any, inputs: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
        """Predictions [b, n - k, p * p * c] of the patches order[:, k:], all patches, order."""
        images = inputs["image"]
        order = jnp.argsort(inputs["noise"], axis=1)  # [b, n]
        visible = int(order.shape[1] * (1 - self.mask_ratio))
        if not visible:
            raise InputError(
                f"objective.mask_ratio: {self.mask_ratio} leaves none of {order.shape[1]} patches"
            )
        encoded, stats = self.encoder.apply(
            {"params": params["encoder"], "stats": state["stats"]},
            images,
            keep=order[:, :visible],
            train=key is not None,
            key=key,
        )
        grid = self._grid(images)
        predicted = self.decoder.apply(params["decoder"], encoded.tokens, order, grid)
        return predicted, patchify(images, self._patch_px), order, stats

    def _grid(self, images: jax.Array) -> tuple[int, int]:
        return images.shape[1] // self._patch_px, images.shape[2] // self._patch_px


def _patch_scale(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (n - 1) of each patch, all channels together; [b, n, 1]."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, ddof=1, keepdims=True)
    return mean, jnp.sqrt(variance + PATCH_EPSILON)

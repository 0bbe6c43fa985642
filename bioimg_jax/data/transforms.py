"""Host transforms (NumPy, bit depth kept) and device transforms (pure JAX, float32)."""

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax.errors import InputError


def centre_crop(image: np.ndarray, crop_px: int) -> np.ndarray:
    """[h, w, c] -> view [crop_px, crop_px, c] from the middle."""
    top, left = (size - crop_px for size in _room(image, crop_px))
    return random_crop(image, crop_px, top // 2, left // 2)


def random_crop(image: np.ndarray, crop_px: int, top: int, left: int) -> np.ndarray:
    """[h, w, c] -> view [crop_px, crop_px, c] whose upper left corner the caller drew."""
    return image[top : top + crop_px, left : left + crop_px]


def flip(image: np.ndarray) -> np.ndarray:
    """[h, w, c] -> view mirrored left to right."""
    return image[:, ::-1]


def rot90(image: np.ndarray, turns: int) -> np.ndarray:
    """[h, w, c] -> view turned by `turns` quarter turns anticlockwise (as `np.rot90`, faster)."""
    if turns == 1:
        return image.transpose(1, 0, 2)[::-1]
    if turns == 2:
        return image[::-1, ::-1]
    if turns == 3:
        return image.transpose(1, 0, 2)[:, ::-1]
    return image


def augment_crops(
    images: list[np.ndarray], crop_px: int, draws: np.ndarray, *, flips: bool, rotations: bool
) -> np.ndarray:
    """b images [h, w, c] -> [b, crop_px, crop_px, c], each cropped, mirrored and turned.

    draws: float64 [b, 4] in [0, 1): top, left, mirrored or not, quarter turns. Every example is
    a chain of views and one copy.
    """
    out = np.empty((len(images), crop_px, crop_px, images[0].shape[2]), images[0].dtype)
    for i, image in enumerate(images):
        height, width = _room(image, crop_px)
        top = int(draws[i, 0] * (height - crop_px + 1))
        left = int(draws[i, 1] * (width - crop_px + 1))
        view = random_crop(image, crop_px, top, left)
        if flips and draws[i, 2] < 0.5:
            view = flip(view)
        if rotations:
            view = rot90(view, int(draws[i, 3] * 4))
        out[i] = view
    return out


def _room(image: np.ndarray, crop_px: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    if min(height, width) < crop_px:
        raise InputError(
            f"data.crop_px: an image of {height} x {width} px has no crop of {crop_px} px; "
            f"data sets with an option crop_px can be prepared with data.options=crop_px={crop_px}"
        )
    return height, width


def standardise(images: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """[b, h, w, c] of any dtype -> float32, zero mean and unit variance per image and channel.

    (x - mean) / sqrt(variance + epsilon). An empty (constant) channel comes out exactly zero: the
    corner pixel is subtracted first, so that no rounding of a large mean is blown up by epsilon.
    """
    x = images.astype(jnp.float32)
    x = x - x[:, :1, :1, :]
    x = x - x.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(x).mean(axis=(1, 2), keepdims=True)
    return x * jax.lax.rsqrt(variance + epsilon)


def augment_intensity(
    images: jax.Array,
    key: jax.Array,
    shift: float = 0.1,
    gamma: tuple[float, float] = (0.8, 1.2),
    noise: float = 0.05,
) -> jax.Array:
    """Standardised [b, h, w, c] float32 -> the same, with other intensities.

    Per image and channel: an exponent from `gamma` applied between the channel's own minimum and
    maximum, a constant from +-`shift`; per pixel: Gaussian noise of standard deviation `noise`; the
    last two in units of the channel's standard deviation. Empty channels stay zero.
    """
    gamma_key, shift_key, noise_key = jax.random.split(key, 3)
    b, _, _, c = images.shape
    low = images.min(axis=(1, 2), keepdims=True)
    span = images.max(axis=(1, 2), keepdims=True) - low
    filled = span > 0
    exponent = jax.random.uniform(gamma_key, (b, 1, 1, c), minval=gamma[0], maxval=gamma[1])
    relative = (images - low) / jnp.where(filled, span, 1.0)
    x = low + span * relative**exponent
    x = x + jax.random.uniform(shift_key, (b, 1, 1, c), minval=-shift, maxval=shift)
    x = x + noise * jax.random.normal(noise_key, images.shape)
    return jnp.where(filled, x, images)

"""The texture floor: a fixed bank of Gabor filters with second-order pooling, nothing learned.

A homogeneous texture is described by mean and sd over space of the magnitudes of Gabor responses at
several scales and orientations (Manjunath & Ma, "Texture features for browsing and retrieval of
image data", IEEE PAMI 18 (1996), 837-842); with several channels, also by how these magnitudes go
together. Filters are Gaussians on one side of the frequency plane: a response is complex, and its
magnitude is the local amplitude whatever the phase.

Images are standardised as they are for an encoder: intensities are the pixel floor's. Opposite
edges of an image meet, so that features do not change when it is shifted round.

Rotation: means and sds keep the orientation. A quarter turn of a square image permutes them, and
their sums over orientations, which a linear probe can form, do not change. Nor do anisotropies and
correlations, which are formed here because a linear probe cannot.

Mirrors: a flip turns orientation o into -o. The mirrored bank averages the two, so that an image
and its mirror image have the same features: it cannot say which way round a texture is.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax.data import transforms
from bioimg_jax.representations.representation import Batch

FREQUENCIES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)  # centres of the filters in cycles a pixel
ORIENTATIONS = 6  # of the wave, 0 along a row, every 30 degrees
# sd of a filter over its centre frequency, along the wave and across it: neighbours an octave or
# 30 degrees apart meet at half of their peak, as in the bank of Manjunath & Ma.
WIDTH_ALONG = 1 / 3 / math.sqrt(2 * math.log(2))
WIDTH_ACROSS = math.tan(math.pi / (2 * ORIENTATIONS)) / math.sqrt(2 * math.log(2))
# Of standardised images; rounding errors below these are no response.
LEAST_VARIANCE = 1e-8
LEAST_AMPLITUDE = 1e-4


class TextureBankRepresentation:
    """Gabor statistics in one layer, "texture".

    `feature_names` says what each of the features is, for the channels given.

    Args:
      mirrored: average each orientation with its mirror image, under the name
        "texture_bank_mirrored". A flip of the image along either axis then changes no feature
        beyond rounding; an orientation's name is the one of the pair below 90 degrees.
    """

    kind = "texture"
    dtype = "float32"  # few features: the floor loses nothing to rounding

    def __init__(self, channels: Sequence[str], *, mirrored: bool = False) -> None:
        self.name = "texture_bank_mirrored" if mirrored else "texture_bank"
        self._mirrored = mirrored
        pairs = list(itertools.combinations(channels, 2))
        self.feature_names = []
        for frequency in FREQUENCIES:
            scale = f"1/{round(1 / frequency)}"
            for statistic in ("mean", "sd"):
                self.feature_names += [
                    f"{channel}:{statistic}:{scale}:{180 * o // ORIENTATIONS}"
                    for channel in channels
                    for o in range(n_orientations(mirrored))
                ]
            self.feature_names += [f"{channel}:anisotropy:{scale}" for channel in channels]
            self.feature_names += [f"{one}:{other}:correlation:{scale}" for one, other in pairs]
        self.layers = {"texture": len(self.feature_names)}

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        # An accelerator's quick products would round to three digits.
        with jax.default_matmul_precision("highest"):
            return {"texture": texture_statistics(batch["image"], mirrored=self._mirrored)}


def n_orientations(mirrored: bool) -> int:
    """Orientations that features tell apart: 0 and 90 degrees are mirror images of themselves."""
    return ORIENTATIONS // 2 + 1 if mirrored else ORIENTATIONS


@functools.partial(jax.jit, static_argnames="mirrored")
def texture_statistics(images: jax.Array, *, mirrored: bool = False) -> jax.Array:
    """Statistics [b, 4 ((2 o + 1) c + c (c - 1)/2)] of images [b, h, w, c] of any dtype.

    Scale by scale: mean and sd [c, o] of the magnitudes over space, o = `n_orientations`;
    anisotropy [c]; and the correlation [c (c - 1)/2] of two channels' magnitudes, pooled over
    orientations. A wave of amplitude 1 and a filter's own frequency and orientation has magnitude 1
    there.
    """
    spectrum = jnp.fft.fft2(transforms.standardise(images).transpose(0, 3, 1, 2))  # [b, c, h, w]
    features = [_scale_statistics(spectrum, frequency, mirrored) for frequency in FREQUENCIES]
    return jnp.concatenate(features, axis=1)


def _scale_statistics(spectrum: jax.Array, frequency: float, mirrored: bool) -> jax.Array:
    """Statistics [b, (2 o + 1) c + c (c - 1)/2] of the responses to filters of one frequency."""
    b, c, h, w = spectrum.shape
    rows, columns, filters = _filters(h, w, frequency, mirrored)
    band = spectrum[:, :, rows][:, :, :, columns]  # [b, c, rows, columns]
    # The inverse transform divides by the pixels of its own, smaller, grid.
    band = band * (len(rows) * len(columns) / (h * w))

    def orientation(_: None, gabor: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        # One orientation at a time: all responses together are many times the images.
        magnitude = jnp.abs(jnp.fft.ifft2(band * gabor[None, None])).reshape(b, c, -1)
        mean = jnp.mean(magnitude, axis=2)  # [b, c]
        centred = magnitude - mean[:, :, None]
        covariance = jnp.einsum("bcn,bkn->bck", centred, centred) / centred.shape[2]
        return None, (mean, covariance)

    _, (mean, covariance) = jax.lax.scan(orientation, None, jnp.asarray(filters))
    mean = mean.transpose(1, 2, 0)  # [b, c, orientations]
    sd = jnp.sqrt(jnp.diagonal(covariance, axis1=2, axis2=3)).transpose(1, 2, 0)

    # Orientations have a period of 180 degrees: their first harmonic is of twice the angle.
    angle = 2 * np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    wave = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    harmonic = jnp.sqrt(jnp.sum(jnp.square(mean @ jnp.asarray(wave)), axis=2))
    anisotropy = harmonic / (jnp.sum(mean, axis=2) + LEAST_AMPLITUDE)  # [b, c]

    pooled = jnp.mean(covariance, axis=0)  # [b, c, c]
    scale = jnp.sqrt(jnp.diagonal(pooled, axis1=1, axis2=2) + LEAST_VARIANCE)
    first, second = np.triu_indices(c, k=1)
    correlation = pooled[:, first, second] / (scale[:, first] * scale[:, second])
    if mirrored:
        one = np.arange(n_orientations(mirrored))
        other = -one % ORIENTATIONS
        mean = (mean[:, :, one] + mean[:, :, other]) / 2
        sd = (sd[:, :, one] + sd[:, :, other]) / 2
    return jnp.concatenate(
        [mean.reshape(b, -1), sd.reshape(b, -1), anisotropy, correlation], axis=1
    )


@functools.lru_cache(maxsize=32)
def _filters(
    h: int, w: int, frequency: float, mirrored: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of an fft2 of [h, w] that matter, and the filters [orientations, ...] there.

    A filter has all but 0.2 % of its peak below twice its frequency: what lies above is cut off and
    the response computed on a grid of 1/(4 frequency) times fewer pixels a side.

    `mirrored`: the filters of o and -o, and the points where the response is computed, are mirror
    images of each other to rounding.
    """
    rows, columns = _lowest(h, 2 * frequency), _lowest(w, 2 * frequency)
    y, x = (rows / h)[:, None], (columns / w)[None, :]
    filters = []
    for o in range(ORIENTATIONS):
        angle = math.pi * o / ORIENTATIONS
        along = x * math.cos(angle) + y * math.sin(angle) - frequency
        across = y * math.cos(angle) - x * math.sin(angle)
        exponent = (along / WIDTH_ALONG) ** 2 + (across / WIDTH_ACROSS) ** 2
        filters.append(2 * np.exp(-exponent / (2 * frequency**2)))  # 2: the other side has the rest
    bank = np.stack(filters)
    bank[:, (y == 0) & (x == 0)] = 0.0  # the mean is no texture
    if mirrored:
        # A grid of even size has one frequency without its opposite, and so none of its mirror's.
        bank[:, ~np.isin(-rows, rows)] = 0.0
        bank[:, :, ~np.isin(-columns, columns)] = 0.0
        # A flip is about the middle of the image, between the points of a smaller grid that starts
        # at the first pixel; one that starts in the middle is flipped onto itself.
        bank = bank * np.exp(1j * np.pi * (y * (h - 1) + x * (w - 1)))
    return rows % h, columns % w, bank.astype(np.complex64)


def _lowest(size: int, highest: float) -> np.ndarray:
    """Signed frequencies, in cycles an image, of the smallest grid that holds up to `highest`."""
    pixels = min(size, math.ceil(2 * highest * size))
    return np.round(np.fft.fftfreq(pixels) * pixels).astype(int)

"""The pixel floor: per-channel statistics of the raw image, no learning and no standardisation.

Per channel: mean, sd, quantiles, saturated fraction, slope of the power spectrum (blur),
background and the radial power spectrum; between channels: zero-lag correlations and the radial
cross-spectrum, which sees how far apart the structures of two channels lie. Tissue, that is images
whose channels are exactly R, G and B in this order: optical density and tissue fraction.
Intensities are in 1/256 of the full scale of the storage type (as they are for floats), so that 8
and 16 bits read alike.

A second layer holds the downsampled pixels themselves. Their principal components, which are often
used in this place, are a rotation of them that has to be fitted on training rows; a linear probe
with an L2 penalty finds the same directions itself, and nothing needs to be fitted here.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax.representations.representation import Batch

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
QUANTILE_PIXELS = 1 << 14  # quantiles of larger images are taken over a regular grid of pixels
TILES = 4  # the background is the darkest tile of a TILES x TILES grid
RADIAL_BINS = 8
# Rings of the power and cross-spectra: equal in log frequency, the last one ends at 1/2 cycle a
# pixel; the first one takes everything below it too. In a 64 px crop each of them has a frequency.
RINGS = 8
LOWEST_FREQUENCY = 1 / 64  # cycles a pixel
NOISE = 1e-10  # of a channel's power: what rounding leaves in a ring where there is nothing
GRID = 8  # the downsampled layer is GRID x GRID means of each channel
TISSUE_CHANNELS = ("R", "G", "B")
TISSUE_DENSITY = 0.15  # optical density above which a pixel is tissue (Macenko et al. 2009, beta)


class PixelRepresentation:
    """Pixel statistics in the layer "pixels", GRID x GRID pixels a channel in "downsampled".

    `feature_names` says what each of the features of "pixels" is, for the channels given.

    Args:
      cross_spectrum: without it, and then called "pixels_no_cross", it does not see how far apart
        the structures of two channels lie: for showing what that is worth.
    """

    kind = "pixels"
    dtype = "float32"  # few features: the floor loses nothing to rounding

    def __init__(self, channels: Sequence[str], *, cross_spectrum: bool = True) -> None:
        self.name = "pixels" if cross_spectrum else "pixels_no_cross"
        pairs = list(itertools.combinations(channels, 2))
        statistics = ["mean", "sd", *(f"q{round(100 * q):02d}" for q in QUANTILES)]
        statistics += ["saturated", "blur_slope", "background"]
        self.feature_names = [f"{channel}:{name}" for name in statistics for channel in channels]
        self.feature_names += [f"{one}:{other}:correlation" for one, other in pairs]
        self.feature_names += [f"{name}:power{r}" for name in channels for r in range(RINGS)]
        self.feature_names += [
            f"{one}:{other}:coherence{r}" for one, other in pairs for r in range(RINGS)
        ]
        self._tissue = tuple(channels) == TISSUE_CHANNELS
        if self._tissue:
            self.feature_names += [f"{channel}:density" for channel in channels]
            products = itertools.combinations_with_replacement(channels, 2)
            self.feature_names += [f"{one}:{other}:density_covariance" for one, other in products]
            self.feature_names += ["tissue_fraction"]
        self._kept = np.flatnonzero(
            [cross_spectrum or ":coherence" not in name for name in self.feature_names]
        )
        self.feature_names = [self.feature_names[i] for i in self._kept]
        # The last one is the default.
        self.layers = {
            "downsampled": GRID * GRID * len(channels),
            "pixels": len(self.feature_names),
        }

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        images = batch["image"]
        # An accelerator's quick products would round to three digits.
        with jax.default_matmul_precision("highest"):
            return {
                "downsampled": downsampled_pixels(images),
                "pixels": pixel_statistics(images, tissue=self._tissue)[:, self._kept],
            }


class StainRepresentation:
    """How much stain there is, and in which colours: the last features of "pixels" of R, G, B."""

    name = "stain"
    kind = "pixels"
    dtype = "float32"
    layers: ClassVar[dict[str, int]] = {"stain": 10}

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return {"stain": stain_statistics(batch["image"])}


@jax.jit
def stain_statistics(images: jax.Array) -> jax.Array:
    """Optical density and tissue fraction [b, 10] of R, G, B [b, h, w, 3] of any dtype."""
    return jnp.concatenate(_optical_density(_common_scale(images)), axis=1)


@functools.partial(jax.jit, static_argnames="tissue")
def pixel_statistics(images: jax.Array, *, tissue: bool = False) -> jax.Array:
    """Statistics [b, 12 c + 9 c (c - 1)/2 + 8 c] of images [b, h, w, c] of any dtype.

    tissue: the channels are R, G, B; 10 more features.
    """
    b, h, w, c = images.shape
    full = _full_scale(images.dtype)
    saturated = jnp.mean((images.astype(jnp.float32) >= full).astype(jnp.float32), axis=(1, 2))
    images = _common_scale(images)

    # Centred on a corner first: a constant channel is then exactly zero, without a rounded mean.
    mean = jnp.mean(images, axis=(1, 2))  # [b, c]
    centred = images - images[:, :1, :1, :]
    centred = centred - jnp.mean(centred, axis=(1, 2), keepdims=True)
    covariance = jnp.einsum("bhwc,bhwk->bck", centred, centred) / (h * w)
    sd = jnp.sqrt(jnp.diagonal(covariance, axis1=1, axis2=2))  # [b, c]

    stride = math.ceil(math.sqrt(h * w / QUANTILE_PIXELS))
    grid = images[:, ::stride, ::stride, :]
    ordered = _sort(grid.reshape(b, -1, c).transpose(0, 2, 1))  # [b, c, pixels]
    last = ordered.shape[2] - 1
    quantiles = [ordered[:, :, round(q * last)] for q in QUANTILES]

    # A channel without variance correlates with nothing.
    product = sd[:, :, None] * sd[:, None, :]
    correlation = jnp.where(product > 1e-12, covariance / jnp.maximum(product, 1e-12), 0.0)
    first, second = np.triu_indices(c, k=1)
    real, imaginary = _spectrum(centred)
    power = real**2 + imaginary**2  # [b, c, frequencies]
    features = [mean, sd, *quantiles, saturated, _blur_slope(power, h, w), _background(images)]
    features += [correlation[:, first, second], *_radial(power, real, imaginary, h, w)]
    if tissue:
        features += _optical_density(images)
    return jnp.concatenate(features, axis=1)


@jax.jit
def downsampled_pixels(images: jax.Array) -> jax.Array:
    """Means of GRID x GRID equal tiles [b, GRID GRID c] of images [b, h, w, c] of any dtype.

    Tiles need not end at a pixel's edge, so that any image, smaller than the grid too, has them.
    """
    images = _common_scale(images)
    b, h, w, _ = images.shape
    rows, columns = jnp.asarray(_tile_shares(h)), jnp.asarray(_tile_shares(w))
    tiles = jnp.einsum("bhwc,gh->bgwc", images, rows)
    return jnp.einsum("bgwc,kw->bgkc", tiles, columns).reshape(b, -1)


def _full_scale(dtype: np.dtype) -> float:
    """The largest value of a storage type; floats have none."""
    return float(jnp.iinfo(dtype).max) if jnp.issubdtype(dtype, jnp.integer) else math.inf


def _common_scale(images: jax.Array) -> jax.Array:
    """float32, in 1/256 of full scale; floats as they are."""
    full = _full_scale(images.dtype)
    return images.astype(jnp.float32) * (1.0 if full == math.inf else 256.0 / full)


def _tile_shares(size: int) -> np.ndarray:
    """Share [GRID, size] of each pixel in the mean of each tile along one axis."""
    tile = size / GRID
    start, pixel = np.arange(GRID)[:, None] * tile, np.arange(size)[None, :]
    overlap = np.minimum(start + tile, pixel + 1) - np.maximum(start, pixel)
    return (np.maximum(overlap, 0) / tile).astype(np.float32)


def _sort(values: jax.Array) -> jax.Array:
    """float32 sorted along the last axis, as integers of the same order: 6 times faster on CPU."""

    def mirror_negatives(bits: jax.Array) -> jax.Array:
        return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))

    bits = mirror_negatives(jax.lax.bitcast_convert_type(values, jnp.int32))
    return jax.lax.bitcast_convert_type(mirror_negatives(jnp.sort(bits)), jnp.float32)


def _background(images: jax.Array) -> jax.Array:
    """Mean of the darkest tile [b, c]."""
    b, h, w, c = images.shape
    tiles_h, tiles_w = min(TILES, h), min(TILES, w)
    th, tw = h // tiles_h, w // tiles_w
    tiles = images[:, : th * tiles_h, : tw * tiles_w].reshape(b, tiles_h, th, tiles_w, tw, c)
    return jnp.min(jnp.mean(tiles, axis=(2, 4)), axis=(1, 2))


def _spectrum(centred: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary part [b, c, h (w // 2 + 1)] of the transform of [b, h, w, c], windowed."""
    b, h, w, c = centred.shape
    window = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1]).astype(np.float32)
    windowed = (centred * window[None, :, :, None]).transpose(0, 3, 1, 2)
    spectrum = jnp.fft.rfft2(windowed).reshape(b, c, -1) / math.sqrt(h * w)
    return spectrum.real, spectrum.imag


def _blur_slope(power: jax.Array, h: int, w: int) -> jax.Array:
    """Slope [b, c] of log power against log spatial frequency: a blurred image falls faster."""
    bins, log_frequency = _radial_bins(h, w)
    log_power = jnp.log(power @ jnp.asarray(bins) + 1e-6)  # [b, c, r]
    log_power = log_power - log_power[:, :, :1]  # an empty channel has slope 0 exactly
    lever = log_frequency - log_frequency.mean()
    # Images of so few pixels that there is one ring have no slope.
    return log_power @ jnp.asarray(lever / np.maximum(np.sum(lever**2), 1e-6))


@functools.lru_cache(maxsize=16)
def _radial_bins(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Averaging matrix [h (w // 2 + 1), bins] of an rfft2 and the log frequency of each bin.

    Bins are rings of equal width from the lowest frequency to 1/2 cycle a pixel; empty ones (in
    images of a few pixels) are left out.
    """
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]).ravel()
    ring = np.ceil(radius * 2 * RADIAL_BINS).astype(int) - 1  # -1: the zero frequency
    rings = [r for r in range(RADIAL_BINS) if (ring == r).any()]
    bins = np.stack([(ring == r) / (ring == r).sum() for r in rings], axis=1)
    log_frequency = np.log([radius[ring == r].mean() for r in rings])
    return bins.astype(np.float32), log_frequency.astype(np.float32)


def _radial(
    power: jax.Array, real: jax.Array, imaginary: jax.Array, h: int, w: int
) -> tuple[jax.Array, jax.Array]:
    """Log power [b, c RINGS] and coherence [b, c (c - 1)/2 RINGS].

    The coherence of channels A and B in a ring is sum Re(A B*) / sqrt(sum |A|^2 sum |B|^2), in
    [-1, 1]: where B is A shifted by r, it oscillates with r as the Bessel function J0(2 pi f r),
    averaged over the ring. Real parts and whole rings do not change when the image is mirrored or
    turned by quarters; imaginary parts cancel out over a ring. An empty channel has power 1e-6,
    the rounding of 16 bits, and no coherence.
    """
    b, c, _ = power.shape
    rings = jnp.asarray(_rings(h, w))
    radial = power @ rings  # [b, c, rings]
    first, second = np.triu_indices(c, k=1)
    # A pair at a time: the products of all pairs would be several times the images.
    cross = jnp.zeros((b, 0, RINGS), jnp.float32)
    pairs = zip(first, second, strict=True)
    products = [real[:, i] * real[:, j] + imaginary[:, i] * imaginary[:, j] for i, j in pairs]
    if products:
        cross = jnp.stack([product @ rings for product in products], axis=1)
    amplitude = jnp.sqrt(radial + NOISE * jnp.mean(power, axis=2, keepdims=True))
    scale = amplitude[:, first] * amplitude[:, second]
    coherence = jnp.where(scale > 0.0, cross / jnp.where(scale > 0.0, scale, 1.0), 0.0)
    return jnp.log(radial + 1e-6).reshape(b, -1), coherence.reshape(b, -1)


@functools.lru_cache(maxsize=16)
def _rings(h: int, w: int) -> np.ndarray:
    """Averaging matrix [h (w // 2 + 1), RINGS] of an rfft2; a ring without frequencies is zero.

    The half plane that an rfft2 leaves out is counted through its mirror image.
    """
    vertical, horizontal = np.fft.fftfreq(h), np.fft.rfftfreq(w)
    radius = np.hypot(vertical[:, None], horizontal[None, :]).ravel()
    edges = np.geomspace(LOWEST_FREQUENCY, 0.5, RINGS + 1)[1:]
    edges[-1] = 0.5  # geomspace rounds
    ring = np.searchsorted(edges, radius - 1e-9)  # RINGS: the corners beyond 1/2 cycle a pixel
    mirrored = (horizontal > 0) & (horizontal < 0.5)
    counted = np.tile(np.where(mirrored, 2.0, 1.0), h) * (radius > 0)
    members = (ring[:, None] == np.arange(RINGS)) * counted[:, None]
    return (members / np.maximum(members.sum(axis=0), 1.0)).astype(np.float32)


def _optical_density(images: jax.Array) -> list[jax.Array]:
    """Mean [b, 3] and covariance [b, 6] of the tissue's optical density, tissue fraction [b, 1].

    Density is -log10((I + 1) / 257), I in 0 ... 256 (Beer and Lambert; Ruifrok & Johnston 2001),
    and tissue are the pixels whose three densities average above TISSUE_DENSITY. All of them above,
    as Macenko et al. (2009) ask for, would drop eosin, which lets red light through. Without a
    tissue pixel everything is zero.
    """
    density = -jnp.log10((jnp.maximum(images, 0.0) + 1.0) / 257.0)
    tissue = (jnp.mean(density, axis=3) > TISSUE_DENSITY).astype(jnp.float32)  # [b, h, w]
    fraction = jnp.mean(tissue, axis=(1, 2))[:, None]
    share = tissue / jnp.maximum(jnp.sum(tissue, axis=(1, 2), keepdims=True), 1.0)
    mean = jnp.einsum("bhw,bhwc->bc", share, density)
    centred = density - mean[:, None, None, :]
    covariance = jnp.einsum("bhw,bhwc,bhwk->bck", share, centred, centred)
    first, second = np.triu_indices(3)
    return [mean, covariance[:, first, second], fraction]

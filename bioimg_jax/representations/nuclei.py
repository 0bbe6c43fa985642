"""The count floor: how many nuclei, how large, of which shape; and the segmentation it rests on.

`segment_nuclei` finds them without learning: background off, Otsu's threshold, a local threshold,
then a watershed from the peaks of depth times brightness, whose parts are joined again where the
saddle between them is nearly as high as the lower peak. The settings of a stain are the same for
every image. They were chosen on one half of BBBC038 and are measured on the other
(`tests/representations/test_nuclei.py`).

Segmenting takes some 15 ms an image on one core, so it is done in processes of its own. They import
this module, so JAX is not imported at the top.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing.util
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from bioimg_jax.data.workers import available_cores, run_tasks, worker_pool
from bioimg_jax.errors import InputError

if TYPE_CHECKING:
    import jax

    from bioimg_jax.representations.representation import Batch


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the nuclei of one stain are told from the rest. Lengths in pixels.

    "Scale" below is the typical radius of the foreground, estimated from each image.
    """

    smooth_px: float  # sd of the Gaussian against noise
    background_px: int  # what is wider than this is background
    gamma: float  # Otsu's threshold is of signal ** gamma, so that dim nuclei count too
    threshold: float  # times Otsu's
    local_px: int  # width of the neighbourhood, and
    local_fraction: float  # the fraction of its mean foreground signal that a pixel must reach
    opening_px: int  # radius of the opening that takes off threads
    signal_blur: float  # sd, in scales, of the brightness in depth times brightness, and
    signal_power: float  # its exponent
    depth_blur: float  # sd, in scales, of the product
    split_ratio: float  # two parts stay two if their saddle is below this times the lower peak
    least_area_px: int
    least_contrast: float  # mean signal, to that of all nuclei of the image
    least_roundness: float  # area of the inscribed disc to area
    least_image_contrast: float  # of all nuclei to the background's sd: below it is all noise


STAINS = {
    "fluorescence": Settings(
        smooth_px=0.5,
        background_px=51,
        gamma=0.5,
        threshold=0.8,
        local_px=41,
        local_fraction=0.6,
        opening_px=0,
        signal_blur=0.1,
        signal_power=0.5,
        depth_blur=0.05,
        split_ratio=0.92,
        least_area_px=25,
        least_contrast=0.0,
        least_roundness=0.0,
        least_image_contrast=5.0,
    ),
    "haematoxylin": Settings(
        smooth_px=0.7,
        background_px=51,
        gamma=0.4,
        threshold=0.9,
        local_px=31,
        local_fraction=0.7,
        opening_px=1,
        signal_blur=0.15,
        signal_power=0.5,
        depth_blur=0.25,
        split_ratio=0.92,
        least_area_px=20,
        least_contrast=0.4,
        least_roundness=0.2,
        least_image_contrast=3.0,
    ),
}
# Optical densities of haematoxylin, eosin and DAB in R, G, B: Ruifrok and Johnston, "Quantification
# of histochemical staining by color deconvolution", 2001.
STAIN_DENSITIES = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
SHAPES = ("area", "major_axis", "minor_axis", "eccentricity", "solidity", "form_factor")
QUANTILES = (0.1, 0.5, 0.9)
SUMMARIES = ("mean", "sd", *(f"q{round(100 * q):02d}" for q in QUANTILES))
QUALITIES = ("separability", "contrast", "discarded", "at_border", "touching")
FEATURE_NAMES = (
    *("count", "log_count", "density", "foreground"),
    *(f"{shape}:{name}" for shape in SHAPES for name in SUMMARIES),
    *QUALITIES,
)
DENSITY_PX = 1e4  # densities are nuclei in 100 x 100 pixels
HULL_DIRECTIONS = 16


def segment_nuclei(
    image: np.ndarray,
    *,
    stain: str = "fluorescence",
    dna_channel: int = 0,
    settings: Settings | None = None,
) -> np.ndarray:
    """Labels int32 [h, w] of the nuclei, 1 ... n, 0 elsewhere.

    Args:
      image: [h, w], or [h, w, c] of which `dna_channel` is segmented. For "haematoxylin" [h, w, 3]:
        R, G, B, in 1/256 of the full scale if they are floats. Only relative intensities matter to
        "fluorescence".
      settings: other than those of the stain.
    """
    plane = image if stain == "haematoxylin" or image.ndim == 2 else image[..., dna_channel]
    return _segment(plane, stain, settings or STAINS[stain])[0]


class NucleiRepresentation:
    """Number, density, size and shape of the nuclei, and how well they were told from the rest.

    One layer, "nuclei"; `feature_names` says what each feature is. Areas are in pixels, densities
    in nuclei per 100 x 100 pixels; shapes of an image without nuclei are 0.

    Args:
      segmenter: shared with `layout`, so that an image is segmented once for both.
    """

    name = "nuclei"
    kind = "count"
    dtype = "float32"

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter
        self.feature_names = list(FEATURE_NAMES)
        self.layers = {"nuclei": len(self.feature_names)}

    def features(self, batch: "Batch") -> dict[str, "jax.Array"]:
        values = self.segmenter.measure(batch, nucleus_statistics, self.layers["nuclei"])
        return {"nuclei": on_device(values)}


def nucleus_statistics(labels: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """The features [d] of `NucleiRepresentation` from labels [h, w] and their quality [3]."""
    shapes = measure_shapes(labels)  # [n, shapes]
    n = len(shapes)
    inside = np.pad(labels, 1, constant_values=-1)
    ends = [inside[1:-1, :-2], inside[1:-1, 2:], inside[:-2, 1:-1], inside[2:, 1:-1]]
    shares = []  # of the nuclei: those with a pixel beside the border, beside another nucleus
    for meets in (
        functools.reduce(np.logical_or, [end == -1 for end in ends]),
        functools.reduce(np.logical_or, [(end > 0) & (end != labels) for end in ends]),
    ):
        found = np.unique(labels[meets & (labels > 0)])
        shares.append(len(found) / max(n, 1))
    extent = [n, np.log1p(n), n * DENSITY_PX / labels.size, np.mean(labels > 0)]
    return np.concatenate([extent, summarise(shapes), quality, shares])


def summarise(values: np.ndarray) -> np.ndarray:
    """Mean, sd and quantiles of each column of [n, m], as [m * 5]; 0 without rows."""
    if not len(values):
        return np.zeros(values.shape[1] * len(SUMMARIES))
    quantiles = np.quantile(values, QUANTILES, axis=0)
    return np.stack([values.mean(0), values.std(0), *quantiles], axis=1).ravel()


def measure_shapes(labels: np.ndarray) -> np.ndarray:
    """`SHAPES` [n, 6] of the nuclei labelled 1 ... n in [h, w].

    Axes and eccentricity are those of the ellipse of the same second moments, a pixel being a unit
    square. The perimeter of the form factor 4 pi area / perimeter^2 is Crofton's in 4 directions;
    the hull of the solidity is cut out by 2 x 16 tangents (0.3 % too large for a disc).
    """
    n = int(labels.max(initial=0))
    if n == 0:
        return np.zeros((0, len(SHAPES)))
    ys, xs = np.nonzero(labels)
    of = labels[ys, xs] - 1  # nucleus of each foreground pixel
    area = np.bincount(of, minlength=n).astype(np.float64)
    cy, cx = (np.bincount(of, v, minlength=n) / area for v in (ys, xs))
    dy, dx = ys - cy[of], xs - cx[of]
    yy, xx, xy = (np.bincount(of, v, minlength=n) / area for v in (dy * dy, dx * dx, dx * dy))
    yy, xx = yy + 1 / 12, xx + 1 / 12
    spread = np.sqrt((yy - xx) ** 2 + 4 * xy**2)
    major, minor = (np.sqrt(np.maximum(8 * (yy + xx + s * spread), 0.0)) for s in (1, -1))
    eccentricity = np.sqrt(np.maximum(1 - (minor / major) ** 2, 0.0))

    padded = np.pad(labels, 1)
    crossings = np.zeros(n)  # of the outline with lines in 4 directions, times their spacing
    edge = np.zeros(labels.shape, bool)
    for step_y, step_x, spacing in ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.5**0.5), (1, -1, 0.5**0.5)):
        for sign in (1, -1):
            rows = slice(1 + sign * step_y, padded.shape[0] - 1 + sign * step_y)
            columns = slice(1 + sign * step_x, padded.shape[1] - 1 + sign * step_x)
            leaves = (padded[rows, columns] != labels) & (labels > 0)
            crossings += spacing * np.bincount(labels[leaves] - 1, minlength=n)
            edge |= leaves
    perimeter = np.pi / 8 * crossings

    ys, xs = np.nonzero(edge)
    of = labels[ys, xs] - 1
    order = np.argsort(of, kind="stable")
    ys, xs, starts = ys[order], xs[order], np.searchsorted(of[order], np.arange(n))
    angles = np.arange(HULL_DIRECTIONS) * (np.pi / HULL_DIRECTIONS)
    cos, sin = np.cos(angles), np.sin(angles)
    along = xs[:, None] * cos + ys[:, None] * sin  # [edge pixels, directions]
    corner = (np.abs(cos) + np.abs(sin)) / 2  # how far a pixel's corner reaches
    high = np.maximum.reduceat(along, starts) + corner
    low = np.minimum.reduceat(along, starts) - corner
    support = np.concatenate([high, -low], axis=1)  # of the polygon, all around
    sides = np.roll(support, 1, 1) + np.roll(support, -1, 1) - 2 * np.cos(angles[1]) * support
    hull = np.sum(support * sides, axis=1) / (2 * np.sin(angles[1]))
    form_factor = 4 * np.pi * area / perimeter**2
    return np.stack([area, major, minor, eccentricity, area / hull, form_factor], axis=1)


class Segmentation(NamedTuple):
    """The nuclei of one image, small enough to keep those of many images."""

    shape: tuple[int, int]
    packed: bytes  # int32 labels, deflated: a hundredth of their size
    quality: tuple[float, ...]  # separability, contrast, discarded

    def labels(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self.packed), np.int32).reshape(self.shape)


class Segmenter:
    """Segments batches in processes of its own, and an image it remembers not again.

    So nuclei and layout of the same images, whether batch by batch or one after the other, cost
    one segmentation.

    Args:
      channels: of the images, in order.
      stain: "fluorescence", or "haematoxylin" for R, G, B of a brightfield image.
      dna_channel: which of `channels` to segment; not read for "haematoxylin".
      workers: processes to segment in; None for as many as there are cores.
      memory_bytes: what the remembered segmentations may take; those of later images are made anew.
    """

    def __init__(
        self,
        channels: Sequence[str],
        stain: str = "fluorescence",
        *,
        dna_channel: str = "DNA",
        workers: int | None = None,
        memory_bytes: int = 1 << 28,
    ) -> None:
        if stain not in STAINS:
            raise InputError(f"stain: {stain!r}, expected one of {', '.join(STAINS)}")
        if stain == "haematoxylin" and len(channels) != 3:
            raise InputError(
                f"stain: 'haematoxylin' needs the channels R, G, B, not {', '.join(channels)}"
            )
        if stain == "fluorescence" and dna_channel not in channels:
            raise InputError(f"dna_channel: {dna_channel!r}, expected one of {', '.join(channels)}")
        self.stain = stain
        self._plane = None if stain == "haematoxylin" else list(channels).index(dna_channel)
        self._workers = available_cores() if workers is None else workers
        self._known: dict[bytes, Segmentation] = {}
        self._free_bytes = memory_bytes

    def measure(
        self, batch: "Batch", statistics: Callable[[np.ndarray, np.ndarray], np.ndarray], width: int
    ) -> np.ndarray:
        """`statistics(labels, quality)` [b, width] of each image; 0 where the mask is False.

        `statistics` must be importable by name from a module that does not import JAX.
        """
        images = np.asarray(batch["image"])
        if self._plane is not None:
            images = images[..., self._plane]
        rows = np.flatnonzero(np.asarray(batch.get("mask", np.ones(len(images), bool))))
        values = np.zeros((len(images), width), np.float32)
        keys = {int(row): _digest(images[row]) for row in rows}

        def tasks() -> Iterator[tuple]:
            # A few parts for each process: small crops would spend their time on the way.
            for part in np.array_split(rows, min(len(rows), 4 * self._workers) or 1):
                given = [self._known.get(keys[row], images[row]) for row in part]
                yield part, given, self.stain, statistics

        pool = _pool(self._workers)
        for part, segmentations, found in run_tasks(pool, _measure, tasks(), 2 * self._workers):
            values[part] = found
            for row, segmentation in zip(part, segmentations, strict=True):
                size = len(segmentation.packed)
                if keys[row] not in self._known and size <= self._free_bytes:
                    self._known[keys[row]] = segmentation
                    self._free_bytes -= size
        return values


def on_device(values: np.ndarray) -> "jax.Array":
    """As a representation's features; JAX is imported here, where no worker comes."""
    import jax.numpy as jnp

    return jnp.asarray(values)


@functools.cache
def _pool(workers: int) -> concurrent.futures.Executor:
    """One pool of each size for the whole program, started when first used."""
    pool = worker_pool(workers)
    # At the end of a program, and of a worker process, which runs no `atexit` but waits for its own
    # children: for ever, if nobody tells them that there is no more to do, and does so before the
    # queues to them are closed, which is of priority 10.
    multiprocessing.util.Finalize(None, pool.shutdown, exitpriority=100)
    return pool


def _digest(plane: np.ndarray) -> bytes:
    """What an image is remembered by: its content."""
    digest = hashlib.blake2b(f"{plane.shape} {plane.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(plane).data)
    return digest.digest()


def _measure(
    rows: np.ndarray,
    given: Sequence["np.ndarray | Segmentation"],
    stain: str,
    statistics: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, list[Segmentation], np.ndarray]:
    """Rows, and for each of them its segmentation and its statistics; runs in a worker."""
    segmentations, values = [], []
    for item in given:
        if not isinstance(item, Segmentation):
            labels, quality = _segment(item, stain, STAINS[stain])
            packed = zlib.compress(labels.tobytes(), level=1)
            item = Segmentation(labels.shape, packed, quality)
        segmentations.append(item)
        values.append(statistics(item.labels(), np.array(item.quality)))
    return rows, segmentations, np.array(values, np.float32)


def _segment(
    plane: np.ndarray, stain: str, settings: Settings
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Labels int32 [h, w] of a plane ([h, w, 3] for haematoxylin) and their quality.

    The quality: separability, the between-class share of the variance that Otsu's threshold
    reaches; contrast, mean foreground less mean background signal over the sd of the background;
    the share of the foreground that was discarded as no nucleus.
    """
    signal = _signal(plane, stain, settings)
    nothing = np.zeros(signal.shape, np.int32), (0.0, 0.0, 0.0)
    if not signal.any():
        return nothing
    curved = signal**settings.gamma
    level, separability = _otsu(curved)
    above = curved > level * settings.threshold
    # A dim halo around bright nuclei is above one threshold for the whole image.
    share = ndimage.uniform_filter(above.astype(np.float32), settings.local_px)
    mean = ndimage.uniform_filter(signal * above, settings.local_px) / np.maximum(share, 1e-3)
    above &= signal > settings.local_fraction * mean
    above = _fill_holes(above)
    if settings.opening_px:
        above = ndimage.binary_opening(above, _disc(settings.opening_px))
    if not above.any():
        return nothing

    inside = signal[above].mean()
    background = signal[~above] if not above.all() else np.zeros(1, np.float32)
    # Without noise the contrast has no bound; a table must be finite.
    contrast = float(min((inside - background.mean()) / max(background.std(), 1e-6), 1e3))
    if contrast < settings.least_image_contrast:
        return nothing[0], (separability, contrast, 1.0)

    labels, depth = _split(above, signal, settings)
    area = np.bincount(labels.ravel())
    brightness = np.bincount(labels.ravel(), signal.ravel()) / np.maximum(area, 1)
    radius = np.zeros(len(area), np.float32)  # of the inscribed disc
    np.maximum.at(radius, labels[above], depth[above])
    keep = area >= settings.least_area_px
    keep &= brightness >= settings.least_contrast * inside
    keep &= np.pi * radius**2 >= settings.least_roundness * area
    keep[0] = False
    labels = (np.cumsum(keep) * keep).astype(np.int32)[labels]

    discarded = 1 - np.count_nonzero(labels) / np.count_nonzero(above)
    return labels, (separability, contrast, discarded)


def _signal(plane: np.ndarray, stain: str, settings: Settings) -> np.ndarray:
    """What the nuclei stand out in, float32 [h, w] in 0 ... 1, background at 0."""
    if stain == "haematoxylin":
        full = float(np.iinfo(plane.dtype).max) if plane.dtype.kind in "ui" else 256.0
        light = np.maximum(np.nan_to_num(plane.astype(np.float32)) / np.float32(full), 1 / 256)
        directions = STAIN_DENSITIES / np.linalg.norm(STAIN_DENSITIES, axis=1, keepdims=True)
        plane = np.maximum(-np.log(light) @ np.linalg.inv(directions)[:, 0].astype(np.float32), 0)
    plane = np.nan_to_num(plane.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = plane.min(), plane.max()
    if not high > low:
        return np.zeros(plane.shape, np.float32)
    plane = ((plane - low) / (high - low)).astype(np.float32)
    plane = ndimage.gaussian_filter(plane, settings.smooth_px)
    floor = ndimage.minimum_filter(plane, settings.background_px)
    floor = ndimage.maximum_filter(floor, settings.background_px)
    floor = ndimage.uniform_filter(floor, settings.background_px)
    return np.maximum(plane - floor, 0)


def _otsu(values: np.ndarray, bins: int = 256) -> tuple[float, float]:
    """Threshold of values in 0 ... 1 between two classes, and their share of the variance.

    Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    top = float(values.max())
    index = (values * np.float32((bins - 0.01) / top)).astype(np.int32)
    counts = np.bincount(index.ravel(), minlength=bins) / values.size
    centres = (np.arange(bins) + 0.5) * top / bins
    weight = np.cumsum(counts)
    first = np.cumsum(counts * centres)  # weight times mean of the lower class
    mean = first[-1]
    outer = np.maximum(weight * (1 - weight), 1e-12)
    between = (mean * weight - first) ** 2 / outer
    best = int(np.argmax(between[:-1]))
    total = np.sum(counts * (centres - mean) ** 2)
    return (best + 1) * top / bins, float(between[best] / total) if total > 0 else 0.0


def _fill_holes(above: np.ndarray) -> np.ndarray:
    """With the background that does not reach the border: `binary_fill_holes`, 4 times as fast."""
    holes, n = ndimage.label(~above)
    fill = np.ones(n + 1, bool)
    for side in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        fill[side] = False
    fill[0] = True  # the foreground
    return fill[holes]


@functools.cache
def _disc(radius_px: int) -> np.ndarray:
    y, x = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
    return np.hypot(y, x) < radius_px + 0.5


def _split(
    above: np.ndarray, signal: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the foreground with touching nuclei apart, and its depth in pixels [h, w]."""
    if above.all():  # there is nothing to measure depth from
        depth = np.full(above.shape, max(above.shape) / 3, np.float32)
    else:
        depth = ndimage.distance_transform_edt(above).astype(np.float32)
    scale = 3 * depth.sum() / np.count_nonzero(above)  # a disc of radius r has mean depth r / 3
    bright = ndimage.gaussian_filter(signal, settings.signal_blur * scale)
    height = depth * bright**settings.signal_power
    height = ndimage.gaussian_filter(height, max(settings.depth_blur * scale, 0.5))
    peaks = (ndimage.maximum_filter(height, 3) == height) & above
    seeds, n = ndimage.label(peaks, np.ones((3, 3)))
    labels = watershed(-height, seeds, mask=above)
    peak = np.zeros(n + 1)  # height of each part: that of its seed
    peak[seeds[peaks]] = height[peaks]
    return _join(labels, height, peak, settings.split_ratio), depth


def _join(labels: np.ndarray, height: np.ndarray, peak: np.ndarray, ratio: float) -> np.ndarray:
    """Labels with neighbours joined whose saddle is above `ratio` times the lower of their peaks.

    From the highest saddle down, a joined part having the higher of its peaks: what topology calls
    persistence, measured by ratio so that small and large nuclei are treated alike.
    """
    n = len(peak) - 1
    pairs, saddles = [], []
    for axis in (0, 1):
        near, far = (np.delete(labels, end, axis) for end in (-1, 0))  # beside each other
        meet = (near != far) & (near > 0) & (far > 0)
        pairs.append(np.minimum(near, far)[meet] * np.int64(n + 1) + np.maximum(near, far)[meet])
        lower = np.minimum(np.delete(height, -1, axis), np.delete(height, 0, axis))
        saddles.append(lower[meet])
    pair, saddle = np.concatenate(pairs), np.concatenate(saddles)
    order = np.lexsort((pair, -saddle))  # ties in the order of the labels
    _, first = np.unique(pair[order], return_index=True)
    order = order[np.sort(first)]  # of each pair of neighbours the highest saddle

    parent = list(range(n + 1))

    def root(label: int) -> int:
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    for key, value in zip(pair[order].tolist(), saddle[order].tolist(), strict=True):
        one, other = root(key // (n + 1)), root(key % (n + 1))
        if one != other:
            high, low = (one, other) if peak[one] >= peak[other] else (other, one)
            if value > ratio * peak[low]:
                parent[low] = high
    _, joined = np.unique([root(label) for label in range(n + 1)], return_inverse=True)
    return joined[labels]

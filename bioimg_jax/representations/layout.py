"""The layout floor: where the nuclei are and how they are shaped, from the instance mask alone.

Brightness comes in only through the segmentation. Like `nuclei`, this module is imported by worker
processes and does not import JAX.
"""

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.spatial import Delaunay, QhullError, cKDTree

from bioimg_jax.representations.nuclei import (
    DENSITY_PX,
    SHAPES,
    SUMMARIES,
    Segmenter,
    measure_shapes,
    on_device,
    summarise,
)

if TYPE_CHECKING:
    import jax

    from bioimg_jax.representations.representation import Batch

RADII_PX = (10, 20, 40, 80)  # of Ripley's K
TILES = (2, 4)  # local density is counted on grids of 2 x 2 and 4 x 4 tiles
FEATURE_NAMES = (
    "count",
    "density",
    "foreground",
    *(f"{shape}:{name}" for shape in SHAPES for name in SUMMARIES),
    *(f"nearest_distance:{name}" for name in SUMMARIES),
    "clark_evans",
    *(f"ripley:{radius}" for radius in RADII_PX),
    *(f"edge_length:{name}" for name in SUMMARIES),
    *(f"degree:{name}" for name in SUMMARIES),
    *(f"density_variance:{tiles}" for tiles in TILES),
)


class LayoutRepresentation:
    """Number, shapes and arrangement of the nuclei; one layer, "layout".

    Distances are in pixels and between centroids, density in nuclei per 100 x 100 pixels. What too
    few nuclei leave undefined is 0, and 1 for the ratios to a random arrangement.

    Args:
      segmenter: shared with `nuclei`, so that an image is segmented once for both.
    """

    name = "layout"
    kind = "layout"
    dtype = "float32"

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.feature_names = list(FEATURE_NAMES)
        self.layers = {"layout": len(self.feature_names)}

    def features(self, batch: "Batch") -> dict[str, "jax.Array"]:
        values = self.segmenter.measure(batch, _without_quality, self.layers["layout"])
        return {"layout": on_device(values)}


def _without_quality(labels: np.ndarray, quality: np.ndarray) -> np.ndarray:
    return layout_statistics(labels)


def layout_statistics(labels: np.ndarray) -> np.ndarray:
    """The features [d] named by `FEATURE_NAMES`, of labels int [h, w], nuclei being 1 ... n."""
    shapes = measure_shapes(labels)  # [n, shapes]
    points = centroids(labels)  # [n, 2]
    n = len(points)
    density = n / labels.size
    nearest = nearest_distances(points)
    # Mean nearest distance over 1 / (2 sqrt(density)), that of a Poisson pattern:
    # Clark and Evans, "Distance to nearest neighbor as a measure of spatial relationships", 1954.
    clark_evans = 2 * np.sqrt(density) * nearest.mean() if n > 1 else 1.0
    # Besag's sqrt(K / pi) - r is 0 at every radius for a Poisson pattern.
    ripley = np.sqrt(ripley_k(points, labels.shape, RADII_PX) / np.pi) - RADII_PX
    if n < 2:
        ripley = np.zeros(len(RADII_PX))
    edges = delaunay_edges(points)  # [e, 2]
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    degrees = np.bincount(edges.ravel(), minlength=n).astype(np.float64)
    return np.concatenate(
        [
            [n, DENSITY_PX * density, np.mean(labels > 0)],
            summarise(shapes),
            summarise(nearest[:, None]),
            [clark_evans],
            ripley,
            summarise(lengths[:, None]),
            summarise(degrees[:, None]),
            [density_variance(points, labels.shape, tiles) for tiles in TILES],
        ]
    )  # fmt: skip


def centroids(labels: np.ndarray) -> np.ndarray:
    """(y, x) [n, 2] of the nuclei 1 ... n, in pixels; the first pixel has its centre at 0.5."""
    ys, xs = np.nonzero(labels)
    of = labels[ys, xs] - 1
    n = int(labels.max(initial=0))
    area = np.bincount(of, minlength=n)
    return np.stack([np.bincount(of, v + 0.5, minlength=n) / area for v in (ys, xs)], axis=1)


def nearest_distances(points: np.ndarray) -> np.ndarray:
    """Distance [n] of each of the points [n, 2] to the nearest other; none for fewer than 2."""
    if len(points) < 2:
        return np.zeros(0)
    return cKDTree(points).query(points, k=2)[0][:, 1]


def ripley_k(
    points: np.ndarray, shape: tuple[int, ...], radii: tuple[float, ...] | np.ndarray
) -> np.ndarray:
    """Ripley's K [radii] of points [n, 2] in a window of `shape` (h, w), in square pixels.

    Translation correction: a pair counts by window area over the area of the window's overlap with
    itself moved by the pair's difference, which is unbiased for stationary patterns (Ohser and
    Stoyan, 1981; Illian et al., "Statistical Analysis and Modelling of Spatial Point Patterns",
    eq. 4.3.32, with n (n - 1) / area^2 for the squared intensity). 0 for fewer than 2 points.
    """
    n, (h, w) = len(points), shape
    if n < 2:
        return np.zeros(len(radii))
    pairs = cKDTree(points).query_pairs(max(radii), output_type="ndarray")
    difference = np.abs(points[pairs[:, 0]] - points[pairs[:, 1]])
    weight = 1 / ((h - difference[:, 0]) * (w - difference[:, 1]))
    distance = np.hypot(difference[:, 0], difference[:, 1])
    area = h * w
    within = distance[:, None] <= np.asarray(radii)  # [pairs, radii]
    return 2 * area**2 / (n * (n - 1)) * (weight[:, None] * within).sum(0)


def delaunay_edges(points: np.ndarray) -> np.ndarray:
    """Edges of the Delaunay triangulation of points [n, 2], as rows of two indices [e, 2].

    Points on one line are joined one after the other.
    """
    if len(points) < 2:
        return np.zeros((0, 2), np.int64)
    try:
        triangles = Delaunay(points).simplices if len(points) > 2 else np.zeros((0, 3), int)
    except QhullError:
        triangles = np.zeros((0, 3), int)
    if not len(triangles):
        order = np.lexsort((points[:, 1], points[:, 0]))
        return np.stack([order[:-1], order[1:]], axis=1)
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.sort(edges, axis=1), axis=0)


def density_variance(points: np.ndarray, shape: tuple[int, ...], tiles: int) -> float:
    """Variance over mean of the number of points in `tiles` x `tiles` tiles; 1 when random."""
    if not len(points):
        return 1.0
    row, column = (points * tiles / np.array(shape)).astype(int).T
    counts = np.bincount(row * tiles + column, minlength=tiles * tiles)
    return float(counts.var(ddof=1) / counts.mean())


def render_mask(labels: np.ndarray) -> np.ndarray:
    """The instance mask as an image, float32 [h, w, 2]: what an encoder sees of the layout.

    Channel 0 is 1 in nuclei; channel 1 is the distance in pixels to the nearest pixel that is not
    of the same nucleus, so touching nuclei stay apart. Outside the image there are no nuclei.
    """
    image = np.zeros((*labels.shape, 2), np.float32)
    image[..., 0] = labels > 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            mask = labels[box] == label
            depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            image[..., 1][box] += (depth * mask).astype(np.float32)
    return image


def rendered_mask(labels: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """`render_mask` in one row, as `Segmenter.measure` wants it."""
    return render_mask(labels).ravel()

"""Nearest neighbours between rows of features, Euclidean, a block of queries at a time.

On rows of unit length the order is that of the cosine: ‖x − y‖² = 2 − 2 cos.
"""

from collections.abc import Iterator

import numpy as np

BLOCK_NUMBERS = 1 << 24  # squared distances held at once, 128 MiB
TIE = 1e-12  # squared distances this close are equal, in units of the largest squared norm


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, itself: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery rows of every query, nearest first.

    queries [m, d], gallery [n, d]; itself: int [m], the gallery row that is the query and does not
    count. Returns float64 distances [m, k] and gallery rows int64 [m, k].
    """
    rows = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k))
    step = BLOCK_NUMBERS // max(len(gallery), k * gallery.shape[1])
    for block, squared in squared_distances(queries, gallery, itself, step):
        found = np.argpartition(squared, k - 1, axis=1)[:, :k]  # [b, k]
        # ‖x‖² − 2 xy + ‖y‖² cannot tell two close rows from equal ones; their difference can.
        apart = queries[block, None].astype(np.float64) - gallery[found]  # [b, k, d]
        exact = np.sqrt(np.square(apart).sum(axis=2))
        order = np.lexsort((found, exact), axis=1)
        rows[block] = np.take_along_axis(found, order, axis=1)
        distances[block] = np.take_along_axis(exact, order, axis=1)
    return distances, rows


def neighbour_shares(points: np.ndarray, k: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of the k-nearest-neighbour graph of points [n, d]: rows, and float64 weights [b, n].

    Row i holds 1 for each of the k rows nearest to point i (never itself) and sums to k. Rows tied
    at the k-th distance share what is left, each its probability under a random order of rows: so
    nothing depends on the order that the rows happen to have.
    """
    tie = tie_of(points)
    step = BLOCK_NUMBERS // len(points)
    for block, squared in squared_distances(points, points, np.arange(len(points)), step):
        yield block, shares_of(squared, k, tie)


def shares_of(squared: np.ndarray, k: int, tie: float) -> np.ndarray:
    """Weights [b, n] of the k nearest by squared distances [b, n], as in `neighbour_shares`."""
    last = np.partition(squared, k - 1, axis=1)[:, k - 1 : k]  # [b, 1]
    nearer = squared < last - tie
    tied = (squared <= last + tie) & ~nearer
    left = k - nearer.sum(axis=1, keepdims=True)
    return nearer + tied * (left / tied.sum(axis=1, keepdims=True))


def tie_of(points: np.ndarray) -> float:
    """Squared distances between points [n, d] are equal up to this."""
    return float(TIE * np.square(points - points.mean(axis=0)).sum(axis=1).max())


# Columns from which on rows are compared by their angles alone. Five Gaussian classes gain 2.9
# points by a constant column in 2 columns, 0.4 in 8 and 0.1 in 15 (2,000 training rows, 12
# simulations).
NARROW = 16


def with_angles(features: np.ndarray) -> np.ndarray:
    """Features [n, d]; where d is below `NARROW` with a constant column.

    The angles of few columns leave out how long a row is, and those of one all but its sign. The
    column has the root mean square of the features: their unit does not matter, and equal rows
    stay the nearest.
    """
    if features.shape[1] >= NARROW:
        return features
    size = np.sqrt(np.square(features.astype(np.float64)).mean()).astype(features.dtype)
    return np.pad(features, ((0, 0), (0, 1)), constant_values=size)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows [n, d] divided by their length, float64; a row of zeros stays."""
    x = features.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0.0)


def squared_distances(
    queries: np.ndarray, gallery: np.ndarray, itself: np.ndarray | None, step: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of `step` rows and their squared distances [b, n]; infinite to the query itself."""
    centre = gallery.mean(axis=0, dtype=np.float64)  # a large common mean would cost digits
    gallery = gallery - centre
    norms = np.square(gallery).sum(axis=1)  # [n]
    step = max(step, 1)
    for start in range(0, len(queries), step):
        block = slice(start, min(start + step, len(queries)))
        x = queries[block] - centre
        squared = np.square(x).sum(axis=1)[:, None] - 2.0 * (x @ gallery.T) + norms[None, :]
        if itself is not None:
            squared[np.arange(len(x)), itself[block]] = np.inf
        yield block, squared

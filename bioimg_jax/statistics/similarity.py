"""How alike two representations of the same rows are: CKA, neighbours, distances, rotation.

Read beside the same numbers for the encoder's untrained twin: two networks of one architecture are
alike before either has learned anything. A rotation or a common scale of either side changes none
of them, a shift mutual kNN alone, which looks at cosines. The widths of x and y may differ.
"""

import dataclasses
import math

import numpy as np
from scipy.stats import rankdata

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.neighbours import TIE, neighbour_shares, unit_rows

NEIGHBOURS = 10
BLOCK_ROWS = 4_096


def similarity(
    x: np.ndarray, y: np.ndarray, *, n: int = 2_000, k: int = NEIGHBOURS, seed: int = 0
) -> dict[str, float | None]:
    """Every measure of this file between x [rows, dx] and y [rows, dy] of the same examples.

    CKA and Procrustes are streamed over all rows. Mutual kNN and RSA, whose cost grows with the
    square of the rows, take n rows drawn by (rows, n, seed): the same for all representations of a
    data set. There is no projection to an equal d: unbiased CKA, mutual kNN and RSA have the same
    chance level at any width. Biased CKA and Procrustes have not: compare them at equal rows and
    widths only.

    Returns:
      {"rows", "n", "k", "cka", "cka_unbiased", "procrustes", "mutual_knn", "mutual_knn_chance",
      "rsa"}; None where a number does not exist (all rows of one side equal).

    Raises:
      InputError: x and y have different numbers of rows, fewer rows than n, no more than k of them
        drawn, or a value that is not finite.
    """
    if len(x) != len(y):
        raise InputError(f"similarity: {len(x)} rows on one side, {len(y)} on the other")
    if not max(k, 3) < n <= len(x):
        raise InputError(f"similarity: n = {n} rows asked for {k} neighbours, there are {len(x)}")
    for name, side in (("x", x), ("y", y)):
        finite = np.isfinite(side).all(axis=1)
        if not finite.all():
            raise InputError(f"similarity: row {np.argmin(finite)} of {name} is not finite")
    rows = np.sort(np.random.default_rng(seed).choice(len(x), n, replace=False))
    found = {
        "rows": float(len(x)),
        "n": float(n),
        "k": float(k),
        "cka": cka(x, y),
        "cka_unbiased": cka(x, y, unbiased=True),
        "procrustes": procrustes(x, y),
        "mutual_knn": mutual_knn(x[rows], y[rows], k=k),
        "mutual_knn_chance": k / (n - 1),
        "rsa": rsa(x[rows], y[rows]),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def cka(x: np.ndarray, y: np.ndarray, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment: HSIC(x, y) / √(HSIC(x, x) HSIC(y, y)); centred.

    Biased: ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms (Kornblith et al., ICML 2019, section 3); it
    tends to 1 as the widths pass n, whatever the features. Unbiased: HSIC_1 of Song et al., JMLR 13
    (2012), 0 on average for independent features: so it can be negative. nan where all rows
    of a side are equal.

    Neither needs the n x n kernels. HSIC_1 takes K̃ = XXᵀ without its diagonal k, and does not
    change when X is centred. Then the rows of XXᵀ sum to zero, so K̃1 = -k, and
        tr(K̃L̃) = ‖XᵀY‖² - Σkl,    1ᵀK̃1 · 1ᵀL̃1 = Σk Σl,    1ᵀK̃L̃1 = Σkl.
    """
    products = _Products.of(x, y)
    hsic = _unbiased_hsic if unbiased else _biased_hsic
    x_norms, y_norms = products.x_norms, products.y_norms
    both = hsic(products.xx, x_norms, x_norms) * hsic(products.yy, y_norms, y_norms)
    return hsic(products.xy, x_norms, y_norms) / math.sqrt(both) if both > 0.0 else math.nan


def procrustes(x: np.ndarray, y: np.ndarray) -> float:
    """min over orthogonal Q of ‖A - BQ‖², A and B centred and of unit Frobenius norm; 0 to 2.

    ‖A‖² + ‖B‖² - 2 ‖AᵀB‖_* (Ding et al., NeurIPS 2021), with the nuclear norm; the
    narrower side counts as padded with zeros. nan where all rows of a side are equal.
    """
    products = _Products.of(x, y)
    size = math.sqrt(products.x_norms.sum() * products.y_norms.sum())
    if size == 0.0:
        return math.nan
    nuclear = float(np.linalg.svd(products.xy, compute_uv=False).sum()) / size
    return max(2.0 - 2.0 * nuclear, 0.0)


def mutual_knn(x: np.ndarray, y: np.ndarray, *, k: int = NEIGHBOURS) -> float:
    """Mean share of a row's k nearest neighbours by cosine that x and y have in common.

    Huh et al., ICML 2024, appendix A. Not centred; never the row itself. k/(n-1) for independent
    features. Ties count as the expectation over their orders.
    """
    shared = 0.0
    pairs = zip(neighbour_shares(unit_rows(x), k), neighbour_shares(unit_rows(y), k), strict=True)
    for (_, a), (_, b) in pairs:
        shared += float(np.sum(a * b))
    return shared / (k * len(x))


def rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman correlation of the two sets of Euclidean distances between rows, n(n-1)/2 of each.

    Kriegeskorte et al., Frontiers in Systems Neuroscience 2:4 (2008), with the Euclidean distance
    because one minus the correlation over features changes under a rotation. Distances that differ
    by rounding are tied. nan where all distances of a side are equal.
    """
    a, b = (rankdata(_ordered_distances(side)) for side in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0.0 else math.nan


def _ordered_distances(x: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs [n(n-1)/2] in steps of rounding: their ranks are wanted."""
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    norms = np.square(x).sum(axis=1)
    squared = norms[:, None] + norms[None, :] - 2.0 * (x @ x.T)
    step = TIE * max(float(norms.max()), np.finfo(np.float64).tiny)
    return np.round(squared[np.triu_indices(len(x), 1)] / step)


@dataclasses.dataclass(frozen=True)
class _Products:
    """Sums over centred rows, float64: what the formulas need of n rows."""

    xx: np.ndarray  # [dx, dx]
    yy: np.ndarray  # [dy, dy]
    xy: np.ndarray  # [dx, dy]
    x_norms: np.ndarray  # squared length of each row [n]
    y_norms: np.ndarray  # [n]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> "_Products":
        x_mean, y_mean = _mean(x), _mean(y)
        xx, yy = np.zeros((x.shape[1],) * 2), np.zeros((y.shape[1],) * 2)
        xy = np.zeros((x.shape[1], y.shape[1]))
        norms = np.empty((2, len(x)))
        for start in range(0, len(x), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            a = x[block].astype(np.float64) - x[0] - x_mean
            b = y[block].astype(np.float64) - y[0] - y_mean
            xx += a.T @ a
            yy += b.T @ b
            xy += a.T @ b
            norms[0, block] = np.square(a).sum(axis=1)
            norms[1, block] = np.square(b).sum(axis=1)
        return cls(xx, yy, xy, norms[0], norms[1])


def _mean(x: np.ndarray) -> np.ndarray:
    """Mean of the rows less the first one [d]: exactly zero for a column without variance."""
    total = np.zeros(x.shape[1])
    for start in range(0, len(x), BLOCK_ROWS):
        total += (x[start : start + BLOCK_ROWS].astype(np.float64) - x[0]).sum(axis=0)
    return total / len(x)


def _biased_hsic(product: np.ndarray, x_norms: np.ndarray, y_norms: np.ndarray) -> float:
    return float(np.square(product).sum()) / (len(x_norms) - 1) ** 2


def _unbiased_hsic(product: np.ndarray, x_norms: np.ndarray, y_norms: np.ndarray) -> float:
    """HSIC_1 from XᵀY of centred rows and their squared lengths [n]."""
    n = len(x_norms)
    cross = float(x_norms @ y_norms)
    trace = float(np.square(product).sum()) - cross
    sums = float(x_norms.sum() * y_norms.sum()) / ((n - 1) * (n - 2)) - 2.0 * cross / (n - 2)
    return (trace + sums) / (n * (n - 3))

"""The shape of a representation's cloud of features: its spectrum, spread, dimension and hubs.

None of these numbers is a score. Each depends on the number of rows and of features, and most on
the mean, so a table is read beside the encoder's own untrained twin, at equal n (and equal d), and
every function says whether it centres. Features are taken as they are: where columns have units of
their own (pixel statistics), standardise them first.
"""

import math

import numpy as np
import pandas as pd
from scipy import linalg, stats

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.neighbours import nearest, neighbour_shares, unit_rows

UNIFORMITY_T = 2.0
HUB_NEIGHBOURS = 10
SPECTRUM_FIT = (3, 100)  # first and last eigenvalue of the power law, counted from 1
MIN_FITTED = 5  # eigenvalues or points below which no slope is fitted
TWO_NN_DISCARDED = 0.1  # share of the points with the largest ratio, which noise dominates
LIDAR_RIDGE = 1e-4
PAIR_BLOCK = 1024

# Streams of random numbers drawn from the seed: one number a purpose.
_ROWS, _GROUPS, _PROJECTION = 0, 1, 2


def geometry(
    features: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    n: int = 2_000,
    d: int | None = None,
    seed: int = 0,
) -> dict[str, float | None]:
    """Every statistic of this file on n rows drawn from features [rows, width].

    The rows drawn depend on (number of rows, groups, n, seed) and never on the features, so all
    representations of one data set are measured on the same examples.

    Args:
      features: [rows, width], any float type.
      groups: the object or treatment of each row [rows], for LiDAR and alignment; a missing value
        is a row without group. These two are measured on another draw, because n rows drawn one by
        one rarely meet: as many rows of every group as keep the total within n, at least two.
      n: rows drawn, without replacement. Give the size of the smallest table to be compared.
      d: features after a random orthogonal projection, drawn uniformly. PCA is not used: it keeps
        each representation's best d directions, which favours the wider one. None: no projection.
      seed: of the draw and the projection.

    Returns:
      {"n", "d", "rankme" (centred), "rankme_uncentred", "participation_ratio", "alpha_req",
      "two_nn", "uniformity", "mean_pairwise_cosine", "hubness", "n_groups", "n_grouped", "lidar",
      "alignment"}; None where a number does not exist: no groups, all rows equal, too few rows.

    Raises:
      InputError: fewer rows than n or fewer features than d, groups of another length, or a value
        that is not finite.
    """
    features = _checked(features, groups, n, d)
    rows = np.random.default_rng([_ROWS, seed]).choice(len(features), n, replace=False)
    basis = None
    if d is not None and d < features.shape[1]:
        noise = np.random.default_rng([_PROJECTION, seed]).normal(size=(features.shape[1], d))
        basis = np.linalg.qr(noise).Q  # [width, d]

    def drawn(rows: np.ndarray) -> np.ndarray:
        x = features[np.sort(rows)].astype(np.float64)
        return x if basis is None else x @ basis

    x = drawn(rows)
    found = {
        "n": float(len(x)),
        "d": float(x.shape[1]),
        "rankme": rankme(x),
        "rankme_uncentred": rankme(x, centre=False),
        "participation_ratio": participation_ratio(x),
        "alpha_req": alpha_req(x),
        "two_nn": two_nn(x),
        "uniformity": uniformity(x),
        "mean_pairwise_cosine": mean_pairwise_cosine(x),
        "hubness": hubness(x),
        "n_groups": math.nan,
        "n_grouped": math.nan,
        "lidar": math.nan,
        "alignment": math.nan,
    }
    if groups is not None:
        codes = pd.factorize(np.asarray(groups))[0]
        chosen = np.sort(_grouped_rows(codes, n, np.random.default_rng([_GROUPS, seed])))
        y, members = drawn(chosen), codes[chosen]
        found["n_groups"] = float(len(np.unique(members)))
        found["n_grouped"] = float(len(y))
        found["lidar"] = lidar(y, members)
        found["alignment"] = alignment(y, members)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def rankme(features: np.ndarray, *, centre: bool = True) -> float:
    """Effective rank: exp of the entropy of the singular values divided by their sum.

    Garrido et al., ICML 2023, equation 1, without its ε of 1e-7 (0 log 0 = 0 here). The paper does
    not centre; a mean that all rows share is one more direction and, where it is large, hides the
    others. 0 for a matrix of zeros, that is, centred, for rows that are all equal.
    """
    return _effective_rank(np.sqrt(_spectrum(features, centre=centre)))


def participation_ratio(features: np.ndarray) -> float:
    """(Σλ)² / Σλ² over the eigenvalues of the covariance; centred. 0 for rows all equal.

    Gao et al., bioRxiv 214262 (2017). n rows of an isotropic d-dimensional cloud give
    d / (1 + d/n), not d.
    """
    eigenvalues = _spectrum(features)
    total = float(np.square(eigenvalues).sum())
    return float(eigenvalues.sum()) ** 2 / total if total > 0.0 else 0.0


def alpha_req(features: np.ndarray, *, fit: tuple[int, int] = SPECTRUM_FIT) -> float:
    """Exponent α of λ_i ∝ i^-α, the decay of the covariance spectrum; centred.

    Agrawal et al., NeurIPS 2022. Least squares of log λ on log i with weights 1/i, so
    that every octave of the spectrum counts alike, over eigenvalues `fit[0]` to `fit[1]`; the end
    is brought forward to half of the non-zero ones, because a sample bends the spectrum down there.
    nan where fewer than `MIN_FITTED` remain.
    """
    eigenvalues = _spectrum(features)
    end = min(fit[1], int(np.count_nonzero(eigenvalues)) // 2)
    index = np.arange(fit[0], end + 1)
    if len(index) < MIN_FITTED:
        return math.nan
    x, y = np.log(index), np.log(eigenvalues[index - 1])
    x, y = x - np.average(x, weights=1 / index), y - np.average(y, weights=1 / index)
    return -float(np.sum(x * y / index) / np.sum(x * x / index))


def lidar(features: np.ndarray, groups: np.ndarray) -> float:
    """Effective rank of the linear discriminants that tell objects apart; at most objects − 1.

    Thilak et al., ICLR 2024: exp of the entropy of the eigenvalues of
    Σ_w^-1/2 Σ_b Σ_w^-1/2. An object (groups [n]) is an image in several views, or a treatment in
    replicates; every object weighs the same in Σ_b. Objects that differ by noise alone score high:
    noise has every direction. Two deviations: the ridge on Σ_w is 1e-4 of its mean variance, where
    the paper adds 1e-4 whatever the scale of the features, and the ε is left out as in `rankme`.
    nan with fewer than two objects of two rows, or where the rows within objects span less than d:
    the ridge alone would decide.
    """
    means, residuals = _within_groups(features, groups)
    d = features.shape[1]
    freedom = len(residuals) - len(means)
    if len(means) < 2 or freedom < d:
        return math.nan
    between = means - means.mean(axis=0)
    within = residuals.T @ residuals / freedom
    scale = float(np.trace(within)) / d
    if scale == 0.0:
        return math.nan
    ridged = within + LIDAR_RIDGE * scale * np.eye(d)
    eigenvalues = linalg.eigvalsh(between.T @ between / len(means), ridged)
    return _effective_rank(_without_rounding(eigenvalues, d))


def two_nn(features: np.ndarray) -> float:
    """Intrinsic dimension from the ratio μ of the distances to the two nearest neighbours.

    Facco et al., Scientific Reports 7:12140 (2017): the slope through the origin of -log(1 - F(μ))
    against log μ, without the tenth of the points whose μ is largest. Rows that are equal are one
    point. nan for fewer than `MIN_FITTED` points, and where all ratios are 1 (a lattice).
    """
    points = np.unique(features, axis=0)
    kept = int(len(points) * (1.0 - TWO_NN_DISCARDED))
    if kept < MIN_FITTED:
        return math.nan
    distances, _ = nearest(points, points, 2, itself=np.arange(len(points)))
    x = np.log(np.sort(distances[:, 1] / distances[:, 0]))[:kept]
    y = -np.log1p(-np.arange(1, kept + 1) / len(points))
    square = float(x @ x)
    # Ratios that rounding alone lifts above 1 have no slope.
    return float(x @ y) / square if square > kept * 1e-20 else math.nan


def uniformity(features: np.ndarray, *, t: float = UNIFORMITY_T) -> float:
    """log of the mean of exp(-t ‖x - y‖²) over pairs of rows of unit length; not centred.

    Wang & Isola, ICML 2020, section 4.1.2. 0 when all rows point the same way; lower is more
    spread. A row of zeros stays at the origin. nan for fewer than two rows.
    """
    x = unit_rows(features)
    norms = np.square(x).sum(axis=1)
    total, pairs = 0.0, math.comb(len(x), 2)
    for start in range(0, len(x), PAIR_BLOCK):
        block = x[start : start + PAIR_BLOCK]
        rest = slice(start, None)  # pairs within the block come twice, those with later rows once
        squared = (
            norms[start : start + len(block), None] + norms[None, rest] - 2 * block @ x[rest].T
        )
        close = np.exp(-t * np.maximum(squared, 0.0))
        inside = close[:, : len(block)]
        total += close[:, len(block) :].sum() + (inside.sum() - np.trace(inside)) / 2
    return math.log(total / pairs) if pairs else math.nan


def alignment(features: np.ndarray, groups: np.ndarray) -> float:
    """Mean of ‖x - y‖² over pairs of one group, rows of unit length, then over groups; not centred.

    Wang & Isola, ICML 2020, section 4.1.1, with exponent 2. Groups of any size weigh the same, so
    that a large one (the controls) does not decide. nan where no group has two rows.
    """
    codes = _codes_of_repeated(groups)
    means, residuals = _within_groups(unit_rows(features), groups)
    if not len(means):
        return math.nan
    codes = codes[codes >= 0]
    spread = np.bincount(codes, np.square(residuals).sum(axis=1))
    # Over all pairs of m rows the mean squared distance is 2/(m − 1) of the squares about the mean.
    return float(np.mean(2.0 * spread / (np.bincount(codes) - 1)))


def mean_pairwise_cosine(features: np.ndarray) -> float:
    """Mean cosine over all pairs of rows; not centred. A row of zeros has cosine 0 with all."""
    x = unit_rows(features)
    n = len(x)
    if n < 2:
        return math.nan
    return float((np.square(x.sum(axis=0)).sum() - np.square(x).sum()) / (n * (n - 1)))


def hubness(features: np.ndarray, *, k: int = HUB_NEIGHBOURS) -> float:
    """Skewness of how often a row is among the k nearest of the others, by cosine; not centred.

    Radovanović et al., JMLR 11 (2010), there for any distance; cosine here because
    retrieval uses it. 0 where every row is chosen equally often; equal rows share the choice. nan
    for k rows or fewer.
    """
    if len(features) <= k:
        return math.nan
    chosen = sum(shares.sum(axis=0) for _, shares in neighbour_shares(unit_rows(features), k))
    return 0.0 if np.ptp(chosen) < 1e-9 * k else float(stats.skew(chosen))


def _checked(features: np.ndarray, groups: np.ndarray | None, n: int, d: int | None) -> np.ndarray:
    rows, width = np.shape(features)
    if not 2 <= n <= rows:
        raise InputError(f"geometry: n = {n} rows asked for, the features have {rows}")
    if d is not None and not 1 <= d <= width:
        raise InputError(f"geometry: d = {d} asked for, the features have {width}")
    if groups is not None and len(groups) != rows:
        raise InputError(f"geometry: {len(groups)} groups for {rows} rows of features")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(f"geometry: row {np.argmin(finite)} of the features is not finite")
    return np.asarray(features)


def _grouped_rows(codes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n rows of groups with two or more: equally many of each, as far as it has them."""
    order = rng.permutation(len(codes))
    codes = codes[order]
    sizes = np.bincount(codes[codes >= 0], minlength=1)
    repeated = rng.permutation(np.flatnonzero(sizes >= 2))[: n // 2]
    each = n // max(len(repeated), 1)
    return np.concatenate(
        [np.zeros(0, np.int64), *(order[np.flatnonzero(codes == g)[:each]] for g in repeated)]
    )


def _codes_of_repeated(groups: np.ndarray) -> np.ndarray:
    """int [n]: 0 ... g-1 for the groups that have at least two rows, −1 for every other row."""
    codes = pd.factorize(np.asarray(groups))[0]
    alone = np.bincount(codes[codes >= 0], minlength=1)[codes] < 2
    return pd.factorize(np.where(alone | (codes < 0), np.nan, codes))[0]


def _within_groups(features: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [g, d] of the groups with at least two rows, and their rows less their means [m, d]."""
    codes = _codes_of_repeated(groups)
    x, codes = features[codes >= 0].astype(np.float64), codes[codes >= 0]
    means = np.zeros((codes.max(initial=-1) + 1, features.shape[1]))
    np.add.at(means, codes, x)
    means /= np.bincount(codes, minlength=len(means))[:, None]
    return means, x - means[codes]


def _spectrum(features: np.ndarray, *, centre: bool = True) -> np.ndarray:
    """Eigenvalues [min(n, d)] of the second-moment matrix, descending; exact zeros for no variance.

    About the mean, this is the covariance.
    """
    x = features.astype(np.float64)
    if centre:
        x = x - x[0]  # so that a column without variance is exactly zero
        x = x - x.mean(axis=0)
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    return _without_rounding(np.linalg.eigvalsh(gram / len(x))[::-1], max(x.shape))


def _without_rounding(eigenvalues: np.ndarray, size: int) -> np.ndarray:
    """Eigenvalues that are rounding of the largest set to zero, as a matrix rank counts them."""
    floor = size * np.finfo(np.float64).eps * max(float(eigenvalues.max()), 0.0)
    return np.where(eigenvalues > floor, eigenvalues, 0.0)


def _effective_rank(weights: np.ndarray) -> float:
    """exp of the entropy of non-negative weights divided by their sum; 0 when all are zero."""
    positive = weights[weights > 0.0]
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return math.exp(-float(np.sum(shares * np.log(shares))))

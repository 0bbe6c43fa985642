"""Confidence intervals of a mean over units of independence, and of a ratio of two."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from bioimg_jax.data.splits import Fold

MIN_UNITS = 4  # below it there is no interval: verdicts say "cannot tell"
CLEAR = 3.0  # standard errors that a denominator must be above zero


def t_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, train_overlap: float = 0.0
) -> tuple[float, float] | None:
    """Student's t interval of the mean of per-unit values, with len(values) - 1 degrees of freedom.

    Args:
      values: one number a unit [g].
      confidence: two-sided.
      train_overlap: J · n_test / n_train for J cross-validation folds whose training sets overlap,
        else 0. The squared standard error is (s²/g)(1 + train_overlap): Nadeau & Bengio, Machine
        Learning 52 (2003), equation 9.

    Returns:
      (low, high), or None for fewer than `MIN_UNITS` units.

    Raises:
      ValueError: a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"per-unit value {np.argmin(np.isfinite(values))} is not finite")
    g = len(values)
    if g < MIN_UNITS:
        return None
    error = math.sqrt(values.var(ddof=1) / g * (1.0 + train_overlap))
    half = float(stats.t.ppf(0.5 + confidence / 2, g - 1)) * error
    return float(values.mean()) - half, float(values.mean()) + half


def ratio_interval(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    train_overlap: float = 0.0,
    numerator_error: float | None = None,
    df: float | None = None,
) -> tuple[float, tuple[float, float]] | None:
    """Fieller's interval of a ratio of two means over the same units.

    The values ρ that the t test of "mean(numerator - ρ denominator) is 0" does not refuse (Fieller,
    Journal of the Royal Statistical Society B 16, 1954). Exact for normal units; not symmetric.

    Args:
      numerator, denominator: one number a unit [g].
      confidence: two-sided.
      train_overlap: as for `t_interval`, on both variances and the covariance.
      numerator_error: the standard error of the numerator's mean where more than the units adds to
        it (training seeds, say); with `df`, its degrees of freedom in place of g - 1.

    Returns:
      (ratio of the means, (low, high)). None for fewer than `MIN_UNITS` units, and where the
      denominator's mean is not above `CLEAR` of its standard errors, or not above t of them: then
      the interval has no end.
    """
    pairs = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)])
    g = pairs.shape[1]
    if g < MIN_UNITS:
        return None
    (top, common), (_, bottom) = np.cov(pairs) / g * (1.0 + train_overlap)
    if numerator_error is not None:
        top = numerator_error**2
    over, under = pairs.mean(axis=1)
    t = float(stats.t.ppf(0.5 + confidence / 2, g - 1 if df is None else df))
    if under <= max(CLEAR, t) * math.sqrt(bottom):
        return None
    # (over - ρ under)² = t² (top - 2 ρ common + ρ² bottom), a quadratic in ρ.
    a, b, c = under**2 - t**2 * bottom, over * under - t**2 * common, over**2 - t**2 * top
    half = math.sqrt(max(b**2 - a * c, 0.0))
    return float(over / under), (float((b - half) / a), float((b + half) / a))


def train_overlap(folds: Sequence[Fold]) -> float:
    """J · n_test / n_train of J folds whose training sets overlap; 0 where none do."""
    pairs = itertools.combinations((fold.train for fold in folds), 2)
    if not any(len(np.intersect1d(a, b)) for a, b in pairs):
        return 0.0
    return sum(len(fold.test) / len(fold.train) for fold in folds)

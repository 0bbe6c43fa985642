"""Confidence intervals of a mean over units of independence."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

MIN_UNITS = 4  # below it there is no interval: verdicts say "cannot tell"


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


def train_overlap(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> float:
    """J · n_test / n_train of J folds whose training sets overlap; 0 where none do.

    train, test: the example indices of each fold.
    """
    if not any(len(np.intersect1d(a, b)) for a, b in itertools.combinations(train, 2)):
        return 0.0
    return sum(len(b) / len(a) for a, b in zip(train, test, strict=True))

"""What every probe asks of its rows, each mistake in one line."""

import numpy as np

from bioimg_jax.errors import InputError


def check_labels(labels: np.ndarray, n_classes: int) -> None:
    """Labels int [n] are in 0 ... n_classes - 1, and each class has a row. Raises `InputError`."""
    strange = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(strange):
        row = strange[0]
        raise InputError(
            f"label {labels[row]} of training row {row}: expected 0 ... {n_classes - 1}"
        )
    missing = np.setdiff1d(np.arange(n_classes), labels)
    if len(missing):
        raise InputError(f"class {missing[0]} has no training example")


def check_finite(values: np.ndarray, row: str, *, column: str = "feature") -> None:
    """Every value [n, d] is a finite number; else an `InputError` that names row and column."""
    if not np.isfinite(values).all():
        at = np.argwhere(~np.isfinite(values))[0]
        raise InputError(f"{column} {at[1]} of {row} {at[0]} is not finite")

"""Mean profiles: rows of features that share a name, as one float64 row each."""

import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite

ROWS = 4096  # rows converted to float64 at a time


def checked_names(
    names: np.ndarray | pd.Series, what: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Names [n] as text without blanks around, object; `InputError` names a row without one.

    rows: int [m], the only ones that are read, of which the result is.
    """
    rows = np.arange(len(names)) if rows is None else rows
    raw = np.asarray(names, object)[rows]
    text = np.array([str(name).strip() for name in raw], object)
    if (blank := np.flatnonzero(pd.isna(raw) | (text == ""))).size:
        raise InputError(f"row {rows[blank[0]]} has no {what}; expected a name")
    return text


def check_rows(features: np.ndarray, **columns: np.ndarray | pd.Series) -> None:
    """`InputError` for features that are not finite [n, d], or a column of another length."""
    if features.ndim != 2 or not features.size:
        raise InputError(f"features {features.shape}, expected [n, d] with at least one row")
    for name, column in columns.items():
        if len(column) != len(features):
            raise InputError(f"{len(column)} values of {name} for {len(features)} rows of features")
    check_finite(features, "row")


def canonical_order(features: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
    """The order int [n] by group and then by the rows' own bytes, whatever that of the table is.

    features [n, d]; codes: int [n], None for one group.
    """
    rows = np.ascontiguousarray(features)
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    by_bytes = np.argsort(keys, kind="stable")
    return by_bytes if codes is None else by_bytes[np.argsort(codes[by_bytes], kind="stable")]


def mean_profiles(features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Means float64 [g, d] of the rows [n, d] of each group 0 ... g - 1; codes: int [n]."""
    order = canonical_order(features, codes)
    sums = np.zeros((int(codes.max()) + 1, features.shape[1]))
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        groups, starts = np.unique(codes[rows], return_index=True)
        sums[groups] += np.add.reduceat(features[rows].astype(np.float64), starts, axis=0)
    return np.asarray(sums / np.bincount(codes)[:, None])

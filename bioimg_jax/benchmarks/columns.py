"""Metadata columns as the screening functions take them, each mistake in one line."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError

Column: TypeAlias = Sequence[Any] | np.ndarray | pd.Series


def names(values: Column, n: int, what: str, *, rows: np.ndarray | None = None) -> np.ndarray:
    """Text [n] of a column that has a value in every row; `InputError` else.

    rows: bool [n], those that are looked at, by default all; the text of the others is "".
    """
    column = _of_length(values, n, what)
    looked_at = np.ones(n, bool) if rows is None else rows
    missing = np.flatnonzero(pd.isna(column) & looked_at)
    if len(missing):
        raise InputError(f"row {missing[0]} has no {what}")
    return np.where(looked_at, column, "").astype(str)


def flags(values: Column, n: int, what: str) -> np.ndarray:
    """bool [n] of a column of true and false; `InputError` for anything else in it."""
    column = _of_length(values, n, what)
    for row, value in enumerate(column):
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{what} of row {row} is {value!r}, expected true or false")
    return column.astype(bool)


def numbers(values: Column, n: int, what: str) -> np.ndarray:
    """float64 [n] of a column of finite numbers; `InputError` else."""
    column = _of_length(values, n, what)
    try:
        found = column.astype(np.float64)
    except (TypeError, ValueError):
        found = pd.to_numeric(pd.Series(column), errors="coerce").to_numpy(np.float64)
    strange = np.flatnonzero(~np.isfinite(found))
    if len(strange):
        row = strange[0]
        raise InputError(f"{what} of row {row} is {column[row]!r}, expected a finite number")
    return found


def feature_rows(values: np.ndarray) -> np.ndarray:
    """float64 [n, d] of features; `InputError` for another shape or one that is not finite."""
    features = np.asarray(values)
    if features.ndim != 2 or not features.size:
        raise InputError(f"features of shape {features.shape}, expected [wells, features]")
    if features.dtype.kind not in "fiu":
        raise InputError(f"features of type {features.dtype}, expected numbers")
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise InputError(f"feature {column} of row {row} is not finite")
    return features


def _of_length(values: Column, n: int, what: str) -> np.ndarray:
    column = np.asarray(values, object)
    if column.shape != (n,):
        raise InputError(f"{what}: a column of shape {column.shape} for {n} rows")
    return column

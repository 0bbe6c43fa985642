"""A metadata column as levels: what the audits and the metadata features read it as."""

import numpy as np
import pandas as pd

QUANTILE_BINS = 20  # levels of a numeric column with many values


def is_numeric(column: pd.Series) -> bool:
    """Floats of many values, which are cut at quantiles; whole numbers are names here."""
    return pd.api.types.is_float_dtype(column) and column.nunique() > 2 * QUANTILE_BINS


def column_levels(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Codes int [n] of a column's values and the name of each level; a missing value is a level.

    The codes do not depend on the order of the rows.
    """
    numeric = is_numeric(column)
    if numeric:
        column = pd.qcut(column, QUANTILE_BINS, labels=False, duplicates="drop")
    codes, values = pd.factorize(column, sort=True, use_na_sentinel=False)
    names = [
        "missing" if pd.isna(value) else f"bin{int(value)}" if numeric else str(value)
        for value in values
    ]
    return codes, names

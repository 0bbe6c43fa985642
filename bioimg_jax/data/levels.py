"""A metadata column as levels: what the audits and the metadata features read it as."""

import numpy as np
import pandas as pd

QUANTILE_BINS = 20  # levels of a numeric column with many values
MANY_LEVELS = 48  # what has no more values than the largest plate has columns is a name


def is_numeric(column: pd.Series) -> bool:
    """Numbers of many values, which are cut at quantiles; those of a few (plates, sites) are names.

    Whole or not: an order of acquisition is no name, for no value of it comes again in another
    unit.
    """
    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return numbers and column.nunique() > MANY_LEVELS


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


def readings(column: pd.Series) -> dict[str, np.ndarray]:
    """Codes int [n] of everything that a column may be, under what it is called then.

    The levels of `column_levels`, and of whole numbers that are cut at quantiles each value by
    itself too: the number of a well is a name, whose neighbours mean nothing.
    """
    found = {str(column.name): column_levels(column)[0]}
    if is_numeric(column) and (column.dropna() % 1 == 0).all():
        values = pd.factorize(column, sort=True, use_na_sentinel=False)[0]
        found[f"{column.name} (each value)"] = values
    return found

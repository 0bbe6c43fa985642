"""Identifiability: how far each target and each nuisance column are the same partition of the rows.

Beside the metadata audit, which asks what a column predicts in a split: here the whole table, no
split, one number for each pair.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.data.declaration import Target
from bioimg_jax.data.levels import column_levels
from bioimg_jax.data.splits import target_rows, unit_names
from bioimg_jax.errors import InputError


def identifiability(
    metadata: pd.DataFrame, targets: Sequence[Target], nuisance: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Association of every target with its own audit columns and with the nuisance columns.

    Rows that agree in unit, label and all of those columns are counted once: the cells of one well
    say the same about it, however many there are. Numeric columns are cut at quantiles, as in the
    audit.

    Args:
      metadata: [n], a row an example; each target uses the rows it is about.
      nuisance: columns for every target, those of the data set's declaration.

    Returns:
      [{"target", "column", "cramers_v": bias-corrected, 0 to 1, "n": distinct rows}] in the order
      of the targets and their columns; "cramers_v" is None where the target or the column is
      constant, or where every row has a value of its own. The target's own column is left out.

    Raises:
      InputError: a column that the metadata does not have.
    """
    rows = []
    for target in targets:
        columns = [c for c in dict.fromkeys((*target.audit, *nuisance)) if c != target.column]
        for column in columns:
            if column not in metadata.columns:
                raise InputError(
                    f"audit column {column!r} of target {target.name!r} does not exist; the "
                    f"metadata columns are: {', '.join(metadata.columns)}"
                )
        part = metadata.iloc[target_rows(metadata, target)]
        labels = pd.factorize(part[target.column].astype(str), sort=True)[0]
        units = pd.factorize(unit_names(part, target.unit), sort=True)[0]
        levels = [column_levels(part[column])[0] for column in columns]
        distinct = np.unique(np.stack([labels, units, *levels], axis=1), axis=0)
        for i, column in enumerate(columns):
            value = cramers_v(distinct[:, 0], distinct[:, 2 + i])
            rows.append(
                {
                    "target": target.name,
                    "column": column,
                    "cramers_v": value if math.isfinite(value) else None,
                    "n": len(distinct),
                }
            )
    return rows


def cramers_v(a: np.ndarray, b: np.ndarray) -> float:
    """Cramér's V of two label columns [n], corrected for its bias; 0 to 1.

    Bergsma, "A bias-correction for Cramér's V and Tschuprow's T", Journal of the Korean Statistical
    Society 42 (2013), 323-328: for r and c values
        φ² = χ²/n - (r-1)(c-1)/(n-1), at least 0,    r̃ = r - (r-1)²/(n-1),    c̃ likewise,
        V = √(φ² / (min(r̃, c̃) - 1)).
    Uncorrected, independent columns of many values look associated. nan where a column is constant
    or has n different values.
    """
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    n, r, c = len(a), int(a.max(initial=0)) + 1, int(b.max(initial=0)) + 1
    if min(r, c) < 2 or max(r, c) >= n:
        return math.nan
    cells, counts = np.unique(a * c + b, return_counts=True)
    expected = np.bincount(a)[cells // c] * np.bincount(b)[cells % c] / n
    phi2 = float(np.sum(counts**2 / expected)) / n - 1.0  # empty cells add nothing to this form
    phi2 = max(phi2 - (r - 1) * (c - 1) / (n - 1), 0.0)
    smaller = min(k - 1 - (k - 1) ** 2 / (n - 1) for k in (r, c))
    return min(math.sqrt(phi2 / smaller), 1.0)

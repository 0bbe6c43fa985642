"""How mixed the batches lie in a feature table: iLISI, kBET and silhouettes by `scib-metrics`, PCR.

Beside the scores of biology and never alone: noise has a perfect iLISI. `batch_mixing` needs the
extra `batch`, `explained_variance` does not.
"""

import dataclasses
import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.statistics.comparisons import drawn_rows
from bioimg_jax.statistics.neighbours import nearest

ROWS = 5_000
NEIGHBOURS = 90  # with the row itself, as in the benchmark of Luecken et al. (2022)


def batch_mixing(
    features: np.ndarray,
    batch: np.ndarray | pd.Series,
    ids: Sequence[Any] | np.ndarray,
    *,
    labels: np.ndarray | pd.Series | None = None,
    n: int = ROWS,
    k: int = NEIGHBOURS,
) -> list[dict[str, Any]]:
    """Measures of how well the batches mix, on at most n rows drawn by their ids.

    * "ilisi": median over rows of the effective number of batches among the neighbours, scaled to
      0 (none but its own) ... 1 (all alike); Korsunsky et al., Nature Methods 16 (2019).
    * "kbet": share of the rows whose neighbours have the batches' overall frequencies by a χ² test
      at 0.05; Büttner et al., Nature Methods 16 (2019). 0.95 is perfect mixing.
    * "silhouette_batch": 1 - |silhouette of the batches|, mean over `labels` where they are given;
      Luecken et al., Nature Methods 19 (2022).
    * "silhouette_label": the silhouette of the labels, (1 + s) / 2; where `labels` are given.
    * "pcr": `explained_variance` of the batch. Higher is *less* mixed.

    Neighbours are exact and Euclidean.

    Args:
      features: [rows, d]; batch: [rows]; ids: what names each example [rows].
      labels: the biology of each row [rows], for the silhouettes.
      k: neighbours of a row, itself included; fewer where there are fewer rows.

    Returns:
      [{"metric", "value": None where it does not exist, "higher_is_better": None, "n", "k",
      "n_batches"}].

    Raises:
      InputError: scib-metrics is not installed, arrays of other lengths, fewer than two batches, a
        batch that is missing, or features that are not finite.
    """
    sides = {"batch": batch, "ids": ids} | ({} if labels is None else {"labels": labels})
    for name, side in sides.items():
        if len(side) != len(features):
            raise InputError(
                f"batch mixing: {len(side)} {name} for {len(features)} rows of features"
            )
    missing = np.flatnonzero(pd.isna(np.asarray(batch, object)))
    if len(missing):
        raise InputError(f"batch mixing: row {missing[0]} has no batch")
    rows = drawn_rows(ids, n)
    x = np.asarray(features)[rows].astype(np.float32)
    if not np.isfinite(x).all():
        bad = rows[np.argmin(np.isfinite(x).all(axis=1))]
        raise InputError(f"batch mixing: row {bad} of the features is not finite")
    codes, names = pd.factorize(np.asarray(batch, object)[rows].astype(str), sort=True)
    if len(names) < 2:
        raise InputError(
            f"batch mixing: {len(names)} batch in {len(rows)} rows, expected 2 or more"
        )
    groups = np.zeros(len(rows), int)
    if labels is not None:
        groups = pd.factorize(np.asarray(labels, object)[rows].astype(str), sort=True)[0]

    scib = _library()
    k = min(k, len(rows))
    distances, found = nearest(x, x, k - 1, itself=np.arange(len(x)))
    itself = np.arange(len(x))[:, None]
    neighbours = scib.nearest_neighbors.NeighborsResults(
        indices=np.concatenate([itself, found], axis=1).astype(np.int32),
        distances=np.concatenate([np.zeros_like(itself), distances], axis=1).astype(np.float32),
    )
    with jax.numpy_rank_promotion("allow"):  # the library is not as strict as we are
        values = {
            "ilisi": scib.ilisi_knn(neighbours, codes),
            "kbet": scib.kbet(neighbours, codes)[0],
            "silhouette_batch": _silhouette(scib, x, groups, codes),
        }
        if labels is not None:
            exists = 1 < len(np.unique(groups)) < len(groups)
            values["silhouette_label"] = scib.silhouette_label(x, groups) if exists else math.nan
    values["pcr"] = explained_variance(x, pd.Series(codes, dtype=object)).share
    return [
        {
            "metric": metric,
            "value": float(value) if np.isfinite(value) else None,
            "higher_is_better": None,
            "n": len(rows),
            "k": k,
            "n_batches": len(names),
        }
        for metric, value in values.items()
    ]


@dataclasses.dataclass(frozen=True)
class ExplainedVariance:
    """share of the variance of n rows that a column explains; `higher_is_better` neither way.

    chance: its exact expectation under permutations of the column. Rows without a value are left
    out: n_missing. levels: of a category, None of a number.
    """

    share: float
    chance: float
    n: int
    n_missing: int
    levels: int | None
    higher_is_better: None = None


def explained_variance(features: np.ndarray, column: pd.Series) -> ExplainedVariance:
    """Principal component regression: Σ variance · R² over the components / Σ variance.

    Of Büttner et al., Nature Methods 16 (2019), with all components, where no decomposition is
    needed: the share is the sum of squares between levels, or along the regression line of a
    number, over the total, and rotating the features changes neither. Under permutations of the
    column either has q / (n - 1) of the total on average, with q = levels - 1 or 1.

    Args:
      features: [n, d]; column: [n], a number where its dtype is one, else a category.

    Raises:
      InputError: lengths that differ, a value that is not finite, fewer than two levels or as many
        as rows, features that are all equal.
    """
    name = f"explained variance of {column.name!r}"
    if len(features) != len(column):
        raise InputError(f"{name}: {len(column)} values for {len(features)} rows of features")
    known = np.flatnonzero(column.notna().to_numpy())
    check_finite(np.asarray(features), "row")
    x, values = np.asarray(features)[known].astype(np.float64), column.iloc[known]
    levels = values.nunique()
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if levels < 2 or (levels >= len(known) and not number) or len(known) < 3:
        raise InputError(f"{name}: {levels} values in {len(known)} rows, expected 2 or more, fewer")
    x -= x.mean(axis=0)
    total = float(np.square(x).sum())
    if not total:
        raise InputError(f"{name}: all rows of the features are equal")
    if number:
        z = values.to_numpy(np.float64)
        check_finite(z[:, None], "row", column="value")
        z = z - z.mean()
        explained = float(np.square(z @ x).sum() / np.square(z).sum())
    else:
        codes = pd.factorize(values.astype(str), sort=True)[0]
        levels = int(codes.max()) + 1
        sums = np.zeros((levels, x.shape[1]))
        np.add.at(sums, codes, x)
        explained = float((np.square(sums).sum(axis=1) / np.bincount(codes)).sum())
    return ExplainedVariance(
        share=explained / total,
        chance=(1 if number else levels - 1) / (len(known) - 1),
        n=len(known),
        n_missing=len(column) - len(known),
        levels=None if number else levels,
    )


def _silhouette(scib: Any, x: np.ndarray, groups: np.ndarray, codes: np.ndarray) -> float:
    """nan where no group holds two batches, one of them twice: the library has nothing to join."""
    held = pd.DataFrame({"group": groups, "batch": codes}).groupby("group")["batch"]
    if not ((held.nunique() > 1) & (held.nunique() < held.size())).any():
        return float("nan")
    return float(scib.silhouette_batch(x, groups, codes))


def _library() -> Any:
    """scib-metrics, whose own imports warn of what they would like to have too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import scib_metrics
    except ImportError as error:
        raise InputError(
            f"batch mixing needs scib-metrics ({error}): pip install 'bioimg_jax[batch]'"
        ) from error
    scib_metrics.settings.verbosity = logging.WARNING
    return scib_metrics

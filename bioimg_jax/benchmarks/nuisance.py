"""What features know of plate, batch and well, in rows beside the scores of biology: never ranked.

An alignment that removes the batch should leave less of it here, and as much of biology above.
"""

from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.batch import HELD_OUT, NUMBERS, nuisance_scores
from bioimg_jax.benchmarks.protocols import BATCH, CLASS, COMPOUND, PLATE
from bioimg_jax.data.splits import has_value
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import AlignedTable, controls_of
from bioimg_jax.statistics.batch_mixing import batch_mixing, explained_variance
from bioimg_jax.statistics.robustness import NEIGHBOURS, robustness_index

SHARE = 20  # of the wells one is a neighbour, where these are few


def nuisance_rows(
    table: AlignedTable, numbers: dict[str, np.ndarray], ids: list[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of "column", "metric", "value", "chance", "lower", "upper", "n"; and what is not there.

    * Probes of each nuisance column, with groups held out (`benchmarks/batch.py`).
    * "explained variance" of each of them (`statistics/batch_mixing.py`); more is less mixed.
    * "ilisi", "kbet" and silhouettes of the batches, where scib-metrics is installed.
    * "robustness index" of mechanisms across batches, of treated wells.

    Args:
      numbers: columns that are regressed on, such as the count of cells [n].
      ids: what names each row [n].

    Returns:
      The rows, and measure -> why it is none of these data.
    """
    obs = table.obs.assign(**numbers)
    scores, absent = nuisance_scores(
        table.features, obs, held_out={**HELD_OUT, **dict.fromkeys(numbers, (PLATE,))},
        numbers=(*NUMBERS, *numbers),
    )  # fmt: skip
    rows = [
        _row(s.column, f"probe, {s.metric}", s.value, s.chance, s.interval, s.n) for s in scores
    ]
    missing = {f"probe of {column}": why for column, why in absent.items()}
    for column in dict.fromkeys((PLATE, BATCH, *NUMBERS, *numbers)):
        if column not in obs:
            continue
        try:
            share = explained_variance(table.features, obs[column])
        except InputError as error:
            missing[f"explained variance of {column}"] = str(error)
            continue
        rows.append(_row(column, "explained variance", share.share, share.chance, None, share.n))
    group = BATCH if BATCH in obs else PLATE
    if group not in obs:
        return rows, missing | {"batches": f"the metadata have no column {BATCH} or {PLATE}"}
    try:
        mixed = batch_mixing(table.features, obs[group], ids)
        rows += [
            _row(group, one["metric"], one["value"], None, None, one["n"])
            for one in mixed
            if one["metric"] != "pcr"  # the explained variance, above
        ]
    except InputError as error:
        missing["mixing of batches"] = str(error)
    try:
        rows.append(_robustness(table, obs, group))
    except InputError as error:
        missing["robustness index"] = str(error)
    return rows, missing


def _robustness(table: AlignedTable, obs: pd.DataFrame, group: str) -> dict[str, Any]:
    if CLASS not in obs:
        raise InputError(f"the metadata have no column {CLASS}")
    wells = np.flatnonzero(has_value(obs[CLASS]) & ~controls_of(obs))
    mine = obs.iloc[wells]
    units = mine.get(COMPOUND)
    k = max(1, min(NEIGHBOURS, len(wells) // SHARE))
    found = robustness_index(table.features[wells], mine[CLASS], mine[group], k=k, units=units)
    return _row(
        f"{CLASS} over {group}", f"robustness index of {k} neighbours", found.value, found.chance,
        found.interval, found.n,
    )  # fmt: skip


def _row(
    column: str,
    metric: str,
    value: float | None,
    chance: float | None,
    interval: tuple[float, float] | None,
    n: int,
) -> dict[str, Any]:
    lower, upper = interval or (None, None)
    return {"column": column, "metric": metric, "value": value, "chance": chance,
            "lower": lower, "upper": upper, "n": n}  # fmt: skip

"""Rows of a table rolled up, level by level: cells to sites, sites to wells, wells to a consensus.

A level is the columns whose joint value is one row of it. Every level averages the rows of the one
before, so that a site with many cells weighs as much in its well as one with few; a single level
weighs cells alike.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bioimg_jax.data.splits import has_value, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aggregate import N_AGGREGATED
from bioimg_jax.features.aligned import WELL
from bioimg_jax.features.table import FeatureTable, MemoryTable

MEAN, MEDIAN = AVERAGES = ("mean", "median")


def rolled_up(
    table: FeatureTable,
    levels: Sequence[Sequence[str]],
    average: str,
    *,
    equal: int = 0,
    seed: int = 0,
) -> FeatureTable:
    """The default layer averaged over each level in turn; the table itself without levels.

    Columns that are the same in all rows of a group stay, others leave. `N_AGGREGATED` counts the
    rows of the table behind each row. Groups are sorted by name, and no order of rows matters.

    Args:
      levels: the columns of each, [["plate", "well", "site"], ["plate", "well"]]; each level's
        columns are among those of the one before, or the same in all its rows.
      average: "mean" or "median".
      equal: rows that are drawn first of each well, by the last level with that column (without
        one, of each group of the last level), without replacement and seeded by its name, so that
        all average as many; groups with fewer leave, and the provenance counts them ("too_few").
        0: all rows.

    Raises:
      InputError: another average; a column that is not there, has a missing value, or is not the
        same in a group of the level before; no group with `equal` rows.
    """
    if not levels:
        return table
    if average not in AVERAGES:
        raise InputError(f"average {average!r}, expected {' or '.join(AVERAGES)}")
    if equal < 0:
        raise InputError(f"equal rows of a group: {equal}, expected 0 for all, or more")
    obs, features = table.obs.reset_index(drop=True), table.layer(table.default).astype(np.float64)
    counts = np.ones(len(obs), int)
    too_few = 0
    if equal:
        wells = [level for level in levels if WELL in level]
        kept, too_few = _equal(obs, (wells or levels)[-1], equal, seed)
        obs, features, counts = obs.iloc[kept].reset_index(drop=True), features[kept], counts[kept]
    for level in levels:
        obs, features, counts = _level(obs, features, counts, list(level), average)
    provenance = {
        **table.provenance,
        "levels": [list(level) for level in levels],
        "average": average,
        "equal": equal,
        "too_few": too_few,
    }
    return MemoryTable(
        path=table.path,
        obs=obs.assign(**{N_AGGREGATED: counts}),
        widths={table.default: features.shape[1]},
        default=table.default,
        provenance=provenance,
        features=features,
    )


def _groups(obs: pd.DataFrame, level: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names of the groups, sorted [g], and the group of each row int [n]."""
    for column in level:
        if column not in obs:
            raise InputError(
                f"a level of {'/'.join(level)}: column {column!r} does not exist, or is not the "
                f"same in every group of the level before; there are {', '.join(obs.columns)}"
            )
        missing = ~has_value(obs[column])
        if missing.any():
            raise InputError(
                f"a level of {'/'.join(level)}: row {int(np.argmax(missing))} has no {column!r}"
            )
    names, group = np.unique(unit_names(obs, level).astype(str), return_inverse=True)
    return names, group


def _equal(
    obs: pd.DataFrame, level: Sequence[str], equal: int, seed: int
) -> tuple[np.ndarray, int]:
    """Rows that stay, int ascending, and how many groups had too few."""
    names, group = _groups(obs, level)
    kept, too_few = [], 0
    for g, name in enumerate(names.tolist()):
        rows = np.flatnonzero(group == g)
        if len(rows) < equal:
            too_few += 1
            continue
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        kept.append(rows[rng.permutation(len(rows))[:equal]])
    if not kept:
        raise InputError(f"no {'/'.join(level)} has {equal} rows, expected at least one")
    return np.sort(np.concatenate(kept)), too_few


def _level(
    obs: pd.DataFrame, features: np.ndarray, counts: np.ndarray, level: list[str], average: str
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    names, group = _groups(obs, level)
    order = np.argsort(group, kind="stable")
    first = np.unique(group, return_index=True)[1]
    rows_of = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    # Sorted values: no order of the rows is left in a sum.
    rolled = np.stack([
        (np.mean if average == MEAN else np.median)(np.sort(features[rows], axis=0), axis=0)
        for rows in rows_of
    ])  # fmt: skip
    text = obs.astype(str).to_numpy(object)
    kept = obs.columns[(text == text[first][group]).all(axis=0)]
    total = np.bincount(group, counts, len(names)).astype(int)
    return obs[kept].iloc[first].reset_index(drop=True), rolled, total

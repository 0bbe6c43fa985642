"""Profiles: rows of a table that belong together, like the cells of a well, as one mean row.

A target that declares `aggregate` is probed on profiles: for its benchmarks, its metadata audit and
its plan one example is one joint value of those columns. Tables on disk stay as they are, a row an
image; a profile is made when a layer is asked for.
"""

import dataclasses
from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from bioimg_jax.data.declaration import Target
from bioimg_jax.data.levels import is_numeric
from bioimg_jax.data.splits import PARTS, Fold, has_value, rows_of, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable

N_AGGREGATED = "n_aggregated"  # metadata column of a profile: how many rows are behind it
SPREAD = "spread"  # layer [g, 1]: log of the mean square of a profile
LEAST_SQUARE = 1e-30  # of a profile that is nothing but zeros


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What a target's probe takes for one example: an image, or a group of images.

    obs: metadata [g]; of a group that of its first row, with `N_AGGREGATED`.
    folds: the target's, of positions in obs.
    group_of: int [n], row of the table -> position in obs; −1 for a row that no fold uses.
    """

    obs: pd.DataFrame
    folds: list[Fold]
    group_of: np.ndarray


def examples_of(obs: pd.DataFrame, folds: Sequence[Fold], target: Target) -> Examples:
    """The examples of a target, groups in the order of their first rows.

    Args:
      obs: metadata [n], which the folds count.

    Raises:
      InputError: a column of `target.aggregate` that is not there or has a missing value; a group
        with several labels or units, or in several parts of a fold.
    """
    columns = target.aggregate
    if not columns:
        return Examples(obs, list(folds), np.arange(len(obs)))
    parts = [[getattr(fold, part) for part in PARTS] for fold in folds]
    used = rows_of(folds)
    for column in columns:
        what = f"target {target.name!r} aggregates over column {column!r}"
        if column not in obs.columns:
            raise InputError(
                f"{what}, which does not exist; the metadata columns are: {', '.join(obs.columns)}"
            )
        missing = obs[column].iloc[used].isna().to_numpy()
        if missing.any():
            raise InputError(f"{what}, which has no value in row {used[missing][0]}")
    mine = obs.iloc[used]
    numbers = mine.groupby(list(columns), sort=False, observed=True).ngroup()
    group = pd.factorize(numbers)[0]  # in the order of first rows, whatever the columns' types
    first = np.unique(group, return_index=True)[1]

    def check(values: np.ndarray, what: str) -> None:
        odd = np.flatnonzero(values != values[first][group])
        if len(odd):
            row = odd[0]
            name = unit_names(mine.iloc[[row]], columns)[0]
            raise InputError(
                f"target {target.name!r} aggregates over {'/'.join(columns)}, but {name!r} has the "
                f"{what} {values[first][group[row]]!r} and {values[row]!r}; expected one"
            )

    check(mine[target.column].astype(str).to_numpy(object), f"{target.column} (the label)")
    check(unit_names(mine, target.unit), f"{'/'.join(target.unit)} (the unit)")
    group_of = np.full(len(obs), -1)
    group_of[used] = group
    regrouped = []
    for fold, of in zip(folds, parts, strict=True):
        place = np.full(len(obs), "none", object)
        for part, rows in zip(PARTS, of, strict=True):
            place[rows] = part
        check(place[used], f"part of {fold.name!r}")
        train, validation, test = (np.unique(group_of[rows]) for rows in of)
        ours = dataclasses.replace(fold, train=train, validation=validation, test=test)
        regrouped.append(ours)
    profiles = mine.iloc[first].reset_index(drop=True)
    return Examples(profiles.assign(**{N_AGGREGATED: np.bincount(group)}), regrouped, group_of)


@dataclasses.dataclass(frozen=True)
class ProfileTable(FeatureTable):
    """A table whose rows are means over rows of the file [g], added up when a layer is read.

    obs: as in `Examples`; spread_of: the layer that `SPREAD` is the spread of, "" for none.
    """

    group_of: np.ndarray
    spread_of: str = ""

    def layer(self, name: str) -> np.ndarray:
        """Mean features of each group, float32 [g, d]; the sums are float64."""
        self._check(name)
        if name == SPREAD and self.spread_of:
            square = np.square(self._means(self.spread_of)).mean(axis=1, keepdims=True)
            return np.log(np.maximum(square, LEAST_SQUARE)).astype(np.float32)
        return self._means(name).astype(np.float32)

    def to_anndata(self) -> anndata.AnnData:
        """The profiles in memory."""
        layers = {name: self.layer(name) for name in self.widths}
        whole = anndata.AnnData(layers.pop(self.default, None), self.obs.rename(index=str))
        whole.obsm.update({name.replace("/", "."): values for name, values in layers.items()})
        return whole

    def column_of(self, obs: pd.DataFrame, column: str) -> pd.Series:
        """A column of the file's rows as one of profiles [g]: the mean of numbers, or the one name.

        A profile that lacks a value in some row is one without it.

        Args:
          obs: metadata of the file's rows, [n].

        Raises:
          InputError: rows of a profile that have several names.
        """
        mine = self.group_of >= 0
        values, group = obs[column].reset_index(drop=True)[mine], self.group_of[mine]
        if is_numeric(values):
            return values.astype(np.float64).groupby(group).agg(lambda of: of.mean(skipna=False))
        names = values.astype(object).where(has_value(values), None)
        several = names.groupby(group).nunique(dropna=False) > 1
        if several.any():
            of = int(several.idxmax())
            example = names[group == of].drop_duplicates().tolist()
            raise InputError(
                f"{column}: the rows of profile {of} have {example[0]!r} and {example[1]!r}; "
                "expected one name a profile, or numbers"
            )
        return names.groupby(group).first()

    def _means(self, name: str) -> np.ndarray:
        """float64 [g, d]; of the file's rows one block is in memory at a time."""
        counts = np.bincount(self.group_of[self.group_of >= 0], minlength=len(self.obs))
        sums: np.ndarray | float = 0.0
        for start, block in self.blocks(name):
            group = self.group_of[start : start + len(block)]
            (rows,) = np.nonzero(group >= 0)
            ones = np.ones(len(rows)), (group[rows], rows)
            adder = sparse.csr_array(ones, shape=(len(self.obs), len(block)))
            sums = sums + adder @ block.astype(np.float64)
        return np.asarray(sums) / counts[:, None]


def aggregate(
    table: FeatureTable, folds: Sequence[Fold], target: Target, *, spread_of: str = ""
) -> tuple[FeatureTable, list[Fold]]:
    """The table and folds that a benchmark of the target takes; as they are without `aggregate`.

    Args:
      folds: of rows of the table.
      spread_of: a layer whose profiles get a layer `SPREAD` beside them: the number of rows behind
        a mean shows in its spread, which no linear probe sees in the means (`SPREAD_KINDS`).

    Raises:
      InputError: as `examples_of`.
    """
    if not target.aggregate:
        return table, list(folds)
    examples = examples_of(table.obs, folds, target)
    profiles = ProfileTable(
        path=table.path,
        obs=examples.obs,
        widths=table.widths | ({SPREAD: 1} if spread_of else {}),
        default=table.default,
        provenance={**table.provenance, "aggregate": list(target.aggregate)},
        group_of=examples.group_of,
        spread_of=spread_of,
    )
    return profiles, examples.folds

"""Metadata in the place of an image: what plate, well or scanner alone would score.

For the audit: the same probe and the same tables as for any representation, and never a rung of the
ladder. An encoder may well know these columns; the question is what is left to know.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bioimg_jax.data.declaration import Target
from bioimg_jax.data.levels import column_levels, is_numeric
from bioimg_jax.errors import InputError
from bioimg_jax.representations.representation import Batch


class MetadataRepresentation:
    """Columns of the metadata, one-hot, in one layer, "metadata"; `feature_names` says which.

    A numeric column is cut at quantiles as in the metadata audit, and its standardised value stands
    beside the bins. Levels are those of the table given here, so a table in another order or a
    single batch has the same features.

    Args:
      metadata: a row an example, row i that of example i: what a batch's "index" counts.
      columns: those to use; see `metadata_columns`.

    Raises:
      InputError: no column, or one that the metadata does not have.
    """

    name = "metadata"
    kind = "metadata"
    dtype = "float32"

    def __init__(self, metadata: pd.DataFrame, columns: Sequence[str]) -> None:
        if not columns:
            raise InputError("metadata features: no column given, expected at least one")
        for column in columns:
            if column not in metadata.columns:
                raise InputError(
                    f"metadata features: column {column!r} does not exist; the metadata columns "
                    f"are: {', '.join(metadata.columns)}"
                )
        self.feature_names: list[str] = []
        ones, values = [], []
        for column in columns:
            codes, names = column_levels(metadata[column])
            ones.append(codes + len(self.feature_names))
            self.feature_names += [f"{column}={name}" for name in names]
        for column in columns:
            if is_numeric(metadata[column]):
                number = metadata[column].to_numpy(np.float64, copy=True)
                number[~np.isfinite(number)] = np.nan
                scaled = (number - np.nanmean(number)) / np.nanstd(number)
                values.append(np.nan_to_num(scaled))  # a missing one is at the mean, and a level
                self.feature_names.append(column)
        # Codes, and ones where a batch is asked for: all rows at once would be n times the width.
        self._ones = np.stack(ones, axis=1)  # int [n, columns], places of the ones
        self._values = np.stack(values, axis=1) if values else np.zeros((len(metadata), 0))
        self.layers = {"metadata": len(self.feature_names)}

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        """[b, width] from "index" [b]; `InputError` for an example that the table does not have."""
        index = np.asarray(batch["index"])
        mask = np.asarray(batch.get("mask", np.ones(len(index), bool)), bool)
        outside = mask & ((index < 0) | (index >= len(self._ones)))
        if outside.any():
            raise InputError(
                f"metadata features: example {index[outside][0]} is outside the "
                f"{len(self._ones)} rows of the metadata"
            )
        features = np.zeros((len(index), len(self.feature_names)), np.float32)
        rows = np.flatnonzero(mask)
        features[rows[:, None], self._ones[index[rows]]] = 1.0
        features[rows, len(self.feature_names) - self._values.shape[1] :] = self._values[
            index[rows]
        ]
        return {"metadata": jnp.asarray(features)}


def metadata_columns(target: Target, nuisance: Sequence[str] = ()) -> list[str]:
    """The target's audit columns and the nuisance columns, never its own label."""
    columns = dict.fromkeys((*target.audit, *nuisance))
    return [column for column in columns if column != target.column]

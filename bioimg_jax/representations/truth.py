"""The factors that an image was drawn from, in its place: what can be known of a label at all.

For generated data, which know them. Its probe score is the ceiling of a benchmark: a label may be
noisy, and a probe may not suit it, so the ceiling is measured and not assumed to be 1. The truth is
never a floor and never judged.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.ladder import TRUTH
from bioimg_jax.errors import InputError
from bioimg_jax.representations.representation import Batch


class TruthRepresentation:
    """Columns of the metadata as they are, in one layer, "truth" [b, columns]; False is 0, True 1.

    Args:
      metadata: a row an example, row i that of example i: what a batch's "index" counts.
      columns: numbers or truth values, finite in float32 in every row (`Target.truth`).

    Raises:
      InputError: no column, one that the metadata does not have, or one that holds something else.
    """

    name = TRUTH
    kind = TRUTH
    dtype = "float32"

    def __init__(self, metadata: pd.DataFrame, columns: Sequence[str]) -> None:
        if not columns:
            raise InputError("truth features: no column given, expected at least one")
        self.feature_names = list(columns)
        self._values = np.stack([_numbers(metadata, column) for column in columns], axis=1)
        self.layers = {TRUTH: len(columns)}

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        """[b, columns] from "index" [b]; `InputError` for an example that the table does not have.

        Rows whose mask is False are zero.
        """
        index = np.asarray(batch["index"])
        mask = np.asarray(batch.get("mask", np.ones(len(index), bool)), bool)
        outside = mask & ((index < 0) | (index >= len(self._values)))
        if outside.any():
            raise InputError(
                f"truth features: example {index[outside][0]} is outside the "
                f"{len(self._values)} rows of the metadata"
            )
        features = np.zeros((len(index), self._values.shape[1]), np.float32)
        features[mask] = self._values[index[mask]]
        return {TRUTH: jnp.asarray(features)}


def _numbers(metadata: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float32 [n]; `InputError` that names the first row which is no finite number."""
    if column not in metadata.columns:
        raise InputError(
            f"truth features: column {column!r} does not exist; the metadata columns are: "
            f"{', '.join(metadata.columns)}"
        )
    values = metadata[column]
    if not pd.api.types.is_numeric_dtype(values):  # text, even of digits, is a name
        row = next((i for i, v in enumerate(values) if not isinstance(v, int | float)), 0)
        raise InputError(
            f"truth features: row {row} of column {column!r} holds {values.iloc[row]!r}, expected "
            "numbers, or True and False"
        )
    with np.errstate(over="ignore"):
        numbers = values.to_numpy(np.float64, na_value=np.nan).astype(np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(
            f"truth features: row {row} of column {column!r} holds {values.iloc[row]!r}, expected "
            "a number that is finite in float32"
        )
    return numbers

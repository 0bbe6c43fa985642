"""What a probe answered to its test rows, for a score to be counted again from."""

import dataclasses
import os
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """One entry for each class that a test row votes for, and more than one where it splits.

    rows: int [m], of the table that was scored; predictions: int [m], positions in `classes`;
    weights: float64 [m] > 0, which add up to 1 for every row; layers: what each fold was probed on.
    """

    rows: np.ndarray
    predictions: np.ndarray
    weights: np.ndarray
    classes: tuple[str, ...]
    layers: tuple[str, ...]

    @classmethod
    def of_votes(
        cls, rows: np.ndarray, votes: np.ndarray, classes: list[str], layers: list[str]
    ) -> "Answers":
        """Of votes [n, c] of the rows [n]."""
        row, predictions = votes.nonzero()
        weights = votes[row, predictions].astype(np.float64)
        return cls(rows[row], predictions, weights, tuple(classes), tuple(layers))

    def write(self, path: Path, key: str) -> None:
        """Whole or not at all."""
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez_compressed(
            unfinished, key=key, rows=self.rows, predictions=self.predictions, weights=self.weights,
            classes=np.array(self.classes), layers=np.array(self.layers),
        )  # fmt: skip
        os.replace(unfinished, path)

    @classmethod
    def read(cls, path: Path, key: str) -> "Answers | None":
        """Those that were written with this key; None where there are none, or damaged ones."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                if str(held["key"]) != key:
                    return None
                arrays = (held["rows"], held["predictions"], held["weights"])
                return cls(
                    *arrays, tuple(map(str, held["classes"])), tuple(map(str, held["layers"]))
                )
        except (OSError, EOFError, KeyError, ValueError, BadZipFile, zlib.error):
            return None

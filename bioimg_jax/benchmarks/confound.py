"""What scores are conditioned on, and the rows that a conditional score is told in."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.data.levels import is_numeric
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.conditional import Overlap

PERMUTATION, ADDED, RESIDUALISED = (
    "conditional permutation",
    "added value",
    "linear residualisation",
)
COLUMNS = ("value", "lower", "upper", "observed", "alone", "p", "n", "n_retained")


@dataclasses.dataclass(frozen=True, eq=False)
class Confound:
    """values: [n], of every row, numbers or names."""

    name: str
    values: pd.Series
    is_number: bool

    @classmethod
    def of_column(cls, obs: pd.DataFrame, column: str) -> "Confound":
        """A column of the metadata."""
        return cls(column, obs[column], is_numeric(obs[column]))

    @classmethod
    def of_number(cls, name: str, values: np.ndarray, obs: pd.DataFrame) -> "Confound":
        """A floor of one feature, [n] or [n, 1], which is a number however few its values are."""
        return cls(name, pd.Series(values.reshape(-1).astype(np.float64), obs.index), True)

    @property
    def columns(self) -> np.ndarray:
        """As numbers, float64 [n, p]: a number itself, or one-hot names."""
        if self.is_number:
            return self.values.to_numpy(np.float64)[:, None]
        return pd.get_dummies(self.values.astype(str)).to_numpy(np.float64)


def conditional_row(
    method: str, value: float, interval: tuple[float, float] | None, overlap: Overlap, **about: Any
) -> dict[str, Any]:
    """A row of "method" and `COLUMNS`; about: "observed", "alone" and "p"."""
    lower, upper = interval or (None, None)
    return {"method": method, "value": value, "lower": lower, "upper": upper, **about,
            "n": overlap.n, "n_retained": len(overlap.rows)}  # fmt: skip


def rows_by_method(methods: Mapping[str, Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """The row of each method with "refused": why it has no value, else ""."""
    found = []
    for name, method in methods.items():
        try:
            found.append(method() | {"refused": ""})
        except InputError as error:
            found.append(refused_row(name, error))
    return found


def refused_row(method: str | None, reason: object) -> dict[str, Any]:
    """A row without a value."""
    return {"method": method, **dict.fromkeys(COLUMNS), "refused": str(reason)}

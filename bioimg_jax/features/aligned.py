"""A table of profiles whose features are aligned, and the parts in which controls were held out."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError
from bioimg_jax.features.alignment import Alignment, cross_fit
from bioimg_jax.features.table import FeatureTable

CONTROL, WELL = "control", "well"  # columns of the metadata that are read here
PARTS = 2


class Part(NamedTuple):
    """Features [n, k], and which rows may be negatives, bool [n]: controls they do not know."""

    features: np.ndarray
    negatives: np.ndarray


@dataclasses.dataclass(frozen=True)
class AlignedTable(FeatureTable):
    """A table of one layer in memory, aligned on all of its controls.

    features: [n, k]; make_parts: see `parts`; facts: of the alignment, JSON-able.
    """

    features: np.ndarray
    make_parts: Callable[[], Iterator[Part]]
    facts: dict[str, Any]

    def layer(self, name: str) -> np.ndarray:
        """Aligned features, float32 [n, k]."""
        self._check(name)
        return self.features.astype(np.float32)

    def parts(self) -> Iterator[Part]:
        """Aligned anew without each part of the controls, which are its negatives.

        Controls that an alignment has seen are closer to each other than to any other well, and
        treatments without effect would be told from them (`features/alignment.py`).
        """
        return self.make_parts()

    def to_anndata(self) -> anndata.AnnData:
        """The table in memory."""
        return anndata.AnnData(self.layer(self.default), self.obs.rename(index=str))


def align(table: FeatureTable, alignment: Alignment, *, batch: str) -> AlignedTable:
    """The default layer of a table, aligned by its columns `batch` and `CONTROL`.

    Control wells are held out by their position, `WELL`. Without that column, or with all controls
    at one position, nothing can be: then the parts are one, whose negatives the alignment has seen,
    and `facts["controls_shared"]` says so.
    """
    features = table.layer(table.default)
    if not alignment.methods:
        return unaligned(table, features)
    if batch not in table.obs:
        raise InputError(
            f"alignment over column {batch!r}, which does not exist; the metadata columns are: "
            f"{', '.join(table.obs.columns)}"
        )
    batches, controls = table.obs[batch].to_numpy(object), controls_of(table.obs)
    fitted = alignment.fit(features, batches, controls)
    whole = unaligned(table, fitted.transform(features, batches))
    shared = WELL not in table.obs or table.obs[WELL][controls].nunique() < PARTS
    facts = fitted.describe() | {"controls_shared": shared}
    if shared:
        return dataclasses.replace(whole, facts=facts)
    positions = table.obs[WELL].astype(str).to_numpy(object)

    def held_out() -> Iterator[Part]:
        for part in cross_fit(alignment, features, batches, controls, positions, parts=PARTS):
            yield Part(part.aligned, part.negatives)

    return dataclasses.replace(whole, facts=facts, make_parts=held_out)


def unaligned(table: FeatureTable, features: np.ndarray) -> AlignedTable:
    """These features [n, k] in the table's default layer; all of its controls are negatives."""
    return AlignedTable(
        path=table.path,
        obs=table.obs,
        widths={table.default: features.shape[1]},
        default=table.default,
        provenance=table.provenance,
        features=features,
        make_parts=lambda: iter([Part(features, controls_of(table.obs))]),
        facts={"alignment": "none"},
    )


def controls_of(obs: pd.DataFrame) -> np.ndarray:
    """Which rows are controls, bool [n]."""
    if CONTROL not in obs:
        return np.zeros(len(obs), bool)
    return obs[CONTROL].to_numpy(bool)

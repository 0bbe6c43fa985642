"""A screen in memory whose truth is known, for the tests of what profiles are asked."""

from pathlib import Path

import numpy as np
import pandas as pd

from bioimg_jax.features.aligned import CONTROL, AlignedTable, unaligned
from bioimg_jax.features.table import FeatureTable

# Of `find_protocols`: nothing that a test did not ask for.
OPTIONS = {
    "average": "mean", "permutations": 0, "pair_lists": "", "activities": "", "retrieval": {},
}  # fmt: skip


def table(features: np.ndarray, obs: pd.DataFrame) -> AlignedTable:
    features = np.asarray(features, np.float32)
    held = FeatureTable(Path("none"), obs, {"features": features.shape[1]}, "features", {})
    return unaligned(held, features)


def wells(
    *, plates: int = 4, compounds: int = 24, classes: int = 4, controls: int = 12, doses: int = 1,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """A row a well: every compound at every dose once a plate, at random places; 12 columns."""
    rng = np.random.default_rng(seed)
    rows = []
    for plate in range(plates):
        treated = [(i, dose) for i in range(compounds) for dose in range(doses)]
        everything = [*treated, *[(-1, -1)] * controls]
        for place, at in enumerate(rng.permutation(len(everything))):
            number, dose = everything[at]
            control = number < 0
            rows.append({
                "plate": f"P{plate}", "batch": f"B{plate % 2}",
                "well": f"{chr(65 + place // 12)}{place % 12 + 1:02d}",
                "compound": "DMSO" if control else f"c{number:02d}",
                "dose": 0.0 if control else 10.0 ** (dose - 1),
                "moa": None if control else f"m{number % classes}",
                CONTROL: control,
            })  # fmt: skip
    return pd.DataFrame(rows)

"""A synthetic screen: plates of wells of cells, features that know the treatment and the plate."""

import itertools

import numpy as np
import pandas as pd

from bioimg_jax.data.declaration import Target
from bioimg_jax.features.table import read_table, write_table

COMPOUND = Target("compound", "treatment", ("plate",), "leave_one_out")
PLATE = Target(
    "plate", "plate", ("plate", "well"), "k_fold", n_folds=4, nuisance=True, metric="accuracy"
)


def metadata(*, plates=5, wells=6, cells=8, treatments=3):
    return pd.DataFrame(
        [
            {"plate": f"P{p}", "well": f"W{w}", "treatment": f"drug {w % treatments}"}
            for p, w, _ in itertools.product(range(plates), range(wells), range(cells))
        ]
    )


def features(obs, seed=0, signal=1.5):
    """Two layers: one that knows the treatment, one that is noise; and a plate effect in both."""
    rng = np.random.default_rng(seed)
    treatment = obs["treatment"].astype("category").cat.codes.to_numpy()
    plate = obs["plate"].astype("category").cat.codes.to_numpy()
    centres = rng.normal(size=(10, 6))
    shift = 0.5 * rng.normal(size=(10, 6))[plate]
    return {
        "block02/mean": signal * centres[treatment] + shift + rng.normal(size=(len(obs), 6)),
        "final/cls": shift + rng.normal(size=(len(obs), 4 + 2)),
    }


def table(path, obs, layers):
    widths = {name: values.shape[1] for name, values in layers.items()}
    batches = [(np.arange(len(obs)), layers)]
    write_table(path, obs, widths, next(iter(layers)), batches, {}, dtype="float32")
    return read_table(path)

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.representations.floors import Floors
from bioimg_jax.representations.representation import KINDS, stream_features
from bioimg_jax.representations.truth import TruthRepresentation


def metadata(n=50):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "density": rng.normal(size=n),
            "cells": rng.integers(9, size=n),
            "rising": np.arange(n) % 3 == 0,
            "plate": [f"P{i % 5}" for i in range(n)],
        }
    )


def batch(index):
    return {"index": np.asarray(index), "mask": np.asarray(index) >= 0}


def test_features_are_the_values_of_the_rows_that_a_batch_names():
    table = metadata()
    truth = TruthRepresentation(table, ["density", "cells", "rising"])
    assert (truth.name, truth.kind, truth.dtype) == ("truth", "truth", "float32")
    assert truth.kind in KINDS and truth.layers == {"truth": 3}
    batches = [batch([7, 0, 33]), batch([12, -1, -1])]
    rows = np.concatenate([f["truth"] for _, f in stream_features(truth, batches)])
    expected = table.iloc[[7, 0, 33, 12]][["density", "cells", "rising"]]
    np.testing.assert_array_equal(rows, expected.to_numpy(np.float32))
    assert set(rows[:, 2]) == {0.0, 1.0} and rows.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({}, [], "no column given"),
        ({}, ["cells", "depth"], "column 'depth' does not exist; the metadata columns are: densi"),
        ({}, ["plate"], "row 0 of column 'plate' holds 'P0', expected numbers"),
        ({"mixed": [1.0] * 20 + ["two"] * 30}, ["mixed"], "row 20 of column 'mixed' holds 'two'"),
        ({"gap": [0.5] * 7 + [np.nan] * 43}, ["gap"], "row 7 of column 'gap' holds .*nan"),
        ({"huge": [0.5] * 7 + [1e39] * 43}, ["huge"], "row 7 of column 'huge' .* finite in float3"),
    ],
)
def test_columns_that_are_no_numbers_are_named_with_their_row(changes, columns, message):
    with pytest.raises(InputError, match=message):
        TruthRepresentation(metadata().assign(**changes), columns)


def test_an_example_that_is_not_in_the_metadata_is_named():
    with pytest.raises(InputError, match="example 50 is outside the 50 rows"):
        TruthRepresentation(metadata(), ["cells"]).features(batch([3, 50]))


def test_it_is_no_floor_and_nobody_may_take_its_name(tmp_path):
    with pytest.raises(InputError, match="'truth_treatment', expected some of"):
        Floors(("DNA",), 8, ("truth_treatment",))
    path = tmp_path / "own.py"
    for name in ("truth", "truth_treatment"):
        path.write_text(
            f"class Own:\n    name, kind, layers = '{name}', 'truth', {{'x': 1}}\n\n\n"
            "def build(channels, width):\n    return Own()\n"
        )
        with pytest.raises(InputError, match="a name that is taken"):
            Floors(("DNA",), 8, [], [path])

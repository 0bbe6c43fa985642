import numpy as np
import pandas as pd
import pytest

from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.probes.linear import fit_linear
from bioimg_jax.representations.floors import Floors
from bioimg_jax.representations.metadata import MetadataRepresentation, metadata_columns
from bioimg_jax.representations.representation import KINDS, stream_features
from bioimg_jax.statistics.audit import audit


def metadata(n=300, seed=0):
    rng = np.random.default_rng(seed)
    column = rng.integers(12, size=n)
    return pd.DataFrame(
        {
            "plate": [f"P{i % 5}" for i in range(n)],
            "column": column,
            "acquired": np.where(np.arange(n) % 50 == 0, np.nan, rng.normal(size=n)),
            "treatment": [f"drug {c % 3}" for c in column],
        }
    )


def batch(index):
    return {"index": np.asarray(index), "mask": np.asarray(index) >= 0}


def test_features_are_the_levels_of_the_rows_that_a_batch_names():
    table = metadata()
    audited = MetadataRepresentation(table, ["plate", "acquired"])
    assert audited.kind in KINDS and audited.layers == {"metadata": len(audited.feature_names)}
    rows = [7, 50, 0, -1]
    features = np.asarray(audited.features(batch(rows))["metadata"])
    assert features.dtype == np.float32
    names = np.array(audited.feature_names)
    for row, values in zip(rows[:3], features[:3], strict=True):
        on = set(names[:-1][values[:-1] == 1.0])
        assert f"plate={table['plate'][row]}" in on and len(on) == 2
        missing = np.isnan(table["acquired"][row])
        assert ("acquired=missing" in on) == missing and (values[-1] == 0.0) == missing
    assert not features[3].any()
    number = table["acquired"].to_numpy()
    expected = (number[7] - np.nanmean(number)) / np.nanstd(number)
    assert features[0, -1] == pytest.approx(expected, rel=1e-5)


def test_features_do_not_depend_on_batches_or_on_the_order_of_the_table():
    table = metadata()
    order = np.random.default_rng(1).permutation(len(table))
    columns = ["plate", "column", "acquired"]
    one = MetadataRepresentation(table, columns)
    other = MetadataRepresentation(table.iloc[order].reset_index(drop=True), columns)
    assert one.feature_names == other.feature_names
    batches = [batch(np.arange(200)), batch(np.r_[np.arange(200, 300), np.full(100, -1)])]
    streamed = np.concatenate([f["metadata"] for _, f in stream_features(one, batches)])
    turned = np.asarray(other.features(batch(np.arange(300)))["metadata"])
    np.testing.assert_allclose(turned, streamed[order], atol=1e-6)


def test_a_targets_own_column_is_never_among_its_inputs():
    target = Target("compound", "treatment", ("plate",), "leave_one_out", audit=("treatment",))
    assert metadata_columns(target, ("plate", "treatment")) == ["plate"]
    with pytest.raises(InputError, match="no column given"):
        MetadataRepresentation(metadata(), metadata_columns(target))


def test_the_linear_probe_finds_in_it_what_the_audit_finds():
    table = metadata()
    target = Target("compound", "treatment", ("plate",), "leave_one_out", audit=("column",))
    fold = make_folds(table, target)[0]
    audited = MetadataRepresentation(table, metadata_columns(target))
    features = np.asarray(audited.features(batch(np.arange(len(table))))["metadata"])
    labels = pd.factorize(table["treatment"], sort=True)[0]
    probe = fit_linear(features[fold.train], labels[fold.train], 3, strengths=(1e-3,))
    right = probe.logits(features[fold.test], 0).argmax(axis=1) == labels[fold.test]
    assert audit(table, make_folds(table, target), target)["score"] == right.mean() == 1.0


def test_it_is_no_rung_of_the_ladder():
    with pytest.raises(InputError, match="'metadata', expected some of"):
        Floors(("DNA",), 8, ("metadata",))


def test_bad_input_is_named():
    with pytest.raises(InputError, match="column 'laser' does not exist"):
        MetadataRepresentation(metadata(), ["plate", "laser"])
    with pytest.raises(InputError, match="example 300 is outside the 300 rows"):
        MetadataRepresentation(metadata(), ["plate"]).features(batch([3, 300]))

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.features.table import read_table, write_table

LAYERS = {"block03/mean_std": 6, "final/cls": 3, "final/mean": 4}


def metadata(n):
    return pd.DataFrame(
        {
            "plate": [f"P{i % 2}" for i in range(n)],
            "well": pd.Series(["A01", None] * (n // 2), dtype=object),
            "treatment": pd.Categorical(["drug"] * n),
            "site": np.arange(n),
            "x": np.linspace(0, 1, n),
            "is_control": np.arange(n) % 2 == 0,
        }
    )


def features(n):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(n, width)).astype(np.float32) for name, width in LAYERS.items()}


def batches(values, positions):
    for rows in positions:
        rows = np.asarray(rows)
        yield rows, {name: layer[rows] for name, layer in values.items()}


def write(path, n=10, positions=None, **changes):
    values = features(n)
    positions = [range(4), range(4, 8), range(8, 10)] if positions is None else positions
    arguments = {
        "obs": metadata(n),
        "layers": LAYERS,
        "default": "final/mean",
        "batches": batches(values, positions),
        "provenance": {"data": {"content_hash": "abc"}, "step": 7},
        **changes,
    }
    write_table(path, **arguments)
    return values


def test_round_trip(tmp_path):
    values = write(tmp_path / "t.h5ad")
    table = read_table(tmp_path / "t.h5ad")
    assert table.widths == LAYERS and table.default == "final/mean"
    assert table.provenance == {"data": {"content_hash": "abc"}, "step": 7}
    for name, expected in values.items():
        read = table.layer(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected.astype(np.float16).astype(np.float32))
    obs = table.obs
    assert list(obs.columns) == list(metadata(10).columns)
    assert obs["plate"].astype(str).tolist() == metadata(10)["plate"].tolist()
    assert obs["well"].isna().sum() == 5
    np.testing.assert_array_equal(obs["site"], np.arange(10))
    np.testing.assert_array_equal(obs["is_control"], metadata(10)["is_control"])


def test_anndata_reads_it_as_any_other_file(tmp_path):
    values = write(tmp_path / "t.h5ad")
    table = anndata.read_h5ad(tmp_path / "t.h5ad")
    assert table.shape == (10, 4) and table.X.dtype == np.float16
    assert set(table.obsm) == {"block03.mean_std", "final.cls"}
    np.testing.assert_allclose(table.X, values["final/mean"], rtol=1e-3)
    np.testing.assert_allclose(table.obsm["final.cls"], values["final/cls"], rtol=1e-3)
    table[::2].copy().write_h5ad(tmp_path / "half.h5ad")
    assert read_table(tmp_path / "t.h5ad").to_anndata().shape == (10, 4)


def test_rows_may_come_in_any_order(tmp_path):
    values = write(tmp_path / "t.h5ad", positions=[[9, 3, 4, 0], [1, 2], [8, 5, 6, 7]])
    for name, expected in values.items():
        read = read_table(tmp_path / "t.h5ad").layer(name)
        np.testing.assert_array_equal(read, expected.astype(np.float16))


def test_float32_keeps_every_bit(tmp_path):
    values = write(tmp_path / "t.h5ad", dtype="float32")
    read = read_table(tmp_path / "t.h5ad").layer("final/mean")
    np.testing.assert_array_equal(read, values["final/mean"])


def test_a_layer_that_float16_would_blur_is_kept_in_float32(tmp_path):
    values = features(10)
    values["final/cls"] = 1 + 1e-4 * values["final/cls"]  # a tenth of a step of float16
    write(tmp_path / "t.h5ad", batches=batches(values, [range(5), range(5, 10)]))
    table = read_table(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(table.layer("final/cls"), values["final/cls"])
    kept = table.to_anndata()
    assert kept.obsm["final.cls"].dtype == np.float32
    assert kept.obsm["block03.mean_std"].dtype == np.float16


def test_a_constant_feature_needs_no_float32(tmp_path):
    values = features(10)
    values["final/cls"][:, 1] = 0.1  # not a number of float16
    write(tmp_path / "t.h5ad", batches=batches(values, [range(10)]))
    assert read_table(tmp_path / "t.h5ad").to_anndata().obsm["final.cls"].dtype == np.float16


def test_unfinished_table_leaves_nothing_behind(tmp_path):
    def broken():
        yield from batches(features(10), [range(4)])
        raise RuntimeError("the machine went away")

    with pytest.raises(RuntimeError):
        write(tmp_path / "t.h5ad", batches=broken())
    assert list(tmp_path.iterdir()) == []


def test_finished_table_survives_a_failed_rewrite(tmp_path):
    values = write(tmp_path / "t.h5ad")
    with pytest.raises(ValueError, match="row 4 has no features"):
        write(tmp_path / "t.h5ad", positions=[range(4), range(5, 10)])
    np.testing.assert_allclose(
        read_table(tmp_path / "t.h5ad").layer("final/cls"), values["final/cls"], rtol=1e-3
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_row_given_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a row came twice"):
        write(tmp_path / "t.h5ad", positions=[range(5), range(4, 10)])


def test_feature_that_float16_cannot_hold_is_kept_in_float32(tmp_path):
    values = features(600)
    values["final/cls"][560, 1] = 1e6
    positions = [range(550), range(550, 600)]
    write(tmp_path / "t.h5ad", n=600, batches=batches(values, positions))
    kept = read_table(tmp_path / "t.h5ad").layer("final/cls")
    np.testing.assert_array_equal(kept, values["final/cls"])


def test_feature_that_is_no_number_is_named(tmp_path):
    values = features(600)
    values["final/cls"][560, 1] = np.inf
    positions = [range(550), range(550, 600)]
    with pytest.raises(InputError, match="layer 'final/cls' of row 560 is not finite in float32"):
        write(tmp_path / "t.h5ad", n=600, batches=batches(values, positions))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("blurred", [True, False])
@pytest.mark.parametrize("size", [7, 100, 600, 1200])
def test_precision_depends_neither_on_the_order_of_rows_nor_on_batches(size, blurred, tmp_path):
    values = features(1200)
    # Half of the rows are a constant, which float16 holds; the others it would blur, or not.
    scale = np.float32(1e-3 if blurred else 100)
    values["final/cls"] = np.float32(1000) + scale * values["final/cls"]
    values["final/cls"][:600] = 1000
    for name, order in (("rows", np.arange(1200)), ("turned", np.arange(1200)[::-1])):
        positions = [order[first : first + size] for first in range(0, 1200, size)]
        path = tmp_path / f"{name}.h5ad"
        write(path, n=1200, batches=batches(values, positions))
        stored = read_table(path).to_anndata().obsm["final.cls"]
        assert stored.dtype == (np.float32 if blurred else np.float16)
        np.testing.assert_array_equal(stored, values["final/cls"].astype(stored.dtype))


def test_layer_of_another_width_is_refused(tmp_path):
    values = features(10) | {"final/cls": np.zeros((10, 5))}
    with pytest.raises(ValueError, match=r"layer 'final/cls' has shape \(10, 5\)"):
        write(tmp_path / "t.h5ad", batches=batches(values, [range(10)]))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.h5ad: not a readable feature table"):
        read_table(tmp_path / "absent.h5ad")
    (tmp_path / "text.h5ad").write_text("no table")
    with pytest.raises(InputError, match=r"text\.h5ad"):
        read_table(tmp_path / "text.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w"):
        pass
    with pytest.raises(InputError, match=r"other\.h5ad"):
        read_table(tmp_path / "other.h5ad")
    write(tmp_path / "json.h5ad")
    with h5py.File(tmp_path / "json.h5ad", "r+") as file:
        del file["uns/layers"]
        anndata.io.write_elem(file, "uns/layers", "{")
    with pytest.raises(InputError, match=r"json\.h5ad: not a readable feature table"):
        read_table(tmp_path / "json.h5ad")
    write(tmp_path / "type.h5ad")
    with h5py.File(tmp_path / "type.h5ad", "r+") as file:
        file["obs"].attrs["encoding-type"] = "of another program"
    with pytest.raises(InputError, match=r"type\.h5ad: not a readable feature table"):
        read_table(tmp_path / "type.h5ad")
    write(tmp_path / "t.h5ad")
    with pytest.raises(InputError, match="no layer 'final/max'; it has block03/mean_std"):
        read_table(tmp_path / "t.h5ad").layer("final/max")


def test_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the feature table"):
        write(tmp_path / "file" / "t.h5ad")

"""Tables from files of anyone, and every way in which such a file can be wrong."""

import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bioimg_jax.errors import InputError
from bioimg_jax.features import imported
from bioimg_jax.features.imported import Join, import_table
from bioimg_jax.features.table import write_parquet

CSV = """\
Metadata_Plate,Metadata_Well,Image_Path,area,is_control,mean
P1,A01,a.png,1.5,True,-1
P1,A02,b.png,2.5,False,3
P2,A01,c.png,0.1,False,1e3
"""
VALUES = np.array([[1.5, -1.0], [2.5, 3.0], [0.1, 1e3]], np.float32)
PLATES = pd.DataFrame(
    {"Metadata_Plate": ["P1", "P1", "P2"], "Metadata_Well": ["A01", "A02", "A01"]}
)


def write(folder, files):
    """Files by name -> content; the path of the first one."""
    for name, content in files.items():
        path = folder / name
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, anndata.AnnData):
            content.write_h5ad(path)
        elif isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        else:
            np.savez(path, **content)
    return folder / next(iter(files))


def brought(folder, files, **options):
    return import_table(write(folder, files), folder / "table.h5ad", **located(folder, options))


def located(folder, options):
    """The options with the files of joins, and metadata beside features, in the folder."""
    joins = [Join(folder / path, *rest) for path, *rest in options.pop("joins", ())]
    if "beside" in options:
        options["beside"] = folder / options["beside"]
    return {"joins": joins, **options}


def annotated(x, **obs):
    obs = pd.DataFrame({"plate": ["P1", "P1", "P2"], **obs}, index=["c0", "c1", "c2"])
    var = pd.DataFrame(index=[f"f{i}" for i in range(x.shape[1])])
    return anndata.AnnData(x, obs, var)


def test_csv(tmp_path):
    table = brought(tmp_path, {"f.csv": CSV})
    assert list(table.obs) == ["Plate", "Well", "Image_Path", "is_control"]
    assert table.obs["Plate"].tolist() == ["P1", "P1", "P2"]
    assert table.provenance["features"] == ["area", "mean"]
    assert table.widths == {"features": 2} and table.layer("features").dtype == np.float32
    np.testing.assert_array_equal(table.layer("features"), VALUES)
    assert table.to_anndata().X.dtype == np.float32


@pytest.mark.parametrize("kind", ["csv.gz", "parquet"])
def test_other_files_of_the_same_table_are_the_same(kind, tmp_path):
    frame = pd.read_csv(write(tmp_path, {"f.csv": CSV}))
    if kind == "parquet":
        frame.index = pd.Index([7, 8, 9])  # kept in the file as __index_level_0__
        frame.to_parquet(tmp_path / "f.parquet")
    else:
        frame.to_csv(tmp_path / "f.csv.gz")  # with the index as a column without a name
    table = import_table(tmp_path / f"f.{kind}", tmp_path / "t.h5ad")
    expected = import_table(tmp_path / "f.csv", tmp_path / "u.h5ad")
    pd.testing.assert_frame_equal(
        table.obs.astype({"is_control": str}), expected.obs.astype({"is_control": str})
    )
    np.testing.assert_array_equal(table.layer("features"), VALUES)
    assert table.provenance["features"] == expected.provenance["features"]


def test_the_parquet_that_a_table_exports_comes_back(tmp_path):
    table = brought(tmp_path, {"f.csv": CSV})
    exported = write_parquet(table, tmp_path / "e.parquet", "features")
    again = import_table(exported, tmp_path / "again.h5ad")
    pd.testing.assert_frame_equal(
        again.obs.astype({"is_control": str}), table.obs.astype({"is_control": str})
    )
    np.testing.assert_array_equal(again.layer("features"), VALUES)


@pytest.mark.parametrize("x", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_h5ad_dense_and_sparse(x, tmp_path):
    data = annotated(x(VALUES), cells=[3, 4, 5], day=pd.Categorical(["a", "b", "a"]))
    table = brought(tmp_path, {"f.h5ad": data}, metadata={"plate": "Plate", "_index": "image"})
    assert list(table.obs) == ["Plate", "cells", "day", "image"]
    assert table.obs["image"].tolist() == ["c0", "c1", "c2"]
    assert table.obs["cells"].tolist() == [3, 4, 5]
    np.testing.assert_array_equal(table.layer("features"), VALUES)
    assert table.provenance["features"] == ["f0", "f1"]


@pytest.mark.parametrize("beside", ["m.csv", "m.parquet"])
def test_npz_with_metadata_beside_it(beside, tmp_path):
    content = PLATES if beside == "m.parquet" else PLATES.to_csv(index=False)
    files = {"f.npz": {"x": VALUES.astype(np.float64), "ids": np.arange(3)}, beside: content}
    table = brought(tmp_path, files, beside=beside)
    assert list(table.obs) == ["Plate", "Well"]
    np.testing.assert_array_equal(table.layer("features"), VALUES)
    assert table.provenance["features"] == ["x:0", "x:1"]


@pytest.mark.parametrize("name", ["f.csv", "f.parquet", "f.h5ad", "f.npz"])
def test_blocks_of_rows_add_up(name, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(23, 5)).astype(np.float32)
    frame = pd.DataFrame(values, columns=list("abcde")).assign(Metadata_i=np.arange(23))
    cells = pd.DataFrame({"i": np.arange(23)}, index=[f"c{i}" for i in range(23)])
    content = {
        "f.csv": frame.to_csv(index=False),
        "f.parquet": frame,
        "f.h5ad": anndata.AnnData(sparse.csr_matrix(values), cells),
        "f.npz": {"x": values},
    }[name]
    files = {name: content, "m.csv": frame[["Metadata_i"]].to_csv(index=False)}
    files["odd.csv"] = "i,odd\n" + "".join(f"{i},yes\n" for i in range(1, 23, 2))
    monkeypatch.setattr(imported, "BLOCK_BYTES", 8 * 5 * 4)  # three or four rows
    options = {"beside": "m.csv"} if name == "f.npz" else {}
    join = ("odd.csv", {"i": "i"}, {"odd": "odd"}, "drop")
    table = brought(tmp_path, files, joins=[join], **options)
    np.testing.assert_array_equal(table.layer("features"), values[1::2])
    assert table.obs["i"].tolist() == list(range(1, 23, 2))
    assert table.provenance["n_dropped"] == 12 and table.provenance["unmatched"] == [12]


def test_features_are_chosen_by_name(tmp_path):
    text = "Metadata_w,Cells_Area,Cells_Intensity_a,Nuclei_Intensity_b,ImageNumber\nA,1,2,3,4\n"
    table = brought(tmp_path, {"f.csv": text}, only="_Intensity_", ignore=["Nuclei_Intensity_b"])
    assert table.provenance["features"] == ["Cells_Intensity_a"]
    np.testing.assert_array_equal(table.layer("features"), [[2]])
    named = brought(tmp_path, {"f.csv": text}, metadata={"ImageNumber": "image"})
    assert list(named.obs) == ["w", "image"] and named.widths == {"features": 3}


def test_metadata_of_a_csv_are_numbers_only_as_a_program_writes_them(tmp_path):
    text = (
        "Metadata_barcode,Metadata_dose,Metadata_site,Metadata_mixed,Metadata_some,x\n"
        "007,0.30,1,12,1,0\n"
        "012,1e-05,2,B12,,0\n"
    )
    obs = brought(tmp_path, {"f.csv": text}).obs
    assert obs["barcode"].tolist() == ["007", "012"]
    assert obs["dose"].tolist() == [0.3, 1e-5]
    assert obs["site"].dtype == np.int64
    assert obs["mixed"].tolist() == ["12", "B12"]
    np.testing.assert_array_equal(obs["some"], [1.0, np.nan])


def test_joins_follow_each_other(tmp_path):
    wells = (
        "Plate,Well,site,drug,uM\n"  # four sites of a well say the same
        "P1,A01,1,taxol,0.3\nP1,A01,2,taxol,0.3\nP1,A02,1,DMSO,0\nP2,A01,1,taxol,3\n,A09,1,x,1\n"
    )
    classes = pd.DataFrame({"drug": ["taxol", "taxol"], "dose": [0.3, 3], "moa": ["M", "N"]})
    table = brought(
        tmp_path,
        {"f.csv": CSV, "w.csv": wells, "m.parquet": classes},
        extract={"row": ("Well", r"^([A-Z])")},
        joins=[
            ("w.csv", {"Plate": "Plate", "Well": "Well"}, {"compound": "drug", "dose": "uM"}),
            ("m.parquet", {"compound": "drug", "dose": "dose"}, {"moa": "moa"}, "keep"),
        ],
        unique=("Plate", "Well"),
    )
    assert table.obs["compound"].tolist() == ["taxol", "DMSO", "taxol"]
    assert table.obs["dose"].tolist() == [0.3, 0.0, 3.0]
    assert table.obs["row"].tolist() == ["A", "A", "A"]
    assert table.obs["moa"].astype(object).fillna("none").tolist() == ["M", "none", "N"]
    assert table.provenance["unmatched"] == [0, 1] and table.provenance["n_dropped"] == 0


def test_the_hash_is_of_what_the_files_hold(tmp_path):
    def hashed(folder, text):
        (tmp_path / folder).mkdir()
        return brought(tmp_path / folder, {"f.csv": text}).provenance["content_hash"]

    assert hashed("a", CSV) == hashed("b", CSV) != hashed("c", CSV.replace("1.5", "1.6"))


X = "Metadata_p,x\nP1,1\nP2,2\n"
JOINED = {"f.csv": "Metadata_p,Metadata_n,x\nP1,1,0\nP2,2,0\n"}
WRONG = {
    "no file": ({"other.csv": X}, {"source": "f.csv"}, r"f\.csv: cannot be read \(.*No such file"),
    "an ending": ({"f.xlsx": X}, {}, r"f\.xlsx: .*ends with one of \.h5ad, \.parquet, \.csv"),
    "an empty csv": ({"f.csv": ""}, {}, r"f\.csv: cannot be read \(No columns to parse"),
    "a csv without rows": ({"f.csv": "Metadata_p,x\n"}, {}, r"f\.csv: no row"),
    "no gzip": ({"f.csv.gz": X}, {}, r"f\.csv\.gz: cannot be read"),
    "no unicode": ({"f.csv": b"Metadata_p,x\n\xff\xfe,1\n"}, {}, r"f\.csv: cannot be read .*utf-8"),
    "no parquet": ({"f.parquet": X}, {}, r"f\.parquet: cannot be read"),
    "no h5ad": ({"f.h5ad": X}, {}, r"f\.h5ad: cannot be read"),
    "no npz": ({"f.npz": X, "m.csv": X}, {"beside": "m.csv"}, r"f\.npz: cannot be read"),
    "no features": ({"f.csv": "Metadata_p,t\n1,a\n"}, {}, r"no column of feat.*; it has none"),
    "no such features": ({"f.csv": X}, {"only": "y$"}, r"features whose name has 'y\$'.*it has x"),
    "a bad expression": ({"f.csv": X}, {"only": "("}, r"only='\(' is no regular expression"),
    "a nan": ({"f.csv": "x,y\n1,2\n3,\n"}, {}, r"f\.csv: row 1, column 'y' is nan, expected"),
    "a nan in parquet": (
        {"f.parquet": pd.DataFrame({"x": [1.0, 2.0, None]})}, {}, r"row 2, column 'x' is nan"
    ),
    "an inf": ({"f.csv": "x,y\n1,2\n-inf,3\n"}, {}, r"row 1, column 'x' is -inf"),
    "too large": ({"f.csv": "x\n1\n1e39\n"}, {}, r"row 1, column 'x' is 1e\+39.*float32"),
    "nan in sparse": (
        {"f.h5ad": annotated(sparse.csr_matrix(np.array([[0, 1], [0, np.nan], [1, 1]])))},
        {},
        r"row 1, column 'f1' is nan",
    ),
    "text among numbers": (
        {"f.csv": "x,y\n1,2\nn/d,3\n"}, {}, r"row 1, column 'x' is 'n/d', and row 0 has a number"
    ),
    "names twice": ({"f.csv": "x,y,x\n1,2,3\n"}, {}, r"f\.csv: two columns have the name 'x'"),
    "features twice": (
        {"f.h5ad": b""}, {"twice": True}, r"f\.h5ad: two columns have the name 'f'"
    ),
    "a column without a name": ({"f.csv": "x,,y\n1,2,3\n"}, {}, r"f\.csv: column 1 has no name"),
    "metadata twice": (
        {"f.csv": "Metadata_p,p,x\na,b,1\n"}, {}, r"two columns of metadata .* the name 'p'"
    ),
    "a slash": ({"f.csv": "Metadata_a/b,x\n1,1\n"}, {}, r"'a/b' cannot be the name"),
    "a row too long": ({"f.csv": "x,y\n1,2\n1,2,3\n"}, {}, r"f\.csv: cannot .* line 3, saw 3"),
    "all rows too long": ({"f.csv": "x,y\n1,2,3\n1,2,3\n"}, {}, r"f\.csv: cannot be read .*saw 3"),
    "an unknown column": ({"f.csv": X}, {"metadata": {"q": "q"}}, r"no column 'q'; it has .*x"),
    "an unknown ignored one": ({"f.csv": X}, {"ignore": ["q"]}, r"f\.csv: no column 'q'"),
    "lists": (
        {"f.parquet": pd.DataFrame({"e": [[1.0], [2.0]]})},
        {},
        r"column 'e' holds list.*, expected a column a feature",
    ),
    "no X": (
        {"f.h5ad": anndata.AnnData(obs=pd.DataFrame({"p": ["a"]}, index=["0"]))},
        {},
        r"f\.h5ad: X is not there",
    ),
    "nothing beside an npz": ({"f.npz": {"x": VALUES}}, {}, r"f\.npz: .*needs the metadata"),
    "something beside a csv": ({"f.csv": X, "m.csv": X}, {"beside": "m.csv"}, r"for an \.npz"),
    "two arrays": (
        {"f.npz": {"x": VALUES, "y": VALUES}, "m.csv": X},
        {"beside": "m.csv"},
        r"expected one array \[n, d\], it has x \(3, 2\), y \(3, 2\)",
    ),
    "a vector": (
        {"f.npz": {"x": VALUES[0]}, "m.csv": X}, {"beside": "m.csv"}, r"expected one array"
    ),
    "objects": (
        {"f.npz": {"x": np.array([["a", 1]], object)}, "m.csv": X},
        {"beside": "m.csv"},
        r"f\.npz: cannot be read \(Object arrays cannot be loaded",
    ),
    "complex numbers": (
        {"f.npz": {"x": np.ones((2, 2), complex)}, "m.csv": X},
        {"beside": "m.csv"},
        r"f\.npz: x is of type complex128, expected numbers",
    ),
    "other numbers of rows": (
        {"f.npz": {"x": VALUES}, "m.csv": X},
        {"beside": "m.csv"},
        r"m\.csv: 2 rows of metadata for the 3 rows of .*f\.npz",
    ),
    "metadata of another kind": (
        {"f.npz": {"x": VALUES}, "m.txt": X}, {"beside": "m.txt"}, r"m\.txt: metadata are a file"
    ),
    "a well twice": (
        {"f.csv": "Metadata_p,Metadata_w,x\nP,A,1\nP,B,2\nP,A,3\n"},
        {"unique": ("p", "w")},
        r"f\.csv: rows 0 and 2 both are p='P', w='A'",
    ),
    "an unknown unique one": ({"f.csv": X}, {"unique": ("q",)}, r"unique: no column 'q'"),
    "no such key of ours": (
        {**JOINED, "j.csv": "p,c\nP1,a\n"},
        {"joins": [("j.csv", {"q": "p"}, {"c": "c"})]},
        r"f\.csv: join with j\.csv: no column 'q' of metadata; it has p, n",
    ),
    "no such key of theirs": (
        {**JOINED, "j.csv": "p,c\nP1,a\n"},
        {"joins": [("j.csv", {"p": "q"}, {"c": "c"})]},
        r"j\.csv: no column 'q'; it has p, c",
    ),
    "nothing to join": (
        {**JOINED, "j.csv": "p,c\nP1,a\n"}, {"joins": [("j.csv", {"p": "p"}, {})]}, r"a join needs"
    ),
    "a key with two values": (
        {**JOINED, "j.csv": "p,c\nP2,b\nP1,a\nP2,d\n"},
        {"joins": [("j.csv", {"p": "p"}, {"c": "c"})]},
        r"j\.csv: rows 0 and 2 have the same p='P2' and other values of 'c'",
    ),
    "no partner": (
        {**JOINED, "j.csv": "p,c\nP1,a\n"},
        {"joins": [("j.csv", {"p": "p"}, {"c": "c"})]},
        r"f\.csv: row 1 has no partner in .*j\.csv, where no row has p='P2'",
    ),
    "no partner at all": (
        {**JOINED, "j.csv": "p,c\nP7,a\n"},
        {"joins": [("j.csv", {"p": "p"}, {"c": "c"}, "drop")]},
        r"f\.csv: no row is left after the joins, which drop all 2",
    ),
    "numbers and text": (
        {**JOINED, "j.csv": "n,c\n01,a\n"},
        {"joins": [("j.csv", {"n": "n"}, {"c": "c"})]},
        r"j\.csv: column 'n' is text, and 'n' of .*f\.csv is numbers",
    ),
    "a joined name that is there": (
        {**JOINED, "j.csv": "p,n\nP1,1\nP2,2\n"},
        {"joins": [("j.csv", {"p": "p"}, {"n": "n"})]},
        r"two columns of metadata would have the name 'n'",
    ),
    "another word": (
        {**JOINED, "j.csv": "p,c\nP1,a\n"},
        {"joins": [("j.csv", {"p": "p"}, {"c": "c"}, "left")]},
        r"unmatched='left' is none of error, drop, keep",
    ),
    "nothing to extract": (
        {"f.csv": X}, {"extract": {"w": ("p", r"^W(\d)")}}, r"row 0, column 'p' is 'P1', in which"
    ),
    "two groups": (
        {"f.csv": X}, {"extract": {"w": ("p", r"(P)(\d)")}}, r"has 2 groups, expected one"
    ),
    "an extract of nothing": (
        {"f.csv": X}, {"extract": {"w": ("q", "(.)")}}, r"f\.csv: extract 'w': no column 'q'"
    ),
    "itself": ({"table.h5ad": annotated(VALUES)}, {}, r"table\.h5ad: the table would replace"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case, tmp_path):
    files, options, message = WRONG[case]
    options = dict(options)
    source = write(tmp_path, files)
    if "source" in options:
        source = tmp_path / options.pop("source")
    if options.pop("twice", False):
        data = annotated(VALUES)
        data.var_names = ["f", "g"]
        data.write_h5ad(source)
        rename_feature(source)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as raised:
        import_table(source, tmp_path / "table.h5ad", **located(tmp_path, options))
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def rename_feature(path):
    """Gives both features of a file the name "f", which AnnData itself warns of."""
    with h5py.File(path, "r+") as file:
        var = file["var"]
        var[var.attrs["_index"]][:] = "f"


def test_a_file_that_ends_early_leaves_nothing_behind(tmp_path):
    source = write(
        tmp_path, {"f.h5ad": annotated(np.random.default_rng(0).normal(size=(3, 50_000)))}
    )
    short = tmp_path / "short.h5ad"
    shutil.copyfile(source, short)
    with short.open("r+b") as file:
        file.truncate(short.stat().st_size // 2)
    with pytest.raises(InputError, match=r"short\.h5ad: cannot be read"):
        import_table(short, tmp_path / "out" / "table.h5ad")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

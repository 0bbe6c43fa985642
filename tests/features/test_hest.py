"""HEST-Benchmark's layout: rows are matched by name, and what is wrong is said in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bioimg_jax.errors import InputError
from bioimg_jax.features.hest import read_counts, read_images, read_task
from tests.features.hest_folder import GENES, SECTIONS, SIDE, HestFolder, N


@pytest.fixture
def folder(tmp_path: Path) -> HestFolder:
    return HestFolder(tmp_path / "task")


def test_a_task_is_read_in_the_order_of_sections_and_patches(folder: HestFolder) -> None:
    task = read_task(folder.root)
    assert [sample.name for sample in task.samples] == list(SECTIONS)
    assert task.genes == GENES[:2]
    assert [split.test for split in task.splits] == [("A1", "A2"), ("B1", "B2"), ("C1", "C2")]
    np.testing.assert_array_equal(task.spots["section"], np.repeat(SECTIONS, N))
    np.testing.assert_array_equal(task.spots["x"][:N], 10 * np.arange(N))
    np.testing.assert_array_equal(task.spots["y"][:N], 7 + np.arange(N))
    counts = read_counts(task)
    whole = np.concatenate([folder.counts[section] for section in SECTIONS])
    np.testing.assert_array_equal(counts.matrix.toarray(), whole)
    np.testing.assert_array_equal(task.spots["total_counts"], whole.sum(axis=1))
    assert counts.names == GENES
    sample = task.samples[2]
    images = list(read_images(folder.root / sample.patches, sample.images, [3, 0]))
    np.testing.assert_array_equal(images, folder.images["B1"][[3, 0]])


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_array])
def test_counts_are_matched_by_barcode_and_gene_whatever_their_order(
    folder: HestFolder, container: Callable
) -> None:
    whole = read_counts(read_task(folder.root)).matrix.toarray()
    for section in SECTIONS:  # rows and columns in an order of each section's own
        genes = np.random.default_rng(len(section)).permutation(len(GENES))
        folder.write_counts(
            section,
            order=[3, 1, 0, 4, 2],
            genes=np.array(GENES)[genes],
            x=container(folder.counts[section][:, genes].astype(np.float32)),
        )
    folder.write_counts("A1", order=[4, 2, 0, 1, 3])
    task = read_task(folder.root)
    np.testing.assert_array_equal(read_counts(task).matrix.toarray(), whole)
    np.testing.assert_array_equal(task.spots["total_counts"], whole.sum(axis=1))


def test_other_names_and_shapes_of_the_arrays_are_read_too(folder: HestFolder) -> None:
    before = read_task(folder.root).spots
    folder.write_patches(
        "B1",
        img=None,
        imgs=folder.images["B1"],
        barcode=None,
        barcodes=folder.barcodes["B1"],  # text, not bytes, and [n]
    )
    task = read_task(folder.root)
    pd.testing.assert_frame_equal(task.spots, before)
    assert task.samples[2].images == "imgs"


def test_patches_without_counts_and_counts_without_patches_are_left_out_and_counted(
    folder: HestFolder,
) -> None:
    folder.write_counts("A2", order=[4, 0, 2])
    folder.write_patches(
        "B1",
        img=folder.images["B1"][1:],
        barcode=np.array(folder.barcodes["B1"][1:], "S"),
        coords=np.ones((N - 1, 2)),
    )
    task = read_task(folder.root)
    assert task.without_counts == {**dict.fromkeys(SECTIONS, 0), "A2": 2}
    assert task.without_patch == {**dict.fromkeys(SECTIONS, 0), "B1": 1}
    mine = task.spots[task.spots["section"] == "A2"]
    assert list(mine["barcode"]) == ["A2-0", "A2-2", "A2-4"]
    assert list(mine["patch"]) == [0, 2, 4]
    counts = read_counts(task).matrix.toarray()
    np.testing.assert_array_equal(counts[mine.index], folder.counts["A2"][[0, 2, 4]])


def test_genes_that_only_some_sections_have_are_no_candidates(folder: HestFolder) -> None:
    folder.write_counts("B2", genes=["G1", "G2", "X", "G4"])
    folder.write_counts("C1", genes=["G4", "G2", "G1", "G3"])
    assert read_counts(read_task(folder.root)).names == ("G1", "G2", "G4")


def test_a_gene_that_a_section_lists_twice_is_no_candidate(folder: HestFolder) -> None:
    folder.write_counts("B2", genes=["G1", "G2", "G3", "G3"])
    assert read_counts(read_task(folder.root)).names == ("G1", "G2")


def test_rows_are_found_by_name(folder: HestFolder) -> None:
    task = read_task(folder.root)
    assert task.rows_of(["B1", "A1"], ["B1-4", "A1-0"]).tolist() == [2 * N + 4, 0]
    with pytest.raises(InputError, match=r"row 1: .* no counts for barcode 'B1-4' of section 'A1'"):
        task.rows_of(["A1", "A1"], ["A1-0", "B1-4"])
    with pytest.raises(InputError, match="barcode 'A1-0' of section 'A1' is given twice"):
        task.rows_of(["A1", "A1"], ["A1-0", "A1-0"])


@pytest.mark.parametrize("source", ["column", "csv", "pattern", "group"])
def test_patients_come_from_a_column_a_file_or_the_names(folder: HestFolder, source: str) -> None:
    options: dict[str, str] = {}
    if source == "column":
        for section in SECTIONS:
            folder.write_counts(section, patient=[section[0]] * N)
    elif source == "csv":
        listed = {"id": [*SECTIONS, "Z9"], "patient": [*(s[0] for s in SECTIONS), ""]}
        pd.DataFrame(listed).to_csv(folder.path("meta.csv"), index=False)
        options = {"patients": "meta.csv"}
    else:
        options = {"patient_pattern": "^[A-Z]" if source == "pattern" else "^([A-Z])[0-9]$"}
    task = read_task(folder.root, **options)
    assert task.unit == "patient"
    np.testing.assert_array_equal(task.spots["patient"], np.repeat(list("AABBCC"), N))
    folds, left_out = task.folds()
    assert not left_out
    assert [set(task.spots["patient"][fold.test]) for fold in folds] == [{"A"}, {"B"}, {"C"}]
    assert all(len(fold.train) + len(fold.test) == len(task.spots) for fold in folds)


def test_a_split_with_a_patient_on_both_sides_is_left_out(folder: HestFolder) -> None:
    folder.write_split("train_10", ["A1", "B1"])
    folder.write_split("test_10", ["B2"])
    task = read_task(folder.root, patient_pattern="^[A-Z]")
    folds, left_out = task.folds()
    assert [fold.name for fold in folds] == ["0", "1", "2"]
    assert left_out == {"10": "patient 'B' is in training and test"}
    folds, left_out = read_task(folder.root).folds()  # nobody knows the patients
    assert [fold.name for fold in folds] == ["0", "1", "2", "10"] and not left_out
    assert folds[3].unit == ("section",)


def spoil_json(folder: HestFolder) -> None:
    folder.path("var_50genes.json").write_text('["G1"]')


def spoil_h5ad(folder: HestFolder) -> None:
    folder.path("adata/A1.h5ad").write_bytes(b"not HDF5")


def spoil_h5(folder: HestFolder) -> None:
    folder.path("patches/A1.h5").write_bytes(b"not HDF5")


def with_counts(x: Any) -> Callable[[HestFolder], None]:
    def spoil(folder: HestFolder) -> None:
        counts = folder.counts["B1"].astype(float)
        counts[2, 3] = x
        folder.write_counts("B1", x=counts)

    return spoil


def with_double_barcode(folder: HestFolder) -> None:
    folder.barcodes["A1"][3] = "A1-1"
    folder.write_counts("A1")


def with_other_barcodes(folder: HestFolder) -> None:
    folder.barcodes["A1"] = [f"{i}-1" for i in range(N)]
    folder.write_counts("A1")


def with_patient_of_some(folder: HestFolder) -> None:
    for section in SECTIONS[:3]:
        folder.write_counts(section, patient=["A"] * N)


def with_csv(text: str) -> Callable[[HestFolder], dict]:
    def spoil(folder: HestFolder) -> dict:
        folder.path("p.csv").write_text(text)
        return {"patients": "p.csv"}

    return spoil


def split(name: str, sections: Any, **columns: Any) -> Callable[[HestFolder], None]:
    return lambda folder: folder.write_split(name, sections, **columns)


def patches(**changes: Any) -> Callable[[HestFolder], None]:
    return lambda folder: folder.write_patches("A1", **changes)


WRONG: list[tuple[Callable[[HestFolder], Any], str]] = [
    (lambda f: f.path("splits/test_2.csv").unlink(), "train_2.csv has no test_ beside"),
    (lambda f: f.path("splits/train_2.csv").unlink(), "test_2.csv has no train_ beside"),
    (lambda f: [p.unlink() for p in f.path("splits/x").parent.iterdir()], "no train_.*csv in it"),
    (split("test_0", ["A1"], expr_path=None), "test_0.csv: no column 'expr_path'; it has sample"),
    (split("test_0", []), "test_0.csv: no section in it"),
    (split("test_0", ["A1", "A1"]), "test_0.csv: section 'A1' is listed twice"),
    (split("test_0", ["A1", "B1"]), "test_0.csv: section 'B1' is in train_0.csv too"),
    (split("test_0", ["A9"]), "test_0.csv: row 1: patches_path 'patches/A9.h5' is no file"),
    (split("test_0", [""], patches_path=["patches/A1.h5"]), "row 1 has no sample_id"),
    (split("test_0", ["A1"], expr_path=["../A1.h5ad"]), "expr_path '../A1.h5ad', expected a path"),
    (split("test_0", ["A1"], expr_path=["/A1.h5ad"]), "expr_path '/A1.h5ad', expected a path ins"),
    (split("test_0", ["A1"], expr_path=["adata/A2.h5ad"]), "'A1' has other files in another split"),
    (lambda f: f.path("var_50genes.json").unlink(), "var_50genes.json: expected .*genes"),
    (spoil_json, "var_50genes.json: expected .*genes"),
    (lambda f: f.write_genes([]), "expected a list of names of genes"),
    (lambda f: f.write_genes(["G1", 3]), "expected a list of names of genes"),
    (lambda f: f.write_genes(["G1", "G2", "G1"]), "gene 'G1' is listed twice"),
    (lambda f: f.write_genes(["G1", "G9"]), "A1.h5ad: gene 'G9' of the gene list is not among its"),
    (lambda f: f.write_counts("B1", genes=["G1", "X", "Y", "Z"]), "B1.h5ad: gene 'G2' .* not amo"),
    (spoil_h5ad, "A1.h5ad: not a readable .h5ad"),
    (spoil_h5, "A1.h5: not a readable patch file"),
    (with_counts(np.nan), "B1.h5ad: nan for gene 'G4' of 'B1-2'; expected raw counts"),
    (with_counts(-1.0), "B1.h5ad: -1 for gene 'G4' of 'B1-2'"),
    (with_counts(1.3), "B1.h5ad: 1.3 for gene 'G4' of 'B1-2'"),
    (with_counts(np.inf), "B1.h5ad: inf for gene 'G4' of 'B1-2'"),
    (with_double_barcode, "A1.h5ad: barcode 'A1-1' occurs twice"),
    (with_other_barcodes, "A1.h5ad: none of the 5 barcodes of patches/A1.h5; it has '0-1'"),
    (patches(barcode=np.array(["a", "b", "a", "c", "d"], "S")), "A1.h5: barcode 'a' occurs twice"),
    (patches(barcode=np.array([b"\xff"] * N)), "A1.h5: a barcode is no UTF-8"),
    (patches(barcode=None), "A1.h5: no array 'barcode'; it has coords, img"),
    (patches(img=None), "A1.h5: no array 'img'; it has barcode, coords"),
    (patches(coords=None), "A1.h5: no array 'coords'"),
    (patches(coords=np.ones((N, 3))), r"A1.h5: 5 images, 5 barcodes and coords \(5, 3\)"),
    (patches(coords=np.full((N, 2), np.nan)), "A1.h5: coords hold what is no number"),
    (patches(img=np.zeros((N, SIDE, SIDE), np.uint8)), r"img is uint8 \(5, 8, 8\), expected uint8"),
    (patches(img=np.zeros((N, SIDE, SIDE, 3), np.uint16)), "img is uint16"),
    (patches(img=np.zeros((3, SIDE, SIDE, 3), np.uint8)), "3 images, 5 barcodes"),
    (with_patient_of_some, "section 'B2' has spots without a patient"),
    (with_csv("patient\nA\n"), "p.csv: no column 'sample_id' or 'id'"),
    (with_csv("id,name\nA1,A\n"), "p.csv: no column 'patient'"),
    (with_csv("id,patient\nA1,A\n"), "p.csv: no patient for section 'A2'"),
    (with_csv("id,patient\nA1,A\nA2, \n"), "p.csv: no patient for section 'A2'"),
    (with_csv("id,patient\nA1,A\nA1,B\n"), "p.csv: section 'A1' is listed twice"),
    (lambda f: {"patients": "none.csv"}, "none.csv: cannot be read"),
    (lambda f: {"patient_pattern": "["}, r"patient_pattern '\[': no regular expression"),
    (lambda f: {"patient_pattern": "^A"}, "patient_pattern '.A' finds no patient in 'B1'"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_what_is_wrong_with_a_folder_is_one_line(
    folder: HestFolder, spoil: Callable[[HestFolder], Any], message: str
) -> None:
    changed = spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        read_task(folder.root, **(changed if isinstance(changed, dict) else {}))
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder splits in it"):
        read_task(tmp_path)

"""The HEST-Benchmark builder, on a small task written here and on generated tissue."""

from pathlib import Path

import numpy as np
import pytest

from bioimg_jax.data.builders import BadImage, find_builder
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.errors import InputError
from bioimg_jax.features.hest import read_task
from bioimg_jax.prepare import prepare
from tests.features.hest_folder import SECTIONS, HestFolder, N

BUILDER = find_builder("hest")


@pytest.fixture
def folder(tmp_path: Path) -> HestFolder:
    return HestFolder(tmp_path / "task")


def prepared(folder: HestFolder, on_bad_image: str = "stop", **options: str) -> Dataset:
    out = folder.root.parent / "out"
    source = str(folder.root)
    found = prepare(
        name="hest", source=source, out=out, options=options, on_bad_image=on_bad_image, workers=1
    )
    return open_dataset(found)


def test_images_and_metadata_are_the_patches_with_counts(
    folder: HestFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_counts("A2", order=[4, 0, 2])
    dataset = prepared(folder, patient_pattern="^[A-Z]")
    assert "hest: 2 patches of A2 have no counts: left out" in capsys.readouterr().err
    assert len(dataset) == len(SECTIONS) * N - 2
    assert dataset.declaration.channels == ("R", "G", "B")
    assert dataset.declaration.pixel_um == 0.5
    spots = read_task(folder.root).spots
    for column in ("section", "barcode", "patch", "x", "y", "total_counts"):
        np.testing.assert_array_equal(dataset.metadata[column], spots[column])
    for i in (0, N + 1, len(dataset) - 1):
        row = dataset.metadata.iloc[i]
        image = folder.images[row["section"]][row["patch"]]
        np.testing.assert_array_equal(dataset.source[i]["image"], image)
    assert set(dataset.metadata["patient"]) == set("ABC")


def test_cross_validated_patients_leave_all_images_for_pre_training(folder: HestFolder) -> None:
    dataset = prepared(folder, patient_pattern="^[A-Z]")
    assert dataset.declaration.pretraining == "all"
    assert len(dataset.pretraining_indices()) == len(dataset)
    (target,) = dataset.declaration.targets
    assert (target.name, target.nuisance, len(dataset.folds("section"))) == ("section", True, 3)


def test_of_one_cross_patient_split_pre_training_sees_the_training_sections(
    folder: HestFolder,
) -> None:
    for k in (1, 2):
        for part in ("train", "test"):
            folder.path(f"splits/{part}_{k}.csv").unlink()
    folder.write_split("train_0", ["B1", "B2", "C1"])
    folder.write_split("train_1", ["A1", "A2", "B1", "C2"])  # B and C on both sides: replicates
    folder.write_split("test_1", ["B2", "C1"])
    dataset = prepared(folder, patient_pattern="^[A-Z]")
    seen = dataset.metadata.iloc[dataset.pretraining_indices()]
    assert set(seen["section"]) == {"B1", "B2", "C1"}
    unused = dataset.metadata[dataset.metadata["section"] == "C2"]
    assert set(unused["split"]) == {"unused"}


def test_a_section_too_small_for_folds_is_no_class(folder: HestFolder) -> None:
    folder.write_counts("A2", order=[4, 0])
    dataset = prepared(folder)
    (target,) = dataset.declaration.targets
    assert target.where == (("section", tuple(s for s in SECTIONS if s != "A2")),)
    assert len(dataset) == len(SECTIONS) * N - 3


def test_a_patch_file_that_breaks_while_it_is_decoded_is_named(folder: HestFolder) -> None:
    plan = BUILDER.plan_resolved(str(folder.root), "", {})
    folder.path("patches/A1.h5").write_bytes(b"not HDF5")
    with pytest.raises(BadImage, match=r"patches/A1\.h5: cannot be read"):
        BUILDER.examples(plan.units[0], plan.shared)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("", {}, "needs a source: the folder of one task"),
        ("no/such/folder", {}, "no folder splits in it"),
        ("x", {"pixel_um": -1}, "pixel_um must be >= 0, not -1"),
        ("x", {"pixel_um": "nan"}, "pixel_um must be >= 0, not nan"),
        ("x", {"gene_lists": "a"}, "did you mean 'gene_list'"),
    ],
)
def test_options_it_does_not_have_are_refused(source: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BUILDER.plan_resolved(source, "", options)


def test_generated_tissue_is_read_back(tmp_path: Path) -> None:
    """What `synthetic_tissue` writes, patients from its tables included."""
    options = {
        "n_centres": 1,
        "n_patients": 4,
        "sections_per_patient": 1,
        "spots_per_section": 2,
        "image_px": 96,
        "n_genes": 6,
    }
    tissue = find_builder("synthetic_tissue")
    task = read_task(tissue.write_hest(tmp_path, "tissue_null", options))
    assert task.unit == "patient"
    folds, left_out = task.folds()
    assert len(folds) == 4 and not left_out
    plan = BUILDER.plan_resolved(str(task.folder), "", {})
    drawn = [e for unit in plan.units for e in BUILDER.examples(unit, plan.shared)]
    original = tissue.plan_resolved("", "tissue_null", options)
    images = [i for u in original.units for _, i in tissue.examples(u, original.shared)]
    np.testing.assert_array_equal(np.stack([image for _, image in drawn]), np.stack(images))

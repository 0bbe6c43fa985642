"""The DeepProfiler builder, on a small project drawn here and on the real one."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.errors import InputError
from bioimg_jax.main import main
from bioimg_jax.prepare import prepare
from tests import tiny

H, W = 20, 30
WELLS = {"A01": "DMSO", "B07": "drug", "C03": "DMSO"}
PLATES = ("P1", "P2", "P3")
SITES = ("1", "2")
CENTRES = ((0.0, 0.0), (15.4, 9.5), (29.4, 19.2))
CHANNELS = ("DNA", "ER", "Mito")


class Project:
    """A DeepProfiler project of 3 plates x 3 wells x 2 sites, 3 channels, 3 nuclei a field."""

    def __init__(self, root: Path, suffix: str = ".png", dtype: str = "uint8"):
        self.root, self.suffix = root, suffix
        self.images: dict[str, np.ndarray] = {}
        self.rows: list[dict[str, str]] = []
        rng = np.random.default_rng(0)
        for plate in PLATES:
            for well, compound in WELLS.items():
                for site in SITES:
                    row = {
                        "Metadata_Plate": plate,
                        "Metadata_Well": well,
                        "Metadata_Site": site,
                        "Metadata_Batch": "b1" if plate == "P1" else "b2",
                        "Dose": "0.10",
                        "Compound": compound,
                    }
                    for channel in CHANNELS:
                        row[channel] = f"{plate}/{well}_{site}_{channel}{suffix}"
                        high = np.iinfo(dtype).max
                        image = rng.integers(0, high, (H, W), dtype, endpoint=True)
                        self.write_image(row[channel], image)
                    self.rows.append(row)
                    self.write_centres(row, CENTRES)
        self.write_index()

    def path(self, name: str) -> Path:
        return self.root / "inputs" / "images" / name

    def write_image(self, name: str, image: np.ndarray) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.fromarray(image).save(path)
        else:
            tifffile.imwrite(path, image)
        self.images[name] = image

    def locations(self, row: dict[str, str]) -> Path:
        name = f"{row['Metadata_Well']}-{row['Metadata_Site']}-Nuclei.csv"
        return self.root / "inputs" / "locations" / row["Metadata_Plate"] / name

    def write_centres(self, row: dict[str, str], centres: Any) -> None:
        path = self.locations(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["Nuclei_Location_Center_X,Nuclei_Location_Center_Y"]
        path.write_text("\n".join([*lines, *(f"{x},{y}" for x, y in centres)]) + "\n")

    def write_index(self) -> None:
        path = self.root / "inputs" / "metadata" / "index.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def field(self, i: int) -> np.ndarray:
        return np.stack([self.images[self.rows[i][c]] for c in CHANNELS], axis=-1)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def prepared(project: Project, config: str = "cells", **changes: Any) -> Dataset:
    on_bad_image = changes.pop("on_bad_image", "stop")
    return open_dataset(
        prepare(
            name="deepprofiler",
            config=config,
            source=str(project.root),
            out=project.root.parent / "out",
            options={"crop_px": 8, **changes},
            on_bad_image=on_bad_image,
            workers=1,
        )
    )


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tiff", "uint16")],
)
def test_crops_hold_the_pixels_around_each_nucleus(tmp_path: Path, suffix: str, dtype: str) -> None:
    project = Project(tmp_path / "project", suffix, dtype)
    dataset = prepared(project)
    assert len(dataset) == 18 * 3 and dataset.source.dtype == dtype
    assert dataset.declaration.channels == CHANNELS
    for i in (0, 7, 17):
        padded = np.pad(project.field(i), ((8, 8), (8, 8), (0, 0)), mode="reflect")
        # The centres' pixels, halves rounded up: (0, 0), (15, 10), (29, 19) as (x, y).
        for j, (x, y) in enumerate([(0, 0), (15, 10), (29, 19)]):
            image = dataset.source[3 * i + j]["image"]
            np.testing.assert_array_equal(image, padded[y + 4 : y + 12, x + 4 : x + 12])
            np.testing.assert_array_equal(image[4, 4], project.field(i)[y, x])


def test_tiles_cover_the_field_and_reflect_the_remainder(project: Project) -> None:
    dataset = prepared(project, "fields")
    assert len(dataset) == 18 * 3 * 4
    field = project.field(2)
    tiles = dataset.source.read(range(24, 36))
    np.testing.assert_array_equal(tiles[5], field[8:16, 8:16])
    np.testing.assert_array_equal(tiles[11][:4, :6], field[16:, 24:])
    np.testing.assert_array_equal(tiles[11][4:, 0], field[18:14:-1, 24])
    first = dataset.metadata.iloc[24]
    assert (first.x, first.y, first.edge_distance) == (3.5, 3.5, 3.5)


def test_metadata_is_kept_and_derived(project: Project) -> None:
    metadata = prepared(project).metadata
    row = metadata.iloc[10]
    assert (row.plate, row.well, row.site, row.batch) == ("P1", "B07", 2, "b1")
    assert (row.field, row.row, row.column) == ("P1/B07/2", "B", 7)
    assert (row.compound, row.dose, row.is_control) == ("drug", "0.10", False)
    assert (row.x, row.y) == (np.float32(15.4), 9.5)
    assert row.edge_distance == 9.5
    assert list(metadata.edge_distance[9:12]) == [0, 9.5, 0]  # a centre past the last pixel: 0
    assert metadata.is_control.sum() == 36


def test_well_names_of_both_kinds_give_row_and_column(project: Project) -> None:
    for row in project.rows:
        locations = project.locations(row)
        row["Metadata_Well"] = {"A01": "r01c01", "B07": "r28c07", "C03": "middle"}[
            row["Metadata_Well"]
        ]
        locations.rename(project.locations(row))
    project.write_index()
    metadata = prepared(project).metadata.drop_duplicates("well")
    assert list(zip(metadata.row, metadata.column, strict=True)) == [("A", 1), ("AB", 7), ("", 0)]


def test_targets_follow_from_the_metadata(project: Project) -> None:
    dataset = prepared(project)
    compound, position, plate, well = dataset.declaration.targets
    assert (compound.name, compound.split, compound.unit) == (
        "compound",
        "leave_one_out",
        ("plate",),
    )
    assert compound.audit == (
        "plate", "batch", "well", "row", "column", "site", "edge_distance",
    )  # fmt: skip
    assert (position.name, position.column) == ("position_control", "well")
    for target in (plate, well):
        assert (target.unit, target.split, target.nuisance) == (("field",), "k_fold", True)
        assert target.metric == "accuracy"
    assert [fold.name for fold in dataset.folds("compound")] == ["plate=P1", "plate=P2", "plate=P3"]
    for fold in dataset.folds("position_control"):
        assert set(dataset.metadata.well[fold.train]) == {"A01", "C03"}
    for fold in dataset.folds("plate"):
        assert set(dataset.metadata.plate[fold.test]) == set(PLATES)
    assert dataset.declaration.pretraining == "all"


def test_targets_that_cannot_be_tested_are_not_declared(project: Project) -> None:
    project.rows = [row for row in project.rows if row["Metadata_Plate"] != "P3"]
    project.write_index()
    names = [target.name for target in prepared(project).declaration.targets]
    assert names == ["plate", "well"]


def test_treatment_on_too_few_plates_is_left_out_of_the_target(project: Project) -> None:
    for row in project.rows:
        if row["Metadata_Plate"] == "P2" and row["Metadata_Well"] == "C03":
            row["Compound"] = "rare"
    project.write_index()
    dataset = prepared(project)
    target = dataset.declaration.target("compound")
    assert target.where == (("compound", ("DMSO", "drug")),)
    assert "rare" in set(dataset.metadata.compound)


def test_label_control_and_channels_can_be_named(project: Project) -> None:
    for row in project.rows:
        row["Metadata_Gene"] = {"A01": "none", "B07": "TP53", "C03": "none"}[row["Metadata_Well"]]
    project.write_index()
    options = {"label": "Gene", "control": "none", "channels": "Mito,DNA", "pixel_um": 0.3}
    dataset = prepared(project, **options)
    assert dataset.declaration.targets[0].name == "gene"
    assert dataset.declaration.channels == ("Mito", "DNA")
    assert dataset.declaration.pixel_um == 0.3
    whole = prepared(project)
    np.testing.assert_array_equal(dataset.source[4]["image"], whole.source[4]["image"][..., [2, 0]])


def test_split_column_fixes_the_split_and_what_pretraining_sees(project: Project) -> None:
    parts = {"P1": "train", "P2": "validation", "P3": "test"}
    for row in project.rows:
        row["Metadata_Split"] = parts[row["Metadata_Plate"]]
    project.write_index()
    dataset = prepared(project, split_column="Metadata_Split")
    (fold,) = dataset.folds("compound")
    assert set(dataset.metadata.plate[fold.test]) == {"P3"}
    assert set(dataset.metadata.plate[dataset.pretraining_indices()]) == {"P1"}

    for row in project.rows:
        if row["Metadata_Plate"] == "P1":
            row["Compound"] = "DMSO"
    project.write_index()
    message = "class 'drug' of target 'compound' has no training example in fold 'fixed'"
    with pytest.raises(InputError, match=message):
        prepared(project, split_column="split")


def _drop_column(column: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        for row in project.rows:
            del row[column]
        project.write_index()

    return change


def _no_index(project: Project) -> None:
    (project.root / "inputs" / "metadata" / "index.csv").unlink()


def _twice(project: Project) -> None:
    project.rows.append(project.rows[0])
    project.write_index()


def _empty_plate(project: Project) -> None:
    project.rows[2]["Metadata_Plate"] = ""
    project.write_index()


def _text_after(old: str, new: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        path = project.root / "inputs" / "metadata" / "index.csv"
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def _one_jpeg(project: Project) -> None:
    project.rows[4]["ER"] = "P1/C03_1_ER.jpg"
    project.write_index()


def _no_images(project: Project) -> None:
    for row in project.rows:
        for channel in CHANNELS:
            row[channel] = row[channel].replace(".png", ".mrc")
    project.write_index()


def _text_centre(project: Project) -> None:
    project.write_centres(project.rows[3], [(1, 1), ("left", 2)])


def _no_centre_column(project: Project) -> None:
    project.locations(project.rows[3]).write_text("x,y\n1,2\n")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_no_index, {}, r"index.csv is missing: the source must be a DeepProfiler project"),
        (_drop_column("Metadata_Well"), {}, r"index.csv lacks column 'Metadata_Well'"),
        (_twice, {}, r"index.csv: row 19 lists field P1/A01/1 again"),
        (_empty_plate, {}, r"index.csv: row 3 has no value in column 'Metadata_Plate'"),
        (_text_after("b1,", "b1,,"), {}, r"index.csv: row 1 has 10 values; the header names 9"),
        (_text_after("ER", "DNA"), {}, r"index.csv: 2 columns are called 'DNA'"),
        (_one_jpeg, {}, r"C03_1_ER.jpg \(row 5 of the index\): is none of .png, .tif"),
        (_no_images, {}, r"index.csv has no column of image file names"),
        (_text_centre, {}, r"B07-2-Nuclei.csv: row 2 has no numbers in Nuclei_Location"),
        (_no_centre_column, {}, r"B07-2-Nuclei.csv lacks column 'Nuclei_Location_Center_X'"),
        (None, {"channels": "DNA,RNA"}, r"names 'RNA', but .* has 3 image columns: DNA, ER, Mito"),
        (None, {"channels": "DNA,DNA"}, r"names a channel twice"),
        (None, {"label": "compund"}, r"lacks label column 'compund'; did you mean 'compound'\?"),
        (None, {"control": "DSMO"}, r"control 'DSMO' does not occur .*did you mean 'DMSO'\?"),
        (None, {"split_column": "fold"}, r"split column 'fold' is not in .*index.csv"),
        (None, {"crop_px": 0}, r"crop_px must be >= 1"),
        (None, {"crop": 3}, r"no option 'crop'; did you mean 'crop_px'\?"),
    ],
)
def test_unusable_project_is_refused_in_one_line(
    project: Project,
    change: Callable[[Project], None] | None,
    options: dict[str, Any],
    message: str,
) -> None:
    if change is not None:
        change(project)
    with pytest.raises(InputError, match=message) as error:
        prepared(project, **options)
    assert "\n" not in str(error.value)


def test_missing_source_is_named(tmp_path: Path) -> None:
    builder = find_builder("deepprofiler")
    with pytest.raises(InputError, match="needs a source"):
        builder.plan_resolved("", "cells", {})
    with pytest.raises(InputError, match=f"source {tmp_path}/nowhere is not a folder"):
        builder.plan_resolved(str(tmp_path / "nowhere"), "cells", {})


def _missing(project: Project) -> None:
    project.path(project.rows[4]["ER"]).unlink()


def _unnamed(project: Project) -> None:
    project.rows[4]["ER"] = ""
    project.write_index()


def _truncated(project: Project) -> None:
    path = project.path(project.rows[4]["ER"])
    path.write_bytes(path.read_bytes()[:-200])


def _cut_in_the_header(project: Project) -> None:
    path = project.path(project.rows[4]["ER"])
    path.write_bytes(path.read_bytes()[:10])


def _other_size(project: Project) -> None:
    project.write_image(project.rows[4]["ER"], np.zeros((H, W - 1), np.uint8))


def _other_depth(project: Project) -> None:
    project.write_image(project.rows[4]["ER"], np.zeros((H, W), np.uint16))


def _colour(project: Project) -> None:
    project.write_image(project.rows[4]["ER"], np.zeros((H, W, 3), np.uint8))


def _no_locations(project: Project) -> None:
    project.locations(project.rows[4]).unlink()


def _outside(project: Project) -> None:
    project.write_centres(project.rows[4], [(1, 1), (2 * W, 3)])


@pytest.mark.parametrize(
    ("change", "file", "why"),
    [
        (_missing, "inputs/images/P1/C03_1_ER.png", "is missing"),
        (_unnamed, "inputs/metadata/index.csv, column ER", "has no file name"),
        (_truncated, "inputs/images/P1/C03_1_ER.png", "cannot be decoded"),
        (_cut_in_the_header, "inputs/images/P1/C03_1_ER.png", "is not a readable image"),
        (_other_size, "inputs/images/P1/C03_1_ER.png", "is 20 x 29 uint8; the others are 20 x 30"),
        (_other_depth, "inputs/images/P1/C03_1_ER.png", "is 20 x 30 uint16; the others"),
        (_colour, "inputs/images/P1/C03_1_ER.png", "of RGB; expected one channel"),
        (_no_locations, "inputs/locations/P1/C03-1-Nuclei.csv", "is missing"),
        (_outside, "inputs/locations/P1/C03-1-Nuclei.csv", "row 2 puts a nucleus at x=60, y=3"),
    ],
)
def test_bad_image_is_named_or_quarantined(
    project: Project, change: Callable[[Project], None], file: str, why: str
) -> None:
    change(project)
    with pytest.raises(InputError) as error:
        prepared(project)
    message = str(error.value)
    assert message.startswith(f"{file} (row 5 of the index): ") and why in message
    assert "\n" not in message

    dataset = prepared(project, on_bad_image="skip")
    assert len(dataset) == 17 * 3 and "P1/C03/1" not in set(dataset.metadata.field)
    with (dataset.directory / "bad_images.csv").open(newline="") as listed:
        (row,) = csv.DictReader(listed)
    assert (row["file"], row["row"]) == (file, "5") and why in row["why"]


def _class_without_training(project: Project) -> None:
    parts = {"P1": "train", "P2": "validation", "P3": "test"}
    for row in project.rows:
        row["split"] = parts[row["Metadata_Plate"]]
        if row["Metadata_Plate"] == "P1":
            row["Compound"] = "DMSO"
    project.write_index()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_missing, "", "C03_1_ER.png (row 5 of the index): is missing"),
        (_truncated, "", "C03_1_ER.png (row 5 of the index): cannot be decoded"),
        (_other_size, "", "is 20 x 29 uint8; the others are 20 x 30"),
        (None, "split_column=fold", "split column 'fold' is not in"),
        (None, "channels=DNA,RNA", "names 'RNA', but"),
        (_class_without_training, "split_column=split", "'drug' of target 'compound' has no train"),
    ],
)
def test_mistake_ends_the_command_line_with_status_2(
    project: Project,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    change: Callable[[Project], None] | None,
    options: str,
    message: str,
) -> None:
    if change is not None:
        change(project)
    arguments = tiny.arguments(
        tmp_path / "prepared", tmp_path / "run", data__name="deepprofiler",
        data__source=str(project.root), data__options=options,
    )  # fmt: skip
    assert main([*arguments, "--dry_run"]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert message in line


def test_truncated_tiff_is_named(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", ".tif", "uint16")
    path = project.path(project.rows[4]["ER"])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"C03_1_ER.tif \(row 5 of the index\): "):
        prepared(project)


def test_field_without_nuclei_gives_no_example(project: Project) -> None:
    project.write_centres(project.rows[0], [])
    assert len(prepared(project)) == 17 * 3


@pytest.mark.data
def test_real_fields_give_every_nucleus(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "lincs_cell_painting"
    dataset = open_dataset(prepare(name="deepprofiler", source=str(source), out=tmp_path))
    assert len(dataset) == 21_026
    assert dataset.declaration.channels == ("DNA", "RNA", "ER", "AGP", "Mito")
    names = [target.name for target in dataset.declaration.targets]
    assert names == ["compound", "position_control", "plate", "well"]
    assert set(dataset.metadata.compound) == {"DMSO", "orantinib", "lonafarnib"}
    assert len(dataset.folds("compound")) == 5
    assert set(dataset.metadata.well[dataset.folds("position_control")[0].test]) == {"A01", "J18"}
    for image in dataset.source.read([0, 10_000, 21_025]):
        assert image.shape == (64, 64, 5) and image.dtype == np.uint8
        assert image.std((0, 1)).min() > 0

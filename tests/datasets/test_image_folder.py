"""The class-folder builder, on small folders drawn here and on two real sets."""

import csv
import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
import tifffile
from PIL import Image

from bioimg_jax import prepare as prepare_module
from bioimg_jax.benchmarks.linear import Linear
from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.data.levels import column_levels
from bioimg_jax.data.pipeline import train_batches
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import read_table, write_table
from bioimg_jax.main import main
from bioimg_jax.prepare import prepare
from bioimg_jax.statistics.audit import audit
from tests import readme, tiny

H, W = 12, 16
README = readme.ROOT / "datasets" / "image_folder" / "README.md"


@dataclasses.dataclass
class Folder:
    """Images [h, w, c] by name, drawn; `rows` become labels.csv when there are any."""

    root: Path
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def draw(self, *names: str, shape: tuple[int, ...] = (H, W, 3), dtype: str = "uint8") -> None:
        for name in names:
            rng = np.random.default_rng(list(name.encode()))
            pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".tif", ".tiff"):
                colour = pixels.shape[-1] in (3, 4)
                tifffile.imwrite(path, pixels, photometric="rgb" if colour else "minisblack")
            else:
                Image.fromarray(pixels).save(path)
            self.images[name] = pixels

    def write_rows(self) -> None:
        with (self.root / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def name_of(label: str, i: int, suffix: str = ".png") -> str:
    return f"{label}/{i:02d}{suffix}"


@pytest.fixture
def flat(tmp_path: Path) -> Folder:
    """Two classes of 12 RGB images; labels.csv, not yet written, puts three after each other into
    one group."""
    folder = Folder(tmp_path / "source")
    for label in ("benign", "tumour"):
        for i in range(12):
            name = name_of(label, i)
            folder.draw(name)
            folder.rows.append(
                {"file": name, "label": label, "group": f"{label[0]}{i // 3}", "Stain": "H&E"}
            )
    return folder


@pytest.fixture
def split(tmp_path: Path) -> Folder:
    """The same two classes, 10 images in train/ and 2 in test/."""
    folder = Folder(tmp_path / "source")
    for part, n in (("train", 10), ("test", 2)):
        for label in ("benign", "tumour"):
            folder.draw(*(name_of(f"{part}/{label}", i) for i in range(n)))
    return folder


def prepared(folder: Folder, on_bad_image: str = "stop", **options: Any) -> Dataset:
    directory = prepare(
        name="image_folder",
        source=str(folder.root),
        out=folder.root.parent / "out",
        options=options,
        on_bad_image=on_bad_image,
        workers=1,
    )
    return open_dataset(directory)


def test_class_folders_become_labels(flat: Folder) -> None:
    dataset = prepared(flat)
    assert list(dataset.metadata.columns) == ["file", "folder", "label"]
    assert list(dataset.metadata.file) == sorted(flat.images)
    assert list(dataset.metadata.label) == ["benign"] * 12 + ["tumour"] * 12
    assert dataset.declaration.channels == ("R", "G", "B")
    for i, name in enumerate(dataset.metadata.file):
        np.testing.assert_array_equal(dataset.source[i]["image"], flat.images[name])
    (target,) = dataset.declaration.targets
    assert (target.name, target.column, target.unit) == ("label", "label", ("file",))
    assert (target.split, target.n_folds, target.metric) == ("k_fold", 5, "balanced_accuracy")
    assert dataset.declaration.pretraining == "all"
    assert dataset.declaration.symmetries == ("flip", "rot90")
    assert dataset.declaration.pixel_um is None and dataset.declaration.nuisance == ()


@pytest.mark.parametrize(
    ("suffix", "shape", "dtype", "channels"),
    [
        (".png", (H, W), "uint8", ("grey",)),
        (".png", (H, W), "uint16", ("grey",)),
        (".tif", (H, W), "uint16", ("grey",)),
        (".png", (H, W, 3), "uint8", ("R", "G", "B")),
        (".tiff", (H, W, 3), "uint16", ("R", "G", "B")),
    ],
)
def test_grey_and_colour_have_names_of_their_own(
    tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: str, channels: tuple[str, ...]
) -> None:
    folder = Folder(tmp_path / "source")
    for label in "ab":
        folder.draw(*(name_of(label, i, suffix) for i in range(5)), shape=shape, dtype=dtype)
    dataset = prepared(folder)
    assert dataset.declaration.channels == channels and dataset.source.dtype == dtype
    image = folder.images[name_of("b", 1, suffix)].reshape(H, W, -1)
    np.testing.assert_array_equal(dataset.source[6]["image"], image)


def test_pages_of_a_tiff_are_channels_that_the_user_names(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "source")
    for label in "ab":
        folder.draw(*(name_of(label, i, ".tif") for i in range(5)), shape=(5, H, W), dtype="uint16")
    with pytest.raises(InputError, match="the images have 5 channels; expected their names"):
        prepared(folder)
    dataset = prepared(folder, channels="DNA,RNA,ER,AGP,Mito")
    assert dataset.declaration.channels == ("DNA", "RNA", "ER", "AGP", "Mito")
    expected = np.moveaxis(folder.images[name_of("a", 3, ".tif")], 0, -1)
    np.testing.assert_array_equal(dataset.source[3]["image"], expected)
    with pytest.raises(InputError, match="names DNA,RNA; expected 5 different names"):
        prepared(folder, channels="DNA,RNA")


def test_alpha_that_hides_nothing_is_dropped(flat: Folder) -> None:
    opaque, name = np.full((H, W, 4), 255, np.uint8), name_of("benign", 2)
    opaque[..., :3] = flat.images[name]
    Image.fromarray(opaque).save(flat.root / name)
    np.testing.assert_array_equal(prepared(flat).source[2]["image"], flat.images[name])


def test_jpeg_is_decoded(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "source")
    for label in "ab":
        folder.draw(*(name_of(label, i, ".JPG") for i in range(5)))
    dataset = prepared(folder)
    with Image.open(folder.root / "a" / "01.JPG") as image:
        np.testing.assert_array_equal(dataset.source[1]["image"], np.asarray(image))


def test_crop_is_the_middle_of_images_of_any_size(flat: Folder) -> None:
    flat.draw(name_of("benign", 0), shape=(21, 10, 3))
    dataset = prepared(flat, crop_px=8)
    first, second = dataset.source.read([0, 1])
    np.testing.assert_array_equal(first, flat.images[name_of("benign", 0)][6:14, 1:9])
    np.testing.assert_array_equal(second, flat.images[name_of("benign", 1)][2:10, 4:12])


def test_groups_are_the_units_and_stay_whole(flat: Folder) -> None:
    flat.write_rows()
    dataset = prepared(flat, n_folds=3)
    (target,) = dataset.declaration.targets
    assert (target.unit, target.n_folds, target.metric) == (("group",), 3, "balanced_accuracy")
    assert list(dataset.metadata.columns) == ["file", "folder", "label", "group", "stain"]
    groups = dataset.metadata.group
    tested: list[str] = []
    for fold in dataset.folds("label"):
        parts = [set(groups[part]) for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 8
        assert set(dataset.metadata.label[fold.test]) == {"benign", "tumour"}
        tested += parts[2]
    assert sorted(tested) == sorted(set(groups))


def test_labels_csv_overrides_the_folder_and_adds_to_it(flat: Folder) -> None:
    flat.rows = [
        {"file": "tumour/03.png", "class": "necrosis", "Folder": "F1"},
        {"file": "tumour/04.png", "class": "necrosis", "Folder": "F1"},
        {"file": "tumour/05.png", "class": "necrosis", "Folder": "F2"},
        {"file": "tumour/06.png", "class": "", "Folder": "F2"},
    ]
    flat.write_rows()
    dataset = prepared(flat)
    assert dataset.declaration.targets[0].name == "class"
    by_file = dataset.metadata.set_index("file")
    assert list(by_file["class"].value_counts()) == [12, 9, 3]
    assert tuple(by_file.loc["tumour/05.png"]) == ("tumour", "necrosis", "F2")
    assert tuple(by_file.loc["tumour/06.png"]) == ("tumour", "tumour", "F2")
    assert tuple(by_file.loc["benign/00.png"]) == ("benign", "benign", "")


def test_bare_file_names_are_found(flat: Folder) -> None:
    for path in sorted(flat.root.glob("*/*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    for row in flat.rows:
        row["file"] = row["file"].replace("/", "_")
    flat.write_rows()
    dataset = prepared(flat)
    assert dataset.metadata.file[4] == "benign/benign_04.png" and dataset.metadata.group[4] == "b1"


def test_images_without_class_folders_take_everything_from_labels_csv(flat: Folder) -> None:
    for row in flat.rows:
        name = row["file"].replace("/", "_")
        (flat.root / row["file"]).rename(flat.root / name)
        row["file"] = name
    for label in ("benign", "tumour"):
        (flat.root / label).rmdir()
    flat.write_rows()
    dataset = prepared(flat)
    assert set(dataset.metadata.folder) == {""}
    assert list(dataset.metadata.label.value_counts()) == [12, 12]


def test_columns_can_be_named_and_images_without_the_label_only_pretrain(flat: Folder) -> None:
    for i, row in enumerate(flat.rows):
        row["Grade"] = ("low", "high", "")[i % 3]
        row["Patient"] = f"p{i // 2}"
    flat.write_rows()
    dataset = prepared(flat, label="Grade", group="patient")
    (target,) = dataset.declaration.targets
    assert (target.name, target.unit) == ("grade", ("patient",))
    fold = dataset.folds("grade")[0]
    used = np.concatenate([fold.train, fold.validation, fold.test])
    assert len(used) == 16 and len(dataset.pretraining_indices()) == 24


@pytest.mark.parametrize("name", ["val", "validation"])
def test_folders_can_fix_the_split(split: Folder, name: str) -> None:
    for label in ("benign", "tumour"):
        split.draw(*(name_of(f"{name}/{label}", i) for i in range(3)))
    dataset = prepared(split)
    (target,) = dataset.declaration.targets
    assert (target.split, target.split_column, target.unit) == ("fixed", "split", ("file",))
    (fold,) = dataset.folds("label")
    assert [len(part) for part in (fold.train, fold.validation, fold.test)] == [20, 6, 4]
    assert all(dataset.metadata.file[fold.validation].str.startswith(f"{name}/"))
    np.testing.assert_array_equal(dataset.pretraining_indices(), fold.train)


def test_validation_is_taken_from_train_where_none_is_given(split: Folder) -> None:
    dataset = prepared(split)
    (fold,) = dataset.folds("label")
    metadata = dataset.metadata
    assert all(metadata.file[fold.validation].str.startswith("train/"))
    assert list(metadata.label[fold.validation].value_counts()) == [2, 2]
    assert [len(fold.train), len(fold.test)] == [16, 4]
    chosen = set(metadata.file[fold.validation])

    split.draw("train/benign/10.png")  # it may take the place of one other
    more = prepared(split)
    assert len(chosen - set(more.metadata.file[more.folds("label")[0].validation])) <= 1
    np.testing.assert_array_equal(more.pretraining_indices(), more.folds("label")[0].train)


def test_validation_takes_whole_groups(split: Folder) -> None:
    for name in split.images:
        part, label, file = name.split("/")
        split.rows.append(
            {"file": name, "label": label, "group": f"{part}{label}{int(file[:2]) // 3}"}
        )
    split.write_rows()
    dataset = prepared(split)
    (fold,) = dataset.folds("label")
    groups = dataset.metadata.group
    assert fold.unit == ("group",)
    assert not set(groups[fold.validation]) & set(groups[fold.train])
    assert set(dataset.metadata.label[fold.validation]) == {"benign", "tumour"}


def test_labels_csv_can_fix_the_split(flat: Folder) -> None:
    for i, row in enumerate(flat.rows):
        row["Split"] = "test" if i % 12 >= 9 else "train"
    flat.write_rows()
    dataset = prepared(flat, split_column="Split")
    (fold,) = dataset.folds("label")
    metadata = dataset.metadata
    assert set(metadata.group[fold.test]) == {"b3", "t3"} and len(fold.validation) == 6
    assert list(metadata.upstream_split[fold.validation].unique()) == ["train"]
    assert dataset.declaration.pretraining == "train"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "source")
    folder.draw(*(name_of(label, i) for label in ("train", "bus") for i in range(5)))
    assert set(prepared(folder).metadata.label) == {"train", "bus"}


def test_order_does_not_depend_on_the_file_system(
    flat: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examples() -> tuple[Any, ...]:
        plan = find_builder("image_folder").plan_resolved(str(flat.root), "", {})
        return plan.units, plan.files, plan.declaration

    expected, listdir = examples(), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    assert examples() == expected
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), key=hash))
    assert examples() == expected


def test_hidden_and_other_files_are_left_alone(flat: Folder) -> None:
    (flat.root / ".thumbnails").mkdir()
    (flat.root / "benign" / "._00.png").write_bytes(b"")
    (flat.root / "benign" / "notes.txt").write_text("")
    (flat.root / "README.md").write_text("")
    assert len(prepared(flat)) == 24


def test_links_inside_the_source_are_followed(flat: Folder) -> None:
    store = flat.root / ".store"
    store.mkdir()
    (flat.root / "benign" / "00.png").rename(store / "a")
    (flat.root / "benign" / "00.png").symlink_to(store / "a")
    (flat.root / "tumour").rename(store / "tumour")
    (flat.root / "tumour").symlink_to(store / "tumour")
    (flat.root.parent / "link").symlink_to(flat.root)
    dataset = prepared(Folder(flat.root.parent / "link"))
    assert list(dataset.metadata.file) == sorted(flat.images)
    np.testing.assert_array_equal(dataset.source[0]["image"], flat.images["benign/00.png"])


def test_symmetries_can_be_restricted(flat: Folder) -> None:
    dataset = prepared(flat, symmetries="flip", pixel_um="0.5")
    assert dataset.declaration.symmetries == ("flip",) and dataset.declaration.pixel_um == 0.5
    options = {"batch_size": 4, "crop_px": 8, "seed": 0}
    with pytest.raises(InputError, match="augmentation 'rot90' would erase"):
        train_batches(dataset, np.arange(24), flips=True, rotations=True, **options)
    batch = next(train_batches(dataset, np.arange(24), flips=True, rotations=False, **options))
    assert batch["image"].shape == (4, 8, 8, 3)
    assert prepared(flat, symmetries="").declaration.symmetries == ()


def test_nuisance_columns_are_audited(flat: Folder) -> None:
    for i, row in enumerate(flat.rows):
        row["Scanner"] = "Z" if row["label"] == "benign" else "Y"
        row["Focus"] = f"{i * 7 % 24 / 10}"
    flat.write_rows()
    dataset = prepared(flat, nuisance="Scanner,Focus", n_folds=3)
    (target,) = dataset.declaration.targets
    assert dataset.declaration.nuisance == target.audit == ("scanner", "focus")
    found = audit(dataset.metadata, dataset.folds("label"), target)
    assert (found["verdict"], found["columns"]) == ("confounded", ["scanner"])


def test_nuisance_column_of_many_numbers_is_stored_as_numbers(flat: Folder) -> None:
    flat.draw(*(name_of("tumour", i) for i in range(12, 40)))
    flat.rows = [
        {"file": name, "label": "", "Focus": f"{i / 4}", "Order": f"{i}"}
        for i, name in enumerate(flat.images)
    ]
    flat.write_rows()
    metadata = prepared(flat, nuisance="focus").metadata
    assert metadata.focus.dtype == np.float32 and metadata.focus[13] == 3.25
    assert column_levels(metadata.focus)[1][0] == "bin0"  # one rule for both
    assert metadata.order[13] == "13"


def test_target_with_a_unit_an_image_is_scored(flat: Folder, tmp_path: Path) -> None:
    flat.draw(*(name_of("benign", i) for i in range(12, 36)))  # 36 against 12
    dataset = prepared(flat)
    labels = (dataset.metadata.label == "tumour").to_numpy(np.float32)

    def score(features: np.ndarray) -> Any:
        path = tmp_path / "features.h5ad"
        batches = [(np.arange(48), {"a": features})]
        write_table(path, dataset.metadata, {"a": features.shape[1]}, "a", batches, {})
        (found,) = Linear().scores(
            read_table(path), dataset.folds("label"), dataset.declaration.targets[0],
            representation="test", kind="pixels", seed=0, exposure="none",
        )  # fmt: skip
        return found

    rng = np.random.default_rng(0)
    noise = rng.normal(size=(48, 3)).astype(np.float32)
    told = score(labels[:, None])
    assert (told.value, told.chance, told.n_units) == (1.0, 0.5, 48)
    assert set(told.per_unit) == set(dataset.metadata.file)
    guessed = score(noise)
    assert guessed.interval[0] < 0.5 and guessed.settings["per_unit"] == "pseudo-values"
    assert guessed.value == pytest.approx(guessed.other_metrics["balanced_accuracy"], abs=0.01)


# What is wrong with the source -> one line.


def _missing_test(folder: Folder) -> None:
    for path in sorted((folder.root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder.root / "test").rmdir()


def _both_validations(folder: Folder) -> None:
    folder.draw("val/benign/0.png", "validation/benign/0.png")


def _only_in_test(folder: Folder) -> None:
    folder.draw("test/necrosis/0.png")


def _group_in_two_parts(folder: Folder) -> None:
    folder.rows = [{"file": n, "label": "", "group": n.rsplit("/", 1)[1]} for n in folder.images]
    folder.write_rows()


def _no_validation_left(folder: Folder) -> None:
    folder.rows = [{"file": n, "label": "", "group": n.rsplit("/", 1)[0]} for n in folder.images]
    folder.write_rows()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_missing_test, {}, "has train/ but no test/"),
        (_both_validations, {}, "has both val/ and validation/"),
        (lambda f: f.draw("extra/a/0.png"), {}, "extra lies beside the folder train/"),
        (lambda f: f.draw("train/0.png"), {}, "train/0.png lies in no class folder of train/"),
        (lambda f: (f.root / "val").mkdir(), {}, "val has no class folder"),
        (lambda f: (f.root / "test/x").mkdir(), {}, r"class folder \S+/test/x has no image \(.jpg"),
        (_only_in_test, {}, "class 'necrosis' of target 'label' has no training example in fold"),
        (_group_in_two_parts, {}, "puts group '00.png' into test and train"),
        (_no_validation_left, {}, "no part for validation .* a single group in train"),
    ],
)
def test_unusable_split_is_refused_in_one_line(
    split: Folder, change: Callable[[Folder], Any], options: dict[str, Any], message: str
) -> None:
    change(split)
    _refused(split, options, message)


def _rows(change: Callable[[list[dict[str, str]]], Any]) -> Callable[[Folder], None]:
    def apply(folder: Folder) -> None:
        change(folder.rows)
        folder.write_rows()

    return apply


def _without(column: str) -> Callable[[Folder], None]:
    return _rows(lambda rows: [row.pop(column) for row in rows])


def _set(i: int, column: str, value: str) -> Callable[[Folder], None]:
    return _rows(lambda rows: rows[i].__setitem__(column, value))


def _rename(old: str, new: str) -> Callable[[Folder], None]:
    return _rows(lambda rows: [row.__setitem__(new, row.pop(old)) for row in rows])


def _text(folder: Folder, text: bytes) -> None:
    (folder.root / "labels.csv").write_bytes(text)


def _one_class(folder: Folder) -> None:
    for path in (folder.root / "tumour").iterdir():
        path.unlink()
    (folder.root / "tumour").rmdir()


def _link_out(folder: Folder) -> None:
    outside = folder.root.parent / "outside.png"
    (folder.root / "benign" / "00.png").rename(outside)
    (folder.root / "benign" / "00.png").symlink_to(outside)


def _labels_link_out(folder: Folder) -> None:
    folder.write_rows()
    (folder.root / "labels.csv").rename(folder.root.parent / "labels.csv")
    (folder.root / "labels.csv").symlink_to(folder.root.parent / "labels.csv")


def _folder_link_out(folder: Folder) -> None:
    (folder.root / "tumour").rename(folder.root.parent / "tumour")
    (folder.root / "tumour").symlink_to(folder.root.parent / "tumour")


def _link_in(folder: Folder) -> None:
    (folder.root / "tumour" / "99.png").symlink_to(folder.root / "benign" / "00.png")


def _not_utf8(folder: Folder) -> None:
    (folder.root / "benign" / os.fsdecode(b"\xff.png")).touch()


WRITE = _rows(lambda rows: None)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: (f.root / "empty").mkdir(), {}, r"class folder \S+/empty has no image"),
        (lambda f: f.draw("a/b/0.png"), {}, "a/b is a folder inside a class folder; expected"),
        (lambda f: f.draw("0.png"), {}, "0.png lies in no class folder, and labels.csv does not"),
        (_one_class, {}, r"column 'label' holds \['benign'\]; expected two classes"),
        (lambda f: f.draw("rare/0.png"), {}, "class 'rare' has 1 different file; cross-valid"),
        (_link_out, {}, "benign/00.png is a link that leads out of the source"),
        (_labels_link_out, {}, "labels.csv is a link that leads out of the source"),
        (_folder_link_out, {}, "source/tumour is a link that leads out of the source"),
        (_link_in, {}, "benign/00.png and tumour/99.png are one file, by a link"),
        (_not_utf8, {}, "holds a name that is not UTF-8"),
        (_rename("file", "fille"), {}, "labels.csv lacks column 'file'; did you mean 'fille'"),
        (_rename("label", "lable"), {}, "lacks column 'label' or 'class'; did you mean 'lable'"),
        (_set(0, "class", "x"), {}, "has columns 'label' and 'class'"),
        (_rename("Stain", "Group"), {}, "labels.csv: 2 columns come out as 'group'"),
        (_rename("Stain", ""), {}, "labels.csv: column 4 is called ''; expected a plain name"),
        (lambda f: _text(f, b"file,label\na.png\n"), {}, "row 1 has 1 values; the header names 2"),
        (lambda f: _text(f, b""), {}, "labels.csv lacks column 'file'"),
        (lambda f: _text(f, b"file,label\n\xff,a\n"), {}, "labels.csv cannot be read"),
        (_set(3, "file", "benign/02.png"), {}, "row 4 lists 'benign/02.png' again, after row 3"),
        (_set(3, "file", "03.png"), {}, "row 4 names '03.png', and 2 images are called so"),
        (_set(3, "group", ""), {}, "benign/03.png has no group: row 4 of labels.csv has no value"),
        (_rows(lambda rows: rows.pop(3)), {}, "benign/03.png has no group: labels.csv does not"),
        (_set(0, "group", "t0"), {"label": "group"}, "'group' cannot be both label and group"),
        (_rows(lambda r: [x.update(group="a") for x in r]), {}, "'benign' has 1 different group"),
        (WRITE, {"n_folds": 9}, "option n_folds is 9, but there are 8 different group"),
        (WRITE, {"label": "grade"}, "option label: .*labels.csv lacks column 'grade'"),
        (WRITE, {"group": "patients"}, "option group: .*labels.csv lacks column 'patients'"),
        (WRITE, {"split_column": "file"}, "option split_column: .*lacks column 'file'"),
        (WRITE, {"split_column": "Stain"}, "no part of the split: row 1 of .* says 'H&E'; expec"),
        (_set(3, "Stain", ""), {"nuisance": "stian"}, "names 'stian'; did you mean 'stain'"),
        (None, {"group": "patient"}, "names column 'patient', but .*labels.csv is missing"),
        (None, {"channels": "R,R,B"}, "names R,R,B; expected 3 different names"),
        (None, {"crop_px": -1}, "crop_px must be >= 0"),
        (None, {"n_folds": 2}, "n_folds must be >= 3"),
        (None, {"pixel_um": "nan"}, "pixel_um must be >= 0"),
        (None, {"symmetries": "flop"}, r"symmetries \['flop'\] are none of"),
        (None, {"chanels": "R"}, "no option 'chanels'; did you mean 'channels'"),
    ],
)
def test_unusable_source_is_refused_in_one_line(
    flat: Folder,
    change: Callable[[Folder], Any] | None,
    options: dict[str, Any],
    message: str,
) -> None:
    if change is not None:
        change(flat)
    _refused(flat, options, message)


def _refused(folder: Folder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        prepared(folder, **options)
    assert "\n" not in str(error.value)


def test_nuisance_column_must_say_something_of_another_image(flat: Folder) -> None:
    for row in flat.rows:
        row["id"] = row["file"]
    flat.write_rows()
    _refused(flat, {"nuisance": "id"}, "column 'id' has another value for every image")


def test_missing_source_is_named(tmp_path: Path) -> None:
    builder = find_builder("image_folder")
    with pytest.raises(InputError, match="needs a source"):
        builder.plan_resolved("", "", {})
    with pytest.raises(InputError, match=f"source {tmp_path}/nowhere is not a folder"):
        builder.plan_resolved(str(tmp_path / "nowhere"), "", {})
    with pytest.raises(InputError, match="has no class folder with images"):
        builder.plan_resolved(str(tmp_path), "", {})


# What is wrong with one image -> its name, or its absence.

BAD = "benign/05.png"


def _truncated(folder: Folder) -> None:
    path = folder.root / BAD
    path.write_bytes(path.read_bytes()[:-200])


def _cut_in_the_header(folder: Folder) -> None:
    path = folder.root / BAD
    path.write_bytes(path.read_bytes()[:10])


def _transparent(folder: Folder) -> None:
    Image.fromarray(np.full((H, W, 4), 254, np.uint8)).save(folder.root / BAD)


def _palette(folder: Folder) -> None:
    Image.fromarray(np.zeros((H, W), np.uint8)).convert("P").save(folder.root / BAD)


def _broken_link(folder: Folder) -> None:
    (folder.root / BAD).unlink()
    (folder.root / BAD).symlink_to(folder.root / "nowhere.png")


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_truncated, "cannot be decoded"),
        (_cut_in_the_header, "is not a readable image"),
        (lambda f: (f.root / BAD).write_bytes(b""), "is not a readable image"),
        (lambda f: f.draw(BAD, shape=(H, W - 1, 3)), "is 12 x 15 px; the others are 12 x 16 px"),
        (lambda f: f.draw(BAD, shape=(H, W)), "is grey of uint8; the others are RGB of uint8"),
        (lambda f: f.draw(BAD, shape=(H, W), dtype="uint16"), "is grey of uint16; the others"),
        (_transparent, "has transparent pixels"),
        (_palette, "is of mode P; expected grey or RGB"),
        (_broken_link, "is no file, or a link to none"),
    ],
)
def test_bad_image_is_named_or_quarantined(
    flat: Folder, change: Callable[[Folder], Any], why: str, listed: bool
) -> None:
    if listed:
        flat.write_rows()
    change(flat)
    with pytest.raises(InputError) as error:
        prepared(flat)
    message = str(error.value)
    assert message.startswith(f"{BAD} (row 6 of the index): " if listed else f"{BAD}: ")
    assert why in message and "\n" not in message

    dataset = prepared(flat, on_bad_image="skip")
    assert len(dataset) == 23 and BAD not in set(dataset.metadata.file)
    with (dataset.directory / "bad_images.csv").open(newline="") as quarantined:
        (row,) = csv.DictReader(quarantined)
    assert (row["file"], row["row"]) == (BAD, "6" if listed else "0") and why in row["why"]


@pytest.mark.parametrize("file", ["nowhere.png", "../outside.png", "/etc/hostname"])
def test_image_that_is_only_listed_is_named_or_left_out(flat: Folder, file: str) -> None:
    (flat.root.parent / "outside.png").write_bytes((flat.root / BAD).read_bytes())
    flat.rows.append({**flat.rows[0], "file": file})
    flat.write_rows()
    _refused(flat, {}, rf"^{file} \(row 25 of the index\): is missing: no image of the source")
    assert len(prepared(flat, on_bad_image="skip")) == 24


def test_image_smaller_than_the_crop_is_named(flat: Folder) -> None:
    flat.draw(BAD, shape=(H, 7, 3))
    _refused(flat, {"crop_px": 8}, f"{BAD}: is 12 x 7 px; expected crop_px=8 or more")
    assert len(prepared(flat, on_bad_image="skip", crop_px=8)) == 23
    _refused(flat, {"crop_px": 99}, "none of the images .* can be used: benign/00.png is 12 x 16")


def _separate_images(path: Path) -> None:
    for _ in range(2):
        tifffile.imwrite(path, np.zeros((H, W), np.uint8), append=True)


def _truncated_tiff(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((H, W), np.uint16), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:-50])


def _png_of_16_bit_colour(path: Path) -> None:
    """Pillow reads such a file but has no writer for it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    lines = H * (b"\0" + 6 * W * b"\x12")  # a filter byte, then 3 channels of 2 bytes
    chunks = [(b"IHDR", header), (b"IDAT", compress(lines)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)
    path.with_suffix(".png").write_bytes(png)
    with Image.open(path.with_suffix(".png")) as image:
        assert np.asarray(image).dtype == np.uint8  # the reason why it is refused


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda p: tifffile.imwrite(p, np.zeros((H, W), np.float32)), "12 x 16 of float32"),
        (lambda p: tifffile.imwrite(p, np.zeros((2, 5, H, W), np.uint16)), "has axes QQYX of 2"),
        (lambda p: tifffile.imwrite(p, np.zeros((5, H, W), np.uint16)), "is 5 channels of uint16"),
        (_separate_images, "holds 2 separate images"),
        (
            lambda p: Image.fromarray(np.zeros((H, W), np.uint8)).convert("P").save(p),
            "is a TIFF of kind PALETTE",
        ),
        (_truncated_tiff, "cannot be decoded"),
        (_png_of_16_bit_colour, "is a PNG of 16-bit colour"),
    ],
)
def test_unsuitable_image_among_tiffs_is_named(
    tmp_path: Path, write: Callable[[Path], Any], why: str
) -> None:
    folder = Folder(tmp_path / "source")
    for label in "ab":
        folder.draw(*(name_of(label, i, ".tif") for i in range(5)), shape=(H, W), dtype="uint16")
    write(folder.root / "a" / "x.tif")
    _refused(folder, {}, rf"^a/x\.(tif|png): .*{why}")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (_truncated, "", "benign/05.png: cannot be decoded"),
        (_set(24, "file", "x.png"), "", "x.png (row 25 of the index): is missing"),
        (None, "group=patient", "names column 'patient', but"),
        (None, "channels=A,B", "names A,B; expected 3 different names"),
    ],
)
def test_mistake_ends_the_command_line_with_status_2(
    flat: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    change: Callable[[Folder], Any] | None,
    options: str,
    message: str,
) -> None:
    flat.rows.append({**flat.rows[0], "file": "x.png"})
    if change is not None:
        change(flat)
    arguments = tiny.arguments(
        tmp_path / "prepared", tmp_path / "run", data__name="image_folder",
        data__source=str(flat.root), data__options=options,
    )  # fmt: skip
    assert main([*arguments, "--dry_run"]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert message in line


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the real sets are prepared, once for all tests of them."""
    return tmp_path_factory.mktemp("prepared")


def readme_command(module: str, source: Path, out: Path) -> list[str]:
    """The words after `module` of the README's command for a source, with these paths."""
    (words,) = (
        words for words in readme.commands(README)
        if module in words and any(word.endswith(f"PATH/{source.name}") for word in words)
    )  # fmt: skip
    words = [word.replace("PATH", str(source.parent)) for word in words]
    return [word.replace("=prepared", f"={out}") for word in words[words.index(module) + 1 :]]


def run_prepare(source: Path, out: Path, capsys: pytest.CaptureFixture) -> Dataset:
    assert prepare_module.main(readme_command("bioimg_jax.prepare", source, out)) == 0
    return open_dataset(capsys.readouterr().out.strip())


@pytest.mark.data
def test_real_tissue_is_split_by_source_tile(
    data_dir: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = run_prepare(data_dir / "lc25000_colon", out, capsys)
    assert len(dataset) == 943 and dataset.declaration.channels == ("R", "G", "B")
    (target,) = dataset.declaration.targets
    assert (target.unit, target.metric, target.n_folds) == (("group",), "balanced_accuracy", 5)
    groups = dataset.metadata.group
    assert groups.nunique() == 491
    tested = []
    for fold in dataset.folds("label"):
        parts = [set(groups[part]) for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 491
        assert len(fold.train) + len(fold.validation) + len(fold.test) == 943
        tested.append(fold.test)
    np.testing.assert_array_equal(np.sort(np.concatenate(tested)), np.arange(943))
    for image in dataset.source.read([0, 500, 942]):
        assert image.shape == (224, 224, 3) and image.std((0, 1)).min() > 0


@pytest.mark.data
def test_real_natural_images_keep_their_split(
    data_dir: Path, out: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = run_prepare(data_dir / "cifar10_subset", out, capsys)
    assert len(dataset) == 7500 and dataset.declaration.symmetries == ("flip",)
    (target,) = dataset.declaration.targets
    assert (target.split, target.unit, target.metric) == ("fixed", ("file",), "balanced_accuracy")
    (fold,) = dataset.folds("label")
    metadata = dataset.metadata
    for part, folder, a_class in (("train", "train", 480), ("validation", "train", 120),
                                  ("test", "test", 150)):  # fmt: skip
        rows = getattr(fold, part)
        assert all(metadata.file[rows].str.startswith(f"{folder}/"))
        assert list(metadata.label[rows].value_counts()) == [a_class] * 10
    np.testing.assert_array_equal(dataset.pretraining_indices(), fold.train)
    for image in dataset.source.read([0, 4000, 7499]):
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8


@pytest.mark.data
def test_training_command_of_the_readme_is_accepted(
    data_dir: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = readme_command("bioimg_jax.main", data_dir / "cifar10_subset", out)
    words += [f"--config.data.out={out}", f"--workdir={tmp_path}", "--dry_run"]
    assert main(["bioimg_jax.main", *words]) == 0
    printed = capsys.readouterr().out
    assert "label, fixed: 4,800 train, 1,200 validation, 1,500 test" in printed

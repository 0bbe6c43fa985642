"""Anyone's images in class folders, with or without a fixed split, groups and a labels.csv.

`folders.py` beside this file finds the images, `labels.py` gives them metadata and `reading.py`
opens them; here they are checked and the target and its split declared.
"""

import collections
import concurrent.futures
import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from bioimg_jax.data import splits
from bioimg_jax.data.builders import BadImage, Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.data.levels import is_numeric
from bioimg_jax.errors import InputError

from .folders import find_images
from .labels import LABELS, Metadata, closest, first_line, read_metadata, stored_name
from .reading import Header, UnsupportedImage, read_header, read_image

VALIDATION_SHARE = 5  # one unit in five of each class, where no validation is given
MIN_UNITS = 3  # of a class in cross-validation: for train, validation and test


class Builder(ImageDatasetBuilder):
    """`<source>/<class>/*` or `<source>/{train,validation,test}/<class>/*`; a unit is a file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="images", description="one example an image file"),
    ]
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "crop_px": 0,  # a square from the middle; 0: the whole image, all of one size
        "channels": (),  # names in the order of the file; empty: grey, or R, G, B
        "label": "",  # column of labels.csv; empty: label or class, else the folder
        "group": "",  # column of labels.csv with the unit of independence; empty: group
        "split_column": "",  # column of labels.csv that says train, validation or test
        "n_folds": 5,  # of cross-validation, where no split is given
        "nuisance": (),  # columns that are technique, not biology
        "symmetries": ("flip", "rot90"),  # augmentations that keep every label
        "pixel_um": 0.0,  # 0: not known
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if not source:
            raise InputError("data set 'image_folder' needs a source: the folder of class folders")
        _check_options(options)
        root = Path(source)
        found = find_images(root)
        metadata = read_metadata(root, found, options)
        good, bad, usual = _check_files(root, metadata, options["crop_px"])
        channels = _channels(usual, options["channels"])
        table = metadata.table.iloc[good].reset_index(drop=True)
        if metadata.split:
            table["split"] = _with_validation(table, metadata)
        nuisance = _nuisance(table, metadata, options["nuisance"])
        target = _target(table, metadata, nuisance, options["n_folds"])
        splits.make_folds(table, target)  # what is wrong with the split shows before decoding
        kinds = dict.fromkeys(table.columns, "text")
        for column in nuisance:
            if _are_numbers(table[column]) and is_numeric(numbers := table[column].astype(float)):
                table[column], kinds[column] = numbers, "float"
        files = [file.name for file in found if (root / file.name).is_file()]
        return Plan(
            declaration=Declaration(
                name="image_folder",
                channels=channels,
                pixel_um=options["pixel_um"] or None,
                targets=(target,),
                nuisance=nuisance,
                symmetries=options["symmetries"],
                pretraining="train" if metadata.split else "all",
            ),
            metadata=kinds,
            dtype=usual.dtype,
            units=tuple(
                Unit(record["file"], {"row": metadata.rows[i], "metadata": record})
                for i, record in zip(good, table.to_dict("records"), strict=True)
            ),
            options=dict(options),
            shared={
                "root": str(root),
                "crop_px": options["crop_px"],
                "shape": (usual.height, usual.width, usual.channels),
                "dtype": usual.dtype,
            },
            root=str(root),
            files=(LABELS, *files) if (root / LABELS).is_file() else tuple(files),
            bad=(*metadata.missing, *bad),
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        name, row, metadata = unit.key, unit.data["row"], unit.data["metadata"]
        crop_px, expected = shared["crop_px"], tuple(shared["shape"])
        try:
            image = read_image(Path(shared["root"]) / name)
        except UnsupportedImage as error:
            raise BadImage(name, row, str(error)) from error
        except Exception as error:  # decoders raise a dozen types for a broken file
            raise BadImage(name, row, f"cannot be decoded ({first_line(error)})") from error
        if crop_px and min(image.shape[:2]) >= crop_px:
            top, left = ((size - crop_px) // 2 for size in image.shape[:2])
            image = image[top : top + crop_px, left : left + crop_px]
            expected = (crop_px, crop_px, expected[2])
        if image.shape != expected or image.dtype != np.dtype(shared["dtype"]):
            raise BadImage(name, row, f"decodes to {image.dtype} {image.shape}")
        return [(metadata, np.ascontiguousarray(image))]


def _check_options(options: Mapping[str, Any]) -> None:
    if options["crop_px"] < 0:
        raise InputError(f"image_folder option crop_px must be >= 0, not {options['crop_px']}")
    if options["n_folds"] < 3:
        raise InputError(
            "image_folder option n_folds must be >= 3, for training, validation and test, not "
            f"{options['n_folds']}"
        )
    if not (math.isfinite(options["pixel_um"]) and options["pixel_um"] >= 0):
        raise InputError(f"image_folder option pixel_um must be >= 0, not {options['pixel_um']}")


def _check_files(
    root: Path, metadata: Metadata, crop_px: int
) -> tuple[list[int], list[BadImage], Header]:
    """Positions of good images, bad ones, and what most images are, from the headers alone."""
    names = list(metadata.table["file"])
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        headers = list(threads.map(lambda name: _header(root / name), names))
    readable = [header for header in headers if isinstance(header, Header)]
    if not readable:
        raise InputError(f"none of the images in {root} can be used: {names[0]} {headers[0]}")
    kind = collections.Counter(header.kind for header in readable).most_common(1)[0][0]
    alike = [header for header in readable if header.kind == kind]
    usual = collections.Counter(alike).most_common(1)[0][0]
    good, bad = [], []
    for i, header in enumerate(headers):
        if why := _problem(header, usual, crop_px):
            bad.append(BadImage(names[i], metadata.rows[i], why))
        else:
            good.append(i)
    if not good:
        raise InputError(f"none of the images in {root} can be used: {bad[0].file} {bad[0].why}")
    return good, bad, usual


def _header(path: Path) -> Header | str:
    """Header of an image file, or what is wrong with it."""
    try:
        return read_header(path) if path.is_file() else "is no file, or a link to none"
    except UnsupportedImage as error:
        return str(error)
    except Exception as error:  # any of a dozen types, for a file that is no image
        return f"is not a readable image ({first_line(error)})"


def _problem(header: Header | str, usual: Header, crop_px: int) -> str:
    if isinstance(header, str):
        return header
    size = f"is {header.height} x {header.width} px"
    if header.kind != usual.kind:
        return f"is {header.kind}; the others are {usual.kind}"
    if crop_px:
        small = min(header.height, header.width) < crop_px
        return f"{size}; expected crop_px={crop_px} or more" if small else ""
    if header != usual:
        return (
            f"{size}; the others are {usual.height} x {usual.width} px (option crop_px takes a "
            "square from the middle of each)"
        )
    return ""


def _channels(usual: Header, wanted: tuple[str, ...]) -> tuple[str, ...]:
    if wanted:
        if len(wanted) != usual.channels or len(set(wanted)) < len(wanted):
            raise InputError(
                f"option channels names {','.join(wanted)}; expected {usual.channels} different "
                "names, one for each channel of the images"
            )
        return wanted
    if usual.colour:
        return ("R", "G", "B")
    if usual.channels == 1:
        return ("grey",)
    raise InputError(
        f"the images have {usual.channels} channels; expected their names, in the order of the "
        "file, as option channels"
    )


def _with_validation(table: pd.DataFrame, metadata: Metadata) -> pd.Series:
    """The split; where no image is for validation, with some units moved there from train.

    Whole units, one in five of each class (at least one of two, none of one), chosen by a hash of
    their names: an image more or less in the source hardly changes where the others go.
    """
    split, unit = table["split"], metadata.unit
    if "validation" in set(split):
        return split
    strata: dict[tuple[str, ...], list[str]] = {}
    labelled = table[(split == "train") & (table[metadata.label] != "")]
    for name, labels in labelled.groupby(unit)[metadata.label]:
        strata.setdefault(tuple(sorted(set(labels))), []).append(str(name))
    moved: set[str] = set()
    for units in strata.values():
        share = max(len(units) // VALIDATION_SHARE, min(1, len(units) - 1))
        moved.update(sorted(units, key=lambda name: hashlib.sha256(name.encode()).digest())[:share])
    if strata and not moved:
        raise InputError(
            f"no part for validation is given, and every class has a single {unit} in train"
        )
    return split.mask((split == "train") & table[unit].isin(moved), "validation")


def _nuisance(table: pd.DataFrame, metadata: Metadata, wanted: Iterable[str]) -> tuple[str, ...]:
    special = ("file", "split", metadata.label)
    known = [column for column in table.columns if column not in special]
    columns = []
    for given in wanted:
        column = "folder" if given == "folder" else stored_name(given)
        if column not in known:
            raise InputError(f"option nuisance names {given!r}{closest(column, known)}")
        if table[column].is_unique and not _are_numbers(table[column]):
            raise InputError(f"option nuisance: column {given!r} has another value for every image")
        columns.append(column)
    return tuple(dict.fromkeys(columns))


def _target(
    table: pd.DataFrame, metadata: Metadata, nuisance: tuple[str, ...], n_folds: int
) -> Target:
    """The label, by the split that is given or with whole units held out."""
    label, unit, split = metadata.label, metadata.unit, metadata.split
    labelled = table[table[label] != ""]
    units = labelled.groupby(label)[unit].nunique()
    if len(units) < 2:
        raise InputError(
            f"column {label!r} holds {list(units.index)}; expected two classes or more"
        )
    if not split:
        for name, count in units.items():
            if count < MIN_UNITS:
                raise InputError(
                    f"class {name!r} has {count} different {unit}; cross-validation needs "
                    f"{MIN_UNITS} or more, for training, validation and test"
                )
        if labelled[unit].nunique() < n_folds:
            raise InputError(
                f"option n_folds is {n_folds}, but there are {labelled[unit].nunique()} different "
                f"{unit} to deal into folds"
            )
    return Target(
        name=label,
        column=label,
        unit=(unit,),
        split="fixed" if split else "k_fold",
        n_folds=0 if split else n_folds,
        split_column=split,
        audit=nuisance,
    )


def _are_numbers(values: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False

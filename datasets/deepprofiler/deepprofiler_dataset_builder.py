"""Any DeepProfiler project: `inputs/metadata/index.csv`, `inputs/images`, `inputs/locations`."""

import collections
import concurrent.futures
import csv
import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
import tifffile
from PIL import Image

from bioimg_jax.data import splits
from bioimg_jax.data.builders import BadImage, Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

INDEX = "inputs/metadata/index.csv"
IMAGES = "inputs/images"
LOCATIONS = "inputs/locations"
REQUIRED = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
CENTRE = ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y")
TIFF = (".tif", ".tiff")
IMAGE = (".png", *TIFF)
# Pillow's modes for grey images. It opens 16-bit PNG in one of several, some of 32 bits.
PNG_MODES = {"L": "uint8", "I": "uint16", "I;16": "uint16", "I;16B": "uint16", "I;16L": "uint16"}

# Columns that we derive; an upstream column of the same name is kept as upstream_<name>.
DERIVED = {
    "field": "text",
    "row": "text",
    "column": "int",
    "is_control": "bool",
    "x": "float",
    "y": "float",
    "edge_distance": "float",
}
AUDIT = ("plate", "batch", "well", "row", "column", "site", "edge_distance")
FOLDS = 3


class Builder(ImageDatasetBuilder):
    """Crops around nuclei (`cells`) or tiles of whole fields (`fields`)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="cells", description="a crop around each nucleus centre"),
        tfds.core.BuilderConfig(name="fields", description="tiles that cover each field"),
    ]
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "crop_px": 64,
        "channels": (),  # columns of index.csv; empty: all that hold image file names
        "label": "",  # column of the treatment; empty: the first text column besides Metadata_*
        "control": "",  # its value for untreated wells; empty: DMSO where there is one
        "split_column": "",  # column that says train, validation or test; empty: by plate
        "pixel_um": 0.0,  # 0: not known
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if not source:
            raise InputError("data set 'deepprofiler' needs a source: the folder with inputs/")
        if options["crop_px"] < 1:
            raise InputError(f"deepprofiler option crop_px must be >= 1, not {options['crop_px']}")
        root = Path(source)
        index = _read_index(root)
        channels = _channels(index, options["channels"])
        table, kinds = _field_metadata(index, channels)
        label = _label_column(index, table, channels, options["label"])
        control = _control_value(table, label, options["control"])
        table["is_control"] = (table[label] == control) if label and control else False
        locations = _location_files(table) if config == "cells" else []
        good, bad, size, dtype = _check_files(root, index, channels, locations)
        table = table.iloc[good]
        declaration = _declare(table, channels, label, control, options)
        for target in declaration.targets:
            splits.make_folds(table, target)  # what is wrong with a split shows before decoding
        units = []
        for row, record in zip(good, table.to_dict("records"), strict=True):
            data = {
                "row": row + 1,
                "images": [f"{IMAGES}/{index[channel].iloc[row]}" for channel in channels],
                "locations": locations[row] if locations else "",
                "metadata": record,
            }
            units.append(Unit(f"{row:08d}", data))
        used = index[list(channels)].to_numpy().ravel()
        files = (INDEX, *(f"{IMAGES}/{name}" for name in used if name), *locations)
        return Plan(
            declaration=declaration,
            metadata={**kinds, **DERIVED},
            dtype=dtype,
            units=tuple(units),
            options=dict(options),
            shared={"root": str(root), "crop_px": options["crop_px"], "size": size, "dtype": dtype},
            root=str(root),
            files=tuple(files),
            bad=tuple(bad),
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        root, crop_px = Path(shared["root"]), shared["crop_px"]
        row, metadata = unit.data["row"], unit.data["metadata"]
        channels = []
        for name in unit.data["images"]:
            try:
                channel = _decode(root / name)
            except Exception as error:  # decoders raise a dozen types for a broken file
                why = f"cannot be decoded ({_first_line(error)})"
                raise BadImage(name, row, why) from error
            if channel.shape != tuple(shared["size"]) or channel.dtype != np.dtype(shared["dtype"]):
                raise BadImage(name, row, f"decodes to {channel.dtype} {channel.shape}")
            channels.append(channel)
        field = np.stack(channels, axis=-1)  # [h, w, c]
        height, width = field.shape[:2]
        if unit.data["locations"]:
            centres = _read_centres(root, unit.data["locations"], row, (height, width))
            # The centre's pixel, halves rounded up, is pixel crop_px // 2 of its crop.
            corners = [
                (_round(y, height) - crop_px // 2, _round(x, width) - crop_px // 2)
                for x, y in centres
            ]
        else:
            corners = [
                (top, left)
                for top in range(0, height, crop_px)
                for left in range(0, width, crop_px)
            ]
            middle = (crop_px - 1) / 2
            centres = [(left + middle, top + middle) for top, left in corners]
        # Reflected rather than dropped at the edge: the cells there are not a random sample.
        padded = np.pad(field, ((crop_px, crop_px), (crop_px, crop_px), (0, 0)), mode="reflect")
        examples = []
        for (x, y), (top, left) in zip(centres, corners, strict=True):
            image = padded[top + crop_px : top + 2 * crop_px, left + crop_px : left + 2 * crop_px]
            edge = max(0.0, min(x, y, width - 1 - x, height - 1 - y))
            place = {"x": x, "y": y, "edge_distance": edge}
            examples.append(({**metadata, **place}, np.ascontiguousarray(image)))
        return examples


def _read_index(root: Path) -> pd.DataFrame:
    """index.csv as text, nothing turned into numbers or missing values."""
    path = root / INDEX
    if not root.is_dir():
        raise InputError(f"source {root} is not a folder")
    if not path.is_file():
        raise InputError(f"{path} is missing: the source must be a DeepProfiler project")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, skipinitialspace=True) if line]
    except (ValueError, OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}") from error
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    for column, count in collections.Counter(header).items():
        if count > 1:
            raise InputError(f"{path}: {count} columns are called {column!r}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} values; the header names {len(header)}"
            )
    index = pd.DataFrame(rows, columns=pd.Index(header, dtype=object), dtype=object)
    for column in REQUIRED:
        if column not in index.columns:
            raise InputError(f"{path} lacks column {column!r}{_closest(column, index.columns)}")
        empty = np.flatnonzero(index[column] == "")
        if len(empty):
            raise InputError(f"{path}: row {empty[0] + 1} has no value in column {column!r}")
    if not len(index):
        raise InputError(f"{path} has no row")
    twice = np.flatnonzero(index.duplicated(list(REQUIRED)))
    if len(twice):
        where = "/".join(index[list(REQUIRED)].iloc[twice[0]])
        raise InputError(f"{path}: row {twice[0] + 1} lists field {where} again")
    return index


def _channels(index: pd.DataFrame, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that hold image file names, in column order, or the ones asked for."""
    found = []
    for column in index.columns:
        if not column.startswith("Metadata_") and _holds_images(index[column]):
            found.append(column)
    if not found:
        raise InputError(f"{INDEX} has no column of image file names ({', '.join(IMAGE)})")
    if not wanted:
        return tuple(found)
    have = f"{INDEX} has {len(found)} image columns: {', '.join(found)}"
    for channel in wanted:
        if channel not in found:
            raise InputError(f"option channels names {channel!r}, but {have}")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"option channels names a channel twice: {','.join(wanted)}; {have}")
    return wanted


def _holds_images(values: Iterable[str]) -> bool:
    """Whether most values are image file names; the others are then bad images."""
    names = [value.lower() for value in values if value]
    return sum(name.endswith(IMAGE) for name in names) > len(names) / 2


def _field_metadata(
    index: pd.DataFrame, channels: Iterable[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row a field: lower-case column names, values as they stand; and their types."""
    columns: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for column in index.columns:
        values = list(index[column])
        if column in channels or _holds_images(values):
            continue
        name = column.removeprefix("Metadata_").lower()
        if name in DERIVED or name == "image":
            name = f"upstream_{name}"
        if name in columns:
            raise InputError(f"{INDEX}: two columns come out as {name!r}, {column!r} is one")
        columns[name], kinds[name] = values, "text"
    if all(re.fullmatch(r"0|[1-9]\d*", value) for value in columns["site"]):
        columns["site"], kinds["site"] = [int(value) for value in columns["site"]], "int"
    fields = zip(columns["plate"], columns["well"], index["Metadata_Site"], strict=True)
    columns["field"] = ["/".join(field) for field in fields]
    positions = [_well_position(well) for well in columns["well"]]
    columns["row"], columns["column"] = (list(part) for part in zip(*positions, strict=True))
    return pd.DataFrame(columns), kinds


def _well_position(well: str) -> tuple[str, int]:
    """ "B07" -> ("B", 7), "r02c07" -> ("B", 7); ("", 0) for names of another form."""
    if match := re.fullmatch(r"[rR](\d+)[cC](\d+)", well):
        number, letters = int(match[1]), ""
        while number > 0:
            number, letter = divmod(number - 1, 26)
            letters = chr(ord("A") + letter) + letters
        return letters, int(match[2])
    if match := re.fullmatch(r"([A-Za-z]{1,2})-?(\d+)", well):
        return match[1].upper(), int(match[2])
    return "", 0


def _label_column(
    index: pd.DataFrame, table: pd.DataFrame, channels: Iterable[str], wanted: str
) -> str:
    """The treatment's metadata column, "" where there is none."""
    if wanted:
        name = wanted.removeprefix("Metadata_").lower()
        if name not in table.columns or name in DERIVED:
            raise InputError(
                f"{INDEX} lacks label column {wanted!r}{_closest(name, table.columns)}"
            )
        return name
    for column in index.columns:
        name = column.lower()
        if column.startswith("Metadata_") or name not in table.columns or name in DERIVED:
            continue
        if not all(_is_number(value) for value in table[name] if value):
            return name
    return ""


def _control_value(table: pd.DataFrame, label: str, wanted: str) -> str:
    values = set(table[label]) if label else set()
    if wanted and wanted not in values:
        where = f"label column {label!r}" if label else "the index, which has no label column"
        raise InputError(f"control {wanted!r} does not occur in {where}{_closest(wanted, values)}")
    return wanted or next((value for value in sorted(values) if value.upper() == "DMSO"), "")


def _location_files(table: pd.DataFrame) -> list[str]:
    fields = (table["plate"], table["well"], table["site"])
    return [f"{LOCATIONS}/{p}/{w}-{s}-Nuclei.csv" for p, w, s in zip(*fields, strict=True)]


def _check_files(
    root: Path, index: pd.DataFrame, channels: tuple[str, ...], locations: list[str]
) -> tuple[list[int], list[BadImage], tuple[int, int], str]:
    """Good rows, bad ones, and the size and type most images have, from the headers alone."""
    names = index[list(channels)].to_numpy()  # [rows, channels]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        flat = list(threads.map(lambda name: _header(root, name), names.ravel()))
    headers = [flat[i : i + len(channels)] for i in range(0, len(flat), len(channels))]
    kinds = collections.Counter(h for h in flat if not isinstance(h, str))
    if not kinds:
        raise InputError(f"none of the images of {root / INDEX} can be used: the first {flat[0]}")
    usual = kinds.most_common(1)[0][0]
    good, bad = [], []
    for row, row_headers in enumerate(headers):
        problems = [
            (f"{IMAGES}/{name}" if name else f"{INDEX}, column {channel}", why)
            for channel, name, header in zip(channels, names[row], row_headers, strict=True)
            if (why := _problem(header, usual))
        ]
        if locations and not (root / locations[row]).is_file():
            problems.append((locations[row], "is missing; it should list the nucleus centres"))
        if problems:
            bad += [BadImage(file, row + 1, why) for file, why in problems]
        else:
            good.append(row)
    return good, bad, (usual.height, usual.width), usual.dtype


@dataclasses.dataclass(frozen=True)
class _Header:
    height: int
    width: int
    dtype: str


def _header(root: Path, name: str) -> _Header | str:
    """Size and type of an image file, or what is wrong with it."""
    path = root / IMAGES / name
    if not name:
        return "has no file name"
    if path.suffix.lower() not in IMAGE:
        return f"is none of {', '.join(IMAGE)}"
    try:
        if not path.is_file():
            return "is missing"
        if path.suffix.lower() in TIFF:
            with tifffile.TiffFile(path) as tiff:
                shape, dtype = tiff.series[0].shape, str(tiff.series[0].dtype)
        else:
            with Image.open(path) as image:
                shape, dtype = (image.height, image.width), PNG_MODES.get(image.mode, image.mode)
    except Exception as error:  # any of a dozen types, for a file that is no image
        return f"is not a readable image ({_first_line(error)})"
    if len(shape) != 2 or dtype not in ("uint8", "uint16"):
        return f"is {' x '.join(map(str, shape))} of {dtype}; expected one channel of 8 or 16 bits"
    return _Header(*shape, dtype)


def _problem(header: _Header | str, usual: _Header) -> str:
    if isinstance(header, str):
        return header
    if header != usual:
        return (
            f"is {header.height} x {header.width} {header.dtype}; the others are "
            f"{usual.height} x {usual.width} {usual.dtype}"
        )
    return ""


def _decode(path: Path) -> np.ndarray:
    """One channel [h, w], uint8 or uint16."""
    if path.suffix.lower() in TIFF:
        return np.asarray(tifffile.imread(path))
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint16)


def _read_centres(
    root: Path, name: str, index_row: int, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Nucleus centres (x, y) in px, x to the right and y down, 0 at the first pixel's centre."""
    try:
        with (root / name).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, records = reader.fieldnames or (), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise BadImage(name, index_row, f"cannot be read ({_first_line(error)})") from error
    for column in CENTRE:
        if column not in columns:
            raise InputError(f"{root / name} lacks column {column!r}")
    centres = []
    for row, record in enumerate(records, start=1):
        try:
            x, y = (float(record[column]) for column in CENTRE)
        except (TypeError, ValueError):
            raise InputError(
                f"{root / name}: row {row} has no numbers in {' and '.join(CENTRE)}"
            ) from None
        if not (0 <= x <= size[1] and 0 <= y <= size[0]):  # nor is NaN
            why = (
                f"row {row} puts a nucleus at x={x:g}, y={y:g}, outside the image of "
                f"{size[1]} x {size[0]} px"
            )
            raise BadImage(name, index_row, why)
        centres.append((x, y))
    return centres


def _declare(
    table: pd.DataFrame,
    channels: tuple[str, ...],
    label: str,
    control: str,
    options: Mapping[str, Any],
) -> Declaration:
    """Targets that follow from the metadata alone; what cannot be tested is not declared."""
    audit = tuple(column for column in AUDIT if column in table.columns or column in DERIVED)
    plates = table["plate"].nunique()
    targets = []
    if split_column := options["split_column"].removeprefix("Metadata_").lower():
        if split_column not in table.columns:
            raise InputError(
                f"split column {options['split_column']!r} is not in {INDEX}"
                f"{_closest(split_column, table.columns)}"
            )
        if not label:
            raise InputError(f"a split column needs a label column, and {INDEX} has none")
        targets.append(
            Target(label, label, ("plate",), "fixed", split_column=split_column, audit=audit)
        )
    elif label and plates >= 3:
        where = _frequent(table[table[label] != ""], label, "plate", 3)
        if where is not None:
            targets.append(
                Target(label, label, ("plate",), "leave_one_out", where=where, audit=audit)
            )
    if control and plates >= 3:
        controls = table[table[label] == control]
        spread = controls.groupby("well")["plate"].nunique()
        wells = tuple(sorted(spread.index[spread == plates]))
        if len(wells) >= 2:
            where = ((label, (control,)), ("well", wells))
            targets.append(
                Target(
                    "position_control",
                    "well",
                    ("plate",),
                    "leave_one_out",
                    where=where,
                    audit=audit,
                )
            )
    for column in ("plate", "well"):
        where = _frequent(table, column, "field", FOLDS)
        if where is not None:
            targets.append(
                Target(
                    column,
                    column,
                    ("field",),
                    "k_fold",
                    n_folds=FOLDS,
                    nuisance=True,
                    where=where,
                    metric="accuracy",
                )
            )
    return Declaration(
        name="deepprofiler",
        channels=channels,
        pixel_um=options["pixel_um"] or None,
        targets=tuple({target.name: target for target in reversed(targets)}.values())[::-1],
        nuisance=audit,
        symmetries=("flip", "rot90"),
        pretraining="train" if split_column else "all",
    )


def _frequent(
    table: pd.DataFrame, column: str, unit: str, at_least: int
) -> tuple[tuple[str, tuple[str, ...]], ...] | None:
    """A filter for the classes with enough units to be in every part of a split.

    () where all classes are; None where fewer than two are.
    """
    counts = table.groupby(column)[unit].nunique()
    enough = tuple(sorted(counts.index[counts >= at_least]))
    if len(enough) < 2:
        return None
    return () if len(enough) == len(counts) else ((column, enough),)


def _round(position: float, size: int) -> int:
    return min(math.floor(position + 0.5), size - 1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _closest(word: str, known: Iterable[str]) -> str:
    names = sorted(map(str, known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names[:20])}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

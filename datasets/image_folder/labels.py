"""The metadata of every image: from the folders, and from labels.csv where there is one."""

import collections
import csv
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bioimg_jax.data.builders import BadImage
from bioimg_jax.errors import InputError

from .folders import PARTS, File, check_link

LABELS = "labels.csv"
# Columns that we derive; an upstream column of the same name is kept as upstream_<name>.
DERIVED = ("folder", "split", "image")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known of the images before one is opened."""

    table: pd.DataFrame  # texts, one row an image
    rows: list[int]  # row of labels.csv that lists the image, from 1; 0: none
    missing: list[BadImage]  # rows of labels.csv without an image
    # Columns by what they are for.
    label: str
    unit: str  # of independence: the group, or the file itself
    split: str  # "" where no split is given


def read_metadata(root: Path, found: list[File], options: Mapping[str, Any]) -> Metadata:
    """`InputError` where labels.csv cannot be used or leaves an image without class or group."""
    path = root / LABELS
    check_link(root, path)
    columns, lines = _read(path) if path.is_file() else (["file"], [])
    asked = {
        option: _asked(path, columns, options[option], option)
        for option in ("label", "group", "split_column")
    }
    by_part = any(file.part for file in found)
    if by_part and asked["split_column"]:
        raise InputError("option split_column: the folders train/ and test/ say it already")
    label = asked["label"] or _default_label(path, columns)
    group = asked["group"] or ("group" if "group" in columns else "")
    if label == group:
        raise InputError(f"{path}: column {label!r} cannot be both label and group")
    records, missing = _by_image(path, found, columns, lines)
    table, rows = [], []
    for file in found:
        row, values = records.get(file.name, (0, dict.fromkeys(columns, "")))
        record = {"file": file.name, "folder": file.folder, label: values.get(label, "")}
        if not asked["label"]:  # a column that the user names stands for itself
            record[label] = record[label] or file.folder
            if not record[label]:
                raise InputError(
                    f"{root / file.name} lies in no class folder, and {_lacks(row, label)}"
                )
        if group and not values[group]:
            raise InputError(f"{root / file.name} has no group: {_lacks(row, group)}")
        if by_part:
            record["split"] = file.part
        elif split_column := asked["split_column"]:
            part = PARTS.get(values[split_column], "")
            if not part:
                wrong = f"row {row} of {LABELS} says {values[split_column]!r}"
                raise InputError(
                    f"{root / file.name} is in no part of the split: "
                    f"{wrong if values[split_column] else _lacks(row, split_column)}; expected one "
                    f"of {', '.join(PARTS)}"
                )
            record["split"] = part
        table.append({**record, **{c: v for c, v in values.items() if c not in record}})
        rows.append(row)
    return Metadata(
        table=pd.DataFrame(table),
        rows=rows,
        missing=missing,
        label=label,
        unit=group or "file",
        split="split" if by_part or asked["split_column"] else "",
    )


def _lacks(row: int, column: str) -> str:
    if not row:
        return f"{LABELS} does not list it"
    return f"row {row} of {LABELS} has no value in column {column!r}"


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Metadata columns and rows of labels.csv, texts as they stand."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, skipinitialspace=True) if line]
    except (ValueError, OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    header, rows = (lines[0], lines[1:]) if lines else ([], [])
    columns = [stored_name(column) for column in header]
    if "file" not in columns:
        raise InputError(f"{path} lacks column 'file'{closest('file', header)}")
    for number, column in enumerate(header, start=1):
        if not column or "/" in column:
            raise InputError(f"{path}: column {number} is called {column!r}; expected a plain name")
    for column, count in collections.Counter(columns).items():
        if count > 1:
            raise InputError(f"{path}: {count} columns come out as {column!r}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} values; the header names {len(header)}"
            )
    return columns, rows


def stored_name(column: str) -> str:
    """The name that an upstream column has in the metadata."""
    name = column.lower()
    return f"upstream_{name}" if name in DERIVED else name


def _asked(path: Path, columns: list[str], wanted: str, option: str) -> str:
    if not wanted:
        return ""
    if not path.is_file():
        raise InputError(f"option {option} names column {wanted!r}, but {path} is missing")
    name = stored_name(wanted)
    if name not in columns or name == "file":
        known = [column for column in columns if column != "file"]
        raise InputError(f"option {option}: {path} lacks column {wanted!r}{closest(name, known)}")
    return name


def _default_label(path: Path, columns: list[str]) -> str:
    there = [column for column in ("label", "class") if column in columns]
    if len(there) > 1:
        raise InputError(f"{path} has columns 'label' and 'class'; expected option label to say")
    if not there and path.is_file():
        # Were it taken for folders alone, a misspelt column would be left out without a word.
        raise InputError(f"{path} lacks column 'label' or 'class'{closest('label', columns)}")
    return there[0] if there else "label"


def _by_image(
    path: Path, found: list[File], columns: list[str], lines: list[list[str]]
) -> tuple[dict[str, tuple[int, dict[str, str]]], list[BadImage]]:
    """Image -> its row of labels.csv, number and values; and the rows without an image.

    A file is looked up among those found, never opened by the name that the table gives.
    """
    bare: dict[str, list[str]] = {}
    for file in found:
        bare.setdefault(file.name.rpartition("/")[2], []).append(file.name)
    known = {file.name for file in found}
    records: dict[str, tuple[int, dict[str, str]]] = {}
    missing = []
    for number, line in enumerate(lines, start=1):
        record = dict(zip(columns, line, strict=True))
        given = record["file"]
        fitting = [given] if given in known else bare.get(given, [])
        if len(fitting) > 1:
            raise InputError(
                f"{path}: row {number} names {given!r}, and {len(fitting)} images are called so; "
                f"expected a path such as {fitting[0]!r}"
            )
        if not fitting:
            missing.append(BadImage(given, number, "is missing: no image of the source has it"))
        elif fitting[0] in records:
            first = records[fitting[0]][0]
            raise InputError(f"{path}: row {number} lists {given!r} again, after row {first}")
        else:
            records[fitting[0]] = (number, record)
    return records, missing


def closest(word: str, known: Iterable[str]) -> str:
    """A hint for the end of a message: the nearest known name, or all of them."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names[:20])}"


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

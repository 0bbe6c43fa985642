"""Features brought from anywhere, as a table of ours: `.h5ad`, `.parquet`, `.csv` or `.npz` + csv.

Which column is what:

    .parquet, .csv, .csv.gz  metadata are the columns that start with `Metadata_`, those that are
                named, and text, dates and booleans; every other column of numbers is a feature
    .h5ad       X, dense or sparse, with the columns of obs, written by anyone; its index is the
                column `_index`, for who names it
    .npz        its one array of two dimensions, with the columns of a csv or parquet beside it, row
                by row

Metadata lose the prefix `Metadata_`. A csv has no types: a column of metadata is numbers where each
of its values is one as a program would write it ("7" and "0.30", but "007" is text). The index that
pandas leaves in a file, a first column without a name or `__index_level_0__`, is left out.

Everything wrong is an `InputError` that names file, row (the first one is 0) and column.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bioimg_jax.errors import InputError
from bioimg_jax.features.table import BLOCK_BYTES, FeatureTable, read_table, write_table
from bioimg_jax.sources import sources_digest

PREFIX = "Metadata_"
LAYER = "features"
UNMATCHED = ("error", "drop", "keep")
NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?(e[+-]?\d+)?")
INDEX = re.compile(r"__index_level_\d+__")
CSV = (".csv", ".csv.gz")
FORMATS = (".h5ad", ".parquet", *CSV, ".npz")


@dataclasses.dataclass(frozen=True)
class Join:
    """Further metadata from a csv or parquet, found by their key.

    on: column of ours -> column of the file; a key there twice must say the same twice.
    columns: name that a column gets -> column of the file.
    unmatched: rows that find no partner are an "error", or are left out ("drop"), or stay with
      missing values ("keep"); how many is in the provenance.
    """

    path: str | os.PathLike
    on: Mapping[str, str]
    columns: Mapping[str, str]
    unmatched: str = "error"


@dataclasses.dataclass(frozen=True)
class _Source:
    """An opened file: metadata [n], names of the features [d], and blocks of them [b, d]."""

    obs: pd.DataFrame
    features: list[str]
    blocks: Callable[[], Iterator[np.ndarray]]


def import_table(
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    beside: str | os.PathLike = "",
    metadata: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    only: str = "",
    extract: Mapping[str, tuple[str, str]] | None = None,
    joins: Sequence[Join] = (),
    unique: Sequence[str] = (),
) -> FeatureTable:
    """A new table at `path`, float32, with one layer "features".

    A block of rows is in memory at once; of an `.npz`, and an X that is sparse by columns, all are.

    Args:
      source: the features; what it may be stands above.
      beside: csv or parquet of the metadata, for an `.npz`.
      metadata: column of the file -> its name in the table; metadata beside those above.
      ignore: columns, or features, that are left out.
      only: regular expression; features in whose name it is not found are left out.
      extract: new column -> (column, regular expression with one group): {"week": ("plate",
        r"^(Week\\d+)_")}. Before the joins, which may use it.
      joins: in this order.
      unique: columns whose joint value is a row's alone.

    The provenance has the files' hashes ("content_hash" of all together), the features' names, and
    of every join the rows without a partner ("unmatched").
    """
    source, path = Path(source), Path(path)
    if source.resolve() == path.resolve():
        raise InputError(f"{path}: the table would replace its source, expected another path")
    choice = _Choice(source, metadata or {}, tuple(ignore), only)
    opened = _open(choice, beside)
    obs = opened.obs
    if not len(obs):
        raise InputError(f"{source}: no row, expected one a well, a site or a cell")
    for name, (column, pattern) in (extract or {}).items():
        _check_new(obs, name, source)
        obs[name] = _extracted(obs, name, column, pattern, source)
    kept = np.ones(len(obs), bool)
    unmatched = []
    for join in joins:
        obs, found = _joined(obs, join, source)
        unmatched.append(int((~found).sum()))
        if join.unmatched == "drop":
            kept &= found
    if not kept.any():
        raise InputError(f"{source}: no row is left after the joins, which drop all {len(obs)}")
    _check_unique(obs, unique, source)

    files = [source, *([beside] if beside else []), *(join.path for join in joins)]
    hashes = [[Path(file).name, _digest(Path(file))] for file in files]
    imported = {
        "files": hashes,
        "metadata": dict(metadata or {}),
        "ignore": list(ignore),
        "only": only,
        "extract": {name: list(of) for name, of in (extract or {}).items()},
        "joins": [
            {"on": dict(j.on), "columns": dict(j.columns), "unmatched": j.unmatched} for j in joins
        ],
    }
    key = _json_digest({"code": sources_digest("features"), **imported})
    provenance = {
        "key": key,
        "content_hash": _json_digest(hashes),
        "imported": imported,
        "features": opened.features,
        "n_rows": len(obs),
        "n_dropped": int((~kept).sum()),
        "unmatched": unmatched,
    }
    write_table(
        path,
        obs[kept].reset_index(drop=True),
        {LAYER: len(opened.features)},
        LAYER,
        _batches(opened, kept, source),
        provenance,
        dtype="float32",
    )
    return read_table(path)


def _batches(
    opened: _Source, kept: np.ndarray, source: Path
) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    """The kept rows as `write_table` takes them; `InputError` for a number that is none."""
    place = np.cumsum(kept) - 1
    first = 0
    for block in opened.blocks():
        here = kept[first : first + len(block)]
        with np.errstate(over="ignore"):
            values = block[here].astype(np.float32)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(
                f"{source}: row {first + np.flatnonzero(here)[row]}, column "
                f"{opened.features[column]!r} is {block[here][row, column]}, expected a number "
                "that float32 can hold"
            )
        yield place[first : first + len(block)][here], {LAYER: values}
        first += len(block)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """What the caller says of the columns of a file."""

    path: Path
    metadata: Mapping[str, str]
    ignore: tuple[str, ...]
    only: str

    def columns(self, numeric: Mapping[str, bool]) -> tuple[list[str], list[str]]:
        """Columns of metadata and of features, given which ones are numbers."""
        self.check(numeric)
        left = [column for column in numeric if column not in self.ignore]
        metadata = [
            column
            for column in left
            if column in self.metadata or column.startswith(PREFIX) or not numeric[column]
        ]
        return metadata, self.features([column for column in left if column not in metadata])

    def check(self, names: Collection[str]) -> None:
        """`InputError` for a name that the caller gives and the file has not."""
        for name in (*self.metadata, *self.ignore):
            if name not in names:
                raise InputError(f"{self.path}: no column {name!r}; {_listed(names)}")

    def features(self, names: Sequence[str]) -> list[str]:
        """Those that `only` and `ignore` leave; `InputError` if these are none."""
        try:
            pattern = re.compile(self.only)
        except re.error as error:
            raise InputError(f"only={self.only!r} is no regular expression ({error})") from error
        chosen = [name for name in names if name not in self.ignore and pattern.search(name)]
        if not chosen:
            what = f" whose name has {self.only!r}" if self.only else ""
            raise InputError(
                f"{self.path}: no column of features{what}, expected numbers; {_listed(names)}"
            )
        return chosen

    def renamed(self, obs: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Metadata under the names that they have in the table, in types that it keeps."""
        obs = obs[[column for column in obs.columns if column not in self.ignore]]
        names = [self.metadata.get(c, str(c).removeprefix(PREFIX)) for c in obs.columns]
        renamed = pd.DataFrame(index=pd.RangeIndex(len(obs)))
        for name, column in zip(names, obs.columns, strict=True):
            _check_new(renamed, name, path)
            renamed[name] = _kept_type(obs[column].reset_index(drop=True))
        return renamed


def _open(choice: _Choice, beside: str | os.PathLike) -> _Source:
    """The file by the ending of its name."""
    path = choice.path
    if path.name.endswith(".npz"):
        if not beside:
            raise InputError(f"{path}: an .npz needs the metadata of its rows beside it")
        return _open_npz(choice, Path(beside))
    if beside:
        raise InputError(f"{beside}: metadata beside the features are for an .npz, not {path.name}")
    for ending, open_it in ((".h5ad", _open_h5ad), (".parquet", _open_parquet)):
        if path.name.endswith(ending):
            return open_it(choice)
    if path.name.endswith(CSV):
        return _open_csv(choice)
    raise InputError(f"{path}: expected a file whose name ends with one of {', '.join(FORMATS)}")


def _open_h5ad(choice: _Choice) -> _Source:
    path = choice.path
    with _reading(path), h5py.File(path, "r") as file:
        obs, names = (anndata.io.read_elem(file[group]) for group in ("obs", "var"))
        names = [str(name) for name in names.index]
        if "_index" in choice.metadata:
            obs = obs.assign(_index=obs.index)
        x = file.get("X")
        encoding = "" if x is None else x.attrs.get("encoding-type", "array")
        if encoding not in ("array", "csr_matrix", "csc_matrix"):
            raise InputError(
                f"{path}: X is {encoding or 'not there'}, expected numbers, dense or sparse"
            )
        dense = encoding == "array"
        _check_numbers(x if dense else x["data"], "X", path)
        shape = tuple(map(int, x.shape if dense else x.attrs["shape"]))
    if shape != (len(obs), len(names)):
        raise InputError(
            f"{path}: X is {shape}, expected {len(obs)} rows as in obs and {len(names)} columns "
            "as in var"
        )
    _check_once(obs.columns, path)
    _check_once(names, path)
    choice.check((*obs.columns, *names))
    features = choice.features(names)
    columns = np.flatnonzero(np.isin(names, features))

    def blocks() -> Iterator[np.ndarray]:
        with _reading(path), h5py.File(path, "r") as file:
            x = file["X"]
            if not dense:
                x = anndata.io.sparse_dataset(x)
            if encoding == "csc_matrix":  # by columns: has no rows to read a block of
                x = x.to_memory().tocsr()
            for rows in _slices(len(obs), len(names)):
                block = x[rows]
                yield (block if dense else block.toarray())[:, columns]

    return _Source(choice.renamed(obs, path), features, blocks)


def _open_parquet(choice: _Choice) -> _Source:
    path = choice.path
    with _reading(path):
        schema = pq.read_schema(path)
    fields = [field for field in schema if not INDEX.fullmatch(field.name)]
    for field in fields:
        if pa.types.is_nested(field.type) and field.name not in choice.ignore:
            raise InputError(
                f"{path}: column {field.name!r} holds {field.type}, expected a column a feature"
            )
    _check_once([field.name for field in fields], path)
    metadata, features = choice.columns({f.name: _is_number(f.type) for f in fields})
    obs = choice.renamed(_parquet_columns(path, metadata), path)

    def blocks() -> Iterator[np.ndarray]:
        with _reading(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_block_rows(len(features)), columns=features):
                columns = [batch.column(name).to_numpy(zero_copy_only=False) for name in features]
                yield np.stack(columns, axis=1).astype(np.float64)

    return _Source(obs, features, blocks)


def _parquet_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    with _reading(path), pq.ParquetFile(path) as file:
        table = file.read(columns=list(columns))
        if not columns:
            return pd.DataFrame(index=range(file.metadata.num_rows))
        return table.to_pandas(ignore_metadata=True)[list(columns)]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _open_csv(choice: _Choice) -> _Source:
    path = choice.path
    numeric = _csv_kinds(choice, _csv_header(path))
    metadata, features = choice.columns(numeric)
    obs = choice.renamed(_csv_text(path, metadata), path)

    def blocks() -> Iterator[np.ndarray]:
        for chunk in _csv_chunks(path, usecols=features, dtype=np.float64):
            yield chunk[features].to_numpy()

    return _Source(obs, features, blocks)


def _open_npz(choice: _Choice, beside: Path) -> _Source:
    path = choice.path
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    tables = {name: array for name, array in found.items() if array.ndim == 2}
    if len(tables) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in found.items())
        raise InputError(f"{path}: expected one array [n, d], it has {shapes or 'none'}")
    ((name, array),) = tables.items()
    _check_numbers(array, name, path)
    obs = _metadata(beside)
    if len(obs) != len(array):
        raise InputError(
            f"{beside}: {len(obs)} rows of metadata for the {len(array)} rows of {path}"
        )
    names = [f"{name}:{i}" for i in range(array.shape[1])]
    choice.check((*obs.columns, *names))
    features = choice.features(names)
    columns = np.flatnonzero(np.isin(names, features))

    def blocks() -> Iterator[np.ndarray]:
        for rows in _slices(*array.shape):
            yield array[rows][:, columns]

    return _Source(choice.renamed(obs, beside), features, blocks)


def _metadata(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A csv or parquet of metadata, or these columns of it."""
    if path.name.endswith(".parquet"):
        with _reading(path):
            names = [name for name in pq.read_schema(path).names if not INDEX.fullmatch(name)]
        _check_once(names, path)
        read = _parquet_columns
    elif path.name.endswith(CSV):
        names = [name for name in _csv_header(path) if name]
        read = _csv_text
    else:
        raise InputError(f"{path}: metadata are a file .parquet, .csv or .csv.gz")
    for column in columns:
        if column not in names:
            raise InputError(f"{path}: no column {column!r}; {_listed(names)}")
    table = read(path, columns or names)
    return pd.DataFrame({column: _kept_type(table[column]) for column in table.columns})


def _csv_header(path: Path) -> list[str]:
    """The names in the first line, each once; the first one may be empty."""
    with _reading(path):  # with a row, which to pandas has an index if it is longer than the names
        lines = pd.read_csv(path, header=None, nrows=2, dtype=str, keep_default_na=False)
    names = lines.iloc[0].tolist()
    _check_once(names, path)
    if "" in names[1:]:
        raise InputError(f"{path}: column {names.index('', 1)} has no name")
    return names


def _csv_chunks(path: Path, **options: Any) -> Iterator[pd.DataFrame]:
    """Blocks of rows, numbered through the file."""
    names = _csv_header(path)
    with _reading(path):
        yield from pd.read_csv(
            path,
            header=0,
            names=names,
            chunksize=_block_rows(len(names)),
            low_memory=False,
            **options,
        )


def _csv_kinds(choice: _Choice, names: Sequence[str]) -> dict[str, bool]:
    """Which columns are numbers; `InputError` for one that is and is not, unless it is metadata."""
    number: dict[str, int] = {}
    text: dict[str, tuple[int, str]] = {}
    for chunk in _csv_chunks(choice.path):
        for name in chunk.columns:
            values = chunk[name].dropna()
            if values.dtype == object:
                is_number = pd.to_numeric(values, errors="coerce").notna()
                if not is_number.all():
                    row = is_number.index[~is_number][0]
                    text.setdefault(name, (row, values[row]))
                values = values[is_number]
            elif values.dtype == bool and len(values):
                text.setdefault(name, (values.index[0], str(values.iloc[0])))
                continue
            if len(values):
                number.setdefault(name, values.index[0])
    for name in number.keys() & text.keys():
        if not (name in choice.metadata or name in choice.ignore or name.startswith(PREFIX)):
            row, value = text[name]
            raise InputError(
                f"{choice.path}: row {row}, column {name!r} is {value!r}, and row {number[name]} "
                "has a number; expected numbers, or a column named as metadata"
            )
    return {name: name not in text for name in names if name}


def _csv_text(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a csv, as numbers where every value is one."""
    # Without `usecols`, with which pandas says nothing of a row that is too long.
    table = pd.concat([chunk[list(columns)] for chunk in _csv_chunks(path, dtype=str)])
    for column in columns:
        present = table[column].dropna()
        if len(present) and present.map(lambda value: bool(NUMBER.fullmatch(value))).all():
            whole = len(present) == len(table) and present.str.isdigit().all()
            # Not `pd.to_numeric`, to which "0.3" and "0.300000" may be two numbers.
            table[column] = table[column].astype(np.int64 if whole else np.float64)
    return table


def _extracted(obs: pd.DataFrame, name: str, column: str, pattern: str, path: Path) -> pd.Series:
    """What the group of the pattern matches in every row of the column."""
    what = f"extract {name!r}: {pattern!r}"
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise InputError(f"{what} is no regular expression ({error})") from error
    if groups != 1:
        raise InputError(f"{what} has {groups} groups, expected one")
    _check_there(obs, [column], f"{path}: extract {name!r}")
    found = obs[column].astype(str).str.extract(pattern, expand=False)
    if found.isna().any():
        row = int(np.argmax(found.isna()))
        raise InputError(
            f"{path}: row {row}, column {column!r} is {str(obs[column].iloc[row])!r}, in which "
            f"{pattern!r} is not found"
        )
    return found


def _joined(obs: pd.DataFrame, join: Join, source: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The metadata with the columns of the join, and which rows found a partner, bool [n]."""
    path = Path(join.path)
    if join.unmatched not in UNMATCHED:
        raise InputError(f"{path}: unmatched={join.unmatched!r} is none of {', '.join(UNMATCHED)}")
    if not join.on or not join.columns:
        raise InputError(f"{path}: a join needs columns to find rows by, and columns to bring")
    ours, theirs = list(join.on), list(join.on.values())
    _check_there(obs, ours, f"{source}: join with {path.name}")
    for name in join.columns:
        _check_new(obs, name, path)
    table = _metadata(path, list(dict.fromkeys((*theirs, *join.columns.values()))))
    for mine, column in join.on.items():
        ours_is, theirs_is = (
            "numbers" if pd.api.types.is_numeric_dtype(kind) else "text"
            for kind in (obs[mine].dtype, table[column].dtype)
        )
        if ours_is != theirs_is:
            raise InputError(
                f"{path}: column {column!r} is {theirs_is}, and {mine!r} of {source} is {ours_is}"
            )
    table = table.dropna(subset=theirs).drop_duplicates()  # its index is still the file's rows
    twice = table.duplicated(theirs).to_numpy()
    if twice.any():
        second = table.iloc[np.argmax(twice)]
        (first, *_) = table.index[(table[theirs] == second[theirs]).all(axis=1)]
        raise InputError(
            f"{path}: rows {first} and {second.name} have the same {_shown(second[theirs])} and "
            f"other values of {', '.join(map(repr, join.columns.values()))}"
        )
    place = _key(table[theirs]).get_indexer(_key(obs[ours]))
    found = place >= 0
    if join.unmatched == "error" and not found.all():
        row = int(np.argmin(found))
        raise InputError(
            f"{source}: row {row} has no partner in {path}, where no row has "
            f"{_shown(obs[ours].iloc[row].set_axis(theirs))}"
        )
    brought = table[list(join.columns.values())].set_axis(list(join.columns), axis=1)
    brought = brought.reset_index(drop=True).reindex(place).set_index(obs.index)
    return pd.concat([obs, brought], axis=1), found


def _key(columns: pd.DataFrame) -> pd.MultiIndex:
    """Rows as values to be found again: numbers as float64, whatever type a file has them in."""
    kinds = (
        np.float64 if pd.api.types.is_numeric_dtype(kind) else object for kind in columns.dtypes
    )
    return pd.MultiIndex.from_frame(columns.astype(dict(zip(columns.columns, kinds, strict=True))))


def _kept_type(values: pd.Series) -> pd.Series:
    """Numbers and booleans as NumPy has them, everything else as text; missing stays missing."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        if isinstance(values.dtype, np.dtype):
            return values
        return pd.Series(values.to_numpy(np.float64, na_value=np.nan), values.index)
    values = values.astype(object)
    return values.where(values.isna(), values.astype(str))


def _check_new(obs: pd.DataFrame, name: str, path: Path) -> None:
    if name in obs.columns:
        raise InputError(f"{path}: two columns of metadata would have the name {name!r}")
    if not name or "/" in name:
        raise InputError(
            f"{path}: {name!r} cannot be the name of a column of metadata, expected one without "
            "'/'; give it another one"
        )


def _check_there(obs: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    for column in columns:
        if column not in obs.columns:
            raise InputError(f"{what}: no column {column!r} of metadata; {_listed(obs.columns)}")


def _check_once(names: Sequence[str], path: Path) -> None:
    index = pd.Index(names)
    if index.has_duplicates:
        name = index[index.duplicated()][0]
        raise InputError(f"{path}: two columns have the name {name!r}")


def _check_numbers(values: np.ndarray | h5py.Dataset, name: str, path: Path) -> None:
    if values.dtype.kind not in "fiub":
        raise InputError(f"{path}: {name} is of type {values.dtype}, expected numbers")


def _check_unique(obs: pd.DataFrame, columns: Sequence[str], path: Path) -> None:
    if not columns:
        return
    _check_there(obs, columns, f"{path}: unique")
    twice = obs.duplicated(list(columns)).to_numpy()
    if twice.any():
        second = obs[list(columns)].iloc[int(np.argmax(twice))]
        first = int(np.argmax((obs[list(columns)] == second).all(axis=1)))
        raise InputError(f"{path}: rows {first} and {second.name} both are {_shown(second)}")


def _shown(values: pd.Series) -> str:
    return ", ".join(f"{column}={value!r}" for column, value in values.items())


def _listed(names: Collection[str]) -> str:
    shown = [*map(str, names)]
    return f"it has {', '.join(shown[:20]) or 'none'}" + (" ..." if len(shown) > 20 else "")


def _block_rows(width: int) -> int:
    return max(1, BLOCK_BYTES // (8 * max(width, 1)))


def _slices(n: int, width: int) -> Iterator[slice]:
    size = _block_rows(width)
    return (slice(first, first + size) for first in range(0, n, size))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a reader raises for an absent or damaged file, in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # they raise a dozen types
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _digest(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

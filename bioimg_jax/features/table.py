"""The feature table: an `.h5ad` file of one representation's features, streamed in and out.

The default layer is `X`, the others are in `obsm` under their name with "/" written as "." (HDF5
keeps "/" for groups), `obs` is the metadata and `uns["provenance"]` a JSON string with whatever
rebuilds the table. `anndata.read_h5ad` and scanpy open it; here a layer is read when asked for,
because all layers of a large set together do not fit in memory.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bioimg_jax.errors import InputError

CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 26  # of rows that are copied at a time
ROUNDING_BYTES = 1 << 19  # of rows in float64: what a processor's cache holds
# A feature that float16 would blur by more than this share of its spread is kept in float32.
BLUR = 0.01


@dataclasses.dataclass(frozen=True)
class FeatureTable:
    """A finished table on disk.

    obs: metadata [n]; widths: layer name -> number of features, in the order they were written.
    """

    path: Path
    obs: pd.DataFrame
    widths: dict[str, int]
    default: str
    provenance: dict[str, Any]

    def layer(self, name: str) -> np.ndarray:
        """Features of one layer, float32 [n, d], read from the file now."""
        self._check(name)
        with h5py.File(self.path, "r") as file:
            return file[_key(name, self.default)].astype(np.float32)[:]

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The rows of a layer of the file, in order: (the first one's number, float32 [b, d])."""
        with h5py.File(self.path, "r") as file:
            features = file[_key(name, self.default)]
            block = max(1, BLOCK_BYTES // (4 * features.shape[1]))
            for first in range(0, len(features), block):
                yield first, features[first : first + block].astype(np.float32)

    def only(self, layers: Collection[str]) -> "FeatureTable":
        """The same table with some of its layers."""
        widths = {name: width for name, width in self.widths.items() if name in layers}
        return dataclasses.replace(self, widths=widths)

    def to_anndata(self) -> anndata.AnnData:
        """The whole table in memory, as any other program reads it."""
        return anndata.read_h5ad(self.path)

    def _check(self, name: str) -> None:
        if name not in self.widths:
            raise InputError(f"{self.path}: no layer {name!r}; it has {', '.join(self.widths)}")


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryTable(FeatureTable):
    """A table of one layer that is in no file: features [n, d] of any float dtype."""

    features: np.ndarray

    def layer(self, name: str) -> np.ndarray:
        """float32 [n, d]."""
        self._check(name)
        return self.features.astype(np.float32)

    def to_anndata(self) -> anndata.AnnData:
        return anndata.AnnData(self.layer(self.default), self.obs.rename(index=str))


def read_table(path: str | os.PathLike) -> FeatureTable:
    """Open a table. Raises `InputError` when the file is absent, damaged or not one of ours."""
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            uns = anndata.io.read_elem(file["uns"])
            return FeatureTable(
                path=path,
                obs=anndata.io.read_elem(file["obs"]),
                widths=json.loads(uns["layers"]),
                default=uns["default_layer"],
                provenance=json.loads(uns["provenance"]),
            )
    except Exception as error:  # the readers raise half a dozen types for a damaged file
        raise InputError(f"{path}: not a readable feature table ({error})") from error


def write_table(
    path: str | os.PathLike,
    obs: pd.DataFrame,
    layers: Mapping[str, int],
    default: str,
    batches: Iterable[tuple[np.ndarray, Mapping[str, Any]]],
    provenance: Mapping[str, Any],
    *,
    dtype: str = "float16",
) -> Path:
    """Stream batches of features into a new table; the file appears when it is complete.

    Args:
      obs: metadata [n].
      layers: layer name -> width.
      default: the layer that becomes `X`.
      batches: (positions int [b] in obs, {layer: [b, width]}); together they cover every row once.
        One batch is in memory at a time.
      provenance: JSON-able.
      dtype: "float32", or "float16" where that is enough: a layer that spreads so little around its
        mean that float16 would round the differences away (`_Rounding`), or that it cannot hold, is
        kept in float32. All rows decide, whatever order they come in; until the last one is there
        the features are on disk in float32, which takes three times the room.

    Raises:
      InputError: a feature that is not finite in float32, or a disk that does not take the file.
      ValueError: rows missing or given twice, a layer missing or of another width.
    """
    path = Path(path)
    if default not in layers:
        raise ValueError(f"default layer {default!r} is not among {list(layers)}")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(unfinished, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            anndata.io.write_elem(file, "obs", _writable(obs))
            names = [f"{default}:{i}" for i in range(layers[default])]
            anndata.io.write_elem(file, "var", pd.DataFrame(index=pd.Index(names, dtype=object)))
            for group in ("obsm", "varm", "obsp", "varp", "layers"):
                anndata.io.write_elem(file, group, {})
            uns = {
                "layers": json.dumps(dict(layers)),
                "default_layer": default,
                "provenance": json.dumps(dict(provenance)),
            }
            anndata.io.write_elem(file, "uns", uns)
            _write_layers(file, path, len(obs), layers, default, batches, np.dtype(dtype))
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write the feature table ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return path


def write_parquet(table: FeatureTable, path: str | os.PathLike, layer: str) -> Path:
    """One layer as Parquet: `Metadata_` columns, then float32 features "layer:i".

    This is what pycytominer and copairs read. Streamed: a block of rows is in memory at a time.
    Raises `InputError` for a layer that is not there, or a disk that does not take the file.
    """
    path = Path(path)
    if layer not in table.widths:
        raise InputError(f"--layer={layer}: no such layer; there are {', '.join(table.widths)}")
    width = table.widths[layer]
    names = [f"{layer}:{i}" for i in range(width)]
    metadata = table.obs.add_prefix("Metadata_").reset_index(drop=True)
    for column in metadata.select_dtypes("category"):
        metadata[column] = metadata[column].astype(object)
    block = max(1, BLOCK_BYTES // (4 * width))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        schema = pa.Schema.from_pandas(metadata, preserve_index=False)
        schema = pa.schema([*schema, *((name, pa.float32()) for name in names)])
        with (
            h5py.File(table.path, "r") as file,
            pq.ParquetWriter(unfinished, schema) as writer,
        ):
            features = file[_key(layer, table.default)]
            for first in range(0, len(metadata), block):
                rows = slice(first, first + block)
                part = pd.DataFrame(features[rows].astype(np.float32), columns=names)
                part = pd.concat([metadata[rows].reset_index(drop=True), part], axis=1)
                writer.write_table(pa.Table.from_pandas(part, schema, preserve_index=False))
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write the features ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    return path


def is_parquet_table(path: str | os.PathLike) -> bool:
    """Whether `write_parquet` could have written the file."""
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid):
        return False
    return any(name.startswith("Metadata_") for name in names)


def _write_layers(
    file: h5py.File,
    path: Path,
    n: int,
    layers: Mapping[str, int],
    default: str,
    batches: Iterable[tuple[np.ndarray, Mapping[str, Any]]],
    dtype: np.dtype,
) -> None:
    """The layers in their precision: in float32 beside the file, until the last row has come."""
    if dtype == np.float32:
        _write_rows(file, path, n, layers, default, batches, {})
        return
    rounding = {name: _Rounding(width) for name, width in layers.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.float32.unfinished")
    try:
        with h5py.File(beside, "w") as whole:
            _write_rows(whole, path, n, layers, default, batches, rounding)
            for name, width in layers.items():
                key = _key(name, default)
                source = whole[key]
                stored = source.dtype if rounding[name].blurs() else dtype
                target = _create(file, key, n, width, stored)
                block = max(1, BLOCK_BYTES // (4 * width))
                for first in range(0, n, block):
                    rows = slice(first, first + block)
                    target[rows] = source[rows].astype(stored)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _write_rows(
    file: h5py.File,
    path: Path,
    n: int,
    layers: Mapping[str, int],
    default: str,
    batches: Iterable[tuple[np.ndarray, Mapping[str, Any]]],
    rounding: Mapping[str, "_Rounding"],
) -> None:
    """All rows in float32, counted in the `rounding` of those layers that have one."""
    datasets = {
        name: _create(file, _key(name, default), n, width, np.dtype("f4"))
        for name, width in layers.items()
    }
    written = np.zeros(n, bool)
    for positions, features in batches:
        positions = np.asarray(positions)
        if written[positions].any() or len(np.unique(positions)) < len(positions):
            raise ValueError(f"{path}: a row came twice, in the batch from row {positions[0]}")
        written[positions] = True
        for name, dataset in datasets.items():
            values = np.asarray(features[name])
            if values.shape != (len(positions), layers[name]):
                expected = (len(positions), layers[name])
                raise ValueError(f"layer {name!r} has shape {values.shape}, expected {expected}")
            with np.errstate(over="ignore"):
                stored = values.astype(np.float32)
            finite = np.isfinite(stored).all(axis=1)
            if not finite.all():
                row = positions[~finite][0]
                raise InputError(f"{path}: layer {name!r} of row {row} is not finite in float32")
            if name in rounding:
                rounding[name].add(stored)
            order = np.argsort(positions)
            for run in np.split(order, np.flatnonzero(np.diff(positions[order]) != 1) + 1):
                dataset[positions[run[0]] : positions[run[-1]] + 1] = stored[run]
    if not written.all():
        raise ValueError(f"{path}: row {np.argmin(written)} has no features")


def _create(file: h5py.File, key: str, n: int, width: int, dtype: np.dtype) -> h5py.Dataset:
    rows = max(1, min(n, CHUNK_BYTES // (width * dtype.itemsize)))
    dataset = file.create_dataset(key, (n, width), dtype, chunks=(rows, width) if n else None)
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return dataset


class _Rounding:
    """What float16 would make of a layer: noise and spread of each feature, over all rows.

    float16 has 11 bits. The cls token of an untrained ViT with LayerScale 1e-4 is a constant plus
    updates of a few ten thousandths of it: as float16 it loses what a probe reads in float32.
    All rows are counted, so that neither their order nor the size of a batch decides.
    """

    def __init__(self, width: int) -> None:
        self._n = 0
        self._origin = np.zeros((2, width))  # value and noise of some row
        self._sums = np.zeros((2, 2, width))  # of values and noise, from there; of their squares

    def add(self, values: np.ndarray) -> None:
        """Counts rows float32 [b, d], block by block: it takes several times their memory."""
        block = max(1, ROUNDING_BYTES // (8 * values.shape[1]))
        for first in range(0, len(values), block):
            rows = values[first : first + block]
            with np.errstate(over="ignore", invalid="ignore"):
                both = np.stack([rows, rows.astype(np.float16)]).astype(np.float64)
                both[1] -= both[0]
                if not self._n:  # from one of the rows, a constant feature has no spread at all
                    self._origin = both[:, 0].copy()
                both -= self._origin[:, None]
                self._sums[:, 0] += both.sum(axis=1)
                self._sums[:, 1] += np.square(both).sum(axis=1)
            self._n += len(rows)

    def blurs(self) -> bool:
        """Whether the noise is above `BLUR` of some feature's spread, or float16 overflows."""
        with np.errstate(invalid="ignore"):
            mean, square = self._sums[:, 0] / max(self._n, 1), self._sums[:, 1] / max(self._n, 1)
            spread, noise = np.sqrt(np.maximum(square - mean**2, 0.0))
            return not bool(np.all(noise <= BLUR * spread))


def _key(layer: str, default: str) -> str:
    return "X" if layer == default else "obsm/" + layer.replace("/", ".")


def _writable(obs: pd.DataFrame) -> pd.DataFrame:
    """The metadata in types that AnnData stores: text as categories (which may be missing)."""
    obs = obs.copy()
    obs.index = obs.index.astype(str).astype(object)
    obs.index.name = None
    for column in obs.columns:
        if obs[column].dtype == object or isinstance(obs[column].dtype, pd.StringDtype):
            values = obs[column]
            text = values.where(values.isna(), values.astype(str)).astype("category")
            categories = text.cat.categories.astype(object)
            obs[column] = text.cat.rename_categories(categories)
    return obs

"""Images through a representation into a feature table, once: a finished table is used again."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bioimg_jax import mesh as meshes
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.pipeline import evaluation_batches
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable, read_table, write_table
from bioimg_jax.mesh import Mesh
from bioimg_jax.representations.representation import Representation, stream_features
from bioimg_jax.sources import sources_digest


def feature_table(
    path: Path,
    make: Callable[[], Representation],
    dataset: Dataset,
    rows: np.ndarray,
    *,
    identity: Mapping[str, Any],
    crop_px: int,
    batch_size: int,
    mesh: Mesh,
    provenance: Mapping[str, Any],
) -> FeatureTable:
    """The table at `path`, or a new one there if it is absent, damaged or made of other things.

    Args:
      make: called only where there is something to compute.
      rows: ascending indices of the examples.
      identity: of the representation: everything but the images that its features depend on. With
        the data's content hash, the rows, the crop and the code it makes the key that a table is
        known by.
      provenance: goes into the table beside that.
    """
    made_of = json.loads(json.dumps({
        "code": sources_digest("data", "features", "models", "representations"),
        "jax": jax.__version__,
        "data": dataset.content_hash,
        "rows": hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest(),
        "crop_px": crop_px,
        "identity": identity,
    }))  # fmt: skip
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    if path.exists():
        try:
            table = read_table(path)
        except InputError:
            table = None  # damaged: made again
        if table is not None and table.provenance.get("key") == key:
            return table
    representation = make()
    layers = representation.layers
    write_table(
        path,
        dataset.metadata.iloc[rows].reset_index(drop=True),
        layers,
        next(reversed(layers)),
        stream_features(representation, image_batches(dataset, rows, crop_px, batch_size, mesh)),
        {"key": key, **made_of, **provenance},
        dtype=representation.dtype,
    )
    return read_table(path)


def image_batches(
    dataset: Dataset, rows: np.ndarray, crop_px: int, batch_size: int, mesh: Mesh
) -> Iterator[dict[str, Any]]:
    """`evaluation_batches` with the images on the devices of the mesh."""
    for batch in evaluation_batches(dataset, rows, batch_size=batch_size, crop_px=crop_px):
        yield {**batch, "image": meshes.to_global({"image": batch["image"]}, mesh)["image"]}

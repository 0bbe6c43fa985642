"""What the report shows of single images: reconstructions, maps of the tables, nearest images.

Computed after the scores from tables and images, kept in the work directory as examples.npz,
maps.npz and gallery.npz. They illustrate; no verdict rests on them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bioimg_jax.candidates import Candidate, Evaluation
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.declaration import Declaration
from bioimg_jax.data.pipeline import evaluation_batches
from bioimg_jax.data.splits import unit_names
from bioimg_jax.data.transforms import centre_crop
from bioimg_jax.features.table import read_table
from bioimg_jax.statistics.embedding_map import embedding_map
from bioimg_jax.statistics.neighbours import unit_rows

EXAMPLES_SHOWN = 3
ILLUSTRATED = 10_000  # images that a query's neighbours are looked for among
MAP_ROWS = 800
QUERIES = 5
NEIGHBOURS = 5
THUMBNAIL_PX = 64
COLOURS = 4  # columns that a map is coloured by: treatment, plate, batch, position

Arrays = dict[str, np.ndarray]


def write_examples(evaluation: Evaluation, dataset: Dataset, workdir: Path) -> None:
    """Pictures of what the objective makes of a few images, if it makes pictures."""
    one = next(iter(evaluation.trained), None)
    reconstruct = getattr(one.objective, "reconstruct", None) if one is not None else None
    if one is None or reconstruct is None:
        return
    primary = dataset.folds(dataset.declaration.targets[0].name)[0].test
    chosen = primary[np.linspace(0, len(primary) - 1, EXAMPLES_SHOWN).astype(int)]
    stream = evaluation_batches(
        dataset, chosen, batch_size=EXAMPLES_SHOWN, crop_px=evaluation.crop_px
    )
    params, state = one.restore(one.saved, evaluation.mesh)
    batch = {"image": jnp.asarray(next(stream)["image"])}
    inputs = one.objective.views(batch, jax.random.key(evaluation.config["seed"]))
    pictures = jax.jit(reconstruct)(params, state, inputs)
    save(workdir / "examples.npz", {k: np.asarray(v, np.float32) for k, v in pictures.items()})


def write_illustrations(
    evaluation: Evaluation,
    dataset: Dataset,
    rows: np.ndarray,
    scored: Sequence[Candidate],
    workdir: Path,
) -> None:
    """Maps and nearest images by the first trained encoder, its step 0 and the pixels."""
    shown = [one for one in scored if one.folds is None][:2] if evaluation.trained else []
    shown += [one for one in scored if one.name == "pixels"]
    few = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ILLUSTRATED)).astype(int))
    features = {}
    for one in shown:
        table = read_table(workdir / "features" / f"{one.name}.h5ad")
        features[one.name] = table.layer(table.default)[few]
    obs = dataset.metadata.iloc[rows[few]].reset_index(drop=True)
    primary, declared = dataset.declaration.targets[0], dataset.declaration

    def images_of(positions: np.ndarray) -> list[np.ndarray]:
        images = dataset.source.read(rows[few[positions]])
        return [centre_crop(image, evaluation.crop_px) for image in images]

    save(
        workdir / "maps.npz",
        maps(features, obs, colour_columns(declared, obs)),
    )
    save(
        workdir / "gallery.npz",
        gallery(features, obs, label=primary.column, unit=primary.unit, images_of=images_of),
    )


def maps(features: Mapping[str, np.ndarray], obs: pd.DataFrame, columns: Sequence[str]) -> Arrays:
    """Maps of each representation's features [n, d], at the same rows, with what colours them.

    Returns {"names" [r], "positions" [r, m, 2], "columns" [c], "values" [c, m] (text)}; m is at
    most `MAP_ROWS`, evenly spaced among the rows.
    """
    n = len(obs)
    rows = np.unique(np.linspace(0, n - 1, min(n, MAP_ROWS)).astype(int))
    return {
        "names": np.array(list(features), str),
        "positions": np.stack([embedding_map(x[rows]) for x in features.values()]),
        "columns": np.array(list(columns), str),
        "values": np.array([_text(obs[column])[rows] for column in columns], str),
    }


def gallery(
    features: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    *,
    label: str,
    unit: Sequence[str],
    images_of: Callable[[np.ndarray], Sequence[np.ndarray]],
) -> Arrays:
    """For a few query images their nearest neighbours by each representation, as thumbnails.

    Queries are an image of each of the first classes. Neighbours are nearest by cosine of
    standardised features, and never of the query's own unit (a plate, a patient): those would be
    near for being of one unit.

    Args:
      features: representation -> [n, d]; rows as in obs.
      label, unit: columns of obs.
      images_of: positions -> images [h, w, c].

    Returns:
      {"names" [r], "images" uint8 [r, q, 1 + k, s, s, 3] (query first), "labels" and "units"
      [r, q, 1 + k]}.
    """
    labels, units = _text(obs[label]), unit_names(obs, unit).astype(str)
    queries = [int(np.flatnonzero(labels == name)[0]) for name in np.unique(labels)[:QUERIES]]
    chosen = []
    for x in features.values():
        sd = x.std(axis=0)
        z = unit_rows((x - x.mean(axis=0)) / np.where(sd > 0, sd, 1.0))
        for query in queries:
            likeness = np.where(units == units[query], -np.inf, z @ z[query])
            nearest = np.argsort(-likeness, kind="stable")[:NEIGHBOURS]
            chosen.append([query, *nearest.tolist()])
    positions = np.array(chosen).reshape(len(features), len(queries), -1)
    distinct, where = np.unique(positions, return_inverse=True)
    pictures = np.stack([thumbnail(image) for image in images_of(distinct)])
    return {
        "names": np.array(list(features), str),
        "images": pictures[where.reshape(positions.shape)],
        "labels": labels[positions],
        "units": units[positions],
    }


def thumbnail(image: np.ndarray) -> np.ndarray:
    """RGB uint8 [s, s, 3] of an image [h, w, c]: three channels as they are, or the first three of
    a fluorescence image (blue, green, red) between their percentiles 1 and 99.8."""
    h, w, c = image.shape
    rows = np.linspace(0, h - 1, THUMBNAIL_PX).astype(int)
    columns = np.linspace(0, w - 1, THUMBNAIL_PX).astype(int)
    x = image[rows][:, columns].astype(np.float32)
    if c == 3 and image.dtype == np.uint8:
        return x.astype(np.uint8)
    x = x[..., :3] if c >= 3 else np.repeat(x[..., :1], 3, axis=-1)
    low, high = np.percentile(x, [1, 99.8], axis=(0, 1))
    x = np.clip((x - low) / np.maximum(high - low, 1e-6), 0, 1)
    return (255 * x[..., ::-1]).astype(np.uint8)


def colour_columns(declaration: Declaration, obs: pd.DataFrame) -> list[str]:
    """What the primary target predicts, then nuisance columns that tell groups of images apart."""
    primary = declaration.targets[0].column
    found = [primary]
    for column in declaration.nuisance:
        if column in obs and column not in found and 1 < obs[column].nunique() <= len(obs) / 2:
            found.append(column)
    return found[:COLOURS]


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    """The file appears whole."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)


def _text(column: pd.Series) -> np.ndarray:
    return column.astype(str).to_numpy(str)

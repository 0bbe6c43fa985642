"""What a run says about its own data and features, beside the scores: audits, and geometry.

Every section is plain JSON under its key of results.json (docs/results_schema.md).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.ladder import STEP0, TRUTH
from bioimg_jax.candidates import Candidate, Evaluation, Trained
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.pipeline import evaluation_batches
from bioimg_jax.data.splits import Fold
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.representations.nuclei import FEATURE_NAMES
from bioimg_jax.statistics.comparisons import drawn_rows, geometry_rows, similarity_rows
from bioimg_jax.statistics.duplicates import duplicate_audit
from bioimg_jax.statistics.identifiability import identifiability
from bioimg_jax.statistics.segmentation_quality import segmentation_quality
from bioimg_jax.statistics.symmetry import symmetry, turned_grids

GRID_LAYER = "downsampled"  # of the pixels: transforms as the image does
COMPARED_ROWS = 1_000


def audits(
    evaluation: Evaluation,
    dataset: Dataset,
    rows: np.ndarray,
    folds: Mapping[str, Sequence[Fold]],
    scored: Sequence[Candidate],
    table_of: Callable[[str], FeatureTable],
) -> dict[str, Any]:
    """Association, near-duplicates, symmetry, segmentation, geometry and similarity.

    Args:
      rows: example indices that the folds (positions in `rows`) are about.
      table_of: the finished table of a scored representation.
    """
    declaration = dataset.declaration
    metadata = dataset.metadata.iloc[rows].reset_index(drop=True)
    batches = evaluation_batches(
        dataset, rows, batch_size=evaluation.batch_size, crop_px=evaluation.crop_px
    )
    found: dict[str, Any] = {
        "association": identifiability(metadata, declaration.targets, declaration.nuisance),
        "duplicates": duplicate_audit(batches, folds, rows),
        "symmetry": [],
        "segmentation": None,
    }
    names = {one.name: one for one in scored}
    if "pixels" in names and GRID_LAYER in names["pixels"].layers:
        grids = table_of("pixels").layer(GRID_LAYER)
        found["symmetry"] = symmetry(
            declaration,
            metadata,
            folds,
            grids,
            turned_grids(grids, len(declaration.channels)),
            rows,
            flips=used_in_training(evaluation.trained, "flips"),
            rotations=used_in_training(evaluation.trained, "rotations"),
            delta=evaluation.settings["delta"],
        )
    if "nuclei" in names:
        table = table_of("nuclei")
        found["segmentation"] = segmentation_quality(table.layer("nuclei"), FEATURE_NAMES)
    return found | _compared(
        evaluation, rows, metadata[declaration.targets[0].column], names, table_of
    )


def used_in_training(trained: Sequence[Trained], augmentation: str) -> bool | None:
    """Whether any of the checkpoints was trained with "flips" or "rotations".

    By their own records: the config of an evaluation need not be that of a training. None where
    nothing is known: no checkpoint, or none that used it and one, an older one, that does not say.
    """
    said = [one.saved.meta.get("recipe", {}).get(augmentation) for one in trained]
    if any(said):
        return True
    return None if not said or None in said else False


def _compared(
    evaluation: Evaluation,
    rows: np.ndarray,
    treatment: np.ndarray,
    names: Mapping[str, Candidate],
    table_of: Callable[[str], FeatureTable],
) -> dict[str, Any]:
    """Encoders, their twins and the floors, by the default layer of each, on a part of the rows."""
    twins = {one.name: one.name + STEP0 for one in evaluation.trained if one.held_out is None}
    floors = [
        name
        for name, one in names.items()
        if one.encoder is None and one.kind not in ("metadata", TRUTH)
    ]
    part = np.sort(drawn_rows(rows, 10 * COMPARED_ROWS))
    tables = {}
    for name in (*twins, *twins.values(), *floors):
        table = table_of(name)
        tables[name] = table.layer(table.default)[part]
    ids = rows[part]
    return {
        "geometry": geometry_rows(
            tables, twins, ids, treatment[part], n=COMPARED_ROWS, standardise=floors
        ),
        "similarity": similarity_rows(tables, twins, ids, n=COMPARED_ROWS, standardise=floors),
    }

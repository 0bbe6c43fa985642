"""The layout of HEST-Benchmark: one folder a task, one sample a section.

    <task>/patches/<sample>.h5      img uint8 [n, s, s, 3], coords int64 [n, 2], barcode [n, 1]
    <task>/adata/<sample>.h5ad      counts float32 [n, genes], how genes and spots were made beside
    <task>/splits/train_<k>.csv     sample_id, patches_path, expr_path; test_<k>.csv likewise
    <task>/var_50genes.json         {"genes": [...]}, the most variable ones

Jaume et al., "HEST-1k: a dataset for spatial transcriptomics and histology image analysis", 2024.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

from .expression import DISPERSION, Gene

FOLDS = 4
MOST_VARIABLE = 50
SPOT_PITCH_PX = 200  # spots are 100 um apart, as on a Visium slide; coords are spot centres


@dataclasses.dataclass(frozen=True)
class Section:
    """The spots of one section, which is a sample."""

    name: str
    patient: str
    blocks: Iterator[tuple[np.ndarray, np.ndarray, Sequence[Mapping[str, Any]]]]
    # Of each block: images uint8 [b, s, s, 3], counts int [b, genes], metadata.


def write_task(task: Path, sections: Iterator[Section], genes: Sequence[Gene]) -> None:
    """Writes the sections one after the other; holds one block of images."""
    for folder in ("patches", "adata", "splits"):
        (task / folder).mkdir(parents=True, exist_ok=True)
    samples, log_sums = [], np.zeros((2, len(genes)))
    n_spots = 0
    for section in sections:
        counts = _write_section(task, section, genes)
        samples.append((section.name, section.patient))
        log_counts = np.log1p(counts)
        log_sums += log_counts.sum(axis=0), np.square(log_counts).sum(axis=0)
        n_spots += len(counts)

    patients = list(dict.fromkeys(patient for _, patient in samples))
    for k in range(min(FOLDS, len(patients))):
        tested = set(patients[k::FOLDS])
        test = [name for name, patient in samples if patient in tested]
        train = [name for name, patient in samples if patient not in tested]
        for part, names in (("train", train), ("test", test)):
            table = {
                "sample_id": names,
                "patches_path": [f"patches/{name}.h5" for name in names],
                "expr_path": [f"adata/{name}.h5ad" for name in names],
            }
            pd.DataFrame(table).to_csv(task / "splits" / f"{part}_{k}.csv", index=False)
    variance = log_sums[1] / n_spots - np.square(log_sums[0] / n_spots)
    most = np.sort(np.argsort(-variance, kind="stable")[:MOST_VARIABLE])
    chosen = {"genes": [genes[j].name for j in most]}
    (task / f"var_{MOST_VARIABLE}genes.json").write_text(json.dumps(chosen) + "\n")


def _write_section(task: Path, section: Section, genes: Sequence[Gene]) -> np.ndarray:
    """Both files of a section; its counts [n, genes]."""
    all_counts: list[np.ndarray] = []
    rows: list[Mapping[str, Any]] = []
    with h5py.File(task / "patches" / f"{section.name}.h5", "w") as file:
        for images, counts, metadata in section.blocks:
            if "img" not in file:
                shape = images.shape[1:]
                file.create_dataset(
                    "img", (0, *shape), np.uint8, maxshape=(None, *shape), chunks=(1, *shape)
                )
            stored = file["img"]
            stored.resize(len(rows) + len(images), axis=0)
            stored[len(rows) :] = images
            all_counts.append(counts)
            rows += metadata
        across = int(np.ceil(np.sqrt(len(rows))))  # spots lie on a square grid
        row, column = np.divmod(np.arange(len(rows)), across)
        coords = SPOT_PITCH_PX * (np.stack([column, row], axis=1) + 1)  # x, y
        barcodes = [f"{a}x{b}" for a, b in zip(row, column, strict=True)]
        file.create_dataset("coords", data=coords.astype(np.int64))
        file.create_dataset("barcode", data=np.array(barcodes, "S").reshape(-1, 1))

    obs = pd.DataFrame(rows, index=barcodes).assign(array_row=row, array_col=column)
    var = pd.DataFrame([dataclasses.asdict(gene) for gene in genes]).set_index("name")
    var["dispersion"] = DISPERSION
    counts = np.concatenate(all_counts)
    table = anndata.AnnData(counts.astype(np.float32), obs=obs, var=var)
    table.obsm["spatial"] = coords.astype(np.float64)
    table.write_h5ad(task / "adata" / f"{section.name}.h5ad")
    return counts

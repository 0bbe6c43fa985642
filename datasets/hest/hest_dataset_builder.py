"""One task of HEST-Benchmark: H&E patches of spots whose gene counts are known.

The layout is read and checked by `bioimg_jax.features.hest`, which also reads the counts: those are
no metadata, but what `bioimg_jax.benchmarks.expression` predicts from features of these images.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import BadImage, Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError
from bioimg_jax.features.hest import GENE_LIST, PATIENT, SECTION, Task, read_images, read_task

BLOCK = 64  # patches in a unit
FOLDS = 3
NUISANCE = ("x", "y", "total_counts")
METADATA = {
    SECTION: "text",
    "barcode": "text",
    "spot": "text",  # section/barcode
    "patch": "int",
    "x": "int",
    "y": "int",
    "total_counts": "int",
}


class Builder(ImageDatasetBuilder):
    """`<source>/{patches,adata,splits}`; a unit is up to `BLOCK` patches of a section."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="patches", description="one example a patch with counts"),
    ]
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "gene_list": GENE_LIST,  # file in the source
        "patients": "",  # file in the source: sample_id (or id), patient
        "patient_pattern": "",  # what of a section's name is the patient
        "pixel_um": 0.5,  # HEST-Benchmark's: 112 um in 224 px. 0: not known
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if not source:
            raise InputError("data set 'hest' needs a source: the folder of one task")
        if not (math.isfinite(options["pixel_um"]) and options["pixel_um"] >= 0):
            raise InputError(f"hest option pixel_um must be >= 0, not {options['pixel_um']}")
        names = ("gene_list", "patients", "patient_pattern")
        task = read_task(source, **{name: options[name] for name in names})
        for section, n in task.without_counts.items():
            if n:
                print(f"hest: {n} patches of {section} have no counts: left out", file=sys.stderr)
        table, kinds = _metadata(task)
        return Plan(
            declaration=_declaration(task, table, options["pixel_um"]),
            metadata=kinds,
            dtype="uint8",
            units=tuple(_units(task, table)),
            options=dict(options),
            shared={"root": str(task.folder)},
            root=str(task.folder),
            files=task.files,
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        records = unit.data["metadata"]
        path = Path(shared["root"]) / unit.data["file"]
        patches = [record["patch"] for record in records]
        try:
            images = list(read_images(path, unit.data["images"], patches))
        except (OSError, KeyError) as error:
            raise BadImage(unit.data["file"], 0, f"cannot be read ({error})") from error
        return list(zip(records, images, strict=True))


def _metadata(task: Task) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row a spot, and the columns' types."""
    kinds = dict(METADATA)
    table = task.spots.assign(spot=task.spots[SECTION] + "/" + task.spots["barcode"])
    if PATIENT in table:
        kinds[PATIENT] = "text"
    folds, _ = task.folds()
    if len(folds) == 1:
        # One fixed split. Sections that it does not use are kept out of pre-training with the test.
        kinds["split"] = "text"
        table["split"] = "unused"
        for part in ("train", "test"):
            table.loc[getattr(folds[0], part), "split"] = part
    return table[list(kinds)], kinds


def _units(task: Task, table: pd.DataFrame) -> list[Unit]:
    units = []
    for sample in task.samples:
        records = table[table[SECTION] == sample.name].to_dict("records")
        for first in range(0, len(records), BLOCK):
            data = {
                "file": sample.patches,
                "images": sample.images,
                "metadata": records[first : first + BLOCK],
            }
            units.append(Unit(f"{sample.name}-{first:06d}", data))
    return units


def _declaration(task: Task, table: pd.DataFrame, pixel_um: float) -> Declaration:
    """What is predicted are genes, which are no classes; the section is a nuisance target."""
    spots = table[SECTION].value_counts()
    enough = tuple(sorted(spots.index[spots >= FOLDS]))
    targets = []
    if len(enough) > 1:
        targets.append(
            Target(
                SECTION,
                SECTION,
                unit=("spot",),
                split="k_fold",
                n_folds=FOLDS,
                nuisance=True,
                where=() if len(enough) == len(spots) else ((SECTION, enough),),
                metric="accuracy",
            )
        )
    fixed = "split" in table
    return Declaration(
        name="hest",
        channels=("R", "G", "B"),
        pixel_um=pixel_um or None,
        targets=tuple(targets),
        nuisance=NUISANCE,
        symmetries=("flip", "rot90"),
        pretraining="train" if fixed else "all",
        pretraining_column="split" if fixed else "",
    )

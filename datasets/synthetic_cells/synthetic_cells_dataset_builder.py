"""Cells whose every property is known: a screen of 14 plates, drawn on the spot.

Nine treatments (a control, and a low and a high level of each of four factors) stand in random
wells of every plate. Plates and batches differ in gain, background and blur, wells in illumination.
Everything about a well follows from (seed, plate, well), whatever else is drawn.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

from .rendering import CHANNELS, Factors, Optics, render

PIXEL_UM = 0.65
# Factor -> low, control and high level. Units are those of `rendering.Factors`.
LEVELS = {
    "nucleus_size": (6.1, 7.0, 8.0),
    "intensity": (0.72, 1.0, 1.4),
    "texture_frequency": (0.095, 0.12, 0.15),
    "cell_density": (1.5, 4.0, 8.0),
}
SPREAD = 0.05  # of a factor from image to image, as a share of its level
NAMES = ("low", "control", "high")
TREATMENTS = ("control", *(f"{factor}_{name}" for factor in LEVELS for name in ("low", "high")))
CONTROL_WELLS, TREATED_WELLS = 4, 3  # a plate and treatment
ROWS, COLUMNS = "BCDEFG", range(2, 12)  # the inner wells of a 96-well plate
SITES = 2
SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 6  # plate by plate
PLATES_IN_BATCH = 2
AUDIT = ("plate", "batch", "well", "row", "column")
LAYOUT, PLATE, BATCH, WELL = range(4)  # streams of random numbers


class Builder(ImageDatasetBuilder):
    """Crops of 64 x 64 pixels around a nucleus, five channels, 16 bits."""

    VERSION = tfds.core.Version("1.0.0")
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {"seed": 0, "images_per_site": 9}

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if source:
            raise InputError(f"synthetic_cells is generated and takes no source, not {source!r}")
        if options["images_per_site"] < 1:
            raise InputError(f"images_per_site: {options['images_per_site']}, expected at least 1")
        if options["seed"] < 0:
            raise InputError(f"synthetic_cells option seed: {options['seed']}, expected at least 0")
        units = [
            Unit(f"P{plate + 1:02d}/{row}{column:02d}", {
                "plate": plate, "row": row, "column": column, "treatment": treatment
            })
            for plate in range(len(SPLITS))
            for row, column, treatment in _layout(options["seed"], plate)
        ]  # fmt: skip
        return Plan(
            declaration=_declare(),
            metadata={
                **dict.fromkeys(("plate", "batch", "well", "row"), "text"),
                "column": "int",
                "site": "int",
                "field": "text",
                "treatment": "text",
                "is_control": "bool",
                "split": "text",
                **{f"factor_{factor}": "float" for factor in LEVELS},
                **{f"level_{factor}": "text" for factor in LEVELS},
            },
            dtype="uint16",
            units=tuple(units),
            options=dict(options),
            shared=dict(options),
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        plate, row, column = unit.data["plate"], unit.data["row"], unit.data["column"]
        treatment = unit.data["treatment"]
        position = ROWS.index(row) * len(COLUMNS) + column
        n = SITES * shared["images_per_site"]
        rng = np.random.default_rng([WELL, shared["seed"], plate, position])
        levels = {factor: _level(treatment, factor) for factor in LEVELS}
        values = {
            factor: (LEVELS[factor][NAMES.index(level)] * rng.lognormal(0, SPREAD, n)).astype(
                np.float32
            )
            for factor, level in levels.items()
        }
        images = render(rng, Factors(**values), _optics(shared["seed"], plate, row, column))
        shown = {
            f"level_{factor}": level if treatment in ("control", f"{factor}_{level}") else ""
            for factor, level in levels.items()
        }
        well = f"{row}{column:02d}"
        name = f"P{plate + 1:02d}"
        return [
            (
                {
                    "plate": name,
                    "batch": f"B{plate // PLATES_IN_BATCH + 1}",
                    "well": well,
                    "row": row,
                    "column": column,
                    "site": 1 + i // shared["images_per_site"],
                    "field": f"{name}/{well}/{1 + i // shared['images_per_site']}",
                    "treatment": treatment,
                    "is_control": treatment == "control",
                    "split": SPLITS[plate],
                    **{f"factor_{factor}": float(values[factor][i]) for factor in LEVELS},
                    **shown,
                },
                images[i],
            )
            for i in range(n)
        ]


def _layout(seed: int, plate: int) -> list[tuple[str, int, str]]:
    """Row, column and treatment of the wells in use, in the order of the plate."""
    rng = np.random.default_rng([LAYOUT, seed, plate])
    wells = [(row, column) for row in ROWS for column in COLUMNS]
    treatments = ["control"] * CONTROL_WELLS + list(TREATMENTS[1:]) * TREATED_WELLS
    chosen = rng.permutation(len(wells))[: len(treatments)]
    return sorted((*wells[i], treatment) for i, treatment in zip(chosen, treatments, strict=True))


def _level(treatment: str, factor: str) -> str:
    return treatment.removeprefix(f"{factor}_") if treatment.startswith(factor) else "control"


def _optics(seed: int, plate: int, row: str, column: int) -> Optics:
    """Technique: a batch's and a plate's part, and the place of the well on the plate."""
    of_batch = np.random.default_rng([BATCH, seed, plate // PLATES_IN_BATCH])
    of_plate = np.random.default_rng([PLATE, seed, plate])
    c = len(CHANNELS)
    gain = of_batch.lognormal(0, 0.15, c) * of_plate.lognormal(0, 0.2, c)
    background = of_batch.lognormal(0, 0.2, c) * of_plate.lognormal(0, 0.2, c)
    blur_px = of_batch.uniform(0.8, 1.3) + of_plate.uniform(-0.15, 0.15)
    down = 2 * ROWS.index(row) / (len(ROWS) - 1) - 1  # -1 in the first row, 1 in the last
    right = 2 * (column - COLUMNS[0]) / (len(COLUMNS) - 1) - 1
    return Optics(
        gain=gain * (1 + 0.08 * right),
        background=background,
        blur_px=float(blur_px),
        ramp=(0.12 * down, 0.12 * right),
    )


def _declare() -> Declaration:
    def fixed(name: str, column: str) -> Target:
        return Target(name, column, ("plate",), "fixed", split_column="split", audit=AUDIT)

    return Declaration(
        name="synthetic_cells",
        channels=CHANNELS,
        pixel_um=PIXEL_UM,
        targets=(
            fixed("treatment", "treatment"),
            *(fixed(factor, f"level_{factor}") for factor in LEVELS),
            Target(
                "plate",
                "plate",
                ("field",),
                "k_fold",
                n_folds=3,
                nuisance=True,
                metric="accuracy",
            ),
        ),
        nuisance=AUDIT,
        symmetries=("flip", "rot90"),
        pretraining="train",
    )

"""Generated images of cells whose truth is known: factors that change, plates that get in the way.

The experiment is laid out here; `rendering.py` beside this file draws the cells.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

from .rendering import CHANNELS, MARGIN_PX, Factors, Optics, render

PIXEL_UM = 0.65


@dataclasses.dataclass(frozen=True)
class Factor:
    """A property of cells that two treatments change, one down and one up."""

    control: float  # its median without treatment, in the units of rendering.Factors
    effect: float  # "high" multiplies by it, "low" divides
    spread: float  # standard deviation of the logarithm, between images of a well


FACTORS = {
    "nucleus_size": Factor(6.5, 1.17, 0.05),
    "intensity": Factor(1.0, 1.5, 0.10),
    "texture_frequency": Factor(0.075, 1.5, 0.05),
    "cell_density": Factor(3.4, 1.8, 0.10),
}
WELL_SPREAD = 0.02  # of every factor's logarithm, between wells of one treatment
LEVELS = {"low": -1, "control": 0, "high": 1}
CONTROL = "control"
TREATMENTS = (CONTROL, *(f"{factor}_{level}" for factor in FACTORS for level in ("low", "high")))

# Split and batch of seven plates, again and again. Plates of a training batch are in training only,
# and a test plate is alone in its batch: so test plates are independent of training and each other.
PLATES = (
    ("train", 1),
    ("validation", 2),
    ("test", 3),
    ("train", 1),
    ("test", 4),
    ("train", 1),
    ("test", 5),
)
BATCHES = 5  # in those seven plates

METADATA = {
    "plate": "text",
    "batch": "text",
    "well": "text",
    "row": "text",
    "column": "int",
    "site": "int",
    "field": "text",
    "treatment": "text",
    "is_control": "bool",
    "split": "text",
    **{f"level_{factor}": "text" for factor in FACTORS},
    **{f"factor_{factor}": "float" for factor in FACTORS},
}
NUISANCE = ("plate", "batch", "well", "row", "column")
FOLDS = 3
# What a random stream is for; the first word of its key, so that no two streams are the same.
LAYOUT, BATCH, PLATE, WELL = range(4)


class Builder(ImageDatasetBuilder):
    """Plates of `9 x wells_per_treatment` wells; a unit is a well."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="default", description="four factors, nine treatments")
    ]
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "seed": 0,
        "n_plates": 14,
        "wells_per_treatment": 4,
        "sites_per_well": 2,
        "images_per_site": 14,
    }
    LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
        "seed": (0, 2**32 - 1),
        "n_plates": (3, 999),  # the first three are one of each split
        "wells_per_treatment": (1, 26),  # a row of wells each, A to Z
        "sites_per_well": (1, 99),
        "images_per_site": (1, 999),
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if source:
            raise InputError(f"data set 'synthetic_cells' is generated: no source, not {source!r}")
        for name, (low, high) in cls.LIMITS.items():
            if not low <= options[name] <= high:
                raise InputError(
                    f"synthetic_cells option {name} must be from {low} to {high}, "
                    f"not {options[name]}"
                )
        units = []
        for plate in range(1, options["n_plates"] + 1):
            layout = _layout(options["seed"], plate, options["wells_per_treatment"])
            for well, treatment in enumerate(layout):
                data = {"plate": plate, "well": well, "treatment": treatment}
                units.append(Unit(f"{plate:03d}-{well:03d}", data))
        return Plan(
            declaration=_declaration(),
            metadata=METADATA,
            dtype="uint16",
            units=tuple(units),
            options=dict(options),
            shared=dict(options),
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        seed, sites = shared["seed"], shared["sites_per_well"]
        plate, well, treatment = (unit.data[name] for name in ("plate", "well", "treatment"))
        row, column = divmod(well, len(TREATMENTS))
        rng = _rng(seed, WELL, plate, well)
        n = sites * shared["images_per_site"]
        factors = _draw_factors(rng, treatment, n)
        optics = _optics(seed, plate, row, column, shared["wells_per_treatment"])
        images = render(rng, Factors(**factors), optics)

        split, batch = _place(plate)
        plate_name, well_name = f"P{plate:02d}", f"{_letter(row)}{column + 1:02d}"
        common = {
            "plate": plate_name,
            "batch": f"B{batch:02d}",
            "well": well_name,
            "row": _letter(row),
            "column": column + 1,
            "treatment": treatment,
            "is_control": treatment == CONTROL,
            "split": split,
            **{f"level_{factor}": _level(treatment, factor) for factor in FACTORS},
        }
        examples = []
        for i, image in enumerate(images):
            site = 1 + i % sites
            own = {
                "site": site,
                "field": f"{plate_name}/{well_name}/{site}",
                **{f"factor_{factor}": float(values[i]) for factor, values in factors.items()},
            }
            examples.append(({**common, **own}, image))
        return examples


def _declaration() -> Declaration:
    fixed: dict[str, Any] = {
        "unit": ("plate",),
        "split": "fixed",
        "split_column": "split",
        "audit": NUISANCE,
    }
    dealt: dict[str, Any] = {
        "unit": ("field",),
        "split": "k_fold",
        "n_folds": FOLDS,
        "nuisance": True,
        "metric": "accuracy",
    }
    return Declaration(
        name="synthetic_cells",
        channels=CHANNELS,
        pixel_um=PIXEL_UM,
        targets=(
            Target("treatment", "treatment", **fixed),
            *(Target(factor, f"level_{factor}", **fixed) for factor in FACTORS),
            Target("plate", "plate", **dealt),
        ),
        nuisance=NUISANCE,
        symmetries=("flip", "rot90"),
        pretraining="train",
    )


def _rng(seed: int, stream: int, plate: int, well: int = 0) -> np.random.Generator:
    """A generator of its own for every use: nothing depends on what was drawn before."""
    return np.random.default_rng([stream, seed, plate, well])


def _layout(seed: int, plate: int, wells_per_treatment: int) -> list[str]:
    """The treatment of each well of a plate, row by row; another order on every plate."""
    order = _rng(seed, LAYOUT, plate).permutation(len(TREATMENTS) * wells_per_treatment)
    return [TREATMENTS[i % len(TREATMENTS)] for i in order]


def _place(plate: int) -> tuple[str, int]:
    """Split and batch number of a plate, both from 1."""
    cycle, position = divmod(plate - 1, len(PLATES))
    split, batch = PLATES[position]
    return split, cycle * BATCHES + batch


def _level(treatment: str, factor: str) -> str:
    """low, control or high; "" where the treatment changes another factor."""
    if treatment == CONTROL:
        return CONTROL
    changed, level = treatment.rsplit("_", 1)
    return level if changed == factor else ""


def _draw_factors(rng: np.random.Generator, treatment: str, n: int) -> dict[str, np.ndarray]:
    """The true factors of n images of one well, float32 [n] each."""
    drawn = {}
    for name, factor in FACTORS.items():
        level = LEVELS[_level(treatment, name) or CONTROL]
        shift = level * np.log(factor.effect) + rng.normal(0, WELL_SPREAD)
        values = factor.control * np.exp(shift + rng.normal(0, factor.spread, n))
        drawn[name] = values.astype(np.float32)
    return drawn


def _optics(seed: int, plate: int, row: int, column: int, rows: int) -> Optics:
    """The technique of a well: its batch, its plate and its place on the plate."""
    n = len(CHANNELS)
    gain, background, blur = np.zeros(n), np.zeros(n), np.zeros(n)  # logarithms
    batch_rng, plate_rng = _rng(seed, BATCH, _place(plate)[1]), _rng(seed, PLATE, plate)
    for rng, size in ((batch_rng, 1.0), (plate_rng, 0.7)):
        gain += rng.normal(0, 0.3 * size, n)
        background += rng.normal(0, 0.4 * size, n)
        blur += rng.normal(0, 0.08 * size) + rng.normal(0, 0.06 * size, n)
    # From -1 at the upper left well to 1 at the lower right one.
    down = 2 * row / max(rows - 1, 1) - 1
    right = 2 * column / (len(TREATMENTS) - 1) - 1
    slope = plate_rng.normal(0, 0.1, 2)  # stain or light runs unevenly over a plate
    return Optics(
        gain=np.exp(gain + slope[0] * down + slope[1] * right),
        background=np.exp(background),
        blur_px=np.clip(1.05 * np.exp(blur), 0.6, MARGIN_PX / 3),
        ramp=(0.25 * down, 0.25 * right),
    )


def _letter(row: int) -> str:
    return chr(ord("A") + row)

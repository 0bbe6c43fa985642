"""Generated images of cells whose truth is known: an instrument with dials.

What an experiment holds is in `presets.py`, its layout in `screen.py`, the dials in `dials.py`;
`rendering.py` draws the cells.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import Dial, Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

from .dials import BIOLOGY, DIALS, OPTICS
from .dials import WELL as OF_WELLS
from .presets import APART, CONFOUNDS, MECHANISMS, PRESETS, Preset
from .rendering import (
    CHANNELS,
    Cells,
    Dials,
    Optics,
    Scene,
    collect,
    expose,
    paint,
    place,
)
from .screen import (
    COLUMNS,
    CONTROL,
    NAMES,
    WELL,
    Well,
    cells_of,
    draw_dials,
    n_wells,
    optics,
    rng,
    wells_of_plate,
)

PIXEL_UM = 0.65
FOLDS = 3
BRIGHT = ("dna_content", "gain", "background")  # dials of brightness, beside those of stains
LEAST_PX = 48  # of an image of cells that lie whole and apart
BATCH_PX = 32 * 72**2  # pixels of a channel that are drawn at a time: some 25 MB
POSITION = ("well", "row", "column")
CLASSES = {"handedness": ("left", "right"), "agreement": ("different", "same")}  # of pairs
VIEWS = ("crop", "field")
TIES = ("label", "batch", "plate", "position")
COMPOSITE = (4, 3, 0)  # mitochondria, AGP and DNA as red, green and blue
SHOWN = {  # channels of the pictures of a dial, where the composite does not show it
    "dna_content": (0,),
    "chromatin_texture": (0,),
    "texture_frequency": (2,),
    "granularity": (2,),
    "colocalisation": (4, 2),
    "handedness": (4, 3, 2),
    "agreement": (4, 3, 2),
    "polarity": (4, 3, 2),
    "background": (3,),
    "vignetting": (3,),
    "bleed_through": (1,),
    "exposure": (3,),
}

# What a dial is shown on, where the usual cells would not show it: organelles of more contrast,
# larger nuclei, or more, smaller cells.
SHOWN_ON = {
    "texture_frequency": {"granularity": 0.6},
    "colocalisation": {
        "granularity": 1.2,
        "texture_frequency": 0.145,
        "polarity": 0.0,
        "exposure": 16.0,
        "nucleus_size": 14.0,
        "cytoplasm_area": 12.0,
        "cell_density": 2.0,
    },
    "chromatin_texture": {"nucleus_size": 14.0, "cytoplasm_area": 4.0, "exposure": 16.0},
    "clustering": {"nucleus_size": 3.5, "cytoplasm_area": 8.0, "cell_density": 9.0},
}
# Shown relative to the light around: texture alone.
RELATIVE_PX = {"colocalisation": 5.0, "chromatin_texture": 5.0}
SHOWN_PX = {
    "colocalisation": 60,
    "chromatin_texture": 60,
    **dict.fromkeys(CLASSES, 80),
}  # images of others are of 96 px
SHOWN_CELLS = 4  # of the dials of `CLASSES`


class Builder(ImageDatasetBuilder):
    """Plates of wells, each drawn on its own; a unit is a well."""

    VERSION = tfds.core.Version("2.4.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "2.4.0": "Density alone says how many cells; nuclei keep apart; half the counts a photon.",
        "2.3.0": "Skewed shot noise; constants fitted to real plates on more wells.",
        "2.2.0": "Other random numbers; relational presets test on four plates of seven.",
        "2.1.0": "Pairs of cells lie about the middle; constants fitted to real plates.",
        "2.0.0": "Fields, dials, presets and screens; other cells than before.",
        "1.0.0": "First version.",
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name, description=preset.description)
        for name, preset in PRESETS.items()
    ]
    # What is 0 or "" here is as the preset has it.
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "seed": 0,
        "n_plates": 0,
        "wells_per_treatment": 0,
        "sites_per_well": 0,
        "images_per_site": 0,
        "view": "",
        "image_px": 0,
        "n_channels": 0,
        "label": "",  # dials that a treatment turns: "nucleus_size+intensity"
        "batch": "",  # dials that a nuisance turns
        "plate": "",
        "position": "",
        "confound": "",  # none, position or batch
        "withhold": False,  # the metadata do not tell the position
        "noise": True,
    }
    LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
        "seed": (0, 2**32 - 1),
        "n_plates": (3, 999),  # the first three are one of each split
        "wells_per_treatment": (1, 99),
        "sites_per_well": (1, 99),
        "images_per_site": (1, 999),
        "image_px": (32, 512),
        "n_channels": (3, len(CHANNELS)),
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if source:
            raise InputError(f"data set 'synthetic_cells' is generated: no source, not {source!r}")
        preset = resolve(config, options)
        units = [
            Unit(f"{plate:03d}-{number:03d}", {"plate": plate, "number": number})
            for plate in range(1, preset.n_plates + 1)
            for number in range(n_wells(preset))
        ]
        return Plan(
            declaration=declaration(preset),
            metadata=metadata_columns(preset),
            dtype="uint16",
            units=tuple(units),
            options=dict(options),
            shared={"config": config, **options},
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> Iterator[Example]:
        preset, seed, well = cls.well(unit, shared)
        known = _known_of_well(preset, well, seed)
        for i, (own, image) in enumerate(draw_well(preset, well, seed, noise=shared["noise"])):
            # Members of a pair are of one site, or the site would tell them apart.
            place = i // 2 if preset.kind == "pairs" else i
            site = 1 + place % preset.sites_per_well
            field = {"site": site, "field": f"{known['field']}/{site}"}
            yield {**known, **field, **own}, image

    @classmethod
    def well(cls, unit: Unit, shared: Mapping[str, Any]) -> tuple[Preset, int, Well]:
        """(preset, seed, well) that a unit of a plan stands for."""
        options = {name: shared[name] for name in cls.DEFAULT_OPTIONS}
        preset, seed = resolve(shared["config"], options), options["seed"]
        return preset, seed, wells_of_plate(preset, seed, unit.data["plate"])[unit.data["number"]]

    @classmethod
    def dials(cls) -> list[Dial]:
        """What can be turned, over two steps on either side of the usual value."""
        found = []
        for name, dial in DIALS.items():
            ends = (np.clip(dial.turned(steps), dial.low, dial.high) for steps in (-2, 2))
            stain = name.removeprefix("intensity_")
            channels = (CHANNELS.index(stain),) if stain in CHANNELS else SHOWN.get(name, COMPOSITE)
            around = RELATIVE_PX.get(name, 0.0)
            found.append(Dial(name, dial.meaning, dial.control, *ends, dial.log, channels, around))
        return found

    @classmethod
    def sweep(
        cls,
        dial: str,
        values: Sequence[float],
        *,
        image_px: int = 0,
        seed: int = 0,
        noise: bool = True,
    ) -> np.ndarray:
        """The same field at each value of a dial, everything else held: uint16 [n, h, w, c].

        image_px: 0 is the size that shows the dial best. Handedness and agreement are shown on a
        few cells that are drawn apart, cells per well as the crops of a well beside each other
        (`_well_sweep`). `InputError` for a dial that there is not.
        """
        if dial not in DIALS:
            raise InputError(f"synthetic_cells has no dial {dial!r}; there are: {', '.join(DIALS)}")
        if dial in OF_WELLS:
            return cls._well_sweep(values, seed=seed, noise=noise)
        images = []
        for draw, cells, dials, scene in cls._swept(dial, values, image_px, seed):
            technique = Optics(*np.ones((3, scene.n_channels)))
            light = collect(paint(draw, cells, dials, scene), dials, technique)
            camera = rng(seed, WELL, 1)  # the same noise, whatever was drawn before
            images.append(expose(camera, light, dials["exposure"], noise=noise)[0])
        return np.stack(images)

    @classmethod
    def _swept(
        cls, dial: str, values: Sequence[float], image_px: int, seed: int
    ) -> Iterator[tuple[np.random.Generator, Cells, Dials, Scene]]:
        """Of each value the cells of a field of one, and what they were placed with."""
        image_px = image_px or SHOWN_PX.get(dial, 96)
        n_channels = len(CHANNELS) if dial.removeprefix("intensity_") in CHANNELS[5:] else 5
        scene = Scene(image_px, n_channels, "field", SHOWN_CELLS if dial in CLASSES else 0)
        held = dict(SHOWN_ON.get(dial, {}))
        if dial in CLASSES:
            held = dict(PRESETS["neighbour_agreement_only"].held)
        for value in values:
            draw = rng(seed, WELL, 0)
            dials = {
                name: np.array([held.get(name, other.control)])
                for name, other in (BIOLOGY | OPTICS).items()
            }
            dials[dial] = np.array([float(value)])
            yield draw, place(draw, dials, scene), dials, scene

    @classmethod
    def marks(cls, dial: str, values: Sequence[float], *, seed: int = 0) -> np.ndarray | None:
        """Rings around the cells of `sweep`, uint8 [n, h, w]: 1 if right-handed, 2 if left-handed.

        0 elsewhere; None for a dial that has nothing to do with hands.
        """
        if dial not in CLASSES:
            return None
        found = []
        for _, cells, _, scene in cls._swept(dial, values, 0, seed):
            rings = np.zeros((scene.image_px, scene.image_px), np.uint8)
            first = (scene.canvas_px - scene.image_px) // 2
            y, x = np.mgrid[: scene.image_px, : scene.image_px] + first
            for i in range(scene.n_cells):
                distance = np.hypot(y - cells.y[0, i], x - cells.x[0, i])
                on = np.abs(distance - 1.08 * cells.body_radius[0, i]) < 0.5
                rings[on] = 1 if cells.hand[0, i] > 0 else 2
            found.append(rings)
        return np.stack(found)

    @classmethod
    def _well_sweep(cls, values: Sequence[float], *, seed: int, noise: bool) -> np.ndarray:
        """The cells of one well as tiles of a square, four of them at 1: uint16 [n, h, w, c]."""
        counts = [max(1, round(4 * value)) for value in values]
        side = math.isqrt(max(counts) - 1) + 1
        scene, names = Scene(), BIOLOGY | OPTICS
        dials = {name: np.full(max(counts), dial.control) for name, dial in names.items()}
        technique = Optics(*np.ones((3, scene.n_channels)))
        draw = rng(seed, WELL, 0)
        light = collect(paint(draw, place(draw, dials, scene), dials, scene), dials, technique)
        crops = expose(draw, light, dials["exposure"], noise=noise)
        empty = np.full_like(crops[0], crops.min())
        wells = []
        for count in counts:
            tiles = [*crops[:count], *[empty] * (side**2 - count)]
            rows = [np.concatenate(tiles[i : i + side], 1) for i in range(0, side**2, side)]
            wells.append(np.concatenate(rows))
        return np.stack(wells)

    @classmethod
    def layout(cls, plan: Plan) -> pd.DataFrame:
        """The metadata that an experiment has before an image is drawn: a row a well and class."""
        found = [cls.well(unit, plan.shared) for unit in plan.units]
        rows = [_known_of_well(preset, well, seed) for preset, seed, well in found]
        preset = found[0][0]
        if preset.kind == "pairs":
            (label,) = preset.label
            rows = [{**row, label: name} for row in rows for name in CLASSES[label]]
        return pd.DataFrame(rows)


def resolve(config: str, options: Mapping[str, Any]) -> Preset:
    """The preset of a config with the options over it; `InputError` for one that cannot be."""
    return _resolve(config, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=64)  # every unit of a plan asks, and what is cached hangs on it
def _resolve(config: str, settled: tuple[tuple[str, Any], ...]) -> Preset:
    preset, options = PRESETS[config], dict(settled)
    changes: dict[str, Any] = {}
    for key, value in options.items():
        if key in TIES and value:
            changes[key] = tuple(part.strip() for part in value.split("+") if part.strip())
        elif key not in ("seed", "noise") and value:
            changes[key] = value
    pairs = preset.kind == "pairs"
    for key, fixed in (("label", preset.kind in ("pairs", "screen")), ("view", pairs)):
        if fixed and key in changes:
            raise InputError(f"synthetic_cells option {key}: {config} has its own")
    preset = dataclasses.replace(preset, **changes)
    checked = {"seed": options["seed"], **dataclasses.asdict(preset)}
    for name, (low, high) in Builder.LIMITS.items():
        if not low <= checked[name] <= high:
            raise InputError(
                f"synthetic_cells option {name} must be from {low} to {high}, not {checked[name]}"
            )
    for name, allowed in (("view", VIEWS), ("confound", CONFOUNDS)):
        if checked[name] not in allowed:
            raise InputError(
                f"synthetic_cells option {name} must be one of {', '.join(allowed)}, not "
                f"{checked[name]!r}"
            )
    if pairs and preset.confound != "none":
        raise InputError(
            f"synthetic_cells option confound: every well of {config} holds both classes; "
            "expected none"
        )
    if preset.confound == "batch" and preset.kind != "classes":
        raise InputError(
            f"synthetic_cells option confound: a batch of one treatment needs two treatments, and "
            f"{config} has more; expected none or position"
        )
    for key in TIES:
        absent = set(CHANNELS[preset.n_channels :])
        names = [name for name in DIALS if name.removeprefix("intensity_") not in absent]
        for name in checked[key]:
            if name not in names:
                raise InputError(
                    f"synthetic_cells option {key}: {name!r} is no dial; they are, joined by +: "
                    f"{', '.join(names)}"
                )
            if pairs and key != "label" and name in (*CLASSES, "cells_per_well"):
                raise InputError(
                    f"synthetic_cells option {key}: {config} draws {name} itself, class by class"
                )
    if preset.kind == "classes" and preset.label and {*preset.label} <= {*CLASSES}:
        preset = dataclasses.replace(preset, **APART)  # where a relation can be seen
    if preset.n_cells and preset.image_px < LEAST_PX:
        raise InputError(
            f"synthetic_cells option image_px: {preset.image_px} has no room for {preset.n_cells} "
            f"cells that lie apart; expected at least {LEAST_PX}"
        )
    if preset.withhold and "cells_per_well" in preset.label:
        raise InputError(
            "synthetic_cells option withhold: a label of wells needs to know the wells"
        )
    if n_wells(preset) > 26 * COLUMNS:
        raise InputError(
            f"synthetic_cells option wells_per_treatment: {preset.wells_per_treatment} makes "
            f"{n_wells(preset)} wells a plate, expected at most {26 * COLUMNS}"
        )
    return preset


def metadata_columns(preset: Preset) -> dict[str, str]:
    """Metadata column -> type, in the order of the table."""
    columns = {"plate": "text", "batch": "text"}
    if not preset.withhold:
        columns |= {"well": "text", "row": "text", "column": "int"}
    columns |= {"site": "int", "field": "text", "treatment": "text", "split": "text"}
    if preset.kind in ("factors", "screen"):
        columns["is_control"] = "bool"
    if preset.kind == "factors":
        columns |= {f"level_{dial}": "text" for dial in preset.label}
    if preset.kind == "screen":
        columns |= {"compound": "text", "mechanism": "text", "dose_um": "float"}
    if preset.kind == "pairs":
        columns |= {preset.label[0]: "text", "pair": "text"}
    if "cells_per_well" in preset.label:
        columns["cells_per_well"] = "int"
    columns |= {f"factor_{dial}": "float" for dial in known_dials(preset)}
    return columns | {"n_cells": "int"}


def known_dials(preset: Preset) -> list[str]:
    """Dials whose true value goes into the metadata: all of biology, and the optics that turn."""
    absent = set(CHANNELS[preset.n_channels :])
    tied = {*preset.label, *preset.batch, *preset.plate, *preset.position}
    return [
        name
        for name in (*BIOLOGY, *OPTICS)
        if name.removeprefix("intensity_") not in absent and (name in BIOLOGY or name in tied)
    ]


def declaration(preset: Preset) -> Declaration:
    nuisance = ("plate", "batch", *(() if preset.withhold else POSITION))
    fixed: dict[str, Any] = {
        "unit": ("plate",),
        "split": "fixed",
        "split_column": "split",
        "audit": nuisance,
    }
    dealt: dict[str, Any] = {
        "unit": ("field",),
        "split": "k_fold",
        "n_folds": FOLDS,
        "nuisance": True,
        "metric": "accuracy",
    }
    truth = tuple(_truth(dial) for dial in preset.label)
    if preset.kind == "factors":
        targets = (
            Target("treatment", "treatment", **fixed, truth=truth),
            *(
                Target(dial, f"level_{dial}", **fixed, truth=(_truth(dial),))
                for dial in preset.label
            ),
            Target("plate", "plate", **dealt),
        )
    elif preset.kind == "screen":
        known = tuple(f"factor_{dial}" for dial in known_dials(preset))
        by_compound: dict[str, Any] = {"split": "k_fold", "n_folds": FOLDS, "audit": nuisance}
        targets = (
            Target("mechanism", "mechanism", unit=("compound",), truth=known, **by_compound),
            Target("compound", "compound", truth=known, **fixed),
            Target("plate", "plate", **dealt),
        )
    elif preset.kind == "pairs":
        (dial,) = preset.label
        targets = (Target(dial, dial, **fixed, truth=truth),)
    else:
        aggregate = ("plate", "well") if "cells_per_well" in preset.label else ()
        truth = truth or tuple(f"factor_{dial}" for dial in preset.position)
        targets = (Target("treatment", "treatment", **fixed, truth=truth, aggregate=aggregate),)
    return Declaration(
        name="synthetic_cells",
        channels=CHANNELS[: preset.n_channels],
        pixel_um=PIXEL_UM,
        targets=targets,
        nuisance=nuisance,
        symmetries=("rot90",) if "handedness" in preset.label else ("flip", "rot90"),
        pretraining="train",
        erased_by=_erased_by(preset),
    )


def _erased_by(preset: Preset) -> tuple[str, ...]:
    """One cell alone agrees with nobody, and a brightness is gone with the intensities."""
    turned = {*preset.label, *(preset.position if preset.confound == "position" else ())}
    if preset.kind == "screen":
        turned |= {dial for steps in MECHANISMS.values() for dial in steps}
    bright = any(dial in BRIGHT or dial.startswith("intensity") for dial in turned)
    named = {"crop": "agreement" in turned, "intensity": bright}
    return tuple(name for name, erased in named.items() if erased)


def _truth(dial: str) -> str:
    """The metadata column with what the label was drawn from."""
    return dial if dial == "cells_per_well" else f"factor_{dial}"


def draw_well(
    preset: Preset, well: Well, seed: int, *, noise: bool = True
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """The images of a well in their order, each [h, w, c] with what the metadata say of it."""
    draw = rng(seed, WELL, well.plate, well.number)
    n, scene = cells_of(preset, well, seed), scene_of(preset)
    dials = draw_dials(draw, preset, well, seed, n)
    at_once = max(2, BATCH_PX // scene.canvas_px**2)
    technique = optics(preset, well, seed)
    for start in range(0, n, at_once):
        part = {name: values[start : start + at_once] for name, values in dials.items()}
        if preset.kind == "pairs":
            yield from _draw_pairs(draw, part, preset, technique, start, noise)
        else:
            yield from _draw(draw, part, preset, technique, noise)


def scene_of(preset: Preset) -> Scene:
    return Scene(preset.image_px, preset.n_channels, preset.view, preset.n_cells)


def _draw(
    draw: np.random.Generator,
    dials: Dials,
    preset: Preset,
    technique: Optics,
    noise: bool,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    scene = scene_of(preset)
    cells = place(draw, dials, scene)
    light = collect(paint(draw, cells, dials, scene), dials, technique)
    images = expose(draw, light, dials["exposure"], noise=noise)
    yield from zip(_known(preset, dials, cells, scene), images, strict=True)


def _draw_pairs(
    draw: np.random.Generator,
    dials: Dials,
    preset: Preset,
    technique: Optics,
    start: int,
    noise: bool,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Both classes of every arrangement, in random order; `start` is that of the first pair.

    A mirrored class is the light of the other one turned round, so that they differ in noise alone.
    Where cells disagree the same arrangement is drawn again with half of its cells mirrored, each
    on its own.
    """
    scene, (label,) = scene_of(preset), preset.label
    members = []
    if label == "handedness":
        right = {**dials, "handedness": np.ones_like(dials["handedness"])}
        left = {**right, "handedness": -right["handedness"]}
        cells = place(draw, right, scene)
        light = collect(paint(draw, cells, right, scene), right, technique)
        members = [(left, cells, light[..., ::-1]), (right, cells, light)]
    else:
        state = draw.bit_generator.state
        for share in (0.5, 1.0):
            draw.bit_generator.state = state
            these = {**dials, "agreement": np.full_like(dials["agreement"], share)}
            cells = place(draw, these, scene)
            light = collect(paint(draw, cells, these, scene), these, technique)
            members.append((these, cells, light))
    drawn = [
        list(
            zip(
                _known(preset, these, cells, scene),
                expose(draw, light, these["exposure"], noise=noise),
                strict=True,
            )
        )
        for these, cells, light in members
    ]
    swapped = draw.uniform(size=len(drawn[0])) < 0.5
    for i, swap in enumerate(swapped):
        for member in (1, 0) if swap else (0, 1):
            known, image = drawn[member][i]
            about = {label: CLASSES[label][member], "pair": f"{start + i:04d}"}
            yield {**known, **about}, image


def _known(preset: Preset, dials: Dials, cells: Cells, scene: Scene) -> list[dict[str, Any]]:
    """What the metadata say of each image."""
    first = (scene.canvas_px - scene.image_px) / 2 - 0.5  # the outer edge of the first pixel
    inside = cells.there.copy()
    for where in (cells.x, cells.y):
        inside &= (where > first) & (where < first + scene.image_px)
    count = inside.sum(axis=1)
    return [
        {
            # Six digits: the last ones depend on the system's exponential.
            **{f"factor_{k}": float(f"{dials[k][i]:.6g}") for k in known_dials(preset)},
            "n_cells": int(count[i]),
        }
        for i in range(len(count))
    ]


def _known_of_well(preset: Preset, well: Well, seed: int) -> dict[str, Any]:
    treatment, plate = well.treatment, f"P{well.plate:02d}"
    name = well.name
    known: dict[str, Any] = {"plate": plate, "batch": f"B{well.batch:02d}"}
    if preset.withhold:  # a number that does not tell where it is
        order = rng(seed, NAMES, well.plate).permutation(n_wells(preset))
        name = f"{order[well.number]:03d}"
    else:
        known |= {"well": well.name, "row": well.letter, "column": well.column + 1}
    known |= {"field": f"{plate}/{name}", "treatment": treatment.name, "split": well.split}
    if preset.kind in ("factors", "screen"):
        known["is_control"] = not treatment.steps
    if preset.kind == "factors":
        known |= {f"level_{dial}": _level(treatment.name, dial) for dial in preset.label}
    if preset.kind == "screen":
        known |= {
            "compound": treatment.compound,
            "mechanism": treatment.mechanism,
            "dose_um": treatment.dose_um,
        }
    if "cells_per_well" in preset.label:
        known["cells_per_well"] = cells_of(preset, well, seed)
    return known


def _level(treatment: str, dial: str) -> str:
    """low, control or high; "" where the treatment turns another dial."""
    if treatment == CONTROL:
        return CONTROL
    turned, level = treatment.rsplit("_", 1)
    return level if turned == dial else ""

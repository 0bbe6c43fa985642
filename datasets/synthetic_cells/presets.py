"""What an experiment with synthetic cells holds: which dials a label and the nuisances turn.

A preset is a builder config. `classes` has two treatments that turn the dials of `label` down and
up; `factors` a control and two treatments for each of them; `screen` compounds at doses that share
mechanisms; `pairs` puts both classes into every well, image by image: each pair is one arrangement
of cells, drawn twice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

KINDS = ("factors", "classes", "screen", "pairs")
CONFOUNDS = ("none", "position", "batch")

# Mechanisms of action and the steps that each of them turns.
MECHANISMS: dict[str, dict[str, float]] = {
    "DNA_damage": {"nucleus_size": 1.5, "chromatin_texture": 1.0},
    "respiration": {"texture_frequency": 1.0, "intensity_Mito": -1.0},
    "ER_stress": {"intensity_ER": 1.2, "granularity": 1.0},
    "cytoskeleton": {"cytoplasm_area": -1.2, "nucleus_eccentricity": 1.0},
    "arrest": {"cell_density": -1.2, "dna_content": 1.5},
    "secretion": {"polarity": 1.0, "intensity_AGP": 1.0},
}
COMPOUNDS = 3  # of each mechanism
DOSES_UM = {0.3: 0.4, 1.0: 0.7, 3.0: 1.0}  # dose -> share of the full effect
CONTROL_WELLS = 6  # of a plate of a screen


@dataclasses.dataclass(frozen=True, eq=False)
class Preset:
    """One experiment. Names of dials are those of `dials.py`."""

    description: str
    kind: str = "classes"
    label: tuple[str, ...] = ()  # dials that the treatment turns
    batch: tuple[str, ...] = ()  # dials that differ from batch to batch
    plate: tuple[str, ...] = ()  # from plate to plate
    position: tuple[str, ...] = ()  # from the left to the right of a plate
    steps: float = 1.0  # that a treatment turns its dials, down or up
    held: Mapping[str, float] = dataclasses.field(default_factory=dict)  # other values for all
    steady: tuple[str, ...] = ()  # dials that do not vary between wells and images
    confound: str = "none"  # "position": a treatment is always in the same wells; "batch": a batch
    # has a single treatment
    withhold: bool = False  # the metadata do not tell the position
    view: str = "crop"
    image_px: int = 64
    n_channels: int = 5
    n_cells: int = 0  # of every image, all whole and apart; 0: as the dials say
    n_plates: int = 28
    mostly_test: bool = False  # more test plates than others: a claim of equivalence needs many
    wells_per_treatment: int = 6
    sites_per_well: int = 1
    images_per_site: int = 4
    optics_spread: float = 0.65  # of gain, background and blur between batches and plates
    ramp: float = 0.25  # of the illumination between the middle and the edge of an outer well


# Two cells in every image, whole and apart: no overlap tells of the arrangement.
APART: dict[str, Any] = {
    "view": "field",
    "n_cells": 2,
    "held": {"nucleus_size": 5.0, "cytoplasm_area": 5.5, "polarity": 1.0},
    "steady": ("nucleus_size", "cytoplasm_area"),
    "ramp": 0.0,
}
_ARRANGED: dict[str, Any] = {
    **APART,
    "kind": "pairs",
    "optics_spread": 0.3,
    "mostly_test": True,
    "wells_per_treatment": 9,
    "images_per_site": 35,
}

PRESETS = {
    "default": Preset(
        "four factors, nine treatments",
        kind="factors",
        label=("nucleus_size", "intensity", "texture_frequency", "cell_density"),
        n_plates=14,
        wells_per_treatment=4,
        sites_per_well=2,
        images_per_site=14,
    ),
    "custom": Preset("two classes that turn the dials you name", label=("nucleus_size",)),
    "density_only": Preset(
        "the label is the number of cells in a field",
        label=("cell_density",),
        held={"cell_density": 3.0},
        view="field",
        image_px=128,
        images_per_site=3,
    ),
    "intensity_only": Preset(
        "the label is the brightness of the stains but DNA",
        label=("intensity",),
        steps=1.5,
        optics_spread=0.3,
    ),
    "texture_only": Preset(
        "the label is the frequency of the organelles' texture",
        label=("texture_frequency",),
        held={"granularity": 0.8},
    ),
    "colocalisation_only": Preset(
        "the label is the scale on which ER and mitochondria coincide",
        label=("colocalisation",),
        held={"polarity": 0.15, "granularity": 0.8, "texture_frequency": 0.145},
        optics_spread=0.3,
    ),
    "handedness_only": Preset(
        "the label is the handedness of all cells: a class is the other one's mirror image",
        label=("handedness",),
        **_ARRANGED,
    ),
    "neighbour_agreement_only": Preset(
        "the label is whether the cells of an image have the same handedness",
        label=("agreement",),
        **_ARRANGED,
    ),
    "position_only": Preset(
        "no biology: two names for the left and the right half of every plate",
        # Technique that a plate may have: the focus and the filters differ from side to side.
        held={"defocus": 1.0, "bleed_through": 0.2},
        position=("background", "defocus", "gain", "bleed_through"),
        confound="position",
    ),
    "batch_confounded": Preset(
        "larger nuclei, but each batch has a single treatment",
        label=("nucleus_size",),
        batch=("background", "defocus"),
        confound="batch",
    ),
    "cells_per_well_only": Preset(
        "the label is the number of cells that a well's profile is the mean of",
        label=("cells_per_well",),
        n_plates=21,
        images_per_site=16,
    ),
    "mixed_screen": Preset(
        "18 compounds of 6 mechanisms at 3 doses beside controls",
        kind="screen",
        wells_per_treatment=1,
        n_plates=14,
        images_per_site=4,
    ),
}

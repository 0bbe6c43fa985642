"""What each config asks: which dials its label turns, and which vary beside it.

A label turns the dials of its class and no other. Everything else is drawn from the same
distribution in all classes, so that what the label lives in is known.
"""

import dataclasses

import numpy as np

from .dials import DIALS


@dataclasses.dataclass(frozen=True)
class Preset:
    """One config. Dials that are not named stay at their default."""

    description: str
    target: str  # name and column of the label
    classes: dict[str, dict[str, float]]  # class -> the dials that it sets
    truth: tuple[str, ...]  # metadata columns the label is drawn from
    drivers: tuple[str, ...]  # of the genes, in turn
    levels: dict[str, float]  # of dials, in all classes
    spread: dict[str, float]  # of dials, half the range they vary over, in all classes


# What varies in every preset and says nothing: stain, focus and the size of nuclei.
NUISANCE_SPREAD = {
    "nuclear_size": 0.1,
    "haematoxylin": 0.2,
    "eosin": 0.25,
    "out_of_focus": 0.25,
    "blur_um": 0.1,
    "fibre_alignment": 0.3,
}
SHARES = ("truth_share_tumour", "truth_share_lymphocyte", "truth_share_plasma")

PRESETS = {
    "default": Preset(
        description="a mixed tissue of four compartments",
        target="compartment",
        classes={
            "gland": {"gland_share": 0.42, "stroma": 0.6, "infiltrate": 0.15, "density": 6000},
            "tumour": {"stroma": 0.08, "infiltrate": 0.1, "density": 7000},
            "stroma": {"stroma": 0.85, "infiltrate": 0.1, "density": 4500},
            "immune": {"stroma": 0.2, "infiltrate": 0.75, "density": 9000},
        },
        truth=(*SHARES, "truth_share_fibroblast", "truth_share_epithelial", "truth_gland_share"),
        drivers=("composition", "layout", "texture", "nothing"),
        levels={"clustering": 0.4, "chromatin_um": 2.7},
        spread={
            **NUISANCE_SPREAD,
            "density": 1000,
            "infiltrate": 0.1,
            "stroma": 0.1,
            "gland_share": 0.0,
            "clustering": 0.4,
            "chromatin_um": 1.2,
            "pleomorphism": 0.1,
        },
    ),
    "tissue_composition": Preset(
        description="as many nuclei in both classes, more of them lymphocytes in one",
        target="infiltration",
        classes={"low": {"infiltrate": 0.25}, "high": {"infiltrate": 0.6}},
        truth=SHARES,
        drivers=("composition", "nothing"),
        levels={"stroma": 0.1, "compartments": 0.3, "density": 7500},
        spread={**NUISANCE_SPREAD, "infiltrate": 0.08, "stroma": 0.08, "density": 1200},
    ),
    "tissue_layout": Preset(
        description="the same nuclei in both classes, in nests in one and dispersed in the other",
        target="arrangement",
        classes={"dispersed": {"clustering": 0.0}, "nested": {"clustering": 1.0}},
        truth=("truth_clustering",),
        drivers=("layout", "nothing"),
        levels={"infiltrate": 0.6, "stroma": 0.05, "compartments": 0.0, "density": 7500,
                "evenness": 1.0, "nuclear_size": 0.87},
        spread={**NUISANCE_SPREAD, "infiltrate": 0.1, "stroma": 0.05, "density": 1500},
    ),
    "tissue_texture": Preset(
        description="the same nuclei in the same places, their chromatin fine or coarse",
        target="chromatin",
        classes={"fine": {"chromatin_um": 1.6}, "coarse": {"chromatin_um": 3.4}},
        truth=("truth_chromatin_um",),
        drivers=("texture", "nothing"),
        levels={"infiltrate": 0.08, "stroma": 0.08, "compartments": 0.3, "density": 6000},
        spread={**NUISANCE_SPREAD, "infiltrate": 0.05, "stroma": 0.05, "density": 1000},
    ),
    "tissue_null": Preset(
        description="a label drawn by lot",
        target="lot",
        classes={"heads": {}, "tails": {}},
        truth=(),
        drivers=("nothing",),
        levels={"infiltrate": 0.4, "clustering": 0.4, "chromatin_um": 2.7, "density": 7000},
        spread={**NUISANCE_SPREAD, "infiltrate": 0.25, "stroma": 0.2, "density": 1500,
                "clustering": 0.4, "chromatin_um": 1.2},
    ),
}  # fmt: skip


def spot_dials(
    preset: Preset, label: str, patient_draws: np.ndarray, spot_draws: np.ndarray
) -> dict[str, float]:
    """The dials of one spot.

    Args:
      patient_draws: one of each dial, uniform in -1 ... 1: a third of the spread is the patient's.
      spot_draws: the same for the spot: the other two thirds.
    """
    dials = {}
    for i, (name, dial) in enumerate(DIALS.items()):
        level = preset.levels.get(name, dial.default)
        level = preset.classes[label].get(name, level)
        shift = (patient_draws[i] + 2 * spot_draws[i]) / 3 * preset.spread.get(name, 0.0)
        dials[name] = dial.clip(float(level + shift))
    return dials

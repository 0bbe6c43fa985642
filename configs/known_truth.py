"""A generated experiment whose truth is known, its floors and random networks beside the truth.

    python -m bioimg_jax.evaluate --config=configs/known_truth.py:density_only --workdir=OUT

PRESET is a config of datasets/synthetic_cells or datasets/synthetic_tissue. Add `--checkpoint` for
a trained encoder. All presets at once, with trained encoders: configs/calibrate.py.
"""

import ml_collections

from configs import common

FLOORS = "chance,pixels,nuclei,layout,texture_bank,random_projection,twin,selected"
RELATIONAL = ("handedness_only", "neighbour_agreement_only")
TISSUE = ("tissue_composition", "tissue_layout", "tissue_texture", "tissue_null")


def floors(preset: str) -> str:
    """The floors of a preset, in the config's words."""
    if preset == "cells_per_well_only":
        return FLOORS.replace("random_projection", "random_projection,aggregation_noise")
    if preset in TISSUE:
        return f"{FLOORS},stain,combined,layout_rendered,layout_trained"
    if preset == "density_only":
        return f"{FLOORS},combined,layout_rendered,layout_trained"
    if preset in RELATIONAL:  # both classes have the same orientations, so those that are mirrored
        return FLOORS.replace("texture_bank", "texture_bank_mirrored")
    return FLOORS


def get_config(preset: str = "density_only") -> ml_collections.ConfigDict:
    name = "synthetic_tissue" if preset in TISSUE else "synthetic_cells"
    crop_px = 128 if preset in (*TISSUE, "density_only") else 64
    return ml_collections.ConfigDict(
        {
            "name": "known_truth",
            "seed": 0,
            "data": common.data(name=name, config=preset, crop_px=crop_px),
            "encoder": common.small_vit(crop_px),
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            "evaluate": common.evaluation(
                floors=floors(preset),
                untrained_seeds=2,
                blocks=2,
                strengths="1e0,1e-1,1e-2,1e-3,1e-4",
                audits=False,
            ),
        }
    )

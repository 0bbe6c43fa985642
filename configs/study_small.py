"""The study in small: one recipe on cells, tissue and natural images, each beside its floors.

    python -m bioimg_jax.main --config=configs/study_small.py:lincs
    python -m bioimg_jax.main --config=configs/study_small.py:lc25000
    python -m bioimg_jax.main --config=configs/study_small.py:cifar10

Images are read from the folder that the environment variable BIOIMG_DATA names.
"""

import os

import ml_collections
from ml_collections.config_dict import FieldReference

from configs import common

# Folder under BIOIMG_DATA, builder and its options, crop, patch, and the floors that make sense.
SIMPLE = "chance,pixels,texture_bank,random_projection,twin,selected"
NUCLEI = "chance,pixels,nuclei,layout,combined,texture_bank,random_projection,twin,selected"
ARMS = {
    "lincs": {
        "data": {"name": "deepprofiler", "source": "lincs_cell_painting"},
        "crop_px": 64,
        "patch_px": 16,
        "steps": 3000,
        "rotations": True,
        "floors": NUCLEI,
    },
    "lc25000": {
        "data": {"name": "image_folder", "source": "lc25000_colon"},
        "crop_px": 128,
        "patch_px": 16,
        "steps": 1000,
        "rotations": True,
        "floors": NUCLEI,
    },
    "cifar10": {
        "data": {
            "name": "image_folder",
            "source": "cifar10_subset",
            "options": "symmetries=flip",  # up is up
        },
        "crop_px": 32,
        "patch_px": 4,
        "steps": 2000,
        "rotations": False,
        "floors": SIMPLE,  # natural images have no nuclei
    },
}


def get_config(arm: str = "lincs") -> ml_collections.ConfigDict:
    if arm not in ARMS:
        raise ValueError(f"{arm!r}, expected one of {', '.join(ARMS)}")
    chosen = ARMS[arm]
    crop_px = FieldReference(chosen["crop_px"])
    data = dict(chosen["data"])
    data["source"] = os.path.join(os.environ.get("BIOIMG_DATA", "data"), data["source"])
    return ml_collections.ConfigDict(
        {
            "name": "study_small",
            "seed": 0,
            "data": common.data(crop_px=crop_px, flips=True, rotations=chosen["rotations"], **data),
            "encoder": common.small_vit(crop_px, patch_px=chosen["patch_px"]),
            "objective": common.small_mae(),
            "optimizer": common.adamw(),
            "train": {
                "batch_size": 128,
                "steps": chosen["steps"],
                "accumulation": 1,
                "log_every_steps": 50,
                "save_every_steps": 500,
                "probe_every_steps": 0,
            },
            "mesh": {"devices": 0, "model": 1, "fsdp": False},
            "evaluate": common.evaluation(
                floors=chosen["floors"],
                untrained_seeds=3,
                blocks=2,
                strengths="1e0,1e-1,1e-2,1e-3,1e-4,1e-5",
                max_examples=12000,
                probe_examples=2000,
                inductive=False,
            ),
        }
    )

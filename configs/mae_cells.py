"""A masked autoencoder on single cells: minutes on two CPU cores, any data set of cell crops.

    python -m bioimg_jax.main --config=configs/mae_cells.py
    python -m bioimg_jax.main --config=configs/mae_cells.py \\
        --config.data.name=deepprofiler --config.data.source=PATH
"""

import ml_collections
from ml_collections.config_dict import FieldReference

from configs import common


def get_config() -> ml_collections.ConfigDict:
    crop_px = FieldReference(64)
    return ml_collections.ConfigDict(
        {
            "name": "mae_cells",
            "seed": 0,
            "data": common.data(crop_px=crop_px, flips=True, rotations=True),
            "encoder": common.small_vit(crop_px),
            "objective": common.small_mae(),
            "optimizer": common.adamw(),
            "train": {
                "batch_size": 128,
                "steps": 1500,
                "accumulation": 1,
                "log_every_steps": 25,
                "save_every_steps": 500,
                "probe_every_steps": 500,  # the primary target's score on the way; 0: never
            },
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            # A smaller search than configs/common.py, so that the whole run takes minutes.
            "evaluate": common.evaluation(
                untrained_seeds=3,
                blocks=2,
                strengths="1e-1,1e-2,1e-3,1e-4,1e-5",
                probe_examples=2000,  # probed for the score on the way
                inductive=True,  # where pre-training sees test images: one fold without them
            ),
        }
    )

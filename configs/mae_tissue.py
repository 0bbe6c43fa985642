"""A masked autoencoder on H&E, generated or of HEST-Benchmark: minutes on two CPU cores.

    python -m bioimg_jax.main --config=configs/mae_tissue.py
    python -m bioimg_jax.main --config=configs/mae_tissue.py \\
        --config.data.name=hest --config.data.source=TASK --config.data.crop_px=224

Where a task has one split that holds out patients, only its training sections are seen.
"""

import ml_collections
from ml_collections.config_dict import FieldReference

from configs import common


def get_config() -> ml_collections.ConfigDict:
    crop_px = FieldReference(128)
    return ml_collections.ConfigDict(
        {
            "name": "mae_tissue",
            "seed": 0,
            "data": common.data(
                name="synthetic_tissue", crop_px=crop_px, flips=True, rotations=True
            ),
            "encoder": common.small_vit(crop_px),
            "objective": common.small_mae(),
            "optimizer": common.adamw(),
            "train": {
                "batch_size": 64,  # a patch has as many tokens as four cells
                "steps": 1500,
                "accumulation": 1,
                "log_every_steps": 25,
                "save_every_steps": 500,
                "probe_every_steps": 0,
            },
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            "evaluate": common.evaluation(
                floors="chance,pixels,stain,nuclei,layout,twin,selected,layout_trained",
                untrained_seeds=3,
                blocks=2,
                strengths="1e-1,1e-2,1e-3,1e-4,1e-5",
                probe_examples=1000,
                inductive=False,  # a section is no label that pre-training could have seen
            ),
        }
    )

"""The positive control: a small ResNet trained on the labels of the primary target's train part.

    python -m bioimg_jax.main --config=configs/supervised_cells.py
    python -m bioimg_jax.main --config=configs/supervised_cells.py \\
        --config.data.name=NAME --config.objective.target=TARGET --config.objective.n_classes=N

What it does not find, with the labels in hand, is no yardstick for an encoder that had none.
"""

import ml_collections
from ml_collections.config_dict import FieldReference

from configs import common


def get_config() -> ml_collections.ConfigDict:
    crop_px = FieldReference(64)
    return ml_collections.ConfigDict(
        {
            "name": "supervised_cells",
            "seed": 0,
            "data": common.data(crop_px=crop_px, flips=True, rotations=True),
            "encoder": common.small_resnet(),
            "objective": {
                "name": "supervised",
                "target": "treatment",  # one of the data set's, with a fixed split
                "n_classes": 9,
                "pooling": "mean",
                "hidden": 0,  # width of the head's hidden layer; 0: linear
                "label_smoothing": 0.0,
                "augment": False,
            },
            "optimizer": {**common.adamw(), "learning_rate": 8e-3, "warmup_steps": 50},
            "train": {
                "batch_size": 64,
                "steps": 500,
                "accumulation": 1,  # batch statistics allow no other
                "log_every_steps": 25,
                "save_every_steps": 250,
                "probe_every_steps": 250,  # the primary target's score on the way; 0: never
            },
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            "evaluate": common.evaluation(
                untrained_seeds=3,
                blocks=2,
                poolings="mean",  # a ResNet has no cls
                strengths="1e-1,1e-2,1e-3,1e-4,1e-5",
                probe_examples=2000,
                inductive=True,  # where training saw images that the primary target tests on
            ),
        }
    )

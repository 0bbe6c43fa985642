"""Evaluates checkpoints on a data set of cell crops, beside their floors.

    python -m bioimg_jax.evaluate --config=configs/eval_cells.py --checkpoint=WORKDIR --workdir=OUT

Give `--checkpoint` several times for several encoders; seeds of one recipe are averaged.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "eval_cells",
            "seed": 0,
            "data": common.data(crop_px=0),  # 0: the crop that the checkpoint was trained on
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            "evaluate": common.evaluation(),
        }
    )

"""What random networks score before any training: 8 settings of one ViT, 20 seeds each.

    python -m bioimg_jax.evaluate --config=configs/untrained_atlas.py --workdir=OUT

Two textures that only their direction tells apart, so that pixel statistics are at chance (0.5).
Initialisation, LayerScale, dtype, block and pooling put the same architecture anywhere between that
and 1.0: docs/results.md. Minutes on two CPU cores.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from configs import common

# Kernels and positions as in timm and DINOv2, and as in MAE; each with LayerScale off (1) and at
# 1e-4, in either type.
RECIPES = ("init=trunc_normal,positions=learned", "init=xavier,positions=sincos")
VARIANTS = ";".join(
    f"{recipe},layerscale={layerscale},dtype={dtype}"
    for recipe in RECIPES
    for layerscale in ("1", "1e-4")
    for dtype in ("float32", "bfloat16")
)


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "untrained_atlas",
            "seed": 0,
            "data": common.data(name="two_textures"),
            "encoder": {
                "name": "vit",
                "variant": "Ti",  # 12 blocks of width 192
                "patch_px": 16,
                "image_px": 64,
                "positions": "learned",
                "layerscale": placeholder(float),
                "init": "trunc_normal",
                "dtype": "float32",
            },
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            "evaluate": common.evaluation(
                untrained_seeds=20,
                untrained_variants=VARIANTS,
                poolings="cls,mean,mean_std",
                strengths="1e0,1e-1,1e-2,1e-3,1e-4,1e-5",
                floors="chance,pixels,texture_bank,random_projection,selected",
            ),
        }
    )

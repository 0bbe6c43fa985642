"""Features of a frozen encoder: images/s here and with Hugging Face in PyTorch.

    python -m speed.extract

ViT-S/16, 224 x 224 x 5, batch 32, float32. Ours is the extraction that an evaluation runs: uint16
in, standardised on the device, the pooled vectors of four blocks out. The peer is `ViTModel` in
`inference_mode`, eager and compiled, on images that are standardised already; the faster counts.
The script stops unless the last block's patch means agree. Same number of threads, the same
process (so PyTorch too keeps its memory between batches), alternating rounds.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import ViTConfig, ViTModel

from bioimg_jax.data.transforms import standardise
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.models import build_encoder
from bioimg_jax.representations.encoder import EncoderRepresentation
from speed.alternating import alternate, show
from tests.models import hugging_face

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
IMAGE_PX, BATCH_SIZE = 224, 32


def main() -> float:
    settle_cpu()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            image_size=IMAGE_PX,
            patch_size=16,
            num_channels=len(CHANNELS),
            layer_norm_eps=1e-6,
        ),
        add_pooling_layer=False,
    ).eval()
    encoder = build_encoder(
        {
            "name": "vit",
            "variant": "S",
            "channels": CHANNELS,
            "patch_px": 16,
            "image_px": IMAGE_PX,
            "positions": "learned",
        }
    )
    like = encoder.init(jax.random.key(0))["params"]
    variables = {"params": hugging_face.vit(model, like), "stats": {}}
    representation = EncoderRepresentation("vit", "imported", encoder, variables, blocks=4)

    shape = (BATCH_SIZE, IMAGE_PX, IMAGE_PX, len(CHANNELS))
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 2**16, shape, np.uint16))}
    standardised = np.asarray(standardise(batch["image"])).transpose(0, 3, 1, 2)
    theirs = torch.tensor(np.ascontiguousarray(standardised))

    def ours() -> Any:
        return jax.block_until_ready(representation.features(batch))

    def side(forward: Any) -> Any:
        def extract() -> Any:
            with torch.inference_mode():
                return forward(theirs).last_hidden_state[:, 1:].mean(dim=1)

        return extract

    eager, compiled = side(model), side(torch.compile(model))
    difference = np.abs(np.asarray(ours()["final/mean"]) - eager().numpy()).max()
    print(f"largest difference of the final patch means: {difference:.1e}")
    assert difference < 1e-4
    print(f"{threads} threads; jax {jax.__version__}, torch {torch.__version__}")
    seconds = alternate(
        {"bioimg_jax": ours, "torch eager": eager, "torch compiled": compiled}, calls=2
    )
    return show(seconds, ours="bioimg_jax", images=BATCH_SIZE)


if __name__ == "__main__":
    main()

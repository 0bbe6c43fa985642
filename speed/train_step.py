"""A training step of a masked autoencoder: images/s here and with Hugging Face in PyTorch.

    python -m speed.train_step

ViT-S/16, 224 x 224 x 5, batch 32, decoder 256 x 4, float32, AdamW, 75 % masked, normalised targets.
The peer is `ViTMAEForPreTraining` with `torch.optim.AdamW`, eager and compiled; the faster counts.
Both start from the same weights; the script stops unless their losses on the same images and the
same masks agree. Same number of threads, the same process (so PyTorch too keeps its memory between
steps, which it would not by itself), alternating rounds.
"""

import os
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from bioimg_jax.mesh import settle_cpu
from bioimg_jax.train import Run, build_run, make_step
from bioimg_jax.train_state import TrainState
from speed.alternating import alternate, show
from tests.models import hugging_face

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
IMAGE_PX, BATCH_SIZE = 224, 32
LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 0.05
ROOT = Path(__file__).resolve().parent.parent


def our_run() -> Run:
    config = runpy.run_path(str(ROOT / "configs" / "mae_cells.py"))["get_config"]()
    config.data.crop_px = IMAGE_PX
    config.encoder.update(variant="S", width=0, depth=0, heads=0, patch_px=16, image_px=IMAGE_PX)
    config.objective.update(decoder_width=256, decoder_depth=4, decoder_heads=8)
    config.train.update(batch_size=BATCH_SIZE)
    config.optimizer.update(clip_norm=0.0, warmup_steps=0)
    config.optimizer.learning_rate = LEARNING_RATE * 256 / BATCH_SIZE
    config.mesh.devices = 1
    return build_run(config.to_dict(), CHANNELS)


def their_model() -> ViTMAEForPreTraining:
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            image_size=IMAGE_PX,
            patch_size=16,
            num_channels=len(CHANNELS),
            decoder_hidden_size=256,
            decoder_num_hidden_layers=4,
            decoder_num_attention_heads=8,
            decoder_intermediate_size=1024,
            layer_norm_eps=1e-6,
            mask_ratio=0.75,
            norm_pix_loss=True,
        )
    )
    hugging_face.fill_mae_positions(model)
    return model.train()


def check_parity(run: Run, state: TrainState, model: Any, images: np.ndarray) -> None:
    """The same loss for the same weights, images and masks."""
    noise = np.random.default_rng(1).random((len(images), (IMAGE_PX // 16) ** 2), np.float32)
    ours, _ = run.objective.loss(
        state.params,
        state.objective,
        {"image": jnp.asarray(images), "noise": jnp.asarray(noise)},
        key=jax.random.key(0),
        step=0,
    )
    with torch.no_grad():
        theirs = model(torch.tensor(images.transpose(0, 3, 1, 2)), noise=torch.tensor(noise)).loss
    print(f"loss on the same weights and masks: {float(ours):.6f} here, {float(theirs):.6f} there")
    assert abs(float(ours) - float(theirs)) < 1e-4


def main() -> float:
    settle_cpu()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    run, model = our_run(), their_model()
    state = run.states.initial()
    like = state.params
    state = TrainState(state.step, hugging_face.mae(model, like), state.opt_state, state.objective)
    # Where the step leaves it, or the second step compiles anew.
    state = jax.device_put(state, run.states.shardings)
    pixels = np.random.default_rng(0).integers(
        0, 2**16, (BATCH_SIZE, IMAGE_PX, IMAGE_PX, len(CHANNELS)), np.uint16
    )
    images = np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32)
    check_parity(run, state, model, images)

    update = make_step(run)
    kept = {"state": state}
    batch = {"image": jnp.asarray(pixels)}

    def ours() -> None:
        kept["state"], metrics = update(kept["state"], batch)
        metrics["loss"].block_until_ready()

    def side(forward: Any) -> Any:
        optimizer = torch.optim.AdamW(
            model.parameters(), LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        on_device = torch.tensor(images.transpose(0, 3, 1, 2))

        def step() -> None:
            optimizer.zero_grad()
            forward(on_device).loss.backward()
            optimizer.step()

        return step

    print(f"{threads} threads; jax {jax.__version__}, torch {torch.__version__}")
    seconds = alternate(
        {
            "bioimg_jax": ours,
            "torch eager": side(model),
            "torch compiled": side(torch.compile(model)),
        }
    )
    return show(seconds, ours="bioimg_jax", images=BATCH_SIZE)


if __name__ == "__main__":
    main()

"""The memory of an evaluation of 200,000 images: 4 blocks x 3 poolings of a ViT-S, and 5 floors.

    python -m speed.evaluation_memory [--images=200000]

Images are empty and the encoder's features are drawn at random around class means: their number and
width are real, and everything after the encoder is the real evaluation. Prints the peak resident
memory of the process before and after, and the bar of 6 GiB.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

BAR_GIB = 6.0
CLASSES = 10
ENCODER = '''
import jax
import jax.numpy as jnp

WIDTHS = {"cls": 384, "mean": 384, "mean_std": 768}


class ViTS:
    """Features of the shape of a ViT-S's, random but for the class in the row's index."""

    name, kind, dtype = "simulated_vit_s", "trained", "float16"
    layers = {
        f"{block}/{pooling}": width
        for block in ("block03", "block06", "block09", "final")
        for pooling, width in WIDTHS.items()
    }

    def __init__(self):
        def draw(index):
            features = {}
            for i, (layer, width) in enumerate(self.layers.items()):
                keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(i), row))(index)
                noise = jax.vmap(lambda key: jax.random.normal(key, (width,)))(keys)
                decay = jnp.arange(1, width + 1) ** -0.5
                means = jax.random.normal(jax.random.key(99 + i), (10, width))
                features[layer] = (noise + 0.3 * means[index % 10]) * decay
            return features

        self._draw = jax.jit(draw)

    def features(self, batch):
        return self._draw(jnp.asarray(batch["index"]))


def build(channels, width):
    return ViTS()
'''


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200_000)
    n = parser.parse_args().images
    from bioimg_jax import evaluate
    from bioimg_jax.candidates import build_evaluation
    from bioimg_jax.data.declaration import Target
    from bioimg_jax.data.splits import Fold
    from bioimg_jax.mesh import settle_cpu
    from bioimg_jax.results import summary

    settle_cpu()
    plate = np.arange(n) // (n // 40)
    part = np.where(plate % 5 == 3, "validation", np.where(plate % 5 == 4, "test", "train"))
    metadata = pd.DataFrame(
        {"plate": plate.astype(str), "treatment": (np.arange(n) % CLASSES).astype(str)}
    )
    target = Target("treatment", "treatment", ("plate",), "fixed", split_column="part")
    rows = {name: np.flatnonzero(part == name) for name in ("train", "validation", "test")}
    fold = Fold("fixed", rows["train"], rows["validation"], rows["test"], target.unit)
    image = np.zeros((16, 16, 1), np.uint8)
    dataset: Any = _Images(metadata, target, fold, image)

    folder = Path(tempfile.mkdtemp(prefix="evaluation_memory"))
    try:
        (folder / "encoder.py").write_text(ENCODER)
        config = {
            "seed": 0,
            "data": {"crop_px": 16},
            "mesh": {"devices": 0, "model": 1},
            "evaluate": {
                "benchmarks": "linear",
                "strengths": "1e-1,1e-3,1e-5",
                "floors": "chance,pixels,texture_bank,random_projection,aggregation_noise",
                "representations": str(folder / "encoder.py"),
                "untrained_seeds": 0,
                "untrained_variants": "",
                "resnet18": False,
                "blocks": 4,
                "poolings": "cls,mean,mean_std",
                "delta": 0.03,
                "claim": "checkpoints",
                "batch_size": 1024,
                "max_examples": 0,
                "audits": True,
                "illustrate": True,
                "permute_labels": False,
            },
        }
        before, start = peak_gib(), time.perf_counter()
        results = evaluate.evaluate(build_evaluation(config, ("grey",)), dataset, folder)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.rglob("*.h5ad")) / 2**30
    finally:
        shutil.rmtree(folder)
    peak = peak_gib()
    print(summary(results))
    print(
        f"{n:,} images, 12 layers of a ViT-S and 5 floors: peak {peak:.2f} GiB "
        f"({before:.2f} before the first image), tables of {size:.2f} GiB on disk, "
        f"{seconds / 60:.1f} min; bar {BAR_GIB:g} GiB"
    )
    return int(peak > BAR_GIB)


class _Images:
    """As much of `data.dataset.Dataset` as an evaluation asks for."""

    def __init__(self, metadata: pd.DataFrame, target: Any, fold: Any, image: np.ndarray) -> None:
        self.metadata, self._fold, self._image = metadata, fold, image
        self.content_hash = "simulated"
        self.declaration = SimpleNamespace(
            name="simulated", channels=("grey",), targets=(target,), nuisance=(), symmetries=()
        )
        self.source = SimpleNamespace(
            n_channels=image.shape[2], dtype=image.dtype, read=lambda rows: [image] * len(rows)
        )

    def __len__(self) -> int:
        return len(self.metadata)

    def folds(self, name: str) -> list[Any]:
        return [self._fold]

    def pretraining_indices(self, hold_out: Any = None) -> np.ndarray:
        return self._fold.train


def peak_gib() -> float:
    scale = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


if __name__ == "__main__":
    sys.exit(main())

"""Segmenting and measuring nuclei: images/s here and with a plain pipeline of scikit-image.

    python -m speed.nuclei

The 256 x 256 fluorescence images of dsb2018 in BIOIMG_DATA, 64 to a batch. Ours is what an
evaluation runs: `NucleiRepresentation`, alone and with the layout of the same segmentation, in as
many processes as there are cores and in one. The peer is Gaussian, Otsu, distance transform and
watershed, in one process: labels only, and of lower quality.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from bioimg_jax.data.workers import available_cores
from bioimg_jax.representations.layout import LayoutRepresentation
from bioimg_jax.representations.nuclei import NucleiRepresentation, Segmenter
from speed.alternating import alternate, show

ROOT = Path(__file__).resolve().parent.parent
BATCHES, BATCH_SIZE = 2, 64


def plain(image: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1)
    mask = ndimage.binary_fill_holes(smooth > threshold_otsu(smooth))
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1)
    seeds = np.zeros(image.shape, np.int32)
    peaks = peak_local_max(depth, min_distance=5, labels=mask.astype(np.int32))
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=mask)


def main() -> float:
    folder = Path(os.environ.get("BIOIMG_DATA", ROOT.parent / "shared" / "data")) / "dsb2018"
    meta = pd.read_csv(folder / "meta.csv")
    chosen = meta[(meta["kind"] == "fluorescence") & (meta["h"] == 256) & (meta["w"] == 256)]
    names = sorted(chosen["id"])[: BATCHES * BATCH_SIZE]
    images = np.stack([np.asarray(Image.open(folder / f"{name[:16]}_img.png")) for name in names])
    batches = [
        {"image": part[..., None], "mask": np.ones(len(part), bool)}
        for part in np.array_split(images, BATCHES)
    ]
    cores = available_cores()

    def ours(workers: int, layout: bool) -> None:
        segmenter = Segmenter(("DNA",), workers=workers)  # a new one remembers nothing
        nuclei = NucleiRepresentation(segmenter)
        both = [nuclei, LayoutRepresentation(segmenter)] if layout else [nuclei]
        for representation in both:
            for batch in batches:
                representation.features(batch)

    print(f"{len(images)} images, {cores} cores")
    nuclei = f"nuclei, {cores} processes"
    seconds = alternate(
        {
            nuclei: lambda: ours(cores, False),
            "nuclei and layout": lambda: ours(cores, True),
            "nuclei, 1 process": lambda: ours(1, False),
            "plain, 1 process": lambda: [plain(image) for image in images],
        }
    )
    return show(seconds, ours=nuclei, images=len(images))


if __name__ == "__main__":
    main()

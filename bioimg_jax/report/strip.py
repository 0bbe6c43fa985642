"""A row of images as one picture file."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np

GAP_PX = 4  # white, between two images
ENLARGED = 2


def write_strip(path: Path, images: np.ndarray, channels: Sequence[int]) -> None:
    """Writes images [k, h, w, c] side by side, all on one scale.

    channels: one is shown in grey, three are red, green and blue; photographs are given as they
    are, uint8 with three channels.
    """
    shown = images[..., list(channels)].astype(np.float32)
    if images.dtype == np.uint8:
        scaled = shown / 255
    else:  # black and white of the whole row: brightness is what some dials turn
        black = np.quantile(shown, 0.01, axis=(0, 1, 2))
        white = np.quantile(shown, 0.998, axis=(0, 1, 2))
        scaled = np.clip((shown - black) / np.maximum(white - black, 1), 0, 1)
    if scaled.shape[-1] == 1:
        scaled = np.repeat(scaled, 3, axis=-1)
    large = scaled.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    gap = np.ones((large.shape[1], GAP_PX, 3), np.float32)
    parts = [part for image in large for part in (image, gap)][:-1]
    matplotlib.image.imsave(path, (np.concatenate(parts, axis=1) * 255).round().astype(np.uint8))

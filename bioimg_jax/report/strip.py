"""A row of images as one picture file."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
from scipy import ndimage

GAP_PX = 4  # white, between two images
HIGH_PX = 240  # of a row, about: images are enlarged by whole factors
# Colour of a mark: white, orange, green, blue.
MARKS = {1: (1.0, 1.0, 1.0), 2: (1.0, 0.55, 0.0), 3: (0.0, 0.8, 0.2), 4: (0.0, 0.45, 1.0)}


def write_strip(
    path: Path,
    images: np.ndarray,
    channels: Sequence[int],
    *,
    relative_px: float = 0.0,
    marks: np.ndarray | None = None,
) -> None:
    """Writes images [k, h, w, c] side by side, all on one scale.

    channels: one is shown in grey, two in red and green, three in red, green and blue; photographs
    are given as they are, uint8 with three channels.
    relative_px: the light is shown relative to that around it, a Gaussian of this sigma; 0: as is.
    marks: uint8 [k, h, w], pixels that are drawn over in the colour of `MARKS`; 0: none.
    """
    shown = images[..., list(channels)].astype(np.float32)
    if relative_px:
        shown /= ndimage.gaussian_filter(shown, relative_px, axes=(1, 2))
    if images.dtype == np.uint8 and len(channels) == 3:
        scaled = shown / 255
    else:  # black and white of the whole row: brightness is what some dials turn
        black = np.quantile(shown, 0.01, axis=(0, 1, 2))
        white = np.quantile(shown, 0.998, axis=(0, 1, 2))
        scaled = np.clip((shown - black) / np.maximum(white - black, 1e-3), 0, 1)
    if scaled.shape[-1] == 1:
        scaled = np.repeat(scaled, 3, axis=-1)
    if scaled.shape[-1] == 2:
        scaled = np.concatenate([scaled, np.zeros_like(scaled[..., :1])], axis=-1)
    if marks is not None:
        for value, colour in MARKS.items():
            scaled[marks == value] = colour
    enlarged = max(1, round(HIGH_PX / scaled.shape[1]))
    large = scaled.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
    gap = np.ones((large.shape[1], GAP_PX, 3), np.float32)
    parts = [part for image in large for part in (image, gap)][:-1]
    matplotlib.image.imsave(path, (np.concatenate(parts, axis=1) * 255).round().astype(np.uint8))

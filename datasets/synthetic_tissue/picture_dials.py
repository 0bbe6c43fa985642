"""Draws one row of images for each dial, from low to high, with everything else held.

PYTHONPATH=. python datasets/synthetic_tissue/picture_dials.py docs/synthetic_tissue_dials.jpg
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bioimg_jax.data.builders import find_builder

COLUMNS, SIDE_PX, LABEL_PX, GAP_PX = 6, 128, 14, 3
# Where a dial shows best; all others are at the levels of `tissue_composition`.
HELD: dict[str, dict[str, float]] = {
    "stroma": {"infiltrate": 0.1},
    "fibre_alignment": {"stroma": 0.9, "infiltrate": 0.1, "density": 4000},
    "gland_share": {"stroma": 0.5},
    "pleomorphism": {"infiltrate": 0.1},
    "chromatin_um": {"infiltrate": 0.1},
    "clustering": {"infiltrate": 0.9, "compartments": 0.0},
    "evenness": {"infiltrate": 0.9, "compartments": 0.0, "clustering": 1.0},
    "compartments": {"infiltrate": 0.4, "stroma": 0.5},
}


def main(out: Path) -> None:
    builder = find_builder("synthetic_tissue")
    dials = builder.dials()  # type: ignore[attr-defined]
    height = SIDE_PX + LABEL_PX + GAP_PX
    page = Image.new("RGB", (COLUMNS * (SIDE_PX + GAP_PX), len(dials) * height), "white")
    write = ImageDraw.Draw(page)
    for row, (name, dial) in enumerate(dials.items()):
        values = np.linspace(dial.low, dial.high, COLUMNS)
        images = builder.sweep(  # type: ignore[attr-defined]
            name, values, seed=5, config="tissue_composition", held=HELD.get(name), image_px=SIDE_PX
        )
        label = f"{name}: {dial.what}; {dial.low:g} to {dial.high:g} {dial.unit}"
        write.text((2, row * height + 1), label, fill="black")
        for column, image in enumerate(images):
            page.paste(
                Image.fromarray(image), (column * (SIDE_PX + GAP_PX), row * height + LABEL_PX)
            )
    page.save(out, quality=80)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

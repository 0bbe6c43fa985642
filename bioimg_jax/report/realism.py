"""Real against generated images: `realism.html`, one file with pictures and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bioimg_jax.report.figures import ACCENT, INK, as_data_uri
from bioimg_jax.report.page import environment

RANGE, OUTSIDE = "#c9d2da", "#a8071a"
COLUMNS = 4  # of the curves


def write_realism(
    workdir: Path, found: Mapping[str, Any], pictures: Mapping[str, np.ndarray]
) -> Path:
    """The page; pictures: heading -> images [n, h, w, c], three channels being a photograph."""
    shown = {
        heading: as_data_uri(_crops(images), kind="png") for heading, images in pictures.items()
    }
    rows = found["curves"]
    page = workdir / "realism.html"
    page.write_text(
        environment()
        .get_template("realism.html")
        .render(
            found=found,
            pictures=shown,
            curves=as_data_uri(_curves(rows, found)),
            n_inside=sum(len(row["generated"]) - len(row["outside"]) for row in rows),
            n_values=sum(len(row["generated"]) for row in rows),
        ),
        encoding="utf-8",
    )
    return page


def _crops(images: np.ndarray) -> Figure:
    """A row an image: its channels side by side, or the image where it is a photograph."""
    n, c = len(images), images.shape[-1]
    photograph = c == 3 and images.dtype == np.uint8
    columns = n if photograph else c
    rows = 1 if photograph else n
    figure = Figure(figsize=(1.25 * columns, 1.25 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, axis in enumerate(axes.ravel()):
        axis.axis("off")
        if photograph:
            axis.imshow(images[i])
            continue
        plane = images[i // c, ..., i % c].astype(np.float32)
        black, white = np.quantile(plane, (0.01, 0.997))
        axis.imshow(plane, cmap="gray", vmin=black, vmax=white)
    figure.subplots_adjust(0, 0, 1, 1, 0.03, 0.03)
    return figure


def _curves(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> Figure:
    lines = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(12, 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, COLUMNS, squeeze=False)
    for axis in axes.ravel()[len(rows) :]:
        axis.axis("off")
    for axis, row in zip(axes.ravel(), rows, strict=False):
        x = np.arange(len(row["generated"]))
        axis.fill_between(x, row["low"], row["high"], color=RANGE, label="real plates")
        axis.plot(x, row["generated"], color=ACCENT, marker="o", markersize=3, label="generated")
        outside = row["outside"]
        axis.plot(x[outside], np.array(row["generated"])[outside], "o", color=OUTSIDE)
        axis.set_title(row["curve"], fontsize=9, color=INK)
        axis.tick_params(labelsize=7)
        if "intensity" in row["curve"]:
            axis.set_xticks(x, [f"{q:g}" for q in found["quantiles"]])
            axis.set_xlabel("quantile of pixels", fontsize=7)
        elif "spectrum" in row["curve"]:
            axis.set_xlabel("ring, low to high frequency", fontsize=7)
        else:
            axis.set_xticks(x, [f"{q:g}" for q in found["area_quantiles"]])
            axis.set_xlabel("quantile of nuclei, px", fontsize=7)
    axes[0, 0].legend(fontsize=7)
    return figure

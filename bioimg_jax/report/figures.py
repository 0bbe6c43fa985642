"""Figures of the report, as matplotlib `Figure` objects; no global state, no display."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, ACCENT, PALE = "#1f2933", "#7b8794", "#0b6e99", "#b9d4df"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a name is text, dollars and all
    "svg.hashsalt": "bioimg_jax",  # the same figure is the same file
}


def training_curves(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and learning rate against the step."""
    steps = [entry["step"] for entry in entries]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        loss, rate = figure.subplots(1, 2)
        loss.plot(steps, [entry["loss"] for entry in entries], color=ACCENT, linewidth=1.4)
        loss.set(xlabel="step", ylabel="loss")
        rate.plot(steps, [entry["learning_rate"] for entry in entries], color=ACCENT, linewidth=1.4)
        rate.set(xlabel="step", ylabel="learning rate")
        rate.set_ylim(bottom=0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    return figure


def score_curve(probes: Sequence[Mapping[str, Any]]) -> Figure:
    """The primary target's score against the step."""
    first = probes[0]["probe"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.7), layout="constrained")
        axes = figure.subplots()
        steps = [entry["step"] for entry in probes]
        values = [entry["probe"]["value"] for entry in probes]
        axes.plot(steps, values, marker="o", markersize=4, color=ACCENT, label="frozen encoder")
        if (chance := first.get("chance")) is not None:
            axes.axhline(chance, color=MUTED, linestyle="--", linewidth=1, label="chance")
        axes.set(xlabel="step", ylabel=f"{_words(first['metric'])}\n({first['target']})")
        axes.legend(frameon=False, loc="best")
    return figure


def target_chart(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One line a representation: value, interval, and the value of every unit."""
    names = [row["representation"] for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.0 + 0.36 * len(rows)), layout="constrained")
        axes: Axes = figure.subplots()
        for y, row in enumerate(rows):
            colour = ACCENT if row["kind"] == "trained" else INK
            units = list(row["per_unit"].values())
            if len(units) <= 60:
                axes.plot(units, [y] * len(units), "o", color=PALE, markersize=4, zorder=1)
            if row["interval"] is not None:
                axes.plot(row["interval"], [y, y], color=colour, linewidth=2.4, zorder=2,
                          solid_capstyle="round")  # fmt: skip
            axes.plot([row["value"]], [y], "D", color=colour, markersize=6, zorder=3)
        chance = rows[0]["chance"]
        if chance is not None:
            axes.axvline(chance, color=MUTED, linestyle="--", linewidth=1, zorder=0)
            axes.annotate("chance", (chance, 0), (3, 2), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=MUTED, fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(rows)), [_wrap(name) for name in names])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"{_words(rows[0]['metric'])} of {rows[0]['target']}")
        axes.set_ylabel("representation")
        axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def reconstructions(pictures: Mapping[str, np.ndarray], channels: Sequence[str]) -> Figure:
    """For each example three rows (input, masked, reconstruction), one column a channel.

    pictures: "input", "masked" (NaN where hidden), "reconstruction", float32 [k, h, w, c].
    """
    shown = [name for name in ("input", "masked", "reconstruction") if name in pictures]
    k, _, _, c = pictures[shown[0]].shape
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.35 * c + 1.3, 1.35 * k * len(shown) + 0.5), layout="constrained")
        grid = figure.subplots(k * len(shown), c, squeeze=False)
        for example in range(k):
            for i, name in enumerate(shown):
                for channel in range(c):
                    axes = grid[example * len(shown) + i, channel]
                    truth = pictures["input"][example, :, :, channel]
                    low, high = np.percentile(truth, [0.5, 99.5])
                    image = pictures[name][example, :, :, channel]
                    axes.set_facecolor("#d8dee4")
                    axes.imshow(np.ma.masked_invalid(image), cmap="gray", vmin=low,
                                vmax=max(high, low + 1e-6), interpolation="nearest")  # fmt: skip
                    axes.set_xticks([])
                    axes.set_yticks([])
                    for spine in axes.spines.values():
                        spine.set_visible(False)
                    if example == 0 and i == 0:
                        axes.set_title(str(channels[channel]), fontsize=9.5)
                    if channel == 0:
                        axes.set_ylabel(f"{name}\n(image {example + 1})", fontsize=8)
    return figure


def as_data_uri(figure: Figure, *, kind: str = "svg") -> str:
    """The figure inside the page, as the source of an <img>: nothing in it can act."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _wrap(name: str, width: int = 34) -> str:
    """Long names over several lines: nothing is cut."""
    pieces = math.ceil(len(name) / width)
    return "\n".join(name[i * width : (i + 1) * width] for i in range(pieces))

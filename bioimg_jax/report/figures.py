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
UNITS_SHOWN = 60  # more are a smear
LEVELS_NAMED = 12  # of a map's colours
CEILING = "ceiling"  # the rung of what labels were drawn from
ROLES = {"encoder": (ACCENT, "D"), "floor": (INK, "s"), "shown": (MUTED, "o")}
MARKS = ((ACCENT, "D"), (INK, "s"), (MUTED, "o"), ("#c05621", "^"), ("#6b46c1", "v"))
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


def ladder(rungs: Sequence[Mapping[str, Any]]) -> Figure:
    """One line a rung, the highest first: value, interval, and the value of every unit.

    rungs: rows of results.json with "role": "encoder", "floor" or "shown"; through one with "rung":
      "ceiling" goes a line from top to bottom.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.85 + 0.3 * len(rungs)), layout="constrained")
        axes: Axes = figure.subplots()
        for y, row in enumerate(rungs):
            colour, marker = ROLES[row["role"]]
            units = list(row["per_unit"].values())
            if 1 < len(units) <= UNITS_SHOWN:
                below = [y + 0.28] * len(units)  # the bar would hide them
                axes.plot(units, below, "o", color=PALE, markersize=3.5, zorder=1)
            if row["interval"] is not None:
                axes.plot(row["interval"], [y, y], color=colour, linewidth=2.2, zorder=2,
                          solid_capstyle="round")  # fmt: skip
            axes.plot([row["value"]], [y], marker, color=colour, markersize=6.5, zorder=3)
            if row.get("rung") == CEILING:
                axes.axvline(row["value"], color=INK, linewidth=0.8, zorder=0.5)
            if row["role"] == "encoder":
                axes.axhspan(y - 0.45, y + 0.45, color="#eef6fa", zorder=0)
        chance = rungs[0]["chance"]
        if chance is not None:
            axes.axvline(chance, color=MUTED, linestyle="--", linewidth=1, zorder=0.5)
        axes.set_yticks(range(len(rungs)), [_wrap(row["representation"]) for row in rungs])
        for label, row in zip(axes.get_yticklabels(), rungs, strict=True):
            label.set_color(ROLES[row["role"]][0])
        axes.set_ylim(len(rungs) - 0.4, -0.6)
        axes.set_xlabel(f"{_words(rungs[0]['metric'])} of {rungs[0]['target']}")
        axes.set_ylabel("representation")
        axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def by_block(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Score against depth, one panel a pooling; the encoder and its untrained twin."""
    poolings = list(dict.fromkeys(row["pooling"] for row in rows))
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        panels = figure.subplots(1, len(poolings), sharey=True, squeeze=False)[0]
        for axes, pooling in zip(panels, poolings, strict=True):
            for name, colour in zip(names, (ACCENT, INK), strict=False):
                mine = {r["block"]: r for r in rows
                        if (r["representation"], r["pooling"]) == (name, pooling)}  # fmt: skip
                xs = [i for i, block in enumerate(blocks) if block in mine]
                values = [mine[blocks[i]]["value"] for i in xs]
                axes.plot(xs, values, marker="o", markersize=4, color=colour, label=name)
                for x in xs:
                    interval = mine[blocks[x]]["interval"]
                    if interval is not None:
                        axes.plot([x, x], interval, color=colour, linewidth=1, alpha=0.5)
            axes.axhline(rows[0]["chance"] or 0.0, color=MUTED, linestyle="--", linewidth=1)
            axes.set_xticks(range(len(blocks)), blocks)
            axes.set_xlim(-0.4, len(blocks) - 0.6)
            axes.set_xlabel(f"block ({pooling})")
        panels[0].set_ylabel(_words(rows[0]["metric"]))
        panels[0].legend(frameon=False, loc="best", fontsize=8)
    return figure


def beside(targets: Sequence[tuple[str, bool, Mapping[str, float]]]) -> Figure:
    """Biology above, nuisance below: one line a target, one mark a representation.

    targets: (name, nuisance, representation -> value rescaled so that chance is 0 and 1 is 1).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.32 * len(targets)), layout="constrained")
        axes: Axes = figure.subplots()
        names = list(dict.fromkeys(name for _, _, values in targets for name in values))
        for i, name in enumerate(names):
            colour, marker = MARKS[i % len(MARKS)]
            points = [(v[name], y) for y, (_, _, v) in enumerate(targets) if name in v]
            axes.plot([x for x, _ in points], [y for _, y in points], marker, color=colour,
                      markersize=7, label=name, alpha=0.9)  # fmt: skip
        biology = sum(not nuisance for _, nuisance, _ in targets)
        if 0 < biology < len(targets):
            axes.axhline(biology - 0.5, color=MUTED, linewidth=0.8)
        axes.axvline(0.0, color=MUTED, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(targets)), [
            _wrap(name + (" (nuisance)" if nuisance else "")) for name, nuisance, _ in targets
        ])  # fmt: skip
        axes.set_ylim(len(targets) - 0.4, -0.6)
        axes.set_xlabel("(score − chance) / (1 − chance)")
        axes.set_ylabel("target")
        axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def maps(arrays: Mapping[str, np.ndarray]) -> Figure:
    """`illustrate.maps`: a row a representation, a column a metadata column.

    With one metadata column the representations stand side by side.
    """
    names, columns = arrays["names"], arrays["columns"]
    row = len(columns) == 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2 if row else 2.9 * len(names) + 0.3), layout="constrained")
        grid = figure.subplots(*((1, len(names)) if row else (len(names), len(columns))),
                               squeeze=False)  # fmt: skip
        grid = grid.T if row else grid
        for c, column in enumerate(columns):
            levels, codes = np.unique(arrays["values"][c], return_inverse=True)
            colours = matplotlib.colormaps["tab20"](np.arange(len(levels)) % 20)
            for r, name in enumerate(names):
                axes = grid[r, c]
                x, y = arrays["positions"][r].T
                axes.scatter(x, y, s=5, c=colours[codes], linewidths=0)
                axes.set_xticks([])
                axes.set_yticks([])
                if r == 0 or row:
                    many = f" ({len(levels)} values)" if len(levels) > LEVELS_NAMED else ""
                    axes.set_title(f"{column}{many}", fontsize=9.5)
                if c == 0:
                    axes.set_ylabel(_wrap(str(name), 22), fontsize=8.5)
                if (
                    r == (len(names) // 2 if row else len(names) - 1)
                    and len(levels) <= LEVELS_NAMED
                ):
                    for level, colour in zip(levels, colours, strict=True):
                        axes.scatter([], [], s=12, color=colour, label=_wrap(str(level), 18))
                    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper center",
                                bbox_to_anchor=(0.5, -0.02))  # fmt: skip
    return figure


def gallery(arrays: Mapping[str, np.ndarray], which: int) -> Figure:
    """`illustrate.gallery` of one representation: a row a query, the query first."""
    images, labels, units = (arrays[k][which] for k in ("images", "labels", "units"))
    q, k = images.shape[:2]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.3 * k, 1.62 * q), layout="constrained")
        grid = figure.subplots(q, k, squeeze=False)
        for i in range(q):
            for j in range(k):
                axes = grid[i, j]
                axes.imshow(images[i, j], interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                right = labels[i, j] == labels[i, 0]
                colour = INK if j == 0 else ACCENT if right else "#a8071a"
                axes.set_xlabel(f"{_short(labels[i, j])}\n{_short(units[i, j])}", fontsize=6.5,
                                color=colour, labelpad=2)  # fmt: skip
                for spine in axes.spines.values():
                    spine.set(visible=True, color=colour, linewidth=2 if j == 0 else 1)
                if i == 0:
                    axes.set_title("query" if j == 0 else f"{j}", fontsize=8)
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


def plate_maps(maps: Mapping[str, Sequence[Sequence[float | None]]]) -> Figure:
    """A heat map of each representation's plate [rows, columns], in its own colours around 0."""
    across = min(3, len(maps))
    down = math.ceil(len(maps) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * across + 0.4, 2.3 * down), layout="constrained")
        places = figure.subplots(down, across, squeeze=False).ravel().tolist()
        for axes in places[len(maps) :]:
            axes.set_axis_off()
        for axes, (name, cells) in zip(places, maps.items(), strict=False):
            values = np.array(cells, np.float64)  # None is nan, and stays white
            most = float(np.nanmax(np.abs(values))) or 1.0
            image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
            rows = range(0, values.shape[0], 1 if values.shape[0] <= 8 else 4)
            columns = range(0, values.shape[1], 2 if values.shape[1] <= 12 else 6)
            letters = [chr(65 + row) if row < 26 else f"A{chr(39 + row)}" for row in rows]
            axes.set_xticks(list(columns), [str(column + 1) for column in columns])
            axes.set_yticks(list(rows), letters)
            axes.set_title(_wrap(name, 30), fontsize=9.5)
            axes.spines[:].set_visible(False)
            figure.colorbar(image, ax=axes, shrink=0.8)
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


def _short(text: object, width: int = 18) -> str:
    return str(text) if len(str(text)) <= width else f"{str(text)[: width - 1]}…"


def _wrap(name: str, width: int = 34) -> str:
    """Long names over several lines: nothing is cut."""
    pieces = math.ceil(len(name) / width)
    return "\n".join(name[i * width : (i + 1) * width] for i in range(pieces))

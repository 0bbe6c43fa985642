"""The report: complete, self-contained, and safe with any name a user can give."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.report import figures, write_report

CHANNELS = ["DNA", "RNA"]


def row(representation: str, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "classification",
        "target": "compound",
        "split": "leave one plate out, 5 folds",
        "metric": "balanced_accuracy",
        "higher_is_better": True,
        "chance": 1 / 3,
        "ceiling": 1.0,
        "representation": representation,
        "kind": "untrained",
        "block": "selected",
        "pooling": "selected",
        "seed": 0,
        "value": value,
        "per_unit": {f"P{i}": value + 0.01 * i for i in range(5)},
        "interval": [value - 0.05, value + 0.05],
        "n_units": 5,
        "exposure": "none",
        "search_budget": 40,
        "settings": {},
        "verdict": "confounded",
        **changes,
    }


def write_run(folder: Path, *, name: str = "mae", complete: bool = True) -> None:
    rows = [
        row("mae_vit", 0.62, kind="trained", exposure="images"),
        row("mae_vit", 0.6, kind="trained", block="final", pooling="mean"),
        row("mae_vit_step0", 0.55),
        row("vit_random", 0.54, seed=None, settings={"group": "vit_random", "seed_sd": 0.012}),
        row("vit_random_1", 0.53, seed=1, settings={"group": "vit_random"}),
        row("pixels", 0.58, kind="pixels", block="pixels", pooling="", interval=None, n_units=3),
        row(name, 0.5),
        row("mae_vit_inductive", 0.6, kind="trained", per_unit={"P1": 0.6}, interval=None,
            n_units=1, settings={"held_out": "plate=P1"}),
    ]  # fmt: skip
    target = {
        "name": "compound",
        "column": "compound",
        "unit": ["plate"],
        "n_classes": 3,
        "n_examples": 90,
        "nuisance": False,
        "verdict": "confounded",
        "reason": f"column well determines compound ({name})",
        "audit": {},
    }
    nuisance = {**target, "name": "plate", "nuisance": True, "verdict": "", "reason": ""}
    results = {
        "schema_version": 2,
        "bioimg_jax": "0.1.0",
        "run": {
            "command": f"python -m bioimg_jax.main {name}",
            "started": "2026-01-01T00:00:00Z",
            "wall_s": 12.0,
            "devices": "1 x cpu",
            "jax": "0.10.2",
            "seed": 0,
            "images_seen": 51200,
        },
        "data": {
            "name": "cells",
            "content_hash": "abc",
            "channels": CHANNELS,
            "n_examples": 100,
            "n_pretraining": 100,
        },
        "targets": [target, nuisance],
        "floors": ["chance", "pixels", "twin"],
        "verdicts": [
            {
                "benchmark": "compound",
                "encoder": "mae_vit",
                "word": "confounded",
                "why": f"column well determines compound ({name})",
                "gain": 0.04,
                "interval": [-0.01, 0.09],
                "nearest": "pixels",
                "delta": 0.03,
                "qualified_by": ["assumes symmetric unit effects"],
            }
        ],
        "scores": [*rows, row("pixels", 0.9, target="plate", block="pixels", verdict="")],
    }
    (folder / "config.json").write_text(json.dumps({"name": name, "train": {"steps": 20}}))
    (folder / "results.json").write_text(json.dumps(results))
    if not complete:
        return
    lines = [
        {"step": s, "loss": 1 / (1 + s), "learning_rate": 1e-3, "gradient_norm": 1.0}
        for s in range(1, 20)
    ]
    probe = {"target": "compound", "metric": "balanced_accuracy", "value": 0.5, "chance": 0.33}
    lines += [{"step": s, "probe": probe} for s in (0, 10, 20)]
    (folder / "logbook.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pictures = np.random.default_rng(0).normal(size=(2, 16, 16, 2)).astype(np.float32)
    masked = pictures.copy()
    masked[:, :8] = np.nan
    np.savez(folder / "examples.npz", input=pictures, masked=masked, reconstruction=pictures)


def test_page_shows_every_score_beside_its_floors(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    for name in ("mae_vit", "mae_vit_step0", "vit_random", "vit_random_1", "pixels"):
        assert f">{name}<" in page
    assert "0.620" in page and "0.550" in page
    assert "no interval (fewer than 4 units)" in page
    assert "nuisance target: score, no verdict" in page
    assert 'badge confounded">confounded' in page
    assert "column well determines compound" in page
    assert "plate=P1 alone: 0.600 when trained without its images, 0.630 when trained with" in page
    assert "<b>mae_vit: confounded.</b> Column well determines compound" in page
    assert "+0.040 [-0.010," in page and "decided by pixels" in page
    assert "DNA, RNA" in page
    assert page.count("<img") == 5  # two curves, the pictures, a chart a target


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in page and "<link" not in page and "url(" not in page


def test_names_are_escaped_and_whole(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>" + "long_name_" * 8
    write_run(tmp_path, name=name)
    page = write_report(tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "long_name_" * 8 in page


def test_a_run_without_curves_and_pictures_has_a_page(tmp_path: Path) -> None:
    write_run(tmp_path, complete=False)
    page = write_report(tmp_path).read_text()
    assert page.count("<img") == 2
    assert "What it reconstructs" not in page


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the report needs .*config.json: No such file"):
        write_report(tmp_path)
    write_run(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match="schema_version 99; expected 2"):
        write_report(tmp_path)


def test_axes_are_labelled_and_figures_reproducible() -> None:
    entries = [{"step": s, "loss": 1.0, "learning_rate": 0.1} for s in range(3)]
    probes = [
        {"step": s, "probe": {"target": "t", "metric": "accuracy", "value": 0.5, "chance": 0.1}}
        for s in (0, 1)
    ]
    chart = figures.target_chart([row("a" * 80, 0.5), row("b", 0.4, interval=None)])
    for figure in (figures.training_curves(entries), figures.score_curve(probes), chart):
        for axes in figure.axes:
            assert axes.get_xlabel() and axes.get_ylabel()
    assert chart.axes[0].get_xlabel() == "balanced accuracy of compound"
    assert "".join(chart.axes[0].get_yticklabels()[0].get_text().split("\n")) == "a" * 80
    assert figures.as_data_uri(chart) == figures.as_data_uri(chart)


def test_nothing_is_drawn_outside_the_figure() -> None:
    chart = figures.target_chart([row("a_long_representation_name_" * 3, 0.5), row("b", 0.4)])
    figures.as_data_uri(chart)
    canvas = chart.bbox
    box = chart.get_tightbbox().transformed(chart.dpi_scale_trans)
    assert box.x0 >= canvas.x0 - 1 and box.x1 <= canvas.x1 + 1
    assert box.y0 >= canvas.y0 - 1 and box.y1 <= canvas.y1 + 1

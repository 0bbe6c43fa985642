"""The report: complete, self-contained, and safe with any name a user can give."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.score import SCHEMA_VERSION, Score
from bioimg_jax.errors import InputError
from bioimg_jax.report import figures, write_csv, write_report
from bioimg_jax.report.scores_csv import COLUMNS

CHANNELS = ["DNA", "RNA"]


def row(representation: str, value: float, **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "linear",
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
        "unit": ["plate"],
        "exposure": "none",
        "search_budget": 40,
        "settings": {},
        "verdict": "confounded",
        **changes,
    }


def write_run(folder: Path, *, name: str = "mae", complete: bool = True) -> dict[str, Any]:
    rows = [
        row("mae_vit", 0.62, kind="trained", exposure="images"),
        row("mae_vit", 0.57, kind="trained", block="block01", pooling="mean"),
        row("mae_vit", 0.6, kind="trained", block="final", pooling="mean"),
        row("mae_vit_step0", 0.55, block="block01", pooling="mean"),
        row("mae_vit_step0", 0.54, block="final", pooling="mean"),
        row("mae_vit_step0", 0.55),
        row("vit_random", 0.54, seed=None, settings={"group": "vit_random", "seed_sd": 0.012}),
        row("vit_random_1", 0.53, seed=1, settings={"group": "vit_random"}),
        row("pixels", 0.68, kind="pixels", block="pixels", pooling="", interval=None, n_units=3),
        row(name, 0.5, exposure="unknown"),
        row("mae_vit_inductive", 0.6, kind="trained", per_unit={"P1": 0.6}, interval=None,
            n_units=1, settings={"held_out": "plate=P1"}),
    ]  # fmt: skip
    target = {
        "name": "compound",
        "column": "compound",
        "unit": ["plate"],
        "n_classes": 3,
        "n_examples": 90,
        "n_evaluated": 90,
        "nuisance": False,
        "verdict": "confounded",
        "reason": f"column well determines compound ({name})",
        "audit": {"best": {"columns": f"well ({name})", "score": 0.93, "interval": None}},
    }
    nuisance = {**target, "name": "plate", "nuisance": True, "verdict": "", "reason": ""}
    verdict = {
        "benchmark": "linear",
        "target": "compound",
        "encoder": "mae_vit",
        "word": "below",
        "why": f"pixels does better ({name})",
        "gain": -0.06,
        "interval": [-0.11, -0.01],
        "nearest": "pixels",
        "delta": 0.03,
        "normalised": None,
        "p_above": 0.9953,
        "p_below": 0.0047,
        "p_same": 0.91,
        "holm_above": 1.0,
        "holm_below": 0.0094,
        "floors": {
            "chance": {"difference": 0.287, "low": 0.21, "high": 0.36, "p_above": 0.00012,
                       "sign_flip_p": 0.03125},
            "pixels": {"difference": -0.06, "low": -0.11, "high": -0.01, "p_above": 0.9953,
                       "sign_flip_p": 1.0},
        },
        "qualified_by": ["assumes symmetric unit effects"],
    }  # fmt: skip
    results = {
        "schema_version": SCHEMA_VERSION,
        "bioimg_jax": "0.1.0",
        "run": {
            "kind": "training",
            "command": f"python -m bioimg_jax.main {name}",
            "started": "2026-01-01T00:00:00Z",
            "wall_s": 12.0,
            "devices": "1 x cpu",
            "jax": "0.10.2",
            "seed": 0,
        },
        "data": {
            "name": "cells",
            "content_hash": "abc",
            "channels": CHANNELS,
            "n_examples": 100, "n_evaluated": 100,
            "n_pretraining": 100,
        },
        "encoders": [
            {"name": "mae_vit", "images_seen": 51200,
             "trained_on": {"name": "cells", "content_hash": "abc", "hold_out": None}},
        ],
        "benchmarks": ["linear"],
        "targets": [target, nuisance],
        "floors": ["chance", "pixels", "twin", "selected"],
        "omitted": {"nuclei": f"no channel to segment ({name})"},
        "selected": {"linear": {"compound": {"mae_vit": {
            "members": {"plate=P0": "vit_random_1"}, "n_members": 1, "search_budget": 120,
            "value": 0.535, "interval": [0.5, 0.57], "per_unit": {"P0": 0.535}}}}},
        "plan": [{"benchmark": "linear", "target": "compound", "sentence": "5 units: few"}],
        "verdicts": [verdict],
        "geometry": [
            {"representation": "mae_vit", "twin": "mae_vit_step0", "rankme": 12.5, "n": 1000,
             "minus_twin": {"rankme": -3.25}},
            {"representation": name, "twin": None, "rankme": None, "n": 1000, "minus_twin": None},
        ],
        "association": [{"target": "compound", "column": "well", "cramers_v": 1.0, "n": 4}],
        "duplicates": {"compound": {"n_duplicates": 2, "reason": "2 of 40 test rows have a twin"}},
        "symmetry": [],
        "segmentation": None,
        "scores": [*rows, row("pixels", 0.9, target="plate", block="pixels", verdict="")],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"name": name, "train": {"steps": 20}}))
    (folder / "results.json").write_text(json.dumps(results))
    if complete:
        write_pictures(folder, name)
    return results


def write_pictures(folder: Path, name: str) -> None:
    lines = [
        {"step": s, "loss": 1 / (1 + s), "learning_rate": 1e-3, "gradient_norm": 1.0}
        for s in range(1, 20)
    ]
    probe = {"target": "compound", "metric": "balanced_accuracy", "value": 0.5, "chance": 0.33}
    lines += [{"step": s, "probe": probe} for s in (0, 10, 20)]
    (folder / "logbook.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(2, 16, 16, 2)).astype(np.float32)
    masked = pictures.copy()
    masked[:, :8] = np.nan
    np.savez(folder / "examples.npz", input=pictures, masked=masked, reconstruction=pictures)
    text = {"labels": np.full((2, 2, 3), name), "units": np.full((2, 2, 3), "P1")}
    images = rng.integers(0, 255, (2, 2, 3, 8, 8, 3)).astype(np.uint8)
    np.savez(folder / "gallery.npz", names=np.array(["mae_vit", name]), images=images, **text)
    np.savez(
        folder / "maps.npz",
        names=np.array(["mae_vit"]),
        positions=rng.normal(size=(1, 30, 2)),
        columns=np.array(["compound", "plate"]),
        values=np.array([[name] * 30, [f"P{i}" for i in range(30)]]),
    )


def table_after(page: str, mark: str) -> str:
    start = page.index(mark)
    return page[start : page.index("</table>", start)]


def change_results(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The page of results that `change` has altered in place."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))
    return write_report(folder).read_text()


def test_the_ladder_comes_first_and_stands_in_the_order_of_the_values(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    assert page.index('id="ladder"') < page.index('id="doubts"') < page.index('id="scores"')
    values = table_after(page, "<summary>Values")
    order = re.findall(r'<td class="name">([^<]+)</td>\n<td class="name">([^<]+)</td>', values)
    assert order == [
        ("metadata: well (mae)", "audit"),
        ("pixels", "pixels"),
        ("mae_vit", "encoder"),
        ("mae_vit_inductive", "shown only"),
        ("mae_vit_step0", "twin"),
        ("vit_random", "shown only"),
        ("untrained, selected", "selected fold by fold"),
        ("mae", "shown only"),
        ("chance", "chance"),
    ]
    assert '<span class="word below">below</span>' in page
    assert "pixels does better (mae)" in page
    assert "-0.060 [-0.110," in page
    assert "no interval (fewer than 4 units)" in page and "exact" in values


def test_a_verdict_shows_its_evidence_against_each_floor(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    assert page.count("<summary>Against each floor") == 1
    table = table_after(page, "<summary>Against each floor")
    assert re.findall(r"<th(?: [^>]*)?>([^<]+)<", table) == [
        "floor", "difference", "lower", "upper", "p above", "sign-flip p",
    ]  # fmt: skip
    assert re.findall(r"<td[^>]*>([^<]+)<", table) == [
        "chance", "+0.287", "+0.210", "+0.360", "0.00012", "0.0312",
        "pixels", "-0.060", "-0.110", "-0.010", "0.995", "1",
    ]  # fmt: skip
    assert 'data-value="0.03125"' in table  # it sorts by the number, not by what is shown of it
    said = " ".join(page[: page.index("<summary>Values")].split())
    assert "p: above 0.995 (after Holm 1), below 0.0047 (after Holm 0.0094), same 0.91." in said
    assert "not one of the tests" not in said


def test_evidence_that_is_not_there_takes_no_room(tmp_path: Path) -> None:
    write_run(tmp_path)

    def many_units(results: dict[str, Any]) -> None:  # no exact sign-flip p from 20 units on
        verdict = results["verdicts"][0]
        for floor in verdict["floors"].values():
            floor["sign_flip_p"] = None
        verdict["holm_above"] = verdict["holm_below"] = None

    page = change_results(tmp_path, many_units)
    assert "sign-flip p" not in page and "after Holm" not in page
    assert "not one of the tests" in page

    def refused(results: dict[str, Any]) -> None:
        results["verdicts"][0] |= {"floors": {}, "gain": None}

    assert "Against each floor" not in change_results(tmp_path, refused)


def test_the_truth_is_the_ceiling_of_the_ladder(tmp_path: Path) -> None:
    write_run(tmp_path)

    def add(results: dict[str, Any]) -> None:
        about = {"kind": "truth", "block": "truth", "pooling": "", "ceiling": 0.93}
        results["scores"].append(row("truth_compound", 0.93, **about))

    page = change_results(tmp_path, add)
    values = page[page.index("<summary>Values") : page.index('id="doubts"')]
    assert re.search(r'truth_compound</td>\s*<td class="name">ceiling', values)
    assert "thin black line" in page
    rungs = [row("truth_compound", 0.93, role="shown", rung="ceiling", kind="truth"),
             row("b", 0.4, role="floor", rung="b")]  # fmt: skip
    lines = {tuple(line.get_xdata()) for line in figures.ladder(rungs).axes[0].lines}
    assert (0.93, 0.93) in lines
    assert not any(x == (0.4, 0.4) for x in lines)


def test_a_metric_without_a_better_direction_has_no_ladder(tmp_path: Path) -> None:
    write_run(tmp_path)

    def add(results: dict[str, Any]) -> None:
        shown = {"benchmark": "mixing", "metric": "entropy", "higher_is_better": None}
        results["benchmarks"].append("mixing")
        results["scores"] += [row("mae_vit", 0.4, **shown), row("pixels", 0.9, **shown)]
        first = results["verdicts"][0]
        results["verdicts"].append({**first, "benchmark": "mixing", "word": "", "floors": {}})
        results["plan"].append({**results["plan"][0], "benchmark": "mixing"})

    page = change_results(tmp_path, add)
    assert "thin black line" not in page  # nothing is known of what labels were drawn from
    ladders = page[page.index('id="ladder"') : page.index('id="doubts"')]
    assert ladders.count("<img") == 2 and "mixing" not in ladders
    assert "compound (mixing), by its design" not in page
    scores = " ".join(page[page.index('id="scores"') :].split())
    assert "No direction is better, so without a ladder: entropy of compound (mixing)." in scores
    assert scores.count("<td>mixing</td>") == 2

    def first(results: dict[str, Any]) -> None:  # nothing to say of "better" by it either
        results["benchmarks"].reverse()

    assert page.count('id="beside"') == 1
    assert 'id="beside"' not in change_results(tmp_path, first)

    def biology_alone(results: dict[str, Any]) -> None:
        for target in results["targets"]:
            target["nuisance"] = False

    assert 'id="beside"' not in change_results(tmp_path, biology_alone)


def test_what_the_run_cannot_tell_is_said(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    doubts = page[page.index('id="doubts"') : page.index('id="beside"')]
    for said in (
        "no encoder can be judged here. Column well determines compound",
        "compound (linear), by its design: 5 units: few",
        "The floor nuclei was left out: no channel to segment",
        "Whether mae saw the test images",
        "mae_vit saw test images, without labels, in training: compound",
        "2 of 40 test rows have a twin",
    ):
        assert said in doubts
    assert "nuisance target: score, no verdict" in page
    assert "plate=P1 alone: 0.600 when trained without its images, 0.630 when trained with" in page
    assert "mae_vit − mae_vit_step0" in page and "-3.25" in page


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) > 10
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert page.count("<script>") == 1 and "<link" not in page and "url(" not in page
    assert "default-src 'none'" in page


def test_names_are_escaped_and_whole(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>" + "long_name_" * 8
    write_run(tmp_path, name=name)
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert "long_name_" * 8 in page


def test_a_run_without_curves_and_pictures_has_a_page(tmp_path: Path) -> None:
    write_run(tmp_path, complete=False)
    page = write_report(tmp_path).read_text()
    assert "What it reconstructs" not in page and "<h2>Training" not in page
    assert 'id="maps"' not in page and 'id="galleries"' not in page
    assert page.count("<img") == 4  # two ladders, nuisance beside biology, score by block


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the report needs .*config.json: No such file"):
        write_report(tmp_path)
    write_run(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 99}')
    with pytest.raises(InputError, match=f"schema_version 99; expected {SCHEMA_VERSION}"):
        write_report(tmp_path)


def test_the_table_of_scores_opens_in_a_spreadsheet(tmp_path: Path) -> None:
    results = write_run(tmp_path, name="=cmd|'/c calc'!A1, \"quoted\"\n")
    for one in results["scores"]:
        one["unit"] = ["plate", "well"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    read = pd.read_csv(write_csv(tmp_path))
    assert len(read) == len(results["scores"])
    for name in ("value", "n_units", "benchmark", "block", "ceiling", "higher_is_better"):
        assert read[name].tolist() == [row[name] for row in results["scores"]]
    assert read["lower"].isna().sum() == 2
    assert set(read["unit"]) == {"plate/well"}
    formula = read["representation"][9]
    assert formula.startswith("'=cmd") and formula.endswith('"quoted"\n')


def test_the_schema_page_has_every_field_of_a_score_and_every_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results_schema.md").read_text()
    assert f"`schema_version` is {SCHEMA_VERSION}." in page
    rows = page[page.index("### A row of `scores`") : page.index("### A row of `verdicts`")]
    assert {field.name for field in dataclasses.fields(Score)} <= set(re.findall(r"`(\w+)`", rows))
    columns = page[page.index("## results.csv") : page.index("## Pictures")]
    assert [name for name in re.findall(r"`(\w+)`", columns) if name != "null"] == [*COLUMNS]


def test_axes_are_labelled_and_figures_reproducible() -> None:
    entries = [{"step": s, "loss": 1.0, "learning_rate": 0.1} for s in range(3)]
    probes = [
        {"step": s, "probe": {"target": "t", "metric": "accuracy", "value": 0.5, "chance": 0.1}}
        for s in (0, 1)
    ]
    chart = figures.ladder(
        [row("a" * 80, 0.5, role="encoder"), row("b", 0.4, interval=None, role="floor")]
    )
    for figure in (figures.training_curves(entries), figures.score_curve(probes), chart):
        for axes in figure.axes:
            assert axes.get_xlabel() and axes.get_ylabel()
    assert chart.axes[0].get_xlabel() == "balanced accuracy of compound"
    assert "".join(chart.axes[0].get_yticklabels()[0].get_text().split("\n")) == "a" * 80
    assert figures.as_data_uri(chart) == figures.as_data_uri(chart)


def test_nothing_is_drawn_outside_the_figure() -> None:
    chart = figures.ladder(
        [row("a_long_representation_name_" * 3, 0.5, role="shown"), row("b", 0.4, role="floor")]
    )
    figures.as_data_uri(chart)
    canvas = chart.bbox
    box = chart.get_tightbbox().transformed(chart.dpi_scale_trans)
    assert box.x0 >= canvas.x0 - 1 and box.x1 <= canvas.x1 + 1
    assert box.y0 >= canvas.y0 - 1 and box.y1 <= canvas.y1 + 1

"""Features of spots through HEST-Benchmark's protocol, from a folder to verdicts."""

import json
import os
import runpy
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax import expression
from bioimg_jax.benchmarks.expression import OFFICIAL, make_experiment, score_expression
from bioimg_jax.errors import InputError, Preempted
from bioimg_jax.features.hest import read_counts, read_task
from bioimg_jax.features.table import write_table
from tests import readme, tiny
from tests.features.hest_folder import SECTIONS, HestFolder

PATTERN = "^[A-Z]"
LAYER = "block1/mean"


@pytest.fixture
def folder(tmp_path: Path) -> HestFolder:
    return HestFolder(tmp_path / "task")


def features(folder: HestFolder, path: Path, *, noise: float, order: int = 0) -> Path:
    """A csv of the counts of every spot with noise, its rows in another order for each `order`."""
    rng = np.random.default_rng(7)
    rows = []
    for section in SECTIONS:
        for barcode, counts in zip(folder.barcodes[section], folder.counts[section], strict=True):
            values = np.log1p(counts) + noise * rng.normal(size=4)
            named = {f"f{k}": value for k, value in enumerate(values)}
            rows.append({"Metadata_section": section, "Metadata_barcode": barcode, **named})
    table = pd.DataFrame(rows).sample(frac=1.0, random_state=order)
    table.to_csv(path, index=False)
    return path


def config(folder: HestFolder, tables: dict[str, tuple[str, Path]], **evaluate: Any) -> dict:
    found = runpy.run_path(str(tiny.ROOT / "configs" / "eval_expression.py"))["get_config"]()
    found = found.to_dict()
    found["task"] |= {"folder": str(folder.root), "patient_pattern": PATTERN}
    found["features"]["tables"] = {
        name: {"kind": kind, "source": str(path), "beside": "", "metadata": {}}
        for name, (kind, path) in tables.items()
    }
    found["evaluate"] |= {"floors": "chance,count", "beyond": "", **evaluate}
    return found


def tables(folder: HestFolder, tmp_path: Path) -> dict[str, tuple[str, Path]]:
    return {
        "encoder": ("imported", features(folder, tmp_path / "encoder.csv", noise=0.05)),
        "count": ("count", features(folder, tmp_path / "count.csv", noise=5.0, order=3)),
    }


def test_the_score_is_the_protocols_whatever_the_order_of_rows(
    folder: HestFolder, tmp_path: Path
) -> None:
    given = config(folder, tables(folder, tmp_path))
    results = expression.evaluate_expression(given, tmp_path / "out")
    task = read_task(folder.root, patient_pattern=PATTERN)
    counts = read_counts(task)
    experiment = make_experiment(
        counts.matrix, counts.names, task.genes, sections=task.spots["section"],
        units=task.spots["patient"], folds=task.folds()[0],
    )  # fmt: skip
    held = pd.read_csv(tables(folder, tmp_path)["encoder"][1])
    held = held.set_index(["Metadata_section", "Metadata_barcode"]).loc[
        list(zip(task.spots["section"], task.spots["barcode"], strict=True))
    ]
    expected = score_expression(held.to_numpy(np.float32), experiment)
    rows = {(r["target"], r["representation"]): r for r in results["scores"]}
    for variant, score in expected.items():
        assert rows[variant, "encoder"]["value"] == pytest.approx(score.value, abs=1e-9)
        assert rows[variant, "encoder"]["unit"] == ["patient"]
    assert rows[OFFICIAL, "encoder"]["value"] > 0.9 > 0.5 > rows[OFFICIAL, "count"]["value"]
    assert [target["name"] for target in results["targets"]] == list(expected)
    assert next(iter(expected)) == OFFICIAL and results["benchmarks"] == ["expression"]
    pairs = len(expected) * (len(expected) - 1) // 2
    assert len(results["variants"]) == pairs
    assert {row["representations"] for row in results["variants"]} == {2}
    assert [row["name"] for row in results["encoders"]] == ["encoder"]
    for verdict in results["verdicts"]:
        note = "a secondary variant, not corrected for" in verdict["qualified_by"]
        assert note == (verdict["target"] != OFFICIAL)
    audit = results["targets"][0]["audit"]
    assert set(audit["per_column"]) == {"position", "total_counts"}
    genes = pd.read_csv(tmp_path / "out" / "genes.csv")
    mine = genes[(genes["representation"] == "encoder") & (genes["protocol"] == OFFICIAL)]
    assert mine.set_index("gene")["pearson"].to_dict() == pytest.approx(expected[OFFICIAL].per_gene)
    # The official one is always there; others where they are asked for.
    few = expression.evaluate_expression(
        config(folder, tables(folder, tmp_path), variants="no_pca"), tmp_path / "few"
    )
    assert [target["name"] for target in few["targets"]] == [OFFICIAL, "no_pca"]
    assert {row["target"]: row["value"] for row in few["scores"] if row["kind"] == "imported"} == {
        variant: rows[variant, "encoder"]["value"] for variant in (OFFICIAL, "no_pca")
    }


def test_encoders_are_asked_beyond_position_and_total_counts(
    folder: HestFolder, tmp_path: Path
) -> None:
    given = config(
        folder, tables(folder, tmp_path), beyond="position,total_counts", beyond_permutations=9
    )
    rows = expression.evaluate_expression(given, tmp_path / "out")["conditional"]
    asked = {(row["beyond"], row["representation"]) for row in rows}
    assert asked == {
        (name, of) for name in ("position", "total_counts") for of in ("encoder", name)
    }
    for row in rows:
        assert (row["value"] is None) == bool(row["refused"]), row
    for change, message in (
        ({"beyond": "cells"}, "evaluate.beyond: 'cells', expected some of position"),
        ({"beyond_permutations": 0}, "evaluate.beyond_permutations: 0, expected 1 or more"),
    ):
        with pytest.raises(InputError, match=message):
            expression.evaluate_expression(
                config(folder, tables(folder, tmp_path), **change), tmp_path / "other"
            )


def test_a_signal_stops_between_questions_and_the_next_run_asks_the_others(
    folder: HestFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(
        folder, tables(folder, tmp_path), beyond="position,total_counts", beyond_permutations=9
    )
    whole = expression.evaluate_expression(given, tmp_path / "whole")["conditional"]
    original, calls = expression.beyond_expression, []

    def counted(*given: Any, **about: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **about)

    monkeypatch.setattr(expression, "beyond_expression", counted)
    workdir = tmp_path / "out"
    with pytest.raises(Preempted, match="what is finished is kept"):
        expression.evaluate_expression(given, workdir)
    assert len(list((workdir / "beyond").iterdir())) == len(calls) == 1
    assert expression.evaluate_expression(given, workdir)["conditional"] == whole
    assert len(calls) == 2  # one encoder, two confounds
    other = given | {"seed": 1}
    expression.evaluate_expression(other, workdir)
    assert len(calls) == 4  # of another seed they are asked again


def test_the_plan_says_that_few_patients_tell_nothing(folder: HestFolder, tmp_path: Path) -> None:
    given = config(folder, tables(folder, tmp_path))
    results = expression.evaluate_expression(given, tmp_path / "out")
    assert [row["target"] for row in results["plan"]] == [t["name"] for t in results["targets"]]
    for row in results["plan"]:
        (verdict,) = (v for v in results["verdicts"] if v["target"] == row["target"])
        assert row["n_units"] == verdict["n_units"] and row["benchmark"] == "expression"
        assert ("always cannot tell" in row["sentence"]) == (row["n_units"] < 4)


def test_one_patient_held_out_is_cannot_tell(folder: HestFolder, tmp_path: Path) -> None:
    for k in (1, 2):
        for part in ("train", "test"):
            folder.path(f"splits/{part}_{k}.csv").unlink()
    results = expression.evaluate_expression(
        config(folder, tables(folder, tmp_path)), tmp_path / "out"
    )
    assert {v["word"] for v in results["verdicts"]} == {"cannot tell"}
    assert {v["n_units"] for v in results["verdicts"]} == {1}
    row = results["scores"][0]
    assert row["n_units"] == 1 and row["interval"] is None


def test_the_tables_of_a_run_are_read_with_their_kinds(folder: HestFolder, tmp_path: Path) -> None:
    run = tmp_path / "run"
    csv = pd.read_csv(features(folder, tmp_path / "f.csv", noise=0.05))
    obs = pd.DataFrame({"section": csv["Metadata_section"], "barcode": csv["Metadata_barcode"]})
    values = csv[[f"f{k}" for k in range(4)]].to_numpy(np.float32)
    rng = np.random.default_rng(0)
    scores = []
    for name, kind, exposure in (
        ("mae_vit", "trained", "images"),
        ("mae_vit_step0", "untrained", "none"),
        ("pixels", "pixels", "none"),
        ("metadata_section", "metadata", "none"),
    ):
        noise = 0.0 if kind == "trained" else 5.0
        layer = values + noise * rng.normal(size=values.shape).astype(np.float32)
        batches = [(np.arange(len(obs)), {LAYER: layer})]
        path = run / "features" / f"{name}.h5ad"
        write_table(path, obs, {LAYER: 4}, LAYER, batches, {"content_hash": "h"})
        scores.append({"representation": name, "kind": kind, "exposure": exposure})
    encoder = {"name": "mae_vit", "kind": "trained", "images_seen": 1}
    written = {"scores": scores, "encoders": [encoder], "data": {"content_hash": "h"}}
    (run / "results.json").write_text(json.dumps(written))
    given = config(folder, {}, floors="chance,pixels,twin,selected")
    given["features"]["run"] = str(run)
    results = expression.evaluate_expression(given, tmp_path / "out")
    rows = {r["representation"]: r for r in results["scores"] if r["target"] == OFFICIAL}
    assert set(rows) == {"mae_vit", "mae_vit_step0", "pixels"}
    assert rows["mae_vit"]["exposure"] == "images" and rows["mae_vit"]["pooling"] == "mean"
    assert results["encoders"] == [encoder]
    assert results["omitted"] == {"selected": expression.NO_VALIDATION}
    (verdict,) = [v for v in results["verdicts"] if v["target"] == OFFICIAL]
    assert verdict["encoder"] == "mae_vit" and verdict["n_units"] == 3


@pytest.mark.parametrize(
    ("changed", "exposure"),
    [({}, "none"), ({"starts_from": {"seed": 0}}, "images"),
     ({"trained_on": {"content_hash": "another"}}, "images")],
)  # fmt: skip
def test_an_encoder_that_saw_the_training_sections_alone_was_not_exposed(
    folder: HestFolder, tmp_path: Path, changed: dict[str, Any], exposure: str
) -> None:
    csv = pd.read_csv(features(folder, tmp_path / "f.csv", noise=0.05))
    obs = pd.DataFrame({
        "section": csv["Metadata_section"], "barcode": csv["Metadata_barcode"],
        "split": np.where(csv["Metadata_section"].str[0] == "A", "test", "train"),
    })  # fmt: skip
    values = csv[[f"f{k}" for k in range(4)]].to_numpy(np.float32)
    path = tmp_path / "run" / "features" / "mae_vit.h5ad"
    write_table(path, obs, {LAYER: 4}, LAYER, [(np.arange(30), {LAYER: values})],
                {"content_hash": "h"})  # fmt: skip
    row = {"representation": "mae_vit", "kind": "trained", "exposure": "images"}
    encoder = {"name": "mae_vit", "kind": "trained", "starts_from": None,
               "trained_on": {"content_hash": "h"}} | changed  # fmt: skip
    written = {"scores": [row], "encoders": [encoder], "data": {"content_hash": "h"}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(written))
    given = config(folder, {}, floors="chance")
    given["features"]["run"] = str(tmp_path / "run")
    results = expression.evaluate_expression(given, tmp_path / "out")
    assert {row["exposure"] for row in results["scores"]} == {exposure}


def test_the_readmes_command_runs(
    folder: HestFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.ROOT)
    csv = pd.read_csv(features(folder, tmp_path / "f.csv", noise=1.0))
    obs = pd.DataFrame({"section": csv["Metadata_section"], "barcode": csv["Metadata_barcode"]})
    values = csv[[f"f{k}" for k in range(4)]].to_numpy(np.float32)
    run, scores = tmp_path / "run", []
    for name, kind in (
        ("mae_vit", "trained"), ("mae_vit_step0", "untrained"), ("mae_vit_on_layout", "layout"),
        ("pixels", "pixels"), ("stain", "pixels"), ("nuclei", "count"), ("layout", "layout"),
    ):  # fmt: skip
        path = run / "features" / f"{name}.h5ad"
        write_table(path, obs, {LAYER: 4}, LAYER, [(np.arange(30), {LAYER: values})], {})
        scores.append({"representation": name, "kind": kind, "exposure": "none"})
    encoder = {"name": "mae_vit", "kind": "trained", "images_seen": 1,
               "trained_on": {"name": "hest", "hold_out": ""}}  # fmt: skip
    written = {"scores": scores, "encoders": [encoder], "data": {"content_hash": "h"}}
    (run / "results.json").write_text(json.dumps(written))
    out = tmp_path / "out"
    arguments = readme.module_arguments(
        "bioimg_jax.expression", TASK=str(folder.root), RUN=str(run), OUT=str(out)
    )
    assert expression.main(arguments) == 0
    page = (out / "report.html").read_text()
    assert "mae_vit was trained on 1 crops of hest" in page


def test_the_command_writes_a_report(
    folder: HestFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps(config(folder, tables(folder, tmp_path))))
    written = tmp_path / "config.py"
    written.write_text(
        "import json, ml_collections, pathlib\n"
        "def get_config():\n"
        f"    text = pathlib.Path({str(settings)!r}).read_text()\n"
        "    return ml_collections.ConfigDict(json.loads(text))\n"
    )
    arguments = ["expression", f"--config={written}", f"--workdir={tmp_path / 'out'}"]
    assert expression.main(arguments) == 0
    assert "verdict on encoder" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Agreement of the protocol" in page and "total_counts" in page
    assert expression.main(["expression", "--help"]) == 0
    assert expression.main(arguments[:2]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err

    def scored(*_: Any) -> None:
        raise AssertionError("an encoder is scored")

    monkeypatch.setattr(expression, "_features", scored)
    assert expression.main([*arguments[:2], "--plan"]) == 0
    assert f"  {OFFICIAL}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"folder": ""}}, "task.folder: it is empty"),
        ({"features": {"tables": {}}}, "features: neither a run nor tables"),
        ({"features": {"run": "nowhere"}}, "nowhere has no results.json of a finished run"),
        ({"evaluate": {"floors": "chance,stain"}}, "evaluate.floors: 'stain' is none of chance"),
        ({"evaluate": {"variants": "offical"}}, "evaluate.variants: 'offical', expected some of"),
    ],
)
def test_a_mistake_is_one_line(
    folder: HestFolder, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    given = config(folder, tables(folder, tmp_path))
    for section, values in change.items():
        given[section] |= values
    with pytest.raises(InputError, match=message):
        expression.evaluate_expression(given, tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(columns="Metadata_barcode"), "no column 'barcode', expected the section"),
        (lambda t: t.iloc[1:], "29 of the 30 spots"),
        (lambda t: t.assign(Metadata_barcode="x"), "'x'"),
        (lambda t: t.assign(f0=np.nan), "f0"),
    ],
)
def test_a_table_of_other_spots_is_one_line(
    folder: HestFolder, tmp_path: Path, spoil: Any, message: str
) -> None:
    held = tables(folder, tmp_path)
    path = held["encoder"][1]
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        expression.evaluate_expression(config(folder, held), tmp_path / "out")


def test_kinds_that_are_none_and_names_twice_are_refused(
    folder: HestFolder, tmp_path: Path
) -> None:
    held = tables(folder, tmp_path)
    given = config(folder, held | {"odd": ("cells", held["count"][1])})
    with pytest.raises(InputError, match=r"tables.odd.kind: 'cells', expected one of"):
        expression.evaluate_expression(given, tmp_path / "out")

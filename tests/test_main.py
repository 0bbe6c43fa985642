"""The command line, from an empty folder to the report, and every way to hold it wrong."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bioimg_jax.features.table import read_table
from bioimg_jax.logbook import Logbook, read_logbook
from bioimg_jax.main import main
from tests import readme, tiny


def refused(capsys: pytest.CaptureFixture, arguments: list[str]) -> str:
    """The one line on stderr of a command line that ends with exit status 2."""
    assert main(arguments) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_run_is_stopped_goes_on_ends_and_does_nothing_more(
    prepared_cells: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        *tiny.arguments(prepared_cells, workdir, train__steps=60, train__probe_every_steps=30),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tiny.ROOT),
        "XLA_FLAGS": tiny.QUICKLY_COMPILED,  # and one device
    }

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    first = start()
    while first.poll() is None and not any(
        "loss" in entry for entry in read_logbook(workdir / "logbook.jsonl")
    ):
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate()
    assert first.returncode == 0, said
    assert "of 60 and saved; the same command goes on from there" in said
    assert not (workdir / "results.json").exists()

    second = start()
    out, said = second.communicate()
    assert second.returncode == 0, said
    assert "going on from step" in said
    assert f"report: {workdir / 'report.html'}" in out
    assert "mae_vit_step0" in out and "nucleus_size" in out

    third = start()
    out, _ = third.communicate()
    assert third.returncode == 0
    assert "is finished" in out

    assert {p.name for p in workdir.iterdir()} >= {
        "config.json", "logbook.jsonl", "checkpoints", "features", "results.json", "report.html"
    }  # fmt: skip
    logged = [entry for entry in read_logbook(workdir / "logbook.jsonl") if "loss" in entry]
    assert [entry["step"] for entry in logged] == list(range(1, 61))
    assert logged[-1]["loss"] < logged[0]["loss"]
    results = json.loads((workdir / "results.json").read_text())
    check_rows(results, inductive=False)
    exposure = {
        (row["representation"], row["target"]): row["exposure"] for row in results["scores"]
    }
    assert exposure["mae_vit", "treatment"] == "none"  # whole test plates were held out
    assert exposure["mae_vit", "plate"] == "images"  # its test fields are of training plates too
    assert exposure["mae_vit_step0", "plate"] == "none"
    table = read_table(workdir / "features" / "mae_vit.h5ad")
    assert len(table.obs) == 672
    assert np.isfinite(table.layer("final/mean")).all()


def check_rows(results: dict, *, inductive: bool) -> None:
    """Every representation has a row on every target, and every row its fields."""
    assert results["schema_version"] == 5
    needed = {
        "benchmark", "target", "split", "metric", "representation", "kind", "block", "pooling",
        "seed", "value", "per_unit", "interval", "n_units", "unit", "exposure",
        "search_budget", "settings",
    }  # fmt: skip
    wanted = {"mae_vit", "mae_vit_step0", "vit_random_1", "vit_random_2", "vit_random", "pixels"}
    for target in results["targets"]:
        rows = [row for row in results["scores"] if row["target"] == target["name"]]
        assert wanted <= {row["representation"] for row in rows}
        for row in rows:
            assert needed <= set(row)
            assert 0 <= row["value"] <= 1
            assert row["n_units"] == len(row["per_unit"])
            assert row["unit"] == target["unit"]
            assert row["value"] == pytest.approx(np.mean(list(row["per_unit"].values())))
    averaged = [row for row in results["scores"] if row["seed"] is None]
    assert averaged
    for row in averaged:
        assert row["settings"]["seeds"] == [1, 2]
        assert row["value"] == pytest.approx(np.mean(row["settings"]["seed_values"]))
    assert all(row["settings"]["content_hash"] for row in results["scores"])
    names = {row["representation"] for row in results["scores"]}
    assert ("mae_vit_inductive" in names) == inductive
    judged = {verdict["target"]: verdict for verdict in results["verdicts"]}
    assert set(judged) == {target["name"] for target in results["targets"]}
    for target in results["targets"]:
        verdict = judged[target["name"]]
        assert verdict["encoder"] == "mae_vit" and verdict["why"]
        chosen = [row for row in results["scores"] if row["target"] == target["name"]
                  and row["representation"] == "mae_vit"][-1]  # fmt: skip
        assert chosen["verdict"] == verdict["word"]
        if target["nuisance"]:
            assert verdict["word"] == ""
        else:
            assert verdict["word"] == (target["verdict"] or verdict["word"]) != ""
            assert set(verdict["floors"]) == {"chance", "pixels", "twin", "selected"}


@pytest.mark.data
def test_real_fields_end_to_end(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.ROOT)  # the README's command is given there
    workdir = tmp_path / "run"
    command = readme.module_arguments(
        "bioimg_jax.main",
        "--config=configs/mae_cells.py",
        PATH=str(data_dir / "lincs_cell_painting"),
    )
    short = tiny.arguments(
        tmp_path / "prepared",
        workdir,
        data__options="",
        train__steps=6,
        evaluate__max_examples=600,
        evaluate__resnet18=True,
        evaluate__blocks=1,
    )
    status = main([*command, *(a for a in short[1:] if a.partition("=")[0] != "--config")])
    assert status == 0
    results = json.loads((workdir / "results.json").read_text())
    check_rows(results, inductive=True)
    targets = {target["name"]: target for target in results["targets"]}
    assert set(targets) == {"compound", "position_control", "plate", "well"}
    for name in ("compound", "position_control"):
        assert targets[name]["verdict"] == "confounded"
        assert "well" in targets[name]["reason"]
    for name in ("plate", "well"):
        assert targets[name]["nuisance"] and not targets[name]["verdict"]
    rows = results["scores"]
    compound = [row for row in rows if row["target"] == "compound"]
    assert {row["representation"] for row in compound} >= {"resnet18_random", "mae_vit_inductive"}
    exposure = {row["representation"]: row["exposure"] for row in compound}
    assert exposure["mae_vit"] == "images"
    assert exposure["mae_vit_inductive"] == exposure["mae_vit_step0"] == "none"
    trained = next(r for r in compound if r["representation"] == "mae_vit")
    assert trained["n_units"] == 5 and len(trained["interval"]) == 2
    inductive = next(r for r in compound if r["representation"] == "mae_vit_inductive")
    assert inductive["n_units"] == 1 and inductive["interval"] is None
    assert "nuisance target: score, no verdict" in (workdir / "report.html").read_text()


def test_permuted_labels_are_at_chance_from_end_to_end(
    prepared_cells: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    assert main(tiny.arguments(prepared_cells, workdir, evaluate__permute_labels=True)) == 0
    results = json.loads((workdir / "results.json").read_text())
    rows = [row for row in results["scores"] if row["seed"] is not None]
    assert len(rows) > 40
    assert not [v for v in results["verdicts"] if v["word"] == "above"]
    for target in {row["target"] for row in rows}:
        above = [row["value"] - row["chance"] for row in rows if row["target"] == target]
        assert abs(np.mean(above)) < 0.06, target


def test_every_floor_has_its_rows_and_a_part_in_the_verdict(
    prepared_cells: Path, tmp_path: Path
) -> None:
    own = ["pixels", "nuclei", "layout", "combined", "texture_bank", "random_projection",
           "aggregation_noise"]  # fmt: skip
    floors = ",".join(["chance", "twin", "selected", *own])
    workdir = tmp_path / "run"
    everything = {"evaluate__audits": True, "evaluate__illustrate": True}
    given = tiny.arguments(
        prepared_cells,
        workdir,
        evaluate__floors=floors,
        evaluate__untrained_seeds=1,
        evaluate__blocks=1,
        evaluate__beyond="count,plate",
        evaluate__beyond_permutations=19,
        **everything,
    )
    assert main(given) == 0
    results = json.loads((workdir / "results.json").read_text())
    documented = (tiny.ROOT / "docs" / "results_schema.md").read_text()
    for row in (results, results["scores"][0], results["verdicts"][0], results["plan"][0]):
        for key in row:
            assert f"`{key}`" in documented, key
    page = (workdir / "report.html").read_text()
    for section in ("ladder", "doubts", "beside", "maps", "galleries", "untrained", "scores"):
        assert f'id="{section}"' in page
    beyond = {(row["beyond"], row["representation"]) for row in results["conditional"]}
    assert beyond == {(of, name) for of in ("count", "plate") for name in ("mae_vit", of)}
    assert any(row["value"] is not None for row in results["conditional"])
    for row in results["conditional"]:
        assert (row["value"] is None) == bool(row["refused"])
        for key in row:
            assert f"`{key}`" in documented, key
    assert "Beyond a confound</h2>" in page
    assert results["segmentation"]["n_images"] == 672
    assert {row["representation"] for row in results["geometry"]} >= {"mae_vit", "pixels"}
    assert results["duplicates"]["treatment"]["n_duplicates"] <= 4  # of 288: cells that look alike
    for target in results["targets"]:
        rows = [row for row in results["scores"] if row["target"] == target["name"]]
        assert set(own) <= {row["representation"] for row in rows}
    for verdict in results["verdicts"]:
        same = "is the same in every unit" in verdict["why"]
        assert set(verdict["floors"]) == (set() if same else set(floors.split(",")))


def test_every_benchmark_is_scored_beside_its_floors(prepared_cells: Path, tmp_path: Path) -> None:
    workdir, benchmarks = tmp_path / "run", "ridge,knn,few_shot,linear,attentive"
    given = tiny.arguments(
        prepared_cells,
        workdir,
        evaluate__benchmarks=benchmarks,
        evaluate__floors="chance,pixels,twin,layout_trained",
        evaluate__representations="metadata",
        evaluate__untrained_seeds=0,
        evaluate__blocks=1,
        evaluate__poolings="mean,tokens",
    )
    assert main(given) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert ",".join(results["benchmarks"]) == benchmarks
    found = {(v["benchmark"], v["target"]) for v in results["verdicts"]}
    assert found == {(b, t["name"]) for b in benchmarks.split(",") for t in results["targets"]}
    for name in benchmarks.split(","):
        rows = [row for row in results["scores"] if row["benchmark"] == name]
        for target in (t["name"] for t in results["targets"]):
            scored = {
                r["representation"] for r in rows if r["target"] == target and r["kind"] != "truth"
            }
            assert scored == {
                "mae_vit", "mae_vit_step0", "mae_vit_on_layout", "pixels", f"metadata_{target}",
            }  # fmt: skip
        assert all(np.isfinite(row["value"]) for row in rows)
        seen = {r["pooling"] for r in rows if r["representation"] == "mae_vit"}
        assert seen == ({"tokens"} if name == "attentive" else {"mean"})
    page = (workdir / "report.html").read_text()
    assert "layout_trained" in page and "metadata_treatment" in page


def test_dry_run_tells_and_writes_nothing(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    assert main([*tiny.arguments(prepared_cells, workdir), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert '"batch_size": 16' in out
    assert "672 images" in out and "pre-training: 288 images" in out
    assert "treatment, fixed: 288 train, 96 validation, 288 test" in out
    assert "treatment: 6 units: 'above' finds gains from" in out and "plate:" not in out
    assert "parameters: " in out and "memory of a training step per device: " in out
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.train.step=5", "train.step: .* has no such key; did you mean .*train.steps"),
        ("--config.trian.steps=5", "did you mean --config.train.steps"),
        ("--config.train.steps=many", "--config.train.steps=many: expected int"),
        ("--config.optimizer.learning_rate=fast", "learning_rate=fast: expected float"),
        ("--config.mesh.fsdp=maybe", "--config.mesh.fsdp=maybe: expected bool"),
        ("--config=configs/nowhere.py", "--config=configs/nowhere.py: there is no such file"),
        ("--config=configs/study_small.py:foo", "study_small.py:foo: 'foo', expected one of lincs"),
        ("--wordkir=x", "wordkir"),
        ("--config.data.name=synthetic_cell", "did you mean 'synthetic_cells'"),
        ("--config.data.options=images_per_site", "data.options: 'images_per_site', expected key"),
        ("--config.encoder.patch_px=7", "encoder.patch_px: 7 does not divide images of 64 px"),
        ("--config.objective.name=dyno", "objective.name: 'dyno'"),
        ("--config.evaluate.strengths=strong", "evaluate.strengths: 'strong', expected numbers"),
        ("--config.evaluate.poolings=maen", "evaluate.poolings: 'maen', expected some of cls"),
        ("--config.evaluate.floors=pixels,pixels", "evaluate.floors: 'pixels,pixels', expected"),
        ("--config.evaluate.floors=pixel,twin", "evaluate.floors: 'pixel', expected some of"),
        ("--config.evaluate.delta=0", "evaluate.delta: 0.0, expected between 0 and 1"),
        ("--config.evaluate.blocks=-1", "evaluate.blocks: -1, expected at least 0"),
        ("--config.evaluate.max_examples=9", "evaluate.max_examples: 9 is too few: class"),
        ("--config.evaluate.probe_examples=9", "evaluate.probe_examples: 9 is too few: class"),
        ("--config.data.crop_px=96", "data.crop_px: an image of 64 x 64 px has no crop of 96"),
        ("--config.seed=-1", "seed: -1, expected from 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_two(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: str, message: str
) -> None:
    workdir = tmp_path / "run"
    arguments = tiny.arguments(prepared_cells, workdir, train__steps=3)
    name = change.partition("=")[0]
    arguments = [a for a in arguments if a.partition("=")[0] != name]
    assert re.search(message, refused(capsys, [*arguments, change]))
    assert not (workdir / "config.json").exists()  # the corrected command may use it


@pytest.mark.parametrize(
    ("config", "changes", "erased_by"),
    [
        ("handedness_only", {}, "flip"),
        ("neighbour_agreement_only", {"data__crop_px": 32}, "crop"),
        ("intensity_only", {"objective__augment": True}, "intensity"),
    ],
)
def test_a_training_whose_augmentation_would_erase_the_label_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, config: str, changes: dict, erased_by: str
) -> None:
    options = "n_plates=7,wells_per_treatment=1,images_per_site=12"
    arguments = tiny.arguments(
        tmp_path, tmp_path / "run", data__config=config, data__options=options, train__steps=3,
        **changes,
    )  # fmt: skip
    for extra in ([], ["--dry_run"]):
        said = refused(capsys, [*arguments, *extra])
        assert (
            f"augmentation '{erased_by}' would erase a target of data set 'synthetic_cells'" in said
        )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_source_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = tiny.arguments(
        tmp_path, tmp_path / "run", data__name="deepprofiler", data__options="",
        data__source=str(tmp_path / "nowhere"),
    )  # fmt: skip
    assert "nowhere" in refused(capsys, arguments)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train__steps": 1}, "optimizer.warmup_steps"),
        ({"evaluate__strengths": "abc"}, "evaluate.strengths"),
        ({"encoder__patch_px": 7}, "encoder.patch_px"),
    ],
)
def test_settings_are_checked_before_the_data_are_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, key: str
) -> None:
    out = tmp_path / "prepared"
    assert key in refused(capsys, tiny.arguments(out, tmp_path / "run", **changes))
    assert not out.exists()


def test_a_work_directory_in_use_is_refused(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused(capsys, tiny.arguments(prepared_cells, tmp_path))
    assert f"work directory {tmp_path} is in use by process 4711" in message


def test_a_work_directory_that_cannot_be_made_is_refused(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    message = refused(capsys, tiny.arguments(prepared_cells, tmp_path / "file" / "run"))
    assert "cannot write to work directory" in message and "Not a directory" in message


def test_a_full_disk_is_one_line_and_keeps_what_is_done(
    prepared_cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Logbook.write

    def full(self: Logbook, **entry: object) -> None:
        if entry["step"] == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        write(self, **entry)

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Logbook, "write", full)
        message = refused(capsys, tiny.arguments(prepared_cells, workdir))
    assert "No space left on device" in message and "logbook.jsonl" in message
    assert main(tiny.arguments(prepared_cells, workdir)) == 0
    assert "going on from step 8" in capsys.readouterr().err


def test_other_images_behind_the_same_config_are_refused(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    record = {**tiny.config(data__out=str(prepared_cells)), "content_hash": "0" * 64}
    (workdir / "config.json").write_text(json.dumps(record))
    message = refused(capsys, tiny.arguments(prepared_cells, workdir))
    assert "holds a run with content_hash='0000" in message


def test_a_checkpoint_of_another_encoder_is_refused(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    assert main(tiny.arguments(prepared_cells, workdir, train__steps=4)) == 0
    for name in ("config.json", "results.json"):
        (workdir / name).unlink()
    message = refused(
        capsys, tiny.arguments(prepared_cells, workdir, train__steps=4, encoder__width=32)
    )
    assert "another architecture: encoder.width is 64 there, 32 here" in message


def test_a_broken_checkpoint_is_one_line_in_the_evaluation(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    assert main(tiny.arguments(prepared_cells, workdir, train__steps=4)) == 0
    (workdir / "results.json").unlink()
    (workdir / "features" / "mae_vit_step0.h5ad").unlink()
    for path in (workdir / "checkpoints" / "0" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    message = refused(capsys, tiny.arguments(prepared_cells, workdir, train__steps=4))
    assert f"checkpoint {workdir / 'checkpoints' / '0'} cannot be read" in message


def test_help_is_given(capsys: pytest.CaptureFixture) -> None:
    assert main(["main", "--help"]) == 0
    assert "--config.KEY=VALUE" in capsys.readouterr().out


def test_another_config_in_the_same_work_directory_is_refused(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(tiny.config(data__out=str(prepared_cells))))
    message = refused(capsys, tiny.arguments(prepared_cells, workdir, optimizer__weight_decay=0.1))
    assert "holds a run with optimizer.weight_decay=0.05, not 0.1" in message

"""The evaluation of checkpoints alone, and what it never does twice."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bioimg_jax import command_line, evaluate
from bioimg_jax.candidates import build_evaluation
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.design import check_settings
from bioimg_jax.errors import InputError
from bioimg_jax.main import main as run_main
from bioimg_jax.prepare import prepare
from bioimg_jax.representations.encoder import EncoderRepresentation
from tests import readme, tiny

CONFIG = tiny.ROOT / "configs" / "eval_cells.py"
SETTINGS = {
    key: value
    for key, value in tiny.OVERRIDES.items()
    if key.startswith(("evaluate", "data", "mesh"))
}
REPRESENTATION = '''
import jax.numpy as jnp


class Corners:
    """The mean of a corner of every channel, which no floor of the package computes."""

    name, kind, dtype = "corners", "pixels", "float32"

    def __init__(self, n_channels):
        self.layers = {"corner": n_channels}

    def features(self, batch):
        return {"corner": batch["image"][:, :16, :16].astype(jnp.float32).mean(axis=(1, 2))}


def build(channels, width):
    return Corners(len(channels))
'''
BENCHMARK = '''
import dataclasses

import numpy as np

from bioimg_jax.benchmarks.classification import split_text
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.statistics.intervals import t_interval, train_overlap


class Nearest:
    """The class of the nearest training row, unit by unit."""

    name, fits = "nearest", 0
    identity = {"name": "nearest"}

    def operations(self, fold, width, n_classes):
        return 2.0 * len(fold.test) * len(fold.train) * width

    def check(self, target):
        pass

    def scores(self, table, folds, target, *, representation, kind, seed, exposure, settings,
               permute_labels_seed):
        used = np.unique(np.concatenate([p for f in folds for p in (f.train, f.test)]))
        labels = table.obs[target.column].astype(str).to_numpy()
        units = table.obs[target.unit[0]].astype(str).to_numpy()
        most = np.unique(labels[used], return_counts=True)[1].max()  # the best constant answer
        found = []
        for layer in table.widths:
            x, hits = table.layer(layer), {}
            for fold in folds:
                train, test = x[fold.train], x[fold.test]
                far = (train**2).sum(axis=1) - 2 * test @ train.T
                match = fold.train[far.argmin(axis=1)]
                for i, j in zip(fold.test, match):
                    hits.setdefault(units[i], []).append(labels[j] == labels[i])
            per_unit = {unit: float(np.mean(h)) for unit, h in hits.items()}
            found.append(Score(
                benchmark=self.name, target=target.name, split=split_text(target, len(folds)),
                metric="accuracy", higher_is_better=True, chance=most / len(used), ceiling=1.0,
                representation=representation, kind=kind, block=layer, pooling="", seed=seed,
                value=float(np.mean(list(per_unit.values()))), per_unit=per_unit,
                interval=t_interval(list(per_unit.values()), train_overlap=train_overlap(folds)),
                n_units=len(per_unit), unit=target.unit, exposure=exposure, search_budget=1,
                settings=dict(settings),
            ))
        return found[-1:]


def build():
    return Nearest()
'''


@pytest.fixture(scope="module")
def trained(prepared_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a tiny run."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert run_main(tiny.arguments(prepared_cells, workdir)) == 0
    return workdir


def arguments(prepared: Path, out: Path, *checkpoints: Path, **changes: Any) -> list[str]:
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [
        "bioimg_jax.evaluate",
        f"--config={CONFIG}",
        f"--config.data.out={prepared}",
        f"--workdir={out}",
        *(f"--checkpoint={path}" for path in checkpoints),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def results(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text())


def chosen(found: dict[str, Any], representation: str, target: str = "treatment") -> dict[str, Any]:
    return [
        row
        for row in found["scores"]
        if (row["representation"], row["target"]) == (representation, target)
    ][-1]


class Calls:
    """Counts the batches that go through any encoder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int = 0) -> None:
        self.n = 0
        features = EncoderRepresentation.features

        def counted(representation: EncoderRepresentation, batch: Any) -> Any:
            self.n += 1
            if self.n == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return features(representation, batch)

        monkeypatch.setattr(EncoderRepresentation, "features", counted)


def test_a_checkpoint_alone_scores_as_the_run_that_made_it(
    prepared_cells: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny.ROOT)  # the README's command is given there
    shutil.copytree(trained / "checkpoints", tmp_path / "alone" / "checkpoints")
    out = tmp_path / "out"
    given = readme.module_arguments(
        "bioimg_jax.evaluate", WORKDIR=str(tmp_path / "alone"), OUT=str(out)
    )
    settings = arguments(prepared_cells, out, mesh__devices=8, evaluate__audits=True)[4:]
    assert evaluate.main([*given, f"--config.data.out={prepared_cells}", *settings]) == 0
    found, before = results(out), results(trained)
    assert found["run"]["kind"] == "evaluation" and "train_s" not in found["run"]
    assert {r["representation"] for r in found["scores"]} == {
        r["representation"] for r in before["scores"]
    }
    for row, other in zip(found["scores"], before["scores"], strict=True):
        assert row["exposure"] == other["exposure"]
        # Eight devices round the features differently in the last digit; a row may change sides.
        assert row["value"] == pytest.approx(other["value"], abs=0.02)
    encoder = found["encoders"][0]
    assert (encoder["name"], encoder["step"], encoder["images_seen"]) == ("mae_vit", 12, 192)
    # The config of this evaluation has no augmentations; the checkpoint was trained with both.
    assert found["symmetry"] and all(row["used_in_training"] for row in found["symmetry"])
    said = capsys.readouterr()
    assert "468 probe fits, about 1 min" in said.err and "verdict on mae_vit" in said.out
    assert (out / "report.html").exists() and (out / "results.csv").exists()


def test_several_checkpoints_are_several_rows_and_seeds_of_one_recipe_one_verdict(
    prepared_cells: Path, trained: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    assert run_main(tiny.arguments(prepared_cells, second, seed=1, train__probe_every_steps=0)) == 0
    early = trained / "checkpoints" / "8"
    out = tmp_path / "out"
    assert evaluate.main(arguments(prepared_cells, out, trained, second)) == 0
    found = results(out)
    names = {row["representation"] for row in found["scores"]}
    assert {"mae_vit_run", "mae_vit_second", "mae_vit", "mae_vit_step0"} <= names
    averaged = chosen(found, "mae_vit")
    assert averaged["seed"] is None and averaged["settings"]["seeds"] == [0, 1]
    assert averaged["value"] == pytest.approx(
        np.mean([chosen(found, f"mae_vit_{name}")["value"] for name in ("run", "second")])
    )
    assert {verdict["encoder"] for verdict in found["verdicts"]} == {"mae_vit"}

    other = tmp_path / "early"
    shutil.copytree(early, other / "checkpoints" / "8")
    assert evaluate.main(arguments(prepared_cells, out, trained, other)) == 0
    found = results(out)
    assert {v["encoder"] for v in found["verdicts"]} == {"mae_vit_run", "mae_vit_early"}
    # Its step 0 was not kept: the twin is drawn again from the seed, and is the same one.
    assert chosen(found, "mae_vit_early_step0") == {
        **chosen(found, "mae_vit_run_step0"),
        "representation": "mae_vit_early_step0",
    }


def test_a_finished_table_is_never_computed_twice(
    prepared_cells: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    given = arguments(prepared_cells, out, trained)
    calls = Calls(monkeypatch, stop_after=5)  # in the second of four encoders, of 3 batches each
    assert evaluate.main(given) == 0
    assert "goes on from there" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    assert evaluate.main(given) == 0
    assert calls.n == 12
    assert evaluate.main(given) == 0
    # Other strengths and another benchmark are other scores of the same tables.
    own = tmp_path / "own.py"
    own.write_text(BENCHMARK)
    more = arguments(
        prepared_cells,
        out,
        trained,
        evaluate__strengths="1e-2",
        evaluate__benchmarks=f"linear,{own}",
    )
    assert evaluate.main(more) == 0
    assert calls.n == 12
    assert {row["benchmark"] for row in results(out)["scores"]} == {"linear", "nearest"}
    # Other blocks are other tables, of the encoders alone; so is a damaged one.
    assert evaluate.main(arguments(prepared_cells, out, trained, evaluate__blocks=1)) == 0
    assert calls.n == 24
    (out / "features" / "mae_vit.h5ad").write_bytes(b"")
    assert evaluate.main(arguments(prepared_cells, out, trained, evaluate__blocks=1)) == 0
    assert calls.n == 27


def test_a_new_representation_and_benchmark_are_two_files_and_a_config(
    prepared_cells: Path, trained: Path, tmp_path: Path
) -> None:
    representation, benchmark = tmp_path / "corners.py", tmp_path / "nearest.py"
    representation.write_text(REPRESENTATION)
    benchmark.write_text(BENCHMARK)
    out = tmp_path / "out"
    given = arguments(
        prepared_cells,
        out,
        trained,
        evaluate__representations=str(representation),
        evaluate__benchmarks=f"{benchmark},linear",
        evaluate__floors="chance,corners,twin",
        evaluate__untrained_seeds=0,
    )
    assert evaluate.main(given) == 0
    found = results(out)
    assert found["benchmarks"] == ["nearest", "linear"]
    for name in ("nearest", "linear"):
        rows = [row for row in found["scores"] if row["benchmark"] == name]
        shown = {row["representation"] for row in rows if row["kind"] != "truth"}
        assert shown == {"mae_vit", "mae_vit_step0", "corners", "pixels"}
    for verdict in found["verdicts"]:
        same = "is the same in every unit" in verdict["why"]
        assert set(verdict["floors"]) == (set() if same else {"chance", "corners", "twin"})
    assert sum(bool(verdict["floors"]) for verdict in found["verdicts"]) >= 4
    assert {(v["benchmark"], v["target"]) for v in found["verdicts"]} == {
        (b, t["name"]) for b in ("nearest", "linear") for t in found["targets"]
    }


def test_a_plan_does_not_promise_what_a_floor_that_nobody_makes_forbids(
    prepared_cells: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    given = arguments(
        prepared_cells,
        tmp_path / "out",
        trained,
        evaluate__floors="chance,selected",
        evaluate__untrained_seeds=0,
        evaluate__resnet18=False,
    )
    assert evaluate.main([*given, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "no verdict: the floor 'selected' needs random networks" in planned
    assert "finds gains" not in planned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # A unit that one representation has no score in, one that is no number, one without JSON.
        ("del per_unit[min(per_unit)]", "nearest on treatment: pixels and mae_vit differ in unit"),
        (
            "per_unit[min(per_unit)] = np.nan",
            "nearest on treatment could not score pixels: ",
        ),
        ("settings = {'odd': {1, 2}}", "nearest on treatment returned for pixels a score"),
    ],
)
def test_scores_that_no_verdict_can_be_made_of_are_one_line_and_nothing_is_lost(
    prepared_cells: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    message: str,
) -> None:
    own, out = tmp_path / "nearest.py", tmp_path / "out"
    line = "            found.append(Score("
    broken = f"            if representation == 'pixels':\n                {change}\n{line}"
    own.write_text(BENCHMARK.replace(line, broken))
    given = arguments(
        prepared_cells,
        out,
        trained,
        evaluate__benchmarks=str(own),
        evaluate__floors="chance,pixels,twin",
        evaluate__untrained_seeds=0,
    )
    assert evaluate.main(given) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "what is finished is kept" in lines[0]
    assert (out / "scores" / "mae_vit-nearest-treatment.json").exists()
    calls = Calls(monkeypatch)
    own.write_text(BENCHMARK)
    assert evaluate.main(given) == 0
    assert calls.n == 0  # the tables of both encoders were there


def test_the_plan_needs_no_compute_and_no_work_directory(
    prepared_cells: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = arguments(prepared_cells, tmp_path / "out", trained)
    assert evaluate.main([*given, "--plan"]) == 0
    assert "treatment: 6 units: 'above' finds gains from" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__benchmarks": "linaer"}, "evaluate.benchmarks: 'linaer', expected some of"),
        ({"evaluate__benchmarks": "linear,linear"}, "names 'linear' twice"),
        ({"evaluate__benchmarks": "nowhere.py"}, "nowhere.py: there is no such file"),
        ({"evaluate__representations": "nowhere.py"}, "nowhere.py: there is no such file"),
        ({"evaluate__benchmarks": "attentive"}, "add 'tokens' to evaluate.poolings"),
        ({"evaluate__poolings": "tokens"}, "evaluate.poolings: 'tokens', but vit has cls, mean"),
        ({"data__crop_px": 96}, "an image of 64 x 64 px has no crop of 96"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    prepared_cells: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    changes: dict,
    message: str,
) -> None:
    assert evaluate.main(arguments(prepared_cells, tmp_path / "out", trained, **changes)) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_what_is_missing_on_the_command_line_is_said(
    prepared_cells: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def said(given: list[str]) -> str:
        assert evaluate.main(given) == 2
        return capsys.readouterr().err

    assert "--checkpoint=PATH is missing" in said(arguments(prepared_cells, tmp_path / "out"))
    assert "there is no folder" in said(arguments(prepared_cells, tmp_path / "out", tmp_path / "x"))
    assert "is a training's; choose another one" in said(
        arguments(prepared_cells, trained, trained)
    )
    other = shutil.copytree(trained, tmp_path / "run")
    assert "would both be called 'mae_vit_run_step12'" in said(
        arguments(prepared_cells, tmp_path / "out", trained, other)
    )


@pytest.fixture(scope="module")
def wells(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """240 cells in 40 wells, whose doses were drawn from a brightness that is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOIMG_DATASETS", str(tiny.ROOT / "tests" / "data"))
        return open_dataset(prepare(name="wells", out=tmp_path_factory.mktemp("wells"), workers=1))


def of_wells(**changes: Any) -> dict[str, Any]:
    return tiny.config(
        data__name="wells", data__options="", data__crop_px=16, evaluate__untrained_seeds=0,
        evaluate__benchmarks="knn", evaluate__floors="chance,pixels,aggregation_noise", **changes,
    )  # fmt: skip


def test_wells_are_scored_by_their_profiles_and_held_against_the_truth(
    wells: Dataset, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"  # an encoder: it is judged
    own.write_text(REPRESENTATION.replace('"pixels"', '"imported"'))
    config = of_wells(evaluate__representations=str(own))
    evaluation = build_evaluation(config, wells.declaration.channels)
    check_settings(evaluation, wells)
    workdir = tmp_path / "run"
    workdir.mkdir()
    command_line.write_json(workdir / "config.json", config)
    found = evaluate.evaluate(evaluation, wells, workdir)
    about = evaluate.about_run(seed=0, n_devices=8, command="", start=0.0, kind="evaluation")
    evaluate.publish(workdir, about, found)
    targets = {target["name"]: target for target in found["targets"]}
    assert targets["dose"]["aggregate"] == ["plate", "well"]
    assert targets["dose_of_cells"]["aggregate"] == []
    for name, tested in (("dose", {8}), ("dose_of_cells", {24})):  # of the smaller class, twice
        assert targets[name]["n_examples"] == 240
        rows = [row for row in found["scores"] if row["target"] == name]
        truth = chosen(found, f"truth_{name}", name)
        assert truth["kind"] == "truth" and truth["value"] > 0.7
        assert {row["ceiling"] for row in rows} == {truth["value"]}
        assert {row["exposure"] for row in rows if row["kind"] != "imported"} == {"none"}
        for row in rows:
            assert set(row["unit_rows"].values()) == tested
            assert row["settings"].get("aggregate", []) == targets[name]["aggregate"]
            assert row["settings"]["n_images"] == 240
        (verdict,) = [v for v in found["verdicts"] if v["target"] == name]
        assert verdict["encoder"] == "corners" and verdict["word"] != ""
        assert "truth" not in verdict["floors"]
    assert not [row for row in found["scores"] if row["representation"] == "truth_plate"]
    # Of eight wells a plate is known less well than of its 48 cells.
    planned = {line["target"]: line["detectable_alone"] for line in found["plan"]}
    assert planned["dose"] > 1.5 * planned["dose_of_cells"]
    # A well of a high dose has three times the cells: nothing else is to be seen in noise.
    noise = chosen(found, "aggregation_noise", "dose")
    assert noise["value"] >= 0.95 and noise["settings"]["folds"][0]["layer"] == "spread"
    assert chosen(found, "aggregation_noise", "dose_of_cells")["value"] < 0.65
    saturated = next(v for v in found["verdicts"] if v["target"] == "dose")
    assert saturated["word"] == "saturated" and "what the truth scores" in saturated["why"]
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "mean features of each plate/well" in " ".join(page.split())
    documented = (tiny.ROOT / "docs" / "results_schema.md").read_text()
    for key in targets["dose"]:
        assert f"`{key}`" in documented, key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": ("well",)}, "truth features: row 0 of column 'well' holds 'W0'"),
        ({"truth": ("depth",)}, "truth features: column 'depth' does not exist"),
        ({"aggregate": ("plate",)}, "aggregates over plate, but 'P0' has the dose"),
        ({"aggregate": ("field",)}, "aggregates over column 'field', which does not exist"),
    ],
)
def test_what_truth_and_profiles_cannot_be_is_told_before_the_hours(
    wells: Dataset, changes: dict[str, Any], message: str
) -> None:
    dose = wells.declaration.targets[0]
    declaration = dataclasses.replace(
        wells.declaration, targets=(dataclasses.replace(dose, **changes),)
    )
    dataset = open_dataset(wells.directory)
    dataset.declaration = declaration
    with pytest.raises(InputError, match=message):
        check_settings(build_evaluation(of_wells(), declaration.channels), dataset)

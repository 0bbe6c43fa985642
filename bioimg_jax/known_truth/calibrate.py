"""Runs every preset through the one evaluation and says what each floor, encoder and benchmark saw.

    python -m bioimg_jax.known_truth.calibrate --config=configs/calibrate.py --workdir=OUT

Trains the encoders that the config names, evaluates each preset with them, tries the metadata audit
on many seeds, and holds the outcomes against what must be so (`expectations.py`). What is finished
is used again. Leaves calibration.json, calibration.html and calibration.md, and a report a preset.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from scipy import stats

from bioimg_jax import command_line
from bioimg_jax.benchmarks.score import SELECTED, headline_rows
from bioimg_jax.candidates import build_evaluation, open_trained
from bioimg_jax.checkpoint import Saved, open_checkpoint
from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.splits import make_folds
from bioimg_jax.design import check_settings
from bioimg_jax.errors import InputError
from bioimg_jax.evaluate import evaluate, prepared
from bioimg_jax.known_truth.expectations import Check, Outcome, Shown, expectations
from bioimg_jax.known_truth.mirrored import flipped_scores
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.report import write_calibration
from bioimg_jax.results import about_run, publish
from bioimg_jax.statistics.audit import audit
from bioimg_jax.train import Config, build_run, train

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where encoders, evaluations and the calibration are kept"""
CONFIDENCE = 0.95  # of the binomial bounds


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    held: list[bool] = []
    status = command_line.guarded(lambda: held.append(_run(arguments)))
    return status or int(not all(held))


def _run(arguments: Sequence[str]) -> bool:
    """Whether everything that must hold does."""
    config, given = command_line.parse(arguments, {"workdir": ""})
    command_line.check_sections(config, "encoders", "presets", "audits")
    if not given["workdir"]:
        raise InputError("--workdir=DIR is missing: where the calibration is kept")
    settle_cpu()
    command = shlex.join(["python", "-m", "bioimg_jax.known_truth.calibrate", *arguments[1:]])
    with command_line.locked(Path(given["workdir"])):
        found = calibrate(config, Path(given["workdir"]), command=command)
    return all(check["holds"] for check in found["checks"])


def calibrate(config: Config, workdir: Path, *, command: str) -> dict[str, Any]:
    """Everything that the config names; returns what calibration.json holds."""
    start = time.time()
    _check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    command_line.check_config(workdir, dict(config))
    command_line.write_json(workdir / "config.json", config)
    trained: dict[str, Saved] = {}
    data: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    checks: list[Check] = []
    took: dict[str, float] = {}
    # The audits need no accelerator and no second core: they run beside the rest.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as beside:
        try:
            waiting = [beside.submit(_audited, *audit) for audit in config["audits"].items()]
            for name, experiment in config["presets"].items():
                begun = time.time()
                for encoder in _names(experiment["encoders"]):
                    _train(encoder, config, workdir, trained)
                _say(f"preset {name}")
                checkpoints = [trained[encoder] for encoder in _names(experiment["encoders"])]
                folder = workdir / "presets" / name
                found, flipped = _evaluated(name, config, checkpoints, folder, command)
                outcomes += found
                checks += flipped
                data.append(_about_data(name, experiment, folder))
                took[name] = round(time.time() - begun, 1)
            _say("audits")
            audits = [audit.result() for audit in waiting]
        except BaseException:
            beside.shutdown(wait=False, cancel_futures=True)
            raise
    checks += expectations(outcomes, audits)
    about = {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
        "wall_s": round(time.time() - start, 1),
        "took_s": took,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "seed": config["seed"],
        "data": data,
        "encoders": [
            {"encoder": name, "trained_on": saved.meta["data"]["name"], "step": saved.step}
            for name, saved in trained.items()
        ],
        "outcomes": [outcome.to_row() for outcome in outcomes],
        "audits": audits,
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    command_line.write_json(workdir / "calibration.json", about)
    page = write_calibration(workdir)
    for check in checks:
        print(f"{'holds' if check.holds else 'FAILS':<6} {check.preset}: {check.expected}; "
              f"{check.found}")  # fmt: skip
    print(f"\n{sum(c.holds for c in checks)} of {len(checks)} hold; page: {page}")
    return about


def _check(config: Config) -> None:
    """`InputError` for a name that the config does not have, before anything takes time."""
    wanted = [(f"presets.{name}.encoders", encoder) for name, about in config["presets"].items()
              for encoder in _names(about["encoders"])]  # fmt: skip
    wanted += [(f"encoders.{name}.starts_from", about["starts_from"])
               for name, about in config["encoders"].items() if about["starts_from"]]  # fmt: skip
    for key, encoder in wanted:
        if encoder not in config["encoders"]:
            raise InputError(f"{key}: {encoder!r} is none of {', '.join(config['encoders'])}")
    for name, about in config["audits"].items():
        if not hasattr(find_builder(about["name"]), "layout"):
            raise InputError(
                f"audits.{name}: the design of data set {about['name']!r} is not known without "
                "its images; expected one with a `layout`, as synthetic_cells"
            )


def _about_data(name: str, experiment: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a preset was evaluated on, so that it can be made again."""
    settings = experiment["evaluation"]["data"]
    plan = find_builder(settings["name"]).plan_resolved(
        "", settings["config"], command_line.options(settings["options"])
    )
    return {
        "preset": name,
        "name": settings["name"],
        "config": settings["config"],
        "options": settings["options"],
        "seed": plan.options["seed"],
        "content_hash": json.loads((folder / "config.json").read_text())["content_hash"],
    }


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _train(name: str, config: Config, workdir: Path, trained: dict[str, Saved]) -> Saved:
    """The checkpoint of one of the config's encoders, trained now unless it is there.

    One that starts from another comes after it: a relation between cells is learned much sooner
    from weights that know what it is between.
    """
    if name in trained:
        return trained[name]
    about = config["encoders"][name]
    experiment = {**about, "seed": config["seed"], "mesh": config["mesh"]}
    first = about["starts_from"] and _train(about["starts_from"], config, workdir, trained)
    _say(f"encoder {name}")
    dataset = prepared(experiment["data"])
    folder = workdir / "encoders" / name
    folder.mkdir(parents=True, exist_ok=True)
    run = build_run(experiment, dataset.declaration.channels)
    start = open_trained([first])[0].start(run.mesh) if first else None
    train(run, dataset, folder, start_from=start)
    trained[name] = open_checkpoint(folder)
    return trained[name]


def _evaluated(
    name: str, config: Config, checkpoints: Sequence[Saved], folder: Path, command: str
) -> tuple[list[Outcome], list[Check]]:
    """The evaluation of one preset, on every benchmark and target that is not a nuisance.

    And, where the config asks for them, the same encoders on randomly flipped images, with what the
    symmetry audit must say of them.
    """
    about = config["presets"][name]
    experiment = {**about["evaluation"], "seed": config["seed"], "mesh": config["mesh"]}
    start = time.time()
    dataset = prepared(experiment["data"])
    evaluation = build_evaluation(experiment, dataset.declaration.channels, checkpoints)
    check_settings(evaluation, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    command_line.write_json(
        folder / "config.json", {**experiment, "content_hash": dataset.content_hash}
    )
    results = evaluate(evaluation, dataset, folder)
    run = about_run(evaluation, command=command, start=start, kind="evaluation")
    publish(folder, run, results)
    tested = {t["name"]: t for t in results["targets"] if not t["nuisance"]}
    outcomes = []
    for benchmark in results["benchmarks"]:
        for target, row in tested.items():
            shown = headline_rows(results["scores"], target, benchmark)
            words = {
                v["encoder"]: v["word"]
                for v in results["verdicts"]
                if (v["benchmark"], v["target"]) == (benchmark, target)
            }
            splits = results["data"]["splits"][target].values()
            outcomes.append(
                Outcome(
                    preset=name,
                    benchmark=benchmark,
                    target=target,
                    metric=shown[0]["metric"],
                    chance=shown[0]["chance"],
                    ceiling=shown[0]["ceiling"],
                    n_test=sum(split["test"] for split in splits),
                    n_units=shown[0]["n_units"],
                    confounded=row["verdict"],
                    verdicts=words,
                    shown=[_shown(score) for score in shown],
                    factors=[
                        name.removeprefix("factor_").removeprefix("truth_")
                        for name in dataset.declaration.target(target).truth
                    ],
                    layers=_layers(results["scores"], target, benchmark),
                )
            )
    if not about["flipped"]:
        return outcomes, []
    rows, audited = flipped_scores(evaluation, dataset, folder)
    flipped = dataclasses.replace(
        outcomes[0], preset=f"{name}, flipped", verdicts={}, shown=[_shown(row) for row in rows]
    )
    erased = Check(
        name, "the symmetry audit says that a flip erases it", audited["reason"],
        audited["preserves"] is False,
    )  # fmt: skip
    return [*outcomes, flipped], [erased]


def _layers(
    scores: Sequence[Mapping[str, Any]], target: str, benchmark: str
) -> dict[str, list[Shown]]:
    """Representation -> the score of each layer; the choice among them is no layer."""
    found: dict[str, list[Shown]] = {}
    for score in scores:
        asked = (score["target"], score["benchmark"]) == (target, benchmark)
        if asked and score["block"] != SELECTED:
            found.setdefault(score["representation"], []).append(_shown(score))
    return found


def _shown(score: Mapping[str, Any]) -> Shown:
    return Shown(
        representation=score["representation"],
        kind=score["kind"],
        value=score["value"],
        interval=score["interval"],
        per_unit=score["per_unit"],
    )


def _audited(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """How often the metadata audit calls a design confounded, over seeds of its layout.

    Of its first target.
    """
    builder = find_builder(about["name"])
    options = command_line.options(about["options"])
    n, count = about["seeds"], 0
    for seed in range(n):
        plan = builder.plan_resolved("", about["config"], {**options, "seed": seed})
        table, target = builder.layout(plan), plan.declaration.targets[0]
        count += bool(audit(table, make_folds(table, target), target)["verdict"])
    limits = stats.binomtest(count, n).proportion_ci(CONFIDENCE, "exact")
    return {
        "design": name,
        "target": target.name,
        "seeds": n,
        "confounded": count,
        "interval": [float(limit) for limit in limits],
        "expected": about["expected"],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))

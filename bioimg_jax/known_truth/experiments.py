"""What a calibration does in its worker processes: an encoder, a preset or the audit of a design.

Each is a function of plain values that can be called in any process; what it prints goes to a file.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from scipy import stats

from bioimg_jax import command_line
from bioimg_jax.benchmarks.score import SELECTED, headline_rows
from bioimg_jax.candidates import Evaluation, build_evaluation, open_trained
from bioimg_jax.checkpoint import open_checkpoint
from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.splits import make_folds
from bioimg_jax.design import check_settings
from bioimg_jax.evaluate import evaluate, prepared
from bioimg_jax.known_truth.expectations import Check, Outcome, Shown
from bioimg_jax.known_truth.mirrored import flipped_scores
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.results import about_run, publish
from bioimg_jax.statistics.audit import audit
from bioimg_jax.train import Config, build_run, train

CONFIDENCE = 0.95  # of the binomial bounds
LOG = "log.txt"


@contextlib.contextmanager
def process_of(workdir: Path, folder: Path) -> Iterator[None]:
    """What a process needs to compute here; prints into the folder's log meanwhile.

    Programs that were compiled for one experiment are used again for the next, in any process.
    """
    settle_cpu()
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / LOG).open("a", buffering=1, encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def encoder_folder(workdir: Path, name: str) -> Path:
    """Where an encoder is kept."""
    return workdir / "encoders" / name


def preset_folder(workdir: Path, name: str) -> Path:
    """Where the evaluation of a preset is kept."""
    return workdir / "presets" / name


def training_of(name: str, config: Config) -> Config:
    """The config of a training that makes one of the encoders."""
    return {**config["encoders"][name], "seed": config["seed"], "mesh": config["mesh"]}


def train_encoder(name: str, config: Config, workdir: Path) -> float:
    """Trains one of the config's encoders unless that is done; returns the seconds it took.

    One that starts from another comes after it: a relation between cells is learned much sooner
    from weights that know what it is between.
    """
    begun = time.monotonic()
    experiment, folder = training_of(name, config), encoder_folder(workdir, name)
    with process_of(workdir, folder):
        dataset = prepared(experiment["data"])
        run = build_run(experiment, dataset.declaration.channels)
        start = None
        if experiment["starts_from"]:
            first = open_checkpoint(encoder_folder(workdir, experiment["starts_from"]))
            start = open_trained([first])[0].start(run.mesh)
        train(run, dataset, folder, start_from=start)
    return time.monotonic() - begun


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What came of a preset. data: what it was evaluated on; seconds: that it took."""

    outcomes: list[Outcome]
    checks: list[Check]
    data: dict[str, Any]
    seconds: float


def evaluate_preset(name: str, config: Config, workdir: Path, command: str) -> Evaluated:
    """One preset with its encoders, all of which are trained."""
    begun = time.monotonic()
    about = config["presets"][name]
    folder = preset_folder(workdir, name)
    with process_of(workdir, folder):
        images = evaluate_images(
            about["evaluation"], config, about["encoders"], workdir, folder, command
        )
        outcomes, checks = _outcomes(name, about["flipped"], images, folder)
    settings = about["evaluation"]["data"]
    data = about_data(name, settings["name"], settings, images.dataset.content_hash)
    return Evaluated(outcomes, checks, data, time.monotonic() - begun)


def about_data(
    name: str, builder: str, settings: Mapping[str, Any], content_hash: str
) -> dict[str, Any]:
    """What something was evaluated on, so that it can be made again.

    settings: "config" and "options" of the builder.
    """
    plan = find_builder(builder).plan_resolved(
        "", settings["config"], command_line.options(settings["options"])
    )
    return {
        "preset": name,
        "name": builder,
        "config": settings["config"],
        "options": settings["options"],
        "seed": plan.options["seed"],
        "content_hash": content_hash,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """An evaluation of images, and what results.json has of it."""

    evaluation: Evaluation
    dataset: Dataset
    results: Mapping[str, Any]


def evaluate_images(
    about: Config, config: Config, encoders: str, workdir: Path, folder: Path, command: str
) -> Images:
    """The one evaluation, by the config `about`, of encoders that are trained; kept in `folder`.

    Nuisance targets are left out, unless there are no others.
    """
    experiment = {**about, "seed": config["seed"], "mesh": config["mesh"]}
    checkpoints = [
        open_checkpoint(encoder_folder(workdir, encoder))
        for encoder in command_line.names(encoders)
    ]
    start = time.time()
    dataset = prepared(experiment["data"])
    targets = dataset.declaration.targets
    tested = tuple(target for target in targets if not target.nuisance) or targets
    dataset.declaration = dataclasses.replace(dataset.declaration, targets=tested)
    evaluation = build_evaluation(experiment, dataset.declaration.channels, checkpoints)
    check_settings(evaluation, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    command_line.write_json(
        folder / "config.json", {**experiment, "content_hash": dataset.content_hash}
    )
    results = evaluate(evaluation, dataset, folder)
    run = about_run(
        seed=config["seed"],
        n_devices=evaluation.mesh.size,
        command=command,
        start=start,
        kind="evaluation",
    )
    publish(folder, run, results)
    return Images(evaluation, dataset, results)


def outcomes_of(name: str, results: Mapping[str, Any]) -> Iterator[Outcome]:
    """What every benchmark made of every target, by what results.json has of it."""
    for benchmark in results["benchmarks"]:
        for row in results["targets"]:
            target = row["name"]
            shown = headline_rows(results["scores"], target, benchmark)
            if not shown:  # a protocol that could not be run
                continue
            splits = results["data"]["splits"].get(target)
            n_test = sum(split["test"] for split in splits.values()) if splits else 0
            yield Outcome(
                preset=name,
                benchmark=benchmark,
                target=target,
                metric=shown[0]["metric"],
                chance=shown[0]["chance"] or 0.0,
                ceiling=shown[0]["ceiling"],
                n_test=n_test or row["n_examples"],
                n_units=shown[0]["n_units"],
                confounded=row["verdict"],
                verdicts={
                    v["encoder"]: v["word"]
                    for v in results["verdicts"]
                    if (v["benchmark"], v["target"]) == (benchmark, target)
                },
                shown=[_shown(score) for score in shown],
                layers=_layers(results["scores"], target, benchmark),
            )


def _outcomes(
    name: str, flipped: bool, images: Images, folder: Path
) -> tuple[list[Outcome], list[Check]]:
    """What came of one preset, on every benchmark and target that gets a verdict.

    And, where they are asked for, of the same encoders on randomly flipped images, with what the
    symmetry audit must say of them.
    """
    declaration = images.dataset.declaration
    outcomes = []
    for outcome in outcomes_of(name, images.results):
        truth = declaration.target(outcome.target).truth
        factors = [factor.removeprefix("factor_").removeprefix("truth_") for factor in truth]
        outcomes.append(dataclasses.replace(outcome, factors=factors))
    if not flipped:
        return outcomes, []
    rows, layers, audited = flipped_scores(images.evaluation, images.dataset, folder)
    turned = dataclasses.replace(
        outcomes[0],
        preset=f"{name}, flipped",
        verdicts={},
        shown=[_shown(row) for row in rows],
        layers=_layers(layers, outcomes[0].target, outcomes[0].benchmark),
    )
    erased = Check(
        name, "the symmetry audit says that a flip erases it", audited["reason"],
        audited["preserves"] is False,
    )  # fmt: skip
    return [*outcomes, turned], [erased]


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
    """What an outcome shows of a row of results.json."""
    return Shown(
        representation=score["representation"],
        kind=score["kind"],
        value=score["value"],
        interval=score["interval"],
        per_unit=score["per_unit"],
    )


def audit_design(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
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

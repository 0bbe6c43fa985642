"""The field's protocols on generated experiments: a screen's profiles, and the genes of a tissue.

Both go the way of a user: features from the files of an evaluation, gene counts from a folder in
HEST-Benchmark's layout. The truth takes part as if it were an encoder, so that what a verdict says
of it is known; its score is the ceiling.
"""

import copy
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from bioimg_jax import command_line
from bioimg_jax.benchmarks.ladder import CHANCE, TRUTH
from bioimg_jax.benchmarks.protocols import GENE
from bioimg_jax.data.builders import find_builder
from bioimg_jax.expression import OFFICIAL, evaluate_expression
from bioimg_jax.features.hest import SECTION, read_annotations
from bioimg_jax.features.table import read_table
from bioimg_jax.known_truth.expectations import DIALS, Outcome
from bioimg_jax.known_truth.experiments import (
    Evaluated,
    about_data,
    evaluate_images,
    outcomes_of,
    preset_folder,
    process_of,
)
from bioimg_jax.profiles import KINDS, evaluate_profiles
from bioimg_jax.results import RESULTS, about_run, publish
from bioimg_jax.train import Config

TISSUE = "synthetic_tissue"
PAIRS = "same_class.csv"


def screen_folder(workdir: Path, name: str) -> Path:
    """Where the protocols on a screen's profiles are kept."""
    return workdir / "screens" / name


def genes_folder(workdir: Path, name: str) -> Path:
    """Where the protocols on a tissue's genes are kept."""
    return workdir / "genes" / name


def evaluate_screen(name: str, config: Config, workdir: Path, command: str) -> Evaluated:
    """The protocols on profiles, with the features that the evaluation of a preset has left."""
    begun, start = time.monotonic(), time.time()
    about, folder = config["screens"][name], screen_folder(workdir, name)
    with process_of(workdir, folder):
        source = preset_folder(workdir, about["preset"])
        profiles, settings = copy.deepcopy(about["profiles"]), copy.deepcopy(about["evaluate"])
        profiles["tables"], floors = _tables(source, about["truth"], about["groups"])
        settings["floors"] = ",".join((CHANCE, *floors))
        first = next(iter(profiles["tables"].values()))["source"]
        settings["pair_lists"] = str(_same_class(first, about, folder / PAIRS))
        made = {"profiles": profiles, "evaluate": settings, "seed": config["seed"]}
        results = evaluate_profiles(made, folder)
        _publish(folder, made, results, command, "profiles", start)
        outcomes = list(_outcomes(name, results, factors=about["factors"]))
    of_images = json.loads((source / "config.json").read_text())
    settings, content_hash = of_images["data"], of_images["content_hash"]
    data = about_data(name, settings["name"], settings, content_hash)
    return Evaluated(outcomes, [], data, time.monotonic() - begun)


def _tables(
    source: Path, truth: str, groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Any], list[str]]:
    """The config's tables of a preset's features, the truth first, and those that are floors.

    Groups of the factors, by their names, are shown beside the truth and are no floors.
    """
    rows = json.loads((source / RESULTS).read_text(encoding="utf-8"))["scores"]
    kinds = {row["representation"]: row["kind"] for row in rows}
    found = {DIALS: _table(source, truth, "imported")}
    settings = json.loads((source / "config.json").read_text())["data"]
    plan = find_builder(settings["name"]).plan_resolved(
        "", settings["config"], command_line.options(settings["options"])
    )
    known = plan.declaration.target(truth.removeprefix(f"{TRUTH}_")).truth
    for group, factors in groups.items():
        columns = "|".join(str(known.index(f"factor_{factor}")) for factor in factors)
        only = f":({columns})$"  # of the table's features, numbered in the order of the factors
        found[f"{DIALS}_{group}"] = {**_table(source, truth, "combined"), "only": only}
    floors = []
    for name, kind in kinds.items():
        if kind in KINDS and (source / "features" / f"{name}.h5ad").exists():
            found[name] = _table(source, name, kind)
            floors += [] if kind == "trained" else [name]
    return found, floors


def _table(source: Path, name: str, kind: str) -> dict[str, str]:
    path = source / "features" / f"{name}.h5ad"
    return {"kind": kind, "source": str(path), "only": "", "ignore": ""}


def _same_class(features: str, about: Mapping[str, Any], path: Path) -> Path:
    """Writes which treatments share a class: the relationships that are true."""
    obs = read_table(Path(features)).obs
    treated = obs[~obs[about["control"]].astype(bool)].astype(str)
    classes = treated.groupby(about["gene"])[about["class"]].first()
    pairs = [f"{a},{b}" for a in classes.index for b in classes.index
             if a < b and classes[a] == classes[b]]  # fmt: skip
    path.write_text("\n".join([f"{GENE}1,{GENE}2", *pairs]) + "\n", encoding="utf-8")
    return path


def evaluate_genes(name: str, config: Config, workdir: Path, command: str) -> Evaluated:
    """HEST-Benchmark's protocol on a generated tissue, the genes of one driver after the other."""
    begun, start = time.monotonic(), time.time()
    about, folder = config["genes"][name], genes_folder(workdir, name)
    outcomes: list[Outcome] = []
    with process_of(workdir, folder):
        task = _written(about["tissue"], folder / "task")
        experiment = copy.deepcopy(about["evaluation"])
        experiment["data"]["source"] = str(task)
        run = folder / "images"
        images = evaluate_images(experiment, config, about["encoders"], workdir, run, command)
        spots, genes = read_annotations(task)
        for driver, factors in about["drivers"].items():
            made = copy.deepcopy(about["expression"]) | {"seed": config["seed"]}
            made["task"] |= {"folder": str(task), "gene_list": _gene_list(task, genes, driver)}
            known = factors or list(itertools.chain(*about["drivers"].values()))
            truth = _write_truth(spots, known, folder / f"{driver}.csv")
            made["features"] = {"run": str(run), "tables": {DIALS: truth}}
            results = evaluate_expression(made, folder / driver)
            _publish(folder / driver, made, results, command, "expression", start)
            outcomes += _outcomes(name, results, factors=factors, driver=driver)
    data = about_data(name, TISSUE, about["tissue"], images.dataset.content_hash)
    return Evaluated(outcomes, [], data, time.monotonic() - begun)


def _written(tissue: Mapping[str, str], folder: Path) -> Path:
    """The task's folder, which is written unless it is there; it appears whole or not at all."""
    task = folder / (tissue["config"] or "default")
    if not task.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".task") as part:
            options = command_line.options(tissue["options"])
            written = find_builder(TISSUE).write_hest(part, tissue["config"], options)
            folder.mkdir(exist_ok=True)
            written.rename(task)
    return task


def _gene_list(task: Path, genes: pd.DataFrame, driver: str) -> str:
    """Writes the names of the genes that one driver has; the file's name in the task's folder."""
    name = f"{driver}_genes.json"
    chosen = genes.index[genes["driver"].astype(str) == driver].tolist()
    command_line.write_json(task / name, {"genes": chosen})
    return name


def _write_truth(spots: pd.DataFrame, factors: Sequence[str], path: Path) -> dict[str, Any]:
    """Writes the factors of every spot; the entry of the config that reads them."""
    names = [SECTION, "barcode"]
    spots[[*names, *factors]].to_csv(path, index=False)
    named = {name: name for name in names}
    return {"kind": "imported", "source": str(path), "beside": "", "metadata": named}


def _publish(
    folder: Path, config: Config, results: dict[str, Any], command: str, kind: str, start: float
) -> None:
    """The report, as the command lines of these protocols leave it."""
    command_line.write_json(folder / "config.json", config)
    run = about_run(
        seed=config["seed"],
        n_devices=jax.device_count(),
        command=command,
        start=start,
        kind=kind,
    )
    publish(folder, run, results)


def _outcomes(
    name: str, results: Mapping[str, Any], *, factors: Sequence[str], driver: str = ""
) -> Iterator[Outcome]:
    """An outcome for every protocol, the truth's score as the ceiling.

    Of expression the official variant alone, under the name of what drives its genes.
    """
    for outcome in outcomes_of(name, results):
        if driver and outcome.target != OFFICIAL:
            continue
        (known,) = (one for one in outcome.shown if one.representation == DIALS)
        others = [one for one in outcome.shown if one is not known]
        yield dataclasses.replace(
            outcome,
            benchmark=outcome.benchmark if driver else f"profiles, {outcome.benchmark}",
            target=driver or outcome.target,
            ceiling=known.value,
            shown=[dataclasses.replace(known, kind=TRUTH), *others],
            factors=factors,
        )

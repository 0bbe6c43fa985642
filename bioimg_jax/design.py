"""What an evaluation rests on before any score: benchmarks, rows, folds, metadata audit and plan.

All of it follows from the config, the metadata and the folds; `--plan` prints it and stops.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.ladder import FAMILY, floor_ids
from bioimg_jax.benchmarks.registry import find_benchmarks
from bioimg_jax.candidates import (
    Evaluation,
    chosen_poolings,
    own_floors,
    untrained_members,
)
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, check_classes, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aggregate import Examples, examples_of
from bioimg_jax.image_beyond import check_beyond
from bioimg_jax.representations.representation import TOKENS
from bioimg_jax.representations.truth import TruthRepresentation
from bioimg_jax.statistics.audit import audit
from bioimg_jax.statistics.intervals import train_overlap
from bioimg_jax.statistics.plan import Design, plan_table, sd_of_shares, settled_row
from bioimg_jax.statistics.verdict import CONFOUNDED
from bioimg_jax.train import Config


def chosen_benchmarks(settings: Config) -> list[Benchmark]:
    """Those of `evaluate.benchmarks`; the linear probe's strengths are a setting of their own."""
    return find_benchmarks(settings["benchmarks"], {"strengths": strengths(settings)})


def strengths(settings: Config) -> tuple[float, ...]:
    """lambda of `evaluate.strengths`; `InputError` for what is no number above zero."""
    try:
        found = tuple(float(part) for part in settings["strengths"].split(","))
    except ValueError:
        raise InputError(
            f"evaluate.strengths: {settings['strengths']!r}, expected numbers with commas between"
        ) from None
    if not all(strength > 0 for strength in found):
        raise InputError(f"evaluate.strengths: {settings['strengths']!r}, expected all above zero")
    return found


def check_settings(evaluation: Evaluation, dataset: Dataset) -> None:
    """What of the settings does not fit the data, before hours are spent on them.

    Raises `InputError`. `build_evaluation` has told the rest, before the data were prepared.
    """
    targets = dataset.declaration.targets
    if not targets:
        raise InputError(
            f"data set {dataset.declaration.name!r} declares no target to evaluate: its labels, "
            "plates and wells are too few for training, validation and test units"
        )
    represented = own_floors(evaluation).names
    check_beyond(evaluation.settings, list(dataset.metadata.columns), represented)
    dataset.check_crop(evaluation.crop_px)
    for target in targets:
        if target.truth and not target.nuisance:
            TruthRepresentation(dataset.metadata, target.truth)
    for benchmark in chosen_benchmarks(evaluation.settings):
        for target in targets:
            benchmark.check(target)
        for encoder in evaluation.encoders if benchmark.tokens else ():
            if TOKENS not in chosen_poolings(evaluation.settings, encoder):
                raise InputError(
                    f"evaluate.benchmarks: {benchmark.name} looks at the tokens of an encoder; "
                    f"add {TOKENS!r} to evaluate.poolings"
                )
    rows, folds = subset(evaluation.config, dataset, targets, "max_examples")
    probed_examples(dataset, rows, folds, targets)


def subset(
    config: Config, dataset: Dataset, targets: Sequence[Target], limit_key: str
) -> tuple[np.ndarray, dict[str, list[Fold]]]:
    """Example indices that some fold of the targets uses, ascending, and the folds among them.

    At most `evaluate.<limit_key>` examples, drawn at random (0: all). Raises `InputError` if they
    are too few for some fold.
    """
    limit = config["evaluate"][limit_key]
    stored = {target.name: dataset.folds(target.name) for target in targets}
    parts = [
        part
        for folds in stored.values()
        for fold in folds
        for part in (fold.train, fold.validation, fold.test)
    ]
    rows = np.unique(np.concatenate(parts))
    if limit and len(rows) > limit:
        rng = np.random.default_rng(config["seed"])
        rows = np.sort(rng.choice(rows, limit, replace=False))
    folds = {name: restrict(target_folds, rows) for name, target_folds in stored.items()}
    metadata = dataset.metadata.iloc[rows]
    for target in targets:
        for whole, fold in zip(stored[target.name], folds[target.name], strict=True):
            classes = dataset.metadata[target.column].iloc[whole.train].astype(str).unique()
            try:
                check_classes(metadata, fold, target, classes)
                if not (len(fold.validation) and len(fold.test)):
                    raise InputError(f"target {target.name!r}: a part of {fold.name!r} is empty")
            except InputError as error:
                raise InputError(f"evaluate.{limit_key}: {limit} is too few: {error}") from None
    return rows, folds


def restrict(folds: Sequence[Fold], rows: np.ndarray) -> list[Fold]:
    """Folds of example indices -> folds of positions in `rows` (ascending example indices)."""

    def positions(part: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(rows, part))

    return [
        dataclasses.replace(
            fold,
            train=positions(fold.train),
            validation=positions(fold.validation),
            test=positions(fold.test),
        )
        for fold in folds
    ]


def probed_examples(
    dataset: Dataset,
    rows: np.ndarray,
    folds: Mapping[str, Sequence[Fold]],
    targets: Sequence[Target],
) -> dict[str, Examples]:
    """What each target's probe takes for its examples; rows: the images that the folds count.

    Raises `InputError` for groups of images that cannot be one example.
    """
    used = dataset.metadata.iloc[rows].reset_index(drop=True)
    return {t.name: examples_of(used, folds[t.name], t) for t in targets}


def audited_targets(
    evaluation: Evaluation, examples: Mapping[str, Examples], targets: Sequence[Target]
) -> dict[str, dict[str, Any]]:
    """The metadata audit of each target, on its examples."""
    delta = evaluation.settings["delta"]
    return {
        t.name: audit(examples[t.name].obs, examples[t.name].folds, t, delta=delta) for t in targets
    }


def plans(
    evaluation: Evaluation,
    targets: Sequence[Target],
    examples: Mapping[str, Examples],
    audited: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What verdicts on each biological target can say, from metadata, folds and floors alone.

    Returns rows of `statistics.plan.plan_table`, one a benchmark and target; a target that the
    metadata settle, or that lacks a floor, is in no family of tests.
    """
    settings = evaluation.settings
    refused = _never(evaluation)
    n_floors = len(set(floor_ids(settings["floors"])) - set(own_floors(evaluation).omitted))
    designs, settled = [], []
    for benchmark in chosen_benchmarks(settings):
        for target in targets:
            if target.nuisance:
                continue
            obs, folds = examples[target.name].obs, examples[target.name].folds
            tested = np.concatenate([fold.test for fold in folds])
            units = unit_names(obs.iloc[tested], target.unit).astype(str)
            _, counts = np.unique(units, return_counts=True)
            sentence = refused
            if audited[target.name]["verdict"]:
                sentence = f"always {CONFOUNDED}: {audited[target.name]['reason']}"
            if sentence:
                settled.append(settled_row(target.name, benchmark.name, len(counts), sentence))
                continue
            designs.append(
                Design(
                    target=target.name,
                    benchmark=benchmark.name,
                    n_units=len(counts),
                    floors=n_floors,
                    delta=settings["delta"],
                    sd=sd_of_shares(counts),
                    overlap=train_overlap(folds),
                )
            )
    judged = {one.group or one.name for one in evaluation.trained if one.held_out is None}
    return settled + plan_table(designs, encoders=max(1, len(judged)))


def _never(evaluation: Evaluation) -> str:
    """Why there cannot be a verdict, whatever the data: a floor is listed that nobody makes."""
    settings = evaluation.settings
    if FAMILY not in floor_ids(settings["floors"]):
        return ""
    if settings["resnet18"] or untrained_members(evaluation):
        return ""
    return (
        f"no verdict: the floor {FAMILY!r} needs random networks; set evaluate.untrained_seeds or "
        "evaluate.resnet18, or take it out of evaluate.floors"
    )


def print_plan(evaluation: Evaluation, dataset: Dataset) -> None:
    targets = dataset.declaration.targets
    rows, folds = subset(evaluation.config, dataset, targets, "max_examples")
    examples = probed_examples(dataset, rows, folds, targets)
    audited = audited_targets(evaluation, examples, targets)
    print("verdicts that the design can reach:")
    several = len(chosen_benchmarks(evaluation.settings)) > 1
    for row in plans(evaluation, targets, examples, audited):
        name = f"{row['target']}, {row['benchmark']}" if several else row["target"]
        print(f"  {name}: {row['sentence']}")

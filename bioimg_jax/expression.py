"""Features of H&E patches through HEST-Benchmark's protocol -> scores, verdicts, report.html.

    python -m bioimg_jax.expression --config=configs/eval_expression.py --workdir=OUT

The features are those of a run on the data set `hest`, every representation of it, and of files of
features with the columns section and barcode. The task's own splits, genes and protocol
(`benchmarks/expression.py`) are used, and every variant of the protocol beside it.
"""

import dataclasses
import functools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bioimg_jax import command_line
from bioimg_jax.benchmarks.beyond_expression import (
    SpotConfound,
    beyond_expression,
    beyond_itself,
    spot_confounds,
)
from bioimg_jax.benchmarks.classification import PSEUDO_VALUES
from bioimg_jax.benchmarks.expression import (
    OFFICIAL,
    PROTOCOLS,
    Experiment,
    Expression,
    Variant,
    audit_features,
    make_experiment,
    rank_agreement,
    score_expression,
    undefined_protocols,
)
from bioimg_jax.benchmarks.ladder import CHANCE, FAMILY, OWN, TRUTH, cases, floor_ids
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.features.hest import SECTION, Task, read_counts, read_task
from bioimg_jax.features.imported import import_table
from bioimg_jax.features.table import FeatureTable, read_table
from bioimg_jax.kept import digest, kept, key_of
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.report import write_rows
from bioimg_jax.representations.representation import ENCODERS, KINDS
from bioimg_jax.results import RESULTS, about_run, publish
from bioimg_jax.score_audit import JOINT, audit_of_scores
from bioimg_jax.score_plan import plan_of_scores, print_plan_of_scores
from bioimg_jax.scoring import with_verdicts
from bioimg_jax.statistics.intervals import t_interval, train_overlap
from bioimg_jax.statistics.verdict import judge, secondary
from bioimg_jax.stop_signal import StopSignal

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where results.json, genes.csv and report.html are kept
--plan              says which verdicts the design can reach, and stops"""
BENCHMARK, METRIC = "expression", "pearson"
NO_VALIDATION = "the protocol has no validation side to select by"
AUDIT = ("position", "total_counts")
Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A representation: table, kind and what it saw; about: its row of "encoders", if it is one."""

    name: str
    kind: str
    exposure: str
    table: FeatureTable
    about: dict[str, Any] | None


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(arguments, {"workdir": "", "plan": False})
    command_line.check_sections(config, "task", "features", "evaluate")
    if not (given["workdir"] or given["plan"]):
        raise InputError("--workdir=DIR is missing: where results are kept")
    settle_cpu()
    if given["plan"]:
        with tempfile.TemporaryDirectory() as folder:
            print_plan_of_scores(_Design.of(config, Path(folder)).plan())
        return
    start, workdir = time.time(), Path(given["workdir"])
    command_line.check_not_a_training(workdir)
    with command_line.locked(workdir):
        command_line.write_json(workdir / "config.json", config)
        results = evaluate_expression(config, workdir)
        command = shlex.join(["python", "-m", "bioimg_jax.expression", *arguments[1:]])
        run = about_run(
            seed=config["seed"],
            n_devices=jax.device_count(),
            command=command,
            start=start,
            kind=BENCHMARK,
        )
        publish(workdir, run, results)


@dataclasses.dataclass(frozen=True, eq=False)
class _Design:
    """What a run rests on before any score of an encoder or a floor.

    shared: what folds with common training rows cost (`intervals.train_overlap`).
    """

    task: Task
    folds: list[Fold]
    experiment: Experiment
    protocols: dict[str, Variant]
    entries: list[Entry]
    floors: tuple[str, ...]
    omitted: dict[str, str]
    audits: dict[str, dict[str, Any]]
    shared: float
    delta: float
    not_run: dict[str, str]

    @classmethod
    def of(cls, config: Config, workdir: Path) -> "_Design":
        """Raises `InputError` for everything that is wrong whatever the scores are."""
        settings, about = config["evaluate"], config["task"]
        _check_beyond(settings)
        protocols = _variants(settings)
        if not about["folder"]:
            raise InputError("task.folder: it is empty, expected the folder of one task")
        task = read_task(
            about["folder"], gene_list=about["gene_list"], patients=about["patients"],
            patient_pattern=about["patient_pattern"],
        )  # fmt: skip
        folds, not_run = task.folds()
        not_run = {f"split {name}": reason for name, reason in not_run.items()}
        if not folds:
            raise InputError(f"{task.folder}: no split holds {task.unit}s out: {not_run}")
        counts = read_counts(task)
        experiment = make_experiment(
            counts.matrix, counts.names, task.genes, sections=task.spots[SECTION],
            units=task.spots[task.unit], folds=folds,
        )  # fmt: skip
        entries = _entries(config["features"], workdir)
        floors, omitted = _floors(settings["floors"], entries)
        not_run |= undefined_protocols(experiment, protocols)
        for name, reason in not_run.items():
            print(f"not run: {name}, because {reason}", file=sys.stderr)
        shared, delta = train_overlap(folds), settings["delta"]
        audits = _audits(task, experiment, protocols, shared, delta, config["seed"])
        return cls(
            task, folds, experiment, protocols, entries, floors, omitted, audits, shared, delta,
            not_run,
        )  # fmt: skip

    @property
    def tested(self) -> np.ndarray:
        return np.unique(np.concatenate([fold.test for fold in self.folds]))

    def plan(self) -> list[dict[str, Any]]:
        """Rows of "plan": every variant is a family of its own."""
        judged = [entry.kind for entry in self.entries if entry.kind in ENCODERS]
        # A file's encoder has no step 0 here, nor anything else of its own.
        not_ours = set() if "trained" in judged else set(OWN)
        n_units = self.task.spots[self.task.unit].iloc[self.tested].nunique()
        n_floors = len(set(self.floors) - set(self.omitted) - not_ours)
        return [
            row
            for variant in self.audits
            for row in plan_of_scores(
                BENCHMARK, {variant: n_units}, self.audits, floors=n_floors,
                encoders=len(judged), delta=self.delta, overlap=self.shared,
            )
        ]  # fmt: skip


def evaluate_expression(config: Config, workdir: Path) -> dict[str, Any]:
    """Every representation by every variant of the protocol; what results.json holds."""
    settings, design = config["evaluate"], _Design.of(config, workdir)
    task, experiment, protocols = design.task, design.experiment, design.protocols
    entries, floors, omitted = design.entries, design.floors, design.omitted
    audits, shared = design.audits, design.shared
    found: dict[str, dict[str, Expression]] = {}
    scores: list[Score] = []
    began = time.monotonic()
    for i, entry in enumerate(entries, start=1):
        features = _features(entry.table, task)
        found[entry.name] = score_expression(features, experiment, protocols)
        for variant, expression in found[entry.name].items():
            scores.append(
                _score(variant, expression, entry.name, entry.kind, entry.exposure, task, shared,
                       config["seed"], entry.table.default)
            )  # fmt: skip
        left = int((time.monotonic() - began) / i * (len(entries) - i))
        print(f"{entry.name} ({i}/{len(entries)}) {left // 60}:{left % 60:02d} left",
              file=sys.stderr)  # fmt: skip
    variants = list(found[entries[0].name])
    verdicts = []
    for variant in variants:  # each a family of its own: the official one is not made to pay
        target = {"name": variant, "nuisance": False, "audit": audits[variant]}
        mine = [score for score in scores if score.target == variant]
        judged = judge(
            cases(mine, [target], floors, omitted=omitted, delta=settings["delta"],
                  overlap={variant: shared})
        )  # fmt: skip
        verdicts += judged if variant == OFFICIAL else secondary(judged, "variant")
    scores = with_verdicts(scores, audits, verdicts)
    with StopSignal() as stop:
        conditional = _conditional(
            settings, task, experiment, entries, config["seed"], workdir, stop
        )
    agreement = rank_agreement(found) if len(found) > 1 and len(variants) > 1 else []
    workdir.mkdir(parents=True, exist_ok=True)
    write_rows(workdir / "genes.csv", _gene_rows(found))
    tested = design.tested
    return {
        "data": {
            "name": task.folder.name,
            "content_hash": entries[0].table.provenance.get("content_hash", ""),
            "channels": [],
            "n_examples": len(task.spots),
            "n_evaluated": len(tested),
            "n_pretraining": 0,
            "splits": {
                OFFICIAL: {
                    fold.name: {"train": len(fold.train), "validation": 0, "test": len(fold.test)}
                    for fold in design.folds
                }
            },
        },
        "encoders": [entry.about for entry in entries if entry.about is not None],
        "benchmarks": [BENCHMARK],
        "targets": [
            {
                "name": variant, "column": f"log1p counts of {len(task.genes)} genes",
                "unit": [task.unit], "aggregate": [], "n_classes": 0, "n_examples": len(tested),
                "nuisance": False, "verdict": audits[variant]["verdict"],
                "reason": audits[variant]["reason"],
                "audit": {k: v for k, v in audits[variant].items() if k != "rivals"},
            }
            for variant in variants
        ],
        "floors": list(floors),
        "omitted": omitted,
        "selected": {},
        "plan": design.plan(),
        "verdicts": [verdict.to_row() for verdict in verdicts],
        "untrained": [],
        "scores": [score.to_row() for score in scores],
        "conditional": conditional,
        "variants": [_agreement_row(one) for one in agreement],
        "not_run": design.not_run,
    }  # fmt: skip


def _entries(features: Config, workdir: Path) -> list[Entry]:
    """The representations of the run, in its order, and those of files."""
    found: list[Entry] = []
    if features["run"]:
        found += _of_run(Path(features["run"]))
    for name, about in features["tables"].items():
        if about["kind"] not in KINDS:
            raise InputError(
                f"features.tables.{name}.kind: {about['kind']!r}, expected one of "
                f"{', '.join(KINDS)}"
            )
        if name in {entry.name for entry in found}:
            raise InputError(f"features.tables.{name}: the run has a representation of this name")
        path = workdir / "features" / f"{name}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = import_table(
            about["source"], path, beside=about["beside"], metadata=dict(about["metadata"])
        )
        row = {"name": name, "kind": about["kind"], "features": path.name}
        judged = about["kind"] in ("trained", "imported")
        exposure = "unknown" if judged else "none"
        found.append(Entry(name, about["kind"], exposure, table, row if judged else None))
    if not found:
        raise InputError("features: neither a run nor tables, expected those of an encoder")
    return found


def _of_run(folder: Path) -> list[Entry]:
    """Of a run or an evaluation of images; `InputError` where it is none, or not finished."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        rows = {row["representation"]: row for row in results["scores"]}
        encoders = {row["name"]: row for row in results["encoders"]}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"features.run: {folder} has no results.json of a finished run ({error})"
        ) from error
    found = []
    for name, row in rows.items():
        path = folder / "features" / f"{name}.h5ad"
        # What averages seeds has no features of its own; metadata and truth are no floors here.
        if path.exists() and row["kind"] not in ("metadata", TRUTH):
            table = read_table(path)
            exposure = row["exposure"]
            if row["kind"] == "trained" and _only_trained_on(table, encoders.get(name), results):
                exposure = "none"
            found.append(Entry(name, row["kind"], exposure, table, encoders.get(name)))
    return found


def _only_trained_on(
    table: FeatureTable, encoder: Mapping[str, Any] | None, results: Mapping[str, Any]
) -> bool:
    """Whether an encoder saw the training sections of a task with one split, and no others.

    The run's own exposure is that of its targets, whose folds are others.
    """
    if encoder is None or "split" not in table.obs or encoder.get("starts_from") is not None:
        return False
    trained_on = encoder.get("trained_on", {}).get("content_hash")
    return trained_on == results["data"]["content_hash"]


def _floors(text: str, entries: Sequence[Entry]) -> tuple[tuple[str, ...], dict[str, str]]:
    floors = floor_ids(text)
    known = [entry.name for entry in entries]
    for floor in floors:
        if floor not in (CHANCE, FAMILY, *OWN, *known):
            raise InputError(
                f"evaluate.floors: {floor!r} is none of {', '.join((CHANCE, *OWN, *known))}"
            )
    return floors, {FAMILY: NO_VALIDATION} if FAMILY in floors else {}


def _features(table: FeatureTable, task: Task) -> np.ndarray:
    """The default layer in the order of the task's spots, float32 [n, d].

    Raises:
      InputError: a table that does not name its spots, or has not exactly those of the task.
    """
    for column in (SECTION, "barcode"):
        if column not in table.obs:
            raise InputError(
                f"{table.path}: no column {column!r}, expected the section and barcode of every "
                f"spot; it has {', '.join(table.obs.columns)}"
            )
    sections, barcodes = (table.obs[c].astype(str).tolist() for c in (SECTION, "barcode"))
    rows = task.rows_of(sections, barcodes)
    if len(rows) < len(task.spots):
        raise InputError(
            f"{table.path}: {len(rows)} of the {len(task.spots)} spots that {task.folder} has"
        )
    values = table.layer(table.default)
    features = np.empty_like(values)
    features[rows] = values
    return features


def _audits(
    task: Task,
    experiment: Experiment,
    protocols: Mapping[str, Variant],
    shared: float,
    delta: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Variant -> what the position and the total counts of a spot score, alone and together."""
    spots = task.spots
    held = audit_features(spots["x"], spots["y"], spots["total_counts"], spots[SECTION])
    found: dict[str, dict[str, Score]] = {}
    for name, features in held.items():
        key = name.replace("_and_", JOINT)
        for variant, of in score_expression(features, experiment, protocols).items():
            found.setdefault(variant, {})[key] = _score(
                variant, of, key, "metadata", "none", task, shared, seed, name
            )
    return {
        variant: audit_of_scores(of, AUDIT, name=variant, metric=METRIC, delta=delta)
        for variant, of in found.items()
    }


def _variants(settings: Config) -> dict[str, Variant]:
    """The official protocol and the variants of it that the config names, or all."""
    command_line.check_keys(settings, "evaluate", "variants")
    asked = command_line.names(settings["variants"]) or list(PROTOCOLS)
    for name in asked:
        if name not in PROTOCOLS:
            raise InputError(
                f"evaluate.variants: {name!r}, expected some of {', '.join(PROTOCOLS)}, or nothing "
                "for all"
            )
    return {name: of for name, of in PROTOCOLS.items() if name in (OFFICIAL, *asked)}


def _check_beyond(settings: Config) -> None:
    """`InputError` before anything is read."""
    command_line.check_keys(settings, "evaluate", "beyond", "beyond_permutations")
    for name in command_line.names(settings["beyond"]):
        if name not in AUDIT:
            raise InputError(f"evaluate.beyond: {name!r}, expected some of {', '.join(AUDIT)}")
    if settings["beyond_permutations"] < 1:
        raise InputError(
            f"evaluate.beyond_permutations: {settings['beyond_permutations']}, expected 1 or more"
        )


def _conditional(
    settings: Config,
    task: Task,
    experiment: Experiment,
    entries: Sequence[Entry],
    seed: int,
    workdir: Path,
    stop: StopSignal,
) -> list[dict[str, Any]]:
    """What each encoder scores beyond each confound, and each confound beyond itself.

    Rows are kept on disk: a run that was stopped goes on with the next question.
    """
    asked = command_line.names(settings["beyond"])
    if not asked:
        return []
    spots, permutations = task.spots, settings["beyond_permutations"]
    x, y, totals = (spots[column].to_numpy() for column in ("x", "y", "total_counts"))
    confounds = spot_confounds(x, y, totals, audit_features(x, y, totals, spots[SECTION]))
    encoders = {e.name: _features(e.table, task) for e in entries if e.about is not None}
    of_task = _identity(experiment)
    found: list[dict[str, Any]] = []
    for name in asked:
        confound = confounds[name]
        held = [digest(confound.strata), digest(confound.columns)]
        for entry, features in [*encoders.items(), (name, None)]:
            what = name if features is None else f"{entry}-{name}"
            made_of = [of_task, held, features is not None and digest(features), permutations, seed]
            ask = functools.partial(
                _asked, features, experiment, confound, permutations=permutations, seed=seed
            )
            rows = kept(workdir / "beyond", what, made_of, ask)
            found += [_about(name, entry) | row for row in rows]
            print(f"{entry} beyond {name}", file=sys.stderr)
            stop.leave()
    return found


def _asked(
    features: np.ndarray | None, experiment: Experiment, confound: SpotConfound, **about: int
) -> list[dict[str, Any]]:
    """Of an encoder's features, or of the confound by itself."""
    if features is None:
        return beyond_itself(experiment, confound, **about)
    return beyond_expression(features, experiment, confound, **about)


def _identity(experiment: Experiment) -> list[Any]:
    """What a score depends on besides the features, as plain JSON."""
    counts = experiment.counts
    arrays = (counts.data, counts.indices, counts.indptr, experiment.genes)
    texts = (experiment.names, experiment.sections.tolist(), experiment.units.tolist())
    folds = [fold.digests for fold in experiment.folds]
    return [*map(digest, arrays), *map(key_of, texts), folds]


def _about(confound: str, representation: str) -> dict[str, Any]:
    return {"benchmark": BENCHMARK, "target": OFFICIAL, "beyond": confound,
            "representation": representation}  # fmt: skip


def _score(
    variant: str,
    found: Expression,
    name: str,
    kind: str,
    exposure: str,
    task: Task,
    shared: float,
    seed: int,
    layer: str,
) -> Score:
    """shared: training rows that folds have in common (`intervals.train_overlap`)."""
    values = np.array(list(found.per_unit.values()))
    block, _, pooling = layer.rpartition("/")
    return Score(
        benchmark=BENCHMARK,
        target=variant,
        split=f"{task.unit}s held out, {len(found.per_fold)} of the task's own folds",
        metric=METRIC,
        higher_is_better=True,
        chance=0.0,
        ceiling=1.0,
        representation=name,
        kind=kind,
        block=block or layer,
        pooling=pooling if block else "",
        seed=seed,
        value=found.value,
        per_unit=found.per_unit,
        interval=t_interval(values, train_overlap=shared),
        n_units=len(values),
        unit=(task.unit,),
        exposure=exposure,
        search_budget=1,
        settings={
            "layer": layer,
            "per_unit": PSEUDO_VALUES,
            "per_fold": found.per_fold,
            "per_section": found.per_section,
            "constant_genes": {name: list(genes) for name, genes in found.constant.items()},
            "flat_predictions": found.n_flat,
            "folds": [
                {"fold": fold, "alpha": of["alpha"], "components": of["components"]}
                for fold, of in found.settings.items()
            ],
        },
    )


def _agreement_row(one: Any) -> dict[str, Any]:
    lower, upper = one.interval or (None, None)
    return {"first": one.first, "second": one.second, "tau": one.tau, "lower": lower,
            "upper": upper, "units": one.n_units, "representations": one.n_representations,
            "best_by_first": one.best[0], "best_by_second": one.best[1]}  # fmt: skip


def _gene_rows(found: Mapping[str, Mapping[str, Expression]]) -> list[dict[str, Any]]:
    return [
        {"representation": name, "protocol": variant, "gene": gene, METRIC: r}
        for name, of in found.items()
        for variant, expression in of.items()
        for gene, r in expression.per_gene.items()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv))

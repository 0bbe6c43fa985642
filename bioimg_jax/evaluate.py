"""The one evaluation: representations x benchmarks x targets -> scores, verdicts, results.json.

    python -m bioimg_jax.evaluate --config=configs/eval_cells.py --checkpoint=WORKDIR --workdir=OUT

evaluates the newest checkpoint of a training, finished or still running, from the checkpoint and a
data set alone, on any number of devices. `bioimg_jax.main` does the same after a training.
"""

import dataclasses
import hashlib
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import bioimg_jax
from bioimg_jax import command_line, illustrate
from bioimg_jax.audits import audits
from bioimg_jax.benchmarks.benchmark import Benchmark, layers_for
from bioimg_jax.benchmarks.ladder import cases, floor_ids, selected_members, untrained_distribution
from bioimg_jax.benchmarks.registry import find_benchmarks
from bioimg_jax.benchmarks.score import Score, headline_rows
from bioimg_jax.budget import budget
from bioimg_jax.candidates import (
    Candidate,
    Evaluation,
    Trained,
    build_evaluation,
    candidates,
    chosen_poolings,
    own_floors,
)
from bioimg_jax.checkpoint import open_checkpoint
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.pipeline import evaluation_batches
from bioimg_jax.data.splits import Fold, check_classes, unit_names
from bioimg_jax.data.transforms import centre_crop
from bioimg_jax.errors import InputError, Preempted
from bioimg_jax.features.extract import feature_table
from bioimg_jax.features.table import FeatureTable, read_table
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.prepare import prepare
from bioimg_jax.representations.encoder import EncoderRepresentation
from bioimg_jax.representations.representation import TOKENS
from bioimg_jax.sources import sources_digest
from bioimg_jax.statistics.audit import audit
from bioimg_jax.statistics.intervals import t_interval, train_overlap
from bioimg_jax.statistics.plan import Design, plan_table
from bioimg_jax.statistics.verdict import CONFOUNDED, UNIT_SD, Verdict, judge
from bioimg_jax.train import Config, Probe, Run, StopSignal
from bioimg_jax.train_state import TrainState

SCHEMA_VERSION = 4
EXAMPLES_SHOWN = 3
ILLUSTRATED = 10_000  # images that a query's neighbours are looked for among
PROBE_STRENGTHS = (1e-1, 1e-3, 1e-5)
RESULTS, REPORT = "results.json", "report.html"
HELP = f"""{__doc__}
--checkpoint=PATH   a work directory, or its checkpoints/STEP; several times for several rows
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where tables, results.json and report.html are kept
--plan              says which verdicts the design can reach, and stops"""


def evaluate(evaluation: Evaluation, dataset: Dataset, workdir: Path) -> dict[str, Any]:
    """Scores every representation on every benchmark and target.

    Feature tables and scores that are finished are used again. Writes examples.npz; returns the
    results.
    """
    settings, targets = evaluation.settings, dataset.declaration.targets
    benchmarks = chosen_benchmarks(settings)
    rows, folds = subset(evaluation.config, dataset, targets, "max_examples")
    used = dataset.metadata.iloc[rows].reset_index(drop=True)
    audited = _audited(evaluation, used, folds, targets)
    to_score = candidates(evaluation, dataset)
    n_classes = {t.name: used[t.column].nunique() for t in targets}
    print(
        budget(benchmarks, to_score, folds, n_classes, n_images=len(rows),
               crop_px=evaluation.crop_px),
        file=sys.stderr,
    )  # fmt: skip
    scores: list[Score] = []
    start = time.monotonic()
    with StopSignal() as stop:
        for i, candidate in enumerate(to_score):
            path = workdir / "features" / f"{candidate.name}.h5ad"
            table = table_of(evaluation, dataset, rows, candidate, path)
            for benchmark in benchmarks:
                for target in targets:
                    allowed = (candidate.folds or {}).get(target.name)
                    if candidate.folds is not None and allowed is None:
                        continue
                    part = folds[target.name]
                    if allowed is not None:
                        part = [part[j] for j in allowed]
                    scores += _scores(
                        evaluation, dataset, rows, table.only(layers_for(benchmark, table.widths)),
                        candidate, benchmark, target, part, workdir,
                    )  # fmt: skip
                    if stop.received:
                        raise Preempted("stopped while evaluating; what is finished is kept")
            elapsed = time.monotonic() - start
            left = elapsed / (i + 1) * (len(to_score) - i - 1)
            print(
                f"{candidate.name} ({i + 1}/{len(to_score)})  "
                f"{int(left) // 60}:{int(left) % 60:02d} left",
                file=sys.stderr,
            )
    overlap = {name: _overlap(parts) for name, parts in folds.items()}
    scores += averaged_over_seeds(scores, overlap)
    about = [_about(target, dataset, rows, folds, audited[target.name]) for target in targets]
    floors = floor_ids(settings["floors"])
    omitted = own_floors(evaluation).omitted
    verdicts = judge(
        cases(
            scores,
            about,
            floors,
            omitted=omitted,
            delta=settings["delta"],
            overlap=overlap,
            method=settings["claim"] == "method",
        )
    )
    selected = _selected(scores, verdicts, overlap)
    scores = _with_verdicts(scores, audited, verdicts)

    of_images = {}
    for name in ("examples", "maps", "gallery"):  # those of another evaluation are not shown
        (workdir / f"{name}.npz").unlink(missing_ok=True)
    if settings["audits"]:
        print("auditing images and features", file=sys.stderr)

        def finished(name: str) -> FeatureTable:
            return read_table(workdir / "features" / f"{name}.h5ad")

        of_images = audits(evaluation, dataset, rows, folds, to_score, finished)
    if settings["illustrate"]:
        _write_examples(evaluation, dataset, workdir)
        _write_illustrations(evaluation, dataset, rows, to_score, workdir)
    return {
        "schema_version": SCHEMA_VERSION,
        "data": {
            "name": dataset.declaration.name,
            "content_hash": dataset.content_hash,
            "channels": list(dataset.declaration.channels),
            "n_examples": len(dataset),
            "n_evaluated": len(rows),
            "n_pretraining": len(dataset.pretraining_indices()),
            "splits": {
                target.name: {
                    fold.name: {
                        "train": len(fold.train),
                        "validation": len(fold.validation),
                        "test": len(fold.test),
                    }
                    for fold in folds[target.name]
                }
                for target in targets
            },
        },
        "encoders": [_encoder_row(one) for one in evaluation.trained],
        "benchmarks": [benchmark.name for benchmark in benchmarks],
        "targets": [_published(row) for row in about],
        "floors": list(floors),
        "omitted": omitted,
        "selected": selected,
        "plan": plans(evaluation, targets, used, folds, audited),
        "verdicts": [verdict.to_row() for verdict in verdicts],
        "untrained": untrained_distribution(scores),
        "scores": [score.to_row() for score in scores],
        **of_images,
    }


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
    own_floors(evaluation)
    dataset.check_crop(evaluation.crop_px)
    for benchmark in chosen_benchmarks(evaluation.settings):
        for target in targets:
            benchmark.check(target)
        for encoder in evaluation.encoders if benchmark.tokens else ():
            if TOKENS not in chosen_poolings(evaluation.settings, encoder):
                raise InputError(
                    f"evaluate.benchmarks: {benchmark.name} looks at the tokens of an encoder; "
                    f"add {TOKENS!r} to evaluate.poolings"
                )
    subset(evaluation.config, dataset, targets, "max_examples")


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


def table_of(
    evaluation: Evaluation, dataset: Dataset, rows: np.ndarray, candidate: Candidate, path: Path
) -> FeatureTable:
    """The candidate's feature table at `path`, made now unless it is there."""
    return feature_table(
        path,
        candidate.make,
        dataset,
        rows,
        identity=candidate.identity,
        crop_px=evaluation.crop_px,
        batch_size=evaluation.batch_size,
        mesh=evaluation.mesh,
        provenance={
            "representation": candidate.name,
            "kind": candidate.kind,
            "seed": candidate.seed,
            "config": json.loads(json.dumps(evaluation.config)),
            **candidate.settings,
        },
    )


def _scores(
    evaluation: Evaluation,
    dataset: Dataset,
    rows: np.ndarray,
    table: FeatureTable,
    candidate: Candidate,
    benchmark: Benchmark,
    target: Target,
    folds: Sequence[Fold],
    workdir: Path,
) -> list[Score]:
    """The scores of one table on one benchmark and target, from disk if they are finished."""
    settings = evaluation.settings
    made_of = {
        "code": sources_digest("benchmarks", "data", "probes", "statistics"),
        "table": table.provenance["key"],
        "layers": list(table.widths),
        "benchmark": benchmark.identity,
        "target": dataclasses.asdict(target),
        "folds": [
            [hashlib.sha256(part.tobytes()).hexdigest() for part in (f.train, f.validation, f.test)]
            for f in folds
        ],
        "permute": settings["permute_labels"] and evaluation.config["seed"],
        "candidate": [candidate.name, candidate.kind, candidate.seed, candidate.group],
        "settings": dict(candidate.settings),
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    path = workdir / "scores" / f"{candidate.name}-{benchmark.name}-{target.name}.json"
    if path.exists():
        try:
            kept = json.loads(path.read_text())
        except ValueError:
            kept = {}  # damaged: made again
        if kept.get("key") == key:
            return [Score.from_row(row) for row in kept["scores"]]
    tested = rows[np.concatenate([fold.test for fold in folds])]
    exposure = "unknown"
    if candidate.saw is not None:
        exposure = "images" if np.isin(tested, candidate.saw).any() else "none"
    scores = benchmark.scores(
        table,
        folds,
        target,
        representation=candidate.name,
        kind=candidate.kind,
        seed=candidate.seed,
        exposure=exposure,
        settings={
            "content_hash": dataset.content_hash,
            "n_images": len(rows),
            "group": candidate.group,
            **candidate.settings,
        },
        permute_labels_seed=evaluation.config["seed"] if settings["permute_labels"] else None,
    )
    path.parent.mkdir(exist_ok=True)
    command_line.write_json(path, {"key": key, "scores": [score.to_row() for score in scores]})
    return scores


def averaged_over_seeds(scores: Sequence[Score], overlap: Mapping[str, float]) -> list[Score]:
    """One more score for every benchmark, target and layer of a group: its seeds, unit by unit.

    overlap: of each target's folds (`intervals.train_overlap`).
    """
    groups: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        if group := score.settings.get("group"):
            key = (group, score.benchmark, score.target, score.block, score.pooling)
            groups.setdefault(key, []).append(score)
    rows = []
    for (group, _, target, _, _), members in groups.items():
        if len(members) < 2:
            continue
        per_unit = {
            unit: float(np.mean([member.per_unit[unit] for member in members]))
            for unit in members[0].per_unit
        }
        values = [member.value for member in members]
        rows.append(
            dataclasses.replace(
                members[0],
                representation=group,
                seed=None,
                value=float(np.mean(values)),
                per_unit=per_unit,
                interval=t_interval(list(per_unit.values()), train_overlap=overlap[target]),
                other_metrics=_averaged_metrics(members),
                settings={
                    **{k: v for k, v in members[0].settings.items() if k not in ("folds", "seed")},
                    "seeds": [member.seed for member in members],
                    "seed_values": values,
                    "seed_sd": float(np.std(values, ddof=1)),
                },
            )
        )
    return rows


def _averaged_metrics(members: Sequence[Score]) -> dict[str, float | None]:
    """Their other metrics, averaged where every one of them has it."""
    means: dict[str, float | None] = {}
    for name in members[0].other_metrics:
        values = [v for one in members if (v := one.other_metrics.get(name)) is not None]
        means[name] = float(np.mean(values)) if len(values) == len(members) else None
    return means


def _overlap(folds: Sequence[Fold]) -> float:
    return train_overlap([fold.train for fold in folds], [fold.test for fold in folds])


def make_probe(run: Run, dataset: Dataset, workdir: Path) -> Probe:
    """Scores the encoder on the primary target as it is at a step of the training.

    A small subset and one layer: a curve to watch, beside the results and never in their place.
    """
    target = dataset.declaration.targets[0]
    rows, restricted = subset(run.config, dataset, [target], "probe_examples")
    folds = restricted[target.name]
    benchmark = find_benchmarks("linear", {"strengths": PROBE_STRENGTHS})[0]
    batch_size = -(-run.config["evaluate"]["batch_size"] // run.mesh.shape["data"])

    def probe(step: int, state: TrainState) -> list[dict[str, Any]]:
        variables = {"params": state.params["encoder"], "stats": state.objective["stats"]}
        representation = EncoderRepresentation(
            "probe", "trained", run.encoder, variables, blocks=1, poolings=("mean",)
        )
        path = workdir / "features" / ".probe.h5ad"
        path.unlink(missing_ok=True)
        table = feature_table(
            path,
            lambda: representation,
            dataset,
            rows,
            identity={"step": step},
            crop_px=run.config["data"]["crop_px"],
            batch_size=batch_size * run.mesh.shape["data"],
            mesh=run.mesh,
            provenance={},
        )
        scores = benchmark.scores(
            table,
            folds,
            target,
            representation="probe",
            kind="trained",
            seed=run.config["seed"],
            exposure="",
            settings={},
            permute_labels_seed=None,
        )
        path.unlink()
        score = scores[-1]
        entry = {
            "target": target.name,
            "metric": score.metric,
            "value": score.value,
            "chance": score.chance,
            "layer": "final/mean",
            "n_images": len(rows),
        }
        return [{"step": step, "probe": entry}]

    return probe


def _audited(
    evaluation: Evaluation,
    used: pd.DataFrame,
    folds: Mapping[str, Sequence[Fold]],
    targets: Sequence[Target],
) -> dict[str, dict[str, Any]]:
    """The metadata audit of each target; used: metadata of the rows that the folds count."""
    delta = evaluation.settings["delta"]
    return {t.name: audit(used, folds[t.name], t, delta=delta) for t in targets}


def plans(
    evaluation: Evaluation,
    targets: Sequence[Target],
    used: pd.DataFrame,
    folds: Mapping[str, Sequence[Fold]],
    audited: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What verdicts on each biological target can say, from metadata, folds and floors alone.

    used: metadata of the rows that are evaluated, which the folds count. Returns rows of
    `statistics.plan.plan_table`, one a benchmark and target; a target that the metadata settle is
    in no family of tests.
    """
    settings = evaluation.settings
    n_floors = len(set(floor_ids(settings["floors"])) - set(own_floors(evaluation).omitted))
    designs, settled = [], []
    for benchmark in chosen_benchmarks(settings):
        for target in targets:
            if target.nuisance:
                continue
            tested = np.concatenate([fold.test for fold in folds[target.name]])
            units = unit_names(used.iloc[tested], target.unit).astype(str)
            _, counts = np.unique(units, return_counts=True)
            if audited[target.name]["verdict"]:
                settled.append(
                    {
                        "target": target.name,
                        "benchmark": benchmark.name,
                        "n_units": len(counts),
                        "detectable_alone": None,
                        "detectable_family": None,
                        "power_same": 0.0,
                        "units_same": None,
                        "sentence": f"always {CONFOUNDED}: {audited[target.name]['reason']}",
                    }
                )
                continue
            # Two shares of right answers near one half, correlated 0.5, over the rows of a unit.
            sampling = 0.25 * float(np.mean(1 / counts))
            designs.append(
                Design(
                    target=target.name,
                    benchmark=benchmark.name,
                    n_units=len(counts),
                    floors=n_floors,
                    delta=settings["delta"],
                    sd=math.sqrt(UNIT_SD**2 + sampling),
                    overlap=_overlap(folds[target.name]),
                )
            )
    judged = {one.group or one.name for one in evaluation.trained if one.held_out is None}
    return settled + plan_table(designs, encoders=max(1, len(judged)))


def print_plan(evaluation: Evaluation, dataset: Dataset) -> None:
    targets = dataset.declaration.targets
    rows, folds = subset(evaluation.config, dataset, targets, "max_examples")
    used = dataset.metadata.iloc[rows].reset_index(drop=True)
    audited = _audited(evaluation, used, folds, targets)
    print("verdicts that the design can reach:")
    several = len(chosen_benchmarks(evaluation.settings)) > 1
    for row in plans(evaluation, targets, used, folds, audited):
        name = f"{row['target']}, {row['benchmark']}" if several else row["target"]
        print(f"  {name}: {row['sentence']}")


def _encoder_row(one: Trained) -> dict[str, Any]:
    """What a trained encoder is and what it has seen."""
    meta = one.saved.meta
    return {
        "name": one.name,
        "kind": "trained",
        "seed": meta["seed"],
        "step": one.saved.step,
        "images_seen": one.saved.step * meta["batch_size"],
        "checkpoint": str(one.saved.directory),
        "encoder": meta["encoder"],
        "objective": meta["objective"],
        "trained_on": meta["data"],
    }


def _about(
    target: Target,
    dataset: Dataset,
    rows: np.ndarray,
    folds: Mapping[str, Sequence[Fold]],
    audited: dict[str, Any],
) -> dict[str, Any]:
    used = np.unique(np.concatenate(
        [p for f in folds[target.name] for p in (f.train, f.validation, f.test)]
    ))  # fmt: skip
    labels = dataset.metadata[target.column].iloc[rows[used]]
    return {
        "name": target.name,
        "column": target.column,
        "unit": list(target.unit),
        "n_classes": int(labels.nunique()),
        "n_examples": len(used),
        "nuisance": target.nuisance,
        "verdict": audited["verdict"],
        "reason": audited["reason"],
        "audit": audited,
    }


def _published(about: Mapping[str, Any]) -> dict[str, Any]:
    """A target's row without what each column scores in each unit, which only verdicts need."""
    audited = {k: v for k, v in about["audit"].items() if k != "rivals"}
    return {**about, "audit": audited}


def _selected(
    scores: Sequence[Score], verdicts: Sequence[Verdict], overlap: Mapping[str, float]
) -> dict[str, Any]:
    """What the floor "selected" was: benchmark -> target -> encoder -> its row, or None."""
    found: dict[str, Any] = {}
    for v in verdicts:
        chosen = selected_members(scores, v.benchmark, v.target, v.encoder)
        row = None
        if chosen is not None:
            values = list(chosen.per_unit.values())
            row = {
                **dataclasses.asdict(chosen),
                "value": float(np.mean(values)),
                "interval": t_interval(values, train_overlap=overlap[v.target]),
            }
        found.setdefault(v.benchmark, {}).setdefault(v.target, {})[v.encoder] = row
    return found


def _with_verdicts(
    scores: Sequence[Score], audits: Mapping[str, Any], verdicts: Sequence[Verdict]
) -> list[Score]:
    """A verdict stands in the row of the layer that validation chose, an audit's in every row."""
    words = {(v.benchmark, v.target, v.encoder): v.word for v in verdicts}
    # The chosen one is the last of its representation.
    last = {(s.benchmark, s.target, s.representation): s for s in scores}
    return [
        dataclasses.replace(
            score,
            verdict=words[key]
            if (key := (score.benchmark, score.target, score.representation)) in words
            and last[key] is score
            else audits[score.target]["verdict"],
        )
        for score in scores
    ]


def _write_examples(evaluation: Evaluation, dataset: Dataset, workdir: Path) -> None:
    """Pictures of what the objective makes of a few images, if it makes pictures."""
    one = next(iter(evaluation.trained), None)
    reconstruct = getattr(one.objective, "reconstruct", None) if one is not None else None
    if one is None or reconstruct is None:
        return
    primary = dataset.folds(dataset.declaration.targets[0].name)[0].test
    chosen = primary[np.linspace(0, len(primary) - 1, EXAMPLES_SHOWN).astype(int)]
    stream = evaluation_batches(
        dataset, chosen, batch_size=EXAMPLES_SHOWN, crop_px=evaluation.crop_px
    )
    params, state = one.restore(one.saved, evaluation.mesh)
    batch = {"image": jnp.asarray(next(stream)["image"])}
    inputs = one.objective.views(batch, jax.random.key(evaluation.config["seed"]))
    pictures = jax.jit(reconstruct)(params, state, inputs)
    temporary = workdir / "examples.tmp.npz"
    arrays: dict[str, Any] = {k: np.asarray(v, np.float32) for k, v in pictures.items()}
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, workdir / "examples.npz")


def _write_illustrations(
    evaluation: Evaluation,
    dataset: Dataset,
    rows: np.ndarray,
    scored: Sequence[Candidate],
    workdir: Path,
) -> None:
    """Maps and nearest images by the first trained encoder, its step 0 and the pixels."""
    shown = [one for one in scored if one.folds is None][:2] if evaluation.trained else []
    shown += [one for one in scored if one.name == "pixels"]
    few = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ILLUSTRATED)).astype(int))
    features = {}
    for one in shown:
        table = read_table(workdir / "features" / f"{one.name}.h5ad")
        features[one.name] = table.layer(table.default)[few]
    obs = dataset.metadata.iloc[rows[few]].reset_index(drop=True)
    primary, declared = dataset.declaration.targets[0], dataset.declaration

    def images_of(positions: np.ndarray) -> list[np.ndarray]:
        images = dataset.source.read(rows[few[positions]])
        return [centre_crop(image, evaluation.crop_px) for image in images]

    illustrate.save(
        workdir / "maps.npz",
        illustrate.maps(features, obs, illustrate.colour_columns(declared, obs)),
    )
    illustrate.save(
        workdir / "gallery.npz",
        illustrate.gallery(
            features, obs, label=primary.column, unit=primary.unit, images_of=images_of
        ),
    )


def about_run(
    evaluation: Evaluation, *, command: str, start: float, kind: str, **more: Any
) -> dict[str, Any]:
    """The "run" section of the results; `start`: `time.time()` when it began."""
    return {
        "kind": kind,
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
        "wall_s": round(time.time() - start, 1),
        "seed": evaluation.config["seed"],
        "devices": f"{evaluation.mesh.size} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        **more,
    }


def publish(workdir: Path, run: Mapping[str, Any], results: dict[str, Any]) -> None:
    """Writes results.json, results.csv and report.html, and prints the short table."""
    from bioimg_jax.report import write_csv, write_report

    results = {
        "schema_version": results.pop("schema_version"),
        "bioimg_jax": bioimg_jax.__version__,
        "run": run,
        **results,
    }
    command_line.write_json(workdir / RESULTS, results)
    write_csv(workdir)
    report = write_report(workdir)
    print(summary(results))
    print(f"\nreport: {report}")


def summary(results: Mapping[str, Any]) -> str:
    """The short table a run ends with: the layer chosen on validation, every target."""
    lines = []
    for benchmark in results["benchmarks"]:
        for target in results["targets"]:
            rows = headline_rows(results["scores"], target["name"], benchmark)
            if not rows:  # a benchmark of one's own may have nothing to say of a target
                continue
            note = "nuisance target: score, no verdict" if target["nuisance"] else target["verdict"]
            chance = "" if rows[0]["chance"] is None else f", chance {rows[0]['chance']:.3f}"
            lines.append(
                f"\n{target['name']}, {benchmark}: {rows[0]['metric']}, {target['n_classes']} "
                f"classes{chance}" + (f" ({note})" if note else "")
            )
            for row in rows:
                interval = row["interval"]
                shown = (
                    "no interval" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
                )
                spread = row["settings"].get("seed_sd")
                seeds = "" if spread is None else f"  sd over seeds {spread:.3f}"
                lines.append(f"  {row['representation']:<24} {row['value']:.3f}  {shown}{seeds}")
            for verdict in results["verdicts"]:
                key = (verdict["benchmark"], verdict["target"])
                if key == (benchmark, target["name"]) and not target["nuisance"]:
                    word = verdict["word"] or "no verdict"
                    lines.append(f"  verdict on {verdict['encoder']}: {word} - {verdict['why']}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(arguments, {"checkpoint": [], "workdir": "", "plan": False})
    command_line.check_sections(config, "data", "mesh", "evaluate")
    if not (given["checkpoint"] or "encoder" in config):
        raise InputError("--checkpoint=PATH is missing; for example --checkpoint=runs/mae_cells")
    if not (given["workdir"] or given["plan"]):
        raise InputError("--workdir=DIR is missing: where tables and results are kept")
    settle_cpu()
    start = time.time()
    saved = [open_checkpoint(path) for path in given["checkpoint"]]
    build_evaluation(config, None, saved)  # what is wrong without the data is told first
    dataset = prepared(config["data"])
    evaluation = build_evaluation(config, dataset.declaration.channels, saved)
    check_settings(evaluation, dataset)
    if given["plan"]:
        print_plan(evaluation, dataset)
        return
    workdir = Path(given["workdir"])
    if (workdir / "checkpoints").exists():
        raise InputError(f"--workdir={workdir} is a training's; choose another one")
    with command_line.locked(workdir):
        checkpoints = [str(one.saved.directory) for one in evaluation.trained]
        record = {**config, "content_hash": dataset.content_hash, "checkpoints": checkpoints}
        command_line.write_json(workdir / "config.json", record)
        results = evaluate(evaluation, dataset, workdir)
        command = shlex.join(["python", "-m", "bioimg_jax.evaluate", *arguments[1:]])
        publish(
            workdir,
            about_run(evaluation, command=command, start=start, kind="evaluation"),
            results,
        )


def prepared(data: Config) -> Dataset:
    """The data set of a config's "data" section, prepared now unless it is there."""
    directory = prepare(
        name=data["name"],
        config=data["config"],
        source=data["source"],
        out=data["out"],
        options=command_line.options(data["options"]),
        on_bad_image=data["on_bad_image"],
    )
    return open_dataset(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

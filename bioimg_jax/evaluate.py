"""The one evaluation: representations x targets -> scores beside their floors -> results.json."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bioimg_jax
from bioimg_jax import mesh as meshes
from bioimg_jax.benchmarks.classification import classification_scores
from bioimg_jax.benchmarks.ladder import cases, floor_ids
from bioimg_jax.benchmarks.score import Score, headline_rows
from bioimg_jax.candidates import (
    Candidate,
    candidates,
    chosen_poolings,
    own_floors,
    random_resnet18,
    saved_state,
)
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.pipeline import evaluation_batches
from bioimg_jax.data.splits import Fold, check_classes, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable, read_table, write_table
from bioimg_jax.representations.encoder import EncoderRepresentation
from bioimg_jax.representations.floors import Floors
from bioimg_jax.representations.representation import Representation, stream_features
from bioimg_jax.statistics.audit import audit
from bioimg_jax.statistics.intervals import t_interval, train_overlap
from bioimg_jax.statistics.plan import Plan, plan
from bioimg_jax.statistics.verdict import Verdict, judge
from bioimg_jax.train import Config, Preempted, Probe, Run, StopSignal
from bioimg_jax.train_state import TrainState

SCHEMA_VERSION = 2
EXAMPLES_SHOWN = 3
PROBE_STRENGTHS = (1e-1, 1e-3, 1e-5)


def evaluate(
    run: Run, dataset: Dataset, workdir: Path, *, inductive: tuple[Path, Fold] | None = None
) -> dict[str, Any]:
    """Scores every representation on every target and writes results.json and examples.npz.

    Finished feature tables are used again. `inductive`: the work directory of a second training
    without the test unit of one fold of the primary target, and that fold. Returns the results.
    """
    settings = run.config["evaluate"]
    targets = dataset.declaration.targets
    rows, folds = _subset(run, dataset, targets, "max_examples")
    audits = {
        target.name: audit(dataset.metadata.iloc[rows].reset_index(drop=True),
                           folds[target.name], target, delta=settings["delta"])
        for target in targets
    }  # fmt: skip
    layers = settings["blocks"] * len(chosen_poolings(settings, run.encoder))
    to_score = candidates(run, dataset, workdir, inductive)
    strengths = _strengths(settings)
    fits = sum(len(part) for part in folds.values()) * len(to_score) * layers * len(strengths)
    print(
        f"evaluating {len(to_score)} representations on {len(targets)} targets, "
        f"{len(rows):,} images; at most {fits:,} probe fits",
        file=sys.stderr,
    )
    start = time.monotonic()
    scores: list[Score] = []
    tables = workdir / "features"
    tables.mkdir(exist_ok=True)
    with StopSignal() as stop:
        for i, candidate in enumerate(to_score):
            table = _table(run, dataset, rows, candidate, tables)
            for target in targets:
                allowed = (candidate.folds or {}).get(target.name)
                if candidate.folds is not None and allowed is None:
                    continue
                chosen = folds[target.name]
                if allowed is not None:
                    chosen = [chosen[j] for j in allowed]
                tested = rows[np.concatenate([fold.test for fold in chosen])]
                scores += classification_scores(
                    table,
                    chosen,
                    target,
                    representation=candidate.name,
                    kind=candidate.kind,
                    seed=candidate.seed,
                    exposure="images" if np.isin(tested, candidate.saw).any() else "none",
                    strengths=strengths,
                    settings={
                        "content_hash": dataset.content_hash,
                        "n_images": len(rows),
                        "group": candidate.group,
                        **candidate.settings,
                    },
                    permute_labels_seed=(
                        run.config["seed"] if settings["permute_labels"] else None
                    ),
                )
            elapsed = time.monotonic() - start
            left = elapsed / (i + 1) * (len(to_score) - i - 1)
            print(
                f"{candidate.name} ({i + 1}/{len(to_score)})  "
                f"{int(left) // 60}:{int(left) % 60:02d} left",
                file=sys.stderr,
            )
            if stop.received:
                raise Preempted("stopped while evaluating; finished feature tables are kept")
    overlap = {name: _overlap(parts) for name, parts in folds.items()}
    scores += averaged_over_seeds(scores, overlap)
    about = [_about(target, dataset, rows, folds, audits[target.name]) for target in targets]
    verdicts = judge(
        cases(
            scores, about, floor_ids(settings["floors"]), delta=settings["delta"], overlap=overlap
        )
    )
    scores = _with_verdicts(scores, audits, verdicts)
    _write_examples(run, dataset, workdir)
    results = {
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
        "targets": about,
        "floors": list(floor_ids(settings["floors"])),
        "verdicts": [verdict.to_row() for verdict in verdicts],
        "scores": [score.to_row() for score in scores],
    }
    return results


def make_probe(run: Run, dataset: Dataset, workdir: Path) -> Probe:
    """Scores the encoder on the primary target as it is at a step of the training.

    A small subset and one layer: a curve to watch, beside the results and never in their place.
    """
    target = dataset.declaration.targets[0]
    rows, restricted = _subset(run, dataset, [target], "probe_examples")
    folds = restricted[target.name]

    def probe(step: int, state: TrainState) -> list[dict[str, Any]]:
        variables = {"params": state.params["encoder"], "stats": state.objective["stats"]}
        representation = EncoderRepresentation(
            "probe", "trained", run.encoder, variables, blocks=1, poolings=("mean",)
        )
        path = workdir / "features" / ".probe.h5ad"
        path.parent.mkdir(exist_ok=True)
        table = _extract(run, dataset, rows, representation, path, {"step": step})
        scores = classification_scores(
            table,
            folds,
            target,
            representation="probe",
            kind="trained",
            seed=run.config["seed"],
            exposure="",
            strengths=PROBE_STRENGTHS,
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


def averaged_over_seeds(scores: Sequence[Score], overlap: Mapping[str, float]) -> list[Score]:
    """One more score for every target and layer of a group: the mean of its seeds, unit by unit.

    overlap: of each target's folds (`intervals.train_overlap`).
    """
    groups: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        if group := score.settings.get("group"):
            groups.setdefault((group, score.target, score.block, score.pooling), []).append(score)
    rows = []
    for (group, target, _, _), members in groups.items():
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
                other_metrics={},
                settings={
                    **{k: v for k, v in members[0].settings.items() if k != "folds"},
                    "seeds": [member.seed for member in members],
                    "seed_values": values,
                    "seed_sd": float(np.std(values, ddof=1)),
                },
            )
        )
    return rows


def _subset(
    run: Run, dataset: Dataset, targets: Sequence[Target], limit_key: str
) -> tuple[np.ndarray, dict[str, list[Fold]]]:
    """Example indices that some fold of the targets uses, ascending, and the folds among them.

    At most `evaluate.<limit_key>` examples, drawn at random (0: all). Raises `InputError` if they
    are too few for some fold.
    """
    limit = run.config["evaluate"][limit_key]
    stored = {target.name: dataset.folds(target.name) for target in targets}
    parts = [
        part
        for folds in stored.values()
        for fold in folds
        for part in (fold.train, fold.validation, fold.test)
    ]
    rows = np.unique(np.concatenate(parts))
    if limit and len(rows) > limit:
        rng = np.random.default_rng(run.config["seed"])
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


def check_config(run: Run) -> None:
    """What is wrong with the settings whatever the data are. Raises `InputError`."""
    settings = run.config["evaluate"]
    for key, least in (
        ("untrained_seeds", 0), ("blocks", 1), ("batch_size", 1), ("max_examples", 0),
        ("probe_examples", 0),
    ):  # fmt: skip
        if settings[key] < least:
            raise InputError(f"evaluate.{key}: {settings[key]}, expected at least {least}")
    n_data = run.mesh.shape["data"]
    if settings["batch_size"] % n_data:
        raise InputError(
            f"evaluate.batch_size: {settings['batch_size']} is no multiple of the {n_data} devices "
            "of the data axis"
        )
    encoders = [run.encoder]
    if settings["resnet18"]:
        encoders.append(random_resnet18(run))
    for encoder in encoders:
        chosen_poolings(settings, encoder)
    _strengths(settings)
    floor_ids(settings["floors"])
    if not 0 < settings["delta"] < 1:
        raise InputError(f"evaluate.delta: {settings['delta']}, expected between 0 and 1")


def check_settings(run: Run, dataset: Dataset) -> None:
    """What of the settings does not fit the data, before hours are spent on the training.

    Raises `InputError`. `check_config` has told the rest, before the data were prepared.
    """
    if not dataset.declaration.targets:
        raise InputError(
            f"data set {dataset.declaration.name!r} declares no target to evaluate: its labels, "
            "plates and wells are too few for training, validation and test units"
        )
    floors = Floors(run.channels, run.encoder.block_widths[-1])
    for name in own_floors(run.config["evaluate"]):
        floors.check(name)
    _subset(run, dataset, dataset.declaration.targets, "max_examples")


def _overlap(folds: Sequence[Fold]) -> float:
    return train_overlap([fold.train for fold in folds], [fold.test for fold in folds])


def plans(run: Run, dataset: Dataset) -> dict[str, Plan]:
    """What the verdicts of each biological target can say, from units, folds and floors alone."""
    targets = [target for target in dataset.declaration.targets if not target.nuisance]
    found = {}
    for target in targets:
        folds = dataset.folds(target.name)
        tested = dataset.metadata.iloc[np.concatenate([fold.test for fold in folds])]
        found[target.name] = plan(
            len(np.unique(unit_names(tested, target.unit).astype(str))),
            floors=len(floor_ids(run.config["evaluate"]["floors"])),
            family=len(targets),
            delta=run.config["evaluate"]["delta"],
            overlap=_overlap(folds),
        )
    return found


def _table(
    run: Run, dataset: Dataset, rows: np.ndarray, candidate: Candidate, folder: Path
) -> FeatureTable:
    """The candidate's feature table, from disk if it is there and was made of the same things."""
    path = folder / f"{candidate.name}.h5ad"
    provenance = {
        "bioimg_jax": bioimg_jax.__version__,
        "representation": candidate.name,
        "kind": candidate.kind,
        "seed": candidate.seed,
        "data": dataset.content_hash,
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "config": json.loads(json.dumps(run.config)),
        **candidate.settings,
    }
    if path.exists():
        try:
            table = read_table(path)
        except InputError:
            table = None  # damaged: made again
        if table is not None and table.provenance == provenance:
            return table
    return _extract(run, dataset, rows, candidate.make(), path, provenance)


def _extract(
    run: Run,
    dataset: Dataset,
    rows: np.ndarray,
    representation: Representation,
    path: Path,
    provenance: dict[str, Any],
) -> FeatureTable:
    settings, mesh = run.config["evaluate"], run.mesh

    def batches() -> Iterator[dict[str, Any]]:
        stream = evaluation_batches(
            dataset,
            rows,
            batch_size=settings["batch_size"],
            crop_px=run.config["data"]["crop_px"],
        )
        for batch in stream:
            yield {**batch, "image": meshes.to_global({"image": batch["image"]}, mesh)["image"]}

    layers = representation.layers
    write_table(
        path,
        dataset.metadata.iloc[rows].reset_index(drop=True),
        layers,
        next(reversed(layers)),
        stream_features(representation, batches()),
        provenance,
        dtype=representation.dtype,
    )
    return read_table(path)


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


def _with_verdicts(
    scores: Sequence[Score], audits: Mapping[str, Any], verdicts: Sequence[Verdict]
) -> list[Score]:
    """A verdict stands in the row of the layer that validation chose, an audit's in every row."""
    words = {(verdict.benchmark, verdict.encoder): verdict.word for verdict in verdicts}
    last = {(score.target, score.representation): score for score in scores}  # the chosen one
    return [
        dataclasses.replace(
            score,
            verdict=words[key]
            if (key := (score.target, score.representation)) in words and last[key] is score
            else audits[score.target]["verdict"],
        )
        for score in scores
    ]


def _write_examples(run: Run, dataset: Dataset, workdir: Path) -> None:
    """Pictures of what the objective makes of a few images, if it makes pictures."""
    reconstruct = getattr(run.objective, "reconstruct", None)
    if reconstruct is None:
        return
    primary = dataset.folds(dataset.declaration.targets[0].name)[0].test
    chosen = primary[np.linspace(0, len(primary) - 1, EXAMPLES_SHOWN).astype(int)]
    stream = evaluation_batches(
        dataset, chosen, batch_size=EXAMPLES_SHOWN, crop_px=run.config["data"]["crop_px"]
    )
    state = saved_state(run, workdir, run.config["train"]["steps"])
    batch = {"image": jnp.asarray(next(stream)["image"])}
    inputs = run.objective.views(batch, jax.random.key(run.config["seed"]))
    pictures = jax.jit(reconstruct)(state.params, state.objective, inputs)
    temporary = workdir / "examples.tmp.npz"
    arrays: dict[str, Any] = {k: np.asarray(v, np.float32) for k, v in pictures.items()}
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, workdir / "examples.npz")


def _strengths(settings: Config) -> tuple[float, ...]:
    try:
        strengths = tuple(float(part) for part in settings["strengths"].split(","))
    except ValueError:
        raise InputError(
            f"evaluate.strengths: {settings['strengths']!r}, expected numbers with commas between"
        ) from None
    if not all(strength > 0 for strength in strengths):
        raise InputError(f"evaluate.strengths: {settings['strengths']!r}, expected all above zero")
    return strengths


def summary(results: Mapping[str, Any]) -> str:
    """The short table a run ends with: the layer chosen on validation, every target."""
    lines = []
    for target in results["targets"]:
        rows = headline_rows(results["scores"], target["name"])
        note = "nuisance target: score, no verdict" if target["nuisance"] else target["verdict"]
        lines.append(
            f"\n{target['name']}: {rows[0]['metric']}, {target['n_classes']} classes, "
            f"chance {rows[0]['chance']:.3f}" + (f" ({note})" if note else "")
        )
        for row in rows:
            interval = row["interval"]
            shown = "no interval" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
            spread = row["settings"].get("seed_sd")
            seeds = "" if spread is None else f"  sd over seeds {spread:.3f}"
            lines.append(f"  {row['representation']:<24} {row['value']:.3f}  {shown}{seeds}")
        for verdict in results["verdicts"]:
            if verdict["benchmark"] == target["name"] and not target["nuisance"]:
                word = verdict["word"] or "no verdict"
                lines.append(f"  verdict on {verdict['encoder']}: {word} - {verdict['why']}")
    return "\n".join(lines)

"""From a representation to its scores: a feature table, then scores by benchmark and target.

What is finished is used again: tables and scores carry a key of everything that made them.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.answers import Answers
from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.ladder import selected_members
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.candidates import Candidate, Evaluation
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.features.aggregate import aggregate
from bioimg_jax.features.extract import feature_table
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.kept import key_of, read_kept, write_kept
from bioimg_jax.representations.representation import SPREAD_KINDS
from bioimg_jax.sources import sources_digest
from bioimg_jax.statistics.intervals import t_interval
from bioimg_jax.statistics.verdict import Verdict


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


def scores_of(
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
    """The scores of one table on one benchmark and target, from disk if they are finished.

    table, folds: of images; the benchmark is given profiles where the target declares them.
    Raises `InputError` for groups that are no profiles, or scores that JSON does not take.
    """
    settings = evaluation.settings
    made_of = {
        "code": sources_digest("benchmarks", "data", "features", "probes", "statistics"),
        "table": table.provenance["key"],
        "layers": list(table.widths),
        "benchmark": benchmark.identity,
        "target": dataclasses.asdict(target),
        "folds": [fold.digests for fold in folds],
        "permute": settings["permute_labels"] and evaluation.config["seed"],
        "candidate": [candidate.name, candidate.kind, candidate.seed, candidate.group],
        "settings": dict(candidate.settings),
    }
    key = key_of(made_of)
    name = f"{candidate.name}-{benchmark.name}-{target.name}"
    path, answers = (workdir / "scores" / f"{name}.{kind}" for kind in ("json", "npz"))
    kept = read_kept(path, key)
    if kept is not None:
        scores = [Score.from_row(row) for row in kept["scores"]]
        if not kept["answers"]:
            return scores
        found = Answers.read(answers, key)
        if found is not None:
            return [*scores[:-1], dataclasses.replace(scores[-1], answers=found)]
    tested = rows[np.concatenate([fold.test for fold in folds])]
    table, folds = aggregate(
        table, folds, target, spread_of=table.default if candidate.kind in SPREAD_KINDS else ""
    )
    scores = benchmark.scores(
        table,
        folds,
        target,
        representation=candidate.name,
        kind=candidate.kind,
        seed=candidate.seed,
        exposure=candidate.exposure(tested),
        settings={
            "content_hash": dataset.content_hash,
            "n_images": len(rows),
            "group": candidate.group,
            **({"aggregate": list(target.aggregate)} if target.aggregate else {}),
            **candidate.settings,
        },
        permute_labels_seed=evaluation.config["seed"] if settings["permute_labels"] else None,
    )
    told = scores[-1].answers if scores else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if told is not None:  # before the scores, which say that they are there
            told.write(answers, key)
        value = {"scores": [s.to_row() for s in scores], "answers": told is not None}
        write_kept(path, key, value)
    except (TypeError, ValueError) as error:  # of one's own: nan, or a type that JSON has not
        raise InputError(
            f"evaluate.benchmarks: {benchmark.name} on {target.name} returned for {candidate.name} "
            f"a score that cannot be kept ({error}); what is finished is kept"
        ) from error
    return scores


def check_units(scores: Sequence[Score], before: Sequence[Score]) -> None:
    """`InputError` for scores of other units than the others of their benchmark and target.

    Verdicts are paired by unit, and a benchmark of one's own may leave one out: told after the
    second representation, and not after the last. Scores of some folds alone are in no verdict.
    """
    for score in scores:
        if "held_out" in score.settings:
            continue
        first = next(
            other
            for other in itertools.chain(before, scores)
            if (other.benchmark, other.target) == (score.benchmark, score.target)
            and "held_out" not in other.settings
        )
        if odd := sorted(score.per_unit.keys() ^ first.per_unit.keys()):
            raise InputError(
                f"evaluate.benchmarks: {score.benchmark} on {score.target}: {score.representation} "
                f"and {first.representation} differ in unit {odd[0]!r}, expected the same units "
                "for every representation; what is finished is kept"
            )


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
                answers=None,
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


def selected_rows(
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


def with_verdicts(
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

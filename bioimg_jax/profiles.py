"""Features from files through the field's protocols -> scores, verdicts, results.json, report.html.

    python -m bioimg_jax.profiles --config=configs/eval_profiles.py --workdir=OUT

The features may come from anywhere (`features/imported.py`), a row a well. One file or several are
an encoder's; others are floors, like the columns of a table that count cells. Each protocol is run
after each alignment that the config lists; what a column of the metadata scores by itself is the
audit.
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from bioimg_jax import command_line
from bioimg_jax.benchmarks.ladder import CHANCE, FAMILY, OWN, cases, floor_ids
from bioimg_jax.benchmarks.protocols import Protocol, find_protocols
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, AlignedTable, align, unaligned
from bioimg_jax.features.alignment import Alignment, find_alignment
from bioimg_jax.features.imported import Join, import_table
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.representations.metadata import MetadataRepresentation
from bioimg_jax.representations.representation import ENCODERS
from bioimg_jax.results import about_run, publish
from bioimg_jax.scoring import with_verdicts
from bioimg_jax.statistics.verdict import Verdict, judge

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where tables, results.json and report.html are kept"""
NO_IMAGES = "there are no images behind a file of features"
KINDS = (*ENCODERS, "count", "pixels", "layout", "texture")
Config = Mapping[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(arguments, {"workdir": ""})
    command_line.check_sections(config, "profiles", "evaluate")
    if not given["workdir"]:
        raise InputError("--workdir=DIR is missing: where tables and results are kept")
    settle_cpu()
    start, workdir = time.time(), Path(given["workdir"])
    command_line.check_not_a_training(workdir)
    with command_line.locked(workdir):
        command_line.write_json(workdir / "config.json", config)
        results = evaluate_profiles(config, workdir)
        command = shlex.join(["python", "-m", "bioimg_jax.profiles", *arguments[1:]])
        run = about_run(
            seed=config["seed"],
            n_devices=jax.device_count(),
            command=command,
            start=start,
            kind="profiles",
        )
        publish(workdir, run, results)


def evaluate_profiles(config: Config, workdir: Path) -> dict[str, Any]:
    """Every protocol on every table of features, after every alignment; what results.json holds."""
    settings, sources = config["evaluate"], config["profiles"]
    alignments = _alignments(settings["alignments"])
    tables = _read_tables(sources, workdir)
    first = next(iter(tables.values()))
    obs = first.obs
    protocols, not_run = find_protocols(
        settings["benchmarks"], list(obs.columns), average=settings["average"],
        permutations=settings["permutations"], seed=config["seed"],
    )  # fmt: skip
    floors, omitted = _floors(settings["floors"], tables, sources)
    audits: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        try:
            audits[protocol.name] = _audit(protocol, first, settings, config["seed"])
        except InputError as error:  # the design has not what it asks for, whatever the features
            not_run[protocol.name] = str(error)
    protocols = [protocol for protocol in protocols if protocol.name in audits]
    for name, reason in not_run.items():
        print(f"not run: {name}, because {reason}", file=sys.stderr)
    if not protocols:
        raise InputError("evaluate.benchmarks: none of them can be run")
    scores: list[Score] = []
    todo = len(tables) * len(alignments)
    facts: dict[str, dict[str, Any]] = {name: {} for name in alignments}
    for i, (name, table) in enumerate(tables.items()):
        kind = sources["tables"][name]["kind"]
        for j, (words, alignment) in enumerate(alignments.items()):
            aligned = align(table, alignment, batch=settings["align_by"])
            facts[words][name] = aligned.facts
            for protocol in protocols:
                scores += _scores(protocol, aligned, words, name, kind, config["seed"])
            done = i * len(alignments) + j + 1
            print(f"{name}, {words} ({done}/{todo})", file=sys.stderr)
    scores, verdicts = _judged(scores, protocols, audits, floors, omitted, settings)
    return {
        "data": {
            "name": Path(next(iter(sources["tables"].values()))["source"]).name,
            "content_hash": first.provenance["content_hash"],
            "channels": [],
            "n_examples": len(obs),
            "n_evaluated": len(obs),
            "n_pretraining": 0,
            "splits": {},
        },
        "encoders": [
            {"name": name, "kind": sources["tables"][name]["kind"], "features": table.path.name}
            for name, table in tables.items()
            if sources["tables"][name]["kind"] in ENCODERS
        ],
        "benchmarks": list(alignments),
        "targets": [_target_row(protocol, obs, audits[protocol.name]) for protocol in protocols],
        "floors": list(floors),
        "omitted": omitted,
        "selected": {},
        "plan": [],
        "verdicts": [verdict.to_row() for verdict in verdicts],
        "untrained": [],
        "scores": [score.to_row() for score in scores],
        "alignments": facts,
        "not_run": not_run,
    }


def _alignments(text: str) -> dict[str, Alignment]:
    """By the words of "none; tvn; mad_robustise,tvn"; the first one is the primary one."""
    words = [part.strip() or "none" for part in text.split(";")]
    if len(set(words)) < len(words):
        raise InputError(f"evaluate.alignments: {text!r} names one twice")
    return {part: find_alignment(part) for part in words}


def _read_tables(sources: Config, workdir: Path) -> dict[str, FeatureTable]:
    """The tables of the config, by name, with the same metadata in every row."""
    shared = {
        "beside": sources["beside"],
        "metadata": dict(sources["metadata"]),
        "extract": {name: (e["column"], e["pattern"]) for name, e in sources["extract"].items()},
        "joins": [
            Join(j["path"], dict(j["on"]), dict(j["columns"]), j["unmatched"])
            for j in sources["joins"].values()
        ],
        "unique": command_line.names(sources["unique"]),
    }
    found: dict[str, FeatureTable] = {}
    for name, about in sources["tables"].items():
        if about["kind"] not in KINDS:
            raise InputError(
                f"profiles.tables.{name}.kind: {about['kind']!r}, expected one of "
                f"{', '.join(KINDS)}"
            )
        path = workdir / "features" / f"{name}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = import_table(
            about["source"], path, only=about["only"],
            ignore=command_line.names(about["ignore"]), **shared,
        )  # fmt: skip
        found[name] = dataclasses.replace(table, obs=_with_controls(table.obs, sources["control"]))
    if not found:
        raise InputError("profiles.tables: none, expected the features of at least one encoder")
    first = next(iter(found))
    for name, table in found.items():
        if not table.obs.astype(str).equals(found[first].obs.astype(str)):
            raise InputError(
                f"profiles.tables: {name} and {first} have other metadata, expected the same wells "
                "in the same order"
            )
    return found


def _with_controls(obs: pd.DataFrame, control: Config) -> pd.DataFrame:
    """The metadata with the column `CONTROL`, where the config says what a control is."""
    if not control["column"]:
        return obs
    if control["column"] not in obs:
        raise InputError(
            f"profiles.control.column: {control['column']!r} is no column of the metadata, which "
            f"has {', '.join(obs.columns)}"
        )
    values = command_line.names(control["values"])
    held = obs[control["column"]].astype(str).isin(values).to_numpy()
    if not held.any():
        raise InputError(
            f"profiles.control: no well has {control['column']!r} {' or '.join(values)}"
        )
    return obs.assign(**{CONTROL: held})


def _floors(
    text: str, tables: Mapping[str, FeatureTable], sources: Config
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The floors of the config, and those that need images, with the reason."""
    floors = floor_ids(text)
    omitted = {floor: NO_IMAGES for floor in floors if floor in (*OWN, FAMILY)}
    known = [name for name in tables if sources["tables"][name]["kind"] not in ENCODERS]
    for floor in floors:
        if floor != CHANCE and floor not in omitted and floor not in known:
            raise InputError(
                f"evaluate.floors: {floor!r} is none of {', '.join((CHANCE, *known))}, which are "
                "the tables of the config that are no encoder's"
            )
    return floors, omitted


def _scores(
    protocol: Protocol, table: FeatureTable, words: str, name: str, kind: str, seed: int
) -> list[Score]:
    found = protocol.benchmark.scores(
        table, [protocol.fold(table.obs)], protocol.target, representation=name, kind=kind,
        seed=seed, exposure="unknown" if kind in ENCODERS else "none", settings={},
        permute_labels_seed=None,
    )  # fmt: skip
    return [dataclasses.replace(score, benchmark=words) for score in found]


def _audit(protocol: Protocol, table: FeatureTable, settings: Config, seed: int) -> dict[str, Any]:
    """What columns of the metadata score by the protocol itself, each alone and all together.

    Raises `InputError` where wells and labels are none that the protocol can score.
    """
    columns = [c for c in command_line.names(settings["audit"]) if c in table.obs]
    delta = settings["delta"]
    result: dict[str, Any] = {
        "verdict": "", "reason": "no nuisance column is declared for this target", "columns": [],
        "score": None, "interval": None, "per_unit": {}, "per_column": {}, "best": None,
        "rivals": {}, "metric": protocol.target.metric, "delta": delta,
    }  # fmt: skip
    found: dict[str, Score] = {}
    for chosen in [*([c] for c in columns), *([columns] if len(columns) > 1 else [])]:
        held = _of_metadata(table, chosen)
        (score,) = _scores(protocol, held, "none", " and ".join(chosen), "metadata", seed)
        found[" and ".join(chosen)] = score
    if not found:
        _scores(
            protocol, _of_metadata(table, [protocol.target.column]), "none", "", "metadata", seed
        )
        return result
    best = max(found, key=lambda name: found[name].value)
    for column in columns:
        result["per_column"][column] = {
            "score": found[column].value, "interval": found[column].interval
        }  # fmt: skip
    everything = found[" and ".join(columns)]
    result |= {
        "score": everything.value,
        "interval": everything.interval,
        "per_unit": everything.per_unit,
        "best": {"columns": best, "score": found[best].value, "interval": found[best].interval},
        "rivals": {name: score.per_unit for name, score in found.items()},
    }
    for name, score in found.items():
        ceiling = 1.0 if score.ceiling is None else score.ceiling
        if score.interval is not None and score.interval[0] >= ceiling - delta:
            result |= {
                "verdict": "confounded",
                "columns": name.split(" and "),
                "reason": f"{name} alone is within {delta:g} of the ceiling of {protocol.name}",
            }
            return result
    shown = found[best].interval
    shown_words = "" if shown is None else f" [{shown[0]:.2f}, {shown[1]:.2f}]"
    result["reason"] = (
        f"metadata alone does not settle {protocol.name}: at best {found[best].value:.2f}"
        f"{shown_words}, from {best}"
    )
    return result


def _of_metadata(table: FeatureTable, columns: Sequence[str]) -> AlignedTable:
    """Columns of the metadata as the features of a table."""
    made = MetadataRepresentation(table.obs, columns)
    ((layer, features),) = made.features({"index": np.arange(len(table.obs))}).items()
    return unaligned(
        dataclasses.replace(table, widths=dict(made.layers), default=layer), np.asarray(features)
    )


def _judged(
    scores: Sequence[Score],
    protocols: Sequence[Protocol],
    audits: Mapping[str, Mapping[str, Any]],
    floors: Sequence[str],
    omitted: Mapping[str, str],
    settings: Config,
) -> tuple[list[Score], list[Verdict]]:
    """Verdicts of all protocols and alignments, one family; and the scores with their words."""
    targets = [
        {"name": protocol.name, "nuisance": False, "audit": audits[protocol.name]}
        for protocol in protocols
    ]
    verdicts = judge(
        cases(
            scores,
            targets,
            floors,
            omitted=omitted,
            delta=settings["delta"],
            overlap={protocol.name: 0.0 for protocol in protocols},
        )
    )
    return with_verdicts(scores, audits, verdicts), verdicts


def _target_row(
    protocol: Protocol, obs: pd.DataFrame, audited: Mapping[str, Any]
) -> dict[str, Any]:
    wells = protocol.fold(obs).test
    return {
        "name": protocol.name,
        "column": protocol.target.column,
        "unit": list(protocol.target.unit),
        "aggregate": [],
        "n_classes": int(obs[protocol.target.column].iloc[wells].nunique()),
        "n_examples": len(wells),
        "nuisance": False,
        "verdict": audited["verdict"],
        "reason": audited["reason"],
        "audit": {k: v for k, v in audited.items() if k != "rivals"},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""Features from files through the field's protocols -> scores, verdicts, results.json, report.html.

    python -m bioimg_jax.profiles --config=configs/eval_profiles.py --workdir=OUT

The features may come from anywhere (`features/imported.py`), a row a well. One file or several are
an encoder's; others are floors, like the columns of a table that count cells. Each protocol is run
after each alignment that the config lists; what a column of the metadata scores by itself is the
audit.
"""

import dataclasses
import functools
import importlib.util
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from bioimg_jax import command_line
from bioimg_jax.benchmarks.ladder import CHANCE, FAMILY, OWN, cases, floor_ids
from bioimg_jax.benchmarks.nuisance import nuisance_rows
from bioimg_jax.benchmarks.protocols import (
    ARM,
    BATCH,
    CLASS,
    COMPOUND,
    GENE,
    PLATE,
    RULES,
    ProfileProtocol,
    find_protocols,
    of_metadata,
)
from bioimg_jax.benchmarks.retrieval import Activity, Consistency
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.benchmarks.screening import POSITIVE, Screening, screening, summaries
from bioimg_jax.data.splits import has_value, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, WELL, AlignedTable, align
from bioimg_jax.features.alignment import Alignment, find_alignment
from bioimg_jax.features.imported import Join, import_table
from bioimg_jax.features.rollup import rolled_up
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.kept import digest, kept
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.profile_beyond import check_beyond, conditional_rows, identity_of, table_digest
from bioimg_jax.report import write_rows
from bioimg_jax.representations.representation import ENCODERS
from bioimg_jax.results import about_run, publish
from bioimg_jax.score_audit import JOINT, audit_of_scores, audited_groups
from bioimg_jax.score_plan import plan_of_scores, print_plan_of_scores
from bioimg_jax.scoring import with_verdicts
from bioimg_jax.statistics.plan import sd_of_shares
from bioimg_jax.statistics.verdict import Verdict, judge, secondary
from bioimg_jax.stop_signal import StopSignal

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where tables, results.json and report.html are kept
--plan              says which verdicts the design can reach, and stops"""
NO_IMAGES = "there are no images behind a file of features"
NAMES = (PLATE, BATCH, WELL, COMPOUND, CLASS, GENE, ARM)  # columns that are never numbers
KINDS = (*ENCODERS, "untrained", "count", "pixels", "layout", "texture", "combined", "noise")
ALL, ACTIVE = ASKED_OF = ("all", "active")  # `evaluate.consistency_of`
Config = Mapping[str, Any]
# Keys of the config and their types.
SETTINGS: dict[str, type] = {
    "alignments": str, "align_by": str, "benchmarks": str, "pair_lists": str, "activities": str,
    "floors": str, "audit": str, "average": str, "permutations": int, "beyond": str,
    "active_q": float, "least_replicates": int, "consistency_of": str,
    "beyond_permutations": int, "retrieval": dict, "nuisance": bool, "screening": bool,
    "delta": float,
}  # fmt: skip
SOURCES: dict[str, type] = {
    "tables": dict, "beside": str, "metadata": dict, "extract": dict, "joins": dict,
    "unique": str, "rollup": dict, "control": dict, "positive": dict,
}  # fmt: skip
PARTS: dict[str, dict[str, type]] = {
    "tables": {"kind": str, "source": str, "only": str, "ignore": str},
    "joins": {"path": str, "on": dict, "columns": dict, "unmatched": str},
    "extract": {"column": str, "pattern": str},
    "rollup": {"levels": str, "average": str, "equal": int},
    "control": {"column": str, "values": str},
    "positive": {"column": str, "values": str},
}
OWN_SOURCES: dict[str, type] = {"beside": str, "metadata": dict}  # keys that a table may have
PAIRS: dict[str, type] = dict.fromkeys((*RULES, "multilabel", "null", "within", "unit"), str)


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(arguments, {"workdir": "", "plan": False})
    command_line.check_sections(config, "profiles", "evaluate")
    if not (given["workdir"] or given["plan"]):
        raise InputError("--workdir=DIR is missing: where tables and results are kept")
    settle_cpu()
    if given["plan"]:
        _print_plan(config)
        return
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Design:
    """What a run rests on before any score of an encoder or a floor."""

    alignments: dict[str, Alignment]
    tables: dict[str, FeatureTable]
    kinds: dict[str, str]
    encoders: list[str]
    floors: tuple[str, ...]
    omitted: dict[str, str]
    confounds: list[str]
    protocols: list[ProfileProtocol]
    audits: dict[str, dict[str, Any]]
    not_run: dict[str, str]

    @classmethod
    def of(cls, config: Config, workdir: Path) -> "_Design":
        """Raises `InputError` for everything that is wrong whatever the scores are."""
        settings, sources = config["evaluate"], config["profiles"]
        _check_types(config)
        alignments = _alignments(settings["alignments"])
        tables = _read_tables(sources, workdir)
        kinds = {name: sources["tables"][name]["kind"] for name in tables}
        encoders = [name for name in tables if kinds[name] in ENCODERS]
        floors, omitted = _floors(settings["floors"], tables, sources)
        confounds, absent = check_beyond(settings["beyond"], tables, kinds)
        first = next(iter(tables.values()))
        protocols, audits, not_run = _protocols(settings, first, config["seed"])
        return cls(
            alignments, tables, kinds, encoders, floors, omitted, confounds, protocols, audits,
            not_run | absent,
        )  # fmt: skip

    def plan(self, protocols: Sequence[ProfileProtocol], delta: float) -> list[dict[str, Any]]:
        """Rows of "plan", of the primary alignment: after others the design is the same.

        What a unit holds is taken for its treatments, each right or wrong.
        """
        obs = next(iter(self.tables.values())).obs
        units, sds = {}, {}
        for protocol in protocols:
            asked = obs.iloc[protocol.fold(obs).test]
            made: Any = protocol.benchmark
            treatments = unit_names(asked, getattr(made, "treatment", protocol.target.unit))
            held = pd.Series(treatments, index=unit_names(asked, protocol.target.unit))
            counts = held.groupby(level=0).nunique()
            scored = self.audits[protocol.name]["per_unit"]  # some may have no partner
            counts = counts[counts.index.isin(list(scored))] if scored else counts
            units[protocol.name] = len(counts)
            sds[protocol.name] = sd_of_shares(counts.to_numpy()) if len(counts) else 0.0
        return plan_of_scores(
            next(iter(self.alignments)), units, self.audits, sds=sds,
            floors=len(set(self.floors) - set(self.omitted)), encoders=len(self.encoders),
            delta=delta,
        )  # fmt: skip


def _print_plan(config: Config) -> None:
    with tempfile.TemporaryDirectory() as folder:
        design = _Design.of(config, Path(folder))
        rows = design.plan(design.protocols, config["evaluate"]["delta"])
    primary, *others = design.alignments
    note = f"after {', '.join(others)}: the same, and not corrected for beside {primary}"
    print_plan_of_scores(rows, note if others else "")
    _tell_missing(design.not_run)


def evaluate_profiles(config: Config, workdir: Path) -> dict[str, Any]:
    """Every protocol on every table of features, after every alignment; what results.json holds."""
    settings, sources, seed = config["evaluate"], config["profiles"], config["seed"]
    design = _Design.of(config, workdir)
    alignments, tables, kinds = design.alignments, design.tables, design.kinds
    encoders, floors, omitted = design.encoders, design.floors, design.omitted
    protocols, audits, not_run = design.protocols, design.audits, design.not_run
    first = next(iter(tables.values()))
    obs = first.obs
    scores: list[Score] = []
    nuisance: list[dict[str, Any]] = []
    facts: dict[str, dict[str, Any]] = {name: {} for name in alignments}
    primary: dict[str, AlignedTable] = {}
    began, done, todo = time.monotonic(), 0, len(tables) * len(alignments)
    with StopSignal() as stop:
        if settings["consistency_of"] == ACTIVE:
            protocols = _of_active(
                protocols, audits, not_run, tables, kinds, alignments, settings, workdir, seed
            )
        for name, table in tables.items():
            for words, alignment in alignments.items():
                aligned = align(table, alignment, batch=settings["align_by"])
                primary.setdefault(name, aligned)
                facts[words][name] = aligned.facts
                asker = _Asker(
                    workdir, words, name, kinds[name], aligned, settings["align_by"], seed
                )
                for protocol in protocols:
                    row, reason = asker.score(protocol)
                    if row is None:  # too few controls to hold any out, say
                        not_run[f"{protocol.name} of {name}, {words}"] = reason
                    else:
                        scores.append(Score.from_row(row))
                    stop.leave()
                if settings["nuisance"] and name in encoders:
                    rows, unasked = asker.nuisance(*_numbers_and_ids(tables, kinds, sources))
                    about = {"representation": name, "benchmark": words}
                    nuisance += [about | row for row in rows]
                    not_run |= unasked
                    stop.leave()
                done += 1
                left = int((time.monotonic() - began) / done * (todo - done))
                print(f"{name}, {words} ({done}/{todo}) {left // 60}:{left % 60:02d} left",
                      file=sys.stderr)  # fmt: skip
        if not scores:
            raise InputError(f"no protocol could score anything: {next(iter(not_run.values()))}")
        conditional = conditional_rows(
            protocols, primary, tables, encoders, design.confounds, workdir,
            permutations=settings["beyond_permutations"], benchmark=next(iter(alignments)),
            seed=seed, between=stop.leave,
        )  # fmt: skip
    screened = _screening(protocols, primary, encoders, settings, seed)
    not_run |= screened.missing
    _tell_missing(not_run)
    _write_tables(workdir / "screening", screened.tables)
    scores, verdicts = _judged(
        scores, protocols, audits, floors, omitted, settings, next(iter(alignments))
    )
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
            {"name": name, "kind": kinds[name], "features": tables[name].path.name}
            for name in encoders
        ],
        "benchmarks": list(alignments),
        "targets": [_target_row(protocol, obs, audits[protocol.name]) for protocol in protocols],
        "floors": list(floors),
        "omitted": omitted,
        "selected": {},
        "plan": design.plan(protocols, settings["delta"]),
        "verdicts": [verdict.to_row() for verdict in verdicts],
        "untrained": [],
        "scores": [score.to_row() for score in scores],
        "alignments": facts,
        "conditional": conditional,
        "nuisance": nuisance,
        "screening": summaries(screened.tables),
        "plate_maps": {name: _nested(layout.map) for name, layout in screened.layouts.items()},
        "not_run": not_run,
    }


def _tell_missing(not_run: Mapping[str, str]) -> None:
    for name, reason in not_run.items():
        print(f"not run: {name}, because {reason}", file=sys.stderr)


@dataclasses.dataclass(frozen=True, eq=False)
class _Asker:
    """One aligned table and what it is asked; answers are kept, and a stopped run goes on there."""

    workdir: Path
    words: str
    name: str
    kind: str
    table: AlignedTable
    align_by: str
    seed: int

    def score(self, protocol: ProfileProtocol) -> tuple[dict[str, Any] | None, str]:
        """`Score.to_row` of a protocol, or None and why there is none."""

        def make() -> list[Any]:
            try:
                score = protocol.score(
                    self.table, representation=self.name, kind=self.kind, seed=self.seed
                )
            except InputError as error:
                return [None, str(error)]
            return [dataclasses.replace(score, benchmark=self.words).to_row(), ""]

        row, reason = self._kept(protocol.name, identity_of(protocol), make)
        return row, reason

    def nuisance(
        self, numbers: Mapping[str, np.ndarray], ids: list[str]
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """`nuisance_rows` of the table."""
        held = [(name, digest(values)) for name, values in numbers.items()]
        mixing = importlib.util.find_spec("scib_metrics") is not None  # may be installed later
        rows, absent = self._kept(
            "nuisance", [held, ids, mixing], lambda: nuisance_rows(self.table, dict(numbers), ids)
        )
        return rows, absent

    @functools.cached_property
    def _digest(self) -> list[str]:
        return table_digest(self.table)

    def _kept(self, what: str, made_of: Any, make: Callable[[], Any]) -> Any:
        about = [self._digest, self.words, self.align_by, self.kind, self.seed]
        name = f"{self.name}-{self.words}-{what}"
        return kept(self.workdir / "scores", name, [about, made_of], make)


def _check_types(config: Config) -> None:
    """`InputError` for a key of a copied config that is not there, or of another type."""
    places: list[tuple[str, Config, dict[str, type]]] = [
        ("evaluate", config["evaluate"], SETTINGS),
        ("profiles", config["profiles"], SOURCES),
    ]
    for section, kinds in PARTS.items():
        many = section.endswith("s") or section == "extract"
        held = config["profiles"].get(section, {})
        held = held if many else {"": held}
        places += [(f"profiles.{section}{'.' * many}{k}", v, kinds) for k, v in held.items()]
    asked = config["evaluate"].get("retrieval", {})
    places += [(f"evaluate.retrieval.{name}", rules, PAIRS) for name, rules in asked.items()]
    for place, held, kinds in places:
        for key, kind in kinds.items():
            if key not in held:
                raise InputError(f"{place}: no key {key!r}, expected {', '.join(kinds)}")
            value = held[key]
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if not fits or (isinstance(value, bool) and kind is not bool):
                raise InputError(f"{place}.{key}: {value!r}, expected {kind.__name__}")
    for name, table in config["profiles"]["tables"].items():
        for key, kind in OWN_SOURCES.items():
            if key in table and not isinstance(table[key], kind):
                raise InputError(
                    f"profiles.tables.{name}.{key}: {table[key]!r}, expected {kind.__name__}"
                )
    settings = config["evaluate"]
    for key, least in (("permutations", 1), ("beyond_permutations", 1), ("least_replicates", 2)):
        if settings[key] < least:
            raise InputError(f"evaluate.{key}: {settings[key]}, expected {least} or more")
    if not 0.0 < settings["active_q"] <= 1.0:
        raise InputError(f"evaluate.active_q: {settings['active_q']}, expected 0 < q <= 1")
    if settings["consistency_of"] not in ASKED_OF:
        raise InputError(
            f"evaluate.consistency_of: {settings['consistency_of']!r}, expected "
            f"{' or '.join(ASKED_OF)}"
        )


def _protocols(
    settings: Config, table: FeatureTable, seed: int
) -> tuple[list[ProfileProtocol], dict[str, dict[str, Any]], dict[str, str]]:
    """Those that can be run, what the metadata alone score by each, and why others cannot."""
    protocols, not_run = find_protocols(
        settings["benchmarks"], list(table.obs.columns), settings, seed=seed
    )
    not_run |= audited_groups(settings["audit"], table.obs.columns)[1]
    audits: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        try:
            audits[protocol.name] = _audit(protocol, table, settings, seed)
        except InputError as error:  # the design has not what it asks for, whatever the features
            not_run[protocol.name] = str(error)
    protocols = [protocol for protocol in protocols if protocol.name in audits]
    if not protocols:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise InputError(f"evaluate.benchmarks: none of them can be run ({reasons})")
    return protocols, audits, not_run


def _of_active(
    protocols: Sequence[ProfileProtocol],
    audits: dict[str, dict[str, Any]],
    not_run: dict[str, str],
    tables: Mapping[str, FeatureTable],
    kinds: Mapping[str, str],
    alignments: Mapping[str, Alignment],
    settings: Config,
    workdir: Path,
    seed: int,
) -> list[ProfileProtocol]:
    """With consistency asked of active treatments alone, and its audit made again of those.

    One set for all tables, or each would answer a question of its own: what any of them, encoder or
    floor, finds active after the first alignment.
    """
    by_name = {protocol.name: protocol for protocol in protocols}
    activity, consistency = (by_name.get(of.name) for of in (Activity, Consistency))
    if consistency is None:
        return list(protocols)
    words, alignment = next(iter(alignments.items()))
    active: set[str] = set()
    why = "the benchmark activity, which finds active treatments, is not run"
    for name, table in tables.items():
        if activity is None:
            break
        aligned = align(table, alignment, batch=settings["align_by"])
        asker = _Asker(workdir, words, name, kinds[name], aligned, settings["align_by"], seed)
        row, why = asker.score(activity)  # kept, and found again when its turn comes
        active |= set(row["settings"]["active"]) if row is not None else set()
    try:
        if not active:
            raise InputError(why or "no table finds any treatment active")
        asked = dataclasses.replace(consistency, only=tuple(sorted(active)))
        audits[asked.name] = _audit(asked, next(iter(tables.values())), settings, seed)
    except InputError as error:
        not_run[consistency.name] = str(error)
        return [protocol for protocol in protocols if protocol is not consistency]
    return [asked if protocol is consistency else protocol for protocol in protocols]


def _numbers_and_ids(
    tables: Mapping[str, FeatureTable], kinds: Mapping[str, str], sources: Config
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The floors that are one number a well, by name, and what names each well."""
    first = next(iter(tables.values()))
    numbers = {
        name: table.layer(table.default)[:, 0].astype(np.float64)
        for name, table in tables.items()
        if kinds[name] not in ENCODERS and table.widths[table.default] == 1
    }
    named_by = command_line.names(sources["unique"])
    rows = [str(row) for row in range(len(first.obs))]
    return numbers, unit_names(first.obs, named_by).tolist() if named_by else rows


def _screening(
    protocols: Sequence[ProfileProtocol],
    aligned: Mapping[str, AlignedTable],
    encoders: list[str],
    settings: Config,
    seed: int,
) -> Screening:
    if not settings["screening"]:
        return Screening({}, {}, {})
    activity = next((p for p in protocols if p.name == Activity.name), None)
    return screening(
        aligned, encoders, activity=activity, permutations=settings["permutations"], seed=seed
    )


def _write_tables(folder: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One csv an output, which the report has a summary of."""
    for name, rows in tables.items():
        if rows:
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(folder / f"{name}.csv", rows)


def _nested(array: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in array]


def _alignments(text: str) -> dict[str, Alignment]:
    """By the words of "none; tvn; mad_robustise,tvn"; the first one is the primary one."""
    words = [part.strip() or "none" for part in text.split(";")]
    if len(set(words)) < len(words):
        raise InputError(f"evaluate.alignments: {text!r} names one twice")
    return {part: find_alignment(part) for part in words}


def _read_tables(sources: Config, workdir: Path) -> dict[str, FeatureTable]:
    """The tables of the config, by name, each with the metadata of the first.

    Raises `InputError` where the columns that two of them have say different things, or there are
    none by which to tell that their wells are the same.
    """
    shared: dict[str, Any] = {
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
            ignore=command_line.names(about["ignore"]),
            beside=about.get("beside", sources["beside"]),
            metadata=dict(about.get("metadata", sources["metadata"])), **shared,
        )  # fmt: skip
        table = _rolled_up(table, sources["rollup"])
        # Numbers may well be names here: plates 1, 2 and 3 have no mean.
        text = {c: table.obs[c].astype(str).where(has_value(table.obs[c]))
                for c in NAMES if c in table.obs}  # fmt: skip
        found[name] = dataclasses.replace(table, obs=table.obs.assign(**text))
    if not found:
        raise InputError("profiles.tables: none, expected the features of at least one encoder")
    first = next(iter(found))
    obs = found[first].obs
    for name, table in found.items():
        _check_same_wells(first, obs, name, table.obs, command_line.names(sources["unique"]))
    obs = _with_flag(obs, CONTROL, sources["control"], "control")
    obs = _with_flag(obs, POSITIVE, sources["positive"], "positive")
    return {name: dataclasses.replace(table, obs=obs) for name, table in found.items()}


def _check_same_wells(
    first: str, obs: pd.DataFrame, name: str, other: pd.DataFrame, unique: Sequence[str]
) -> None:
    """`InputError` unless the rows of two tables are the same wells in the same order.

    Files from different places have columns of their own; what decides is what both have, which
    must name a row (`unique`; where the config names no such columns, all must be in both).
    """
    expected = "expected the same wells in the same order"
    told = f"profiles.tables: {name} and {first} have other metadata"
    names = [c for c in unique if c in obs] or [*obs.columns, *other.columns]
    for column in names:
        if column not in obs or column not in other:
            lacks = first if column not in obs else name
            raise InputError(f"{told}: {lacks} has no column {column!r}, {expected}")
    if len(obs) != len(other):
        raise InputError(f"{told}: {len(other)} and {len(obs)} rows, {expected}")
    for column in obs.columns.intersection(other.columns, sort=False):
        here, there = obs[column], other[column]
        if pd.api.types.is_numeric_dtype(here) and pd.api.types.is_numeric_dtype(there):
            same = np.isclose(here.astype(float), there.astype(float), equal_nan=True)
        else:
            same = (here.astype(str) == there.astype(str)).to_numpy()
        if not same.all():
            row = int(np.argmin(same))
            raise InputError(
                f"{told}: {column!r} of row {row} is {there.iloc[row]!r} and {here.iloc[row]!r}, "
                f"{expected}"
            )


def _rolled_up(table: FeatureTable, about: Config) -> FeatureTable:
    """The rows of the file, cells perhaps, rolled up to wells as the config says."""
    levels = [command_line.names(level) for level in about["levels"].split(";") if level.strip()]
    return rolled_up(table, levels, about["average"], equal=about["equal"])


def _with_flag(obs: pd.DataFrame, flag: str, about: Config, key: str) -> pd.DataFrame:
    """The metadata with a column of true and false, where the config says which wells are it.

    Without a column in the config one of this name in the metadata is it, where it is there.
    """
    if not about["column"]:
        return obs.assign(**{flag: _flags(obs[flag], flag)}) if flag in obs else obs
    if about["column"] not in obs:
        raise InputError(
            f"profiles.{key}.column: {about['column']!r} is no column of the metadata, which "
            f"has {', '.join(obs.columns)}"
        )
    if flag in obs and about["column"] != flag:
        raise InputError(
            f"profiles.{key}: the metadata have a column {flag!r} of their own, expected another "
            "name for it, or that column here"
        )
    values = command_line.names(about["values"])
    held = obs[about["column"]].astype(str).isin(values).to_numpy()
    if not held.any():
        raise InputError(f"profiles.{key}: no well has {about['column']!r} {' or '.join(values)}")
    return obs.assign(**{flag: held})


def _flags(column: pd.Series, name: str) -> np.ndarray:
    """bool [n] of true and false as a file may write them."""
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    found = column.astype(str).str.lower().map(words)
    if found.isna().any():
        row = int(np.argmax(found.isna().to_numpy()))
        raise InputError(
            f"column {name!r} of row {row} is {column.iloc[row]!r}, expected true or false"
        )
    return found.to_numpy(bool)


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


def _audit(
    protocol: ProfileProtocol, table: FeatureTable, settings: Config, seed: int
) -> dict[str, Any]:
    """What columns of the metadata score by the protocol itself, each group that the config names.

    Raises `InputError` where wells and labels are none that the protocol can score.
    """
    also = (ARM,) if protocol.target.column == GENE else ()
    groups, _ = audited_groups(settings["audit"], table.obs.columns, also=also)
    found: dict[str, Score] = {}
    for chosen in groups:
        name = JOINT.join(chosen)
        found[name] = protocol.score(
            of_metadata(table, chosen), representation=name, kind="metadata", seed=seed
        )
    if not found:  # can it be scored at all?
        held = of_metadata(table, [protocol.target.column])
        protocol.score(held, representation="", kind="metadata", seed=seed)
    return audit_of_scores(
        found, list(found), name=protocol.name, metric=protocol.target.metric,
        delta=settings["delta"],
    )  # fmt: skip


def _judged(
    scores: Sequence[Score],
    protocols: Sequence[ProfileProtocol],
    audits: Mapping[str, Mapping[str, Any]],
    floors: Sequence[str],
    omitted: Mapping[str, str],
    settings: Config,
    primary: str,
) -> tuple[list[Score], list[Verdict]]:
    """Verdicts, and the scores with their words.

    The protocols after one alignment are a family of tests: the primary alignment's are not made
    to pay for others that were tried beside it, whose verdicts say that nothing pays for them.
    """
    targets = [
        {"name": protocol.name, "nuisance": False, "audit": audits[protocol.name]}
        for protocol in protocols
    ]
    verdicts: list[Verdict] = []
    for words in dict.fromkeys(score.benchmark for score in scores):
        found = judge(
            cases(
                [score for score in scores if score.benchmark == words],
                targets,
                floors,
                omitted=omitted,
                delta=settings["delta"],
                overlap={protocol.name: 0.0 for protocol in protocols},
            )
        )
        verdicts += found if words == primary else secondary(found, "alignment")
    return with_verdicts(scores, audits, verdicts), verdicts


def _target_row(
    protocol: ProfileProtocol, obs: pd.DataFrame, audited: Mapping[str, Any]
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

"""The field's protocols on profiles, by the names that a config gives them.

Each reads columns of the metadata by fixed names; one whose column is not there is not run, and
says which. `ProfileProtocol.target` is what a score is of: its unit, its label and its metric.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks import compound_gene, relationships, retrieval
from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.moa import DEEPPROFILER, NSC, UNIDINO, Moa
from bioimg_jax.benchmarks.pair_retrieval import PairRetrieval
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.command_line import names
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, target_rows, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, AlignedTable, controls_of, unaligned
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.pairs import PairRules
from bioimg_jax.representations.metadata import MetadataRepresentation
from bioimg_jax.representations.representation import ENCODERS

COMPOUND, DOSE, CLASS, PLATE, BATCH = "compound", "dose", "moa", "plate", "batch"
GENE, ARM = "gene", "chromosome_arm"
RULES = ("pos_sameby", "pos_diffby", "neg_sameby", "neg_diffby")
KEY = "evaluate.benchmarks"


@dataclasses.dataclass(frozen=True)
class ProfileProtocol:
    """A benchmark of profiles and what it is asked.

    needs: the columns it reads.
    permuted, blocks, within, once: what a conditional score permutes (`benchmarks/beyond.py`): the
      joint value of these columns, among blocks (of rows each: none named), inside the joint value
      of these columns; once: each value is there in one block only, as the name of a gene is.
    only: treatments, by the joint value of the benchmark's columns of one, that it is asked of,
      and no others; None for all.
    """

    benchmark: Benchmark
    target: Target
    needs: tuple[str, ...]
    permuted: tuple[str, ...]
    blocks: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    once: bool = False
    only: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.benchmark.name

    def with_settings(self, **changes: Any) -> "ProfileProtocol":
        """With other settings of its benchmark, of those that it has."""
        made: Any = self.benchmark
        known = {key: value for key, value in changes.items() if hasattr(made, key)}
        return dataclasses.replace(self, benchmark=dataclasses.replace(made, **known))

    def untested(self) -> "ProfileProtocol":
        """The same metric in less time, for scores whose own p-values nobody reads.

        Without permutations; where chance is made of them (activity) with fewer, because by random
        rankings it would be another metric of the same name.
        """
        made: Any = self.benchmark
        fewest = getattr(made, "fewest_permutations", 0)
        return self.with_settings(permutations=min(fewest, getattr(made, "permutations", 0)))

    def fold(self, obs: pd.DataFrame) -> Fold:
        """The wells it is about: those with a label that are no controls. There is no training."""
        wells = target_rows(obs, self.target)
        wells = wells[~controls_of(obs)[wells]]
        if self.only is not None:
            made: Any = self.benchmark
            wells = wells[np.isin(unit_names(obs.iloc[wells], made.treatment), self.only)]
        if not len(wells):
            raise InputError(
                f"{self.name}: no well that is no control has a {self.target.column!r}"
                + ("" if self.only is None else f" and one of {len(self.only)} active treatments")
            )
        nobody = np.array([], np.int64)
        return Fold("all", nobody, nobody, wells, self.target.unit)

    def score(self, table: AlignedTable, *, representation: str, kind: str, seed: int) -> Score:
        """Of an aligned table, which has one layer."""
        (score,) = self.benchmark.scores(
            table, [self.fold(table.obs)], self.target, representation=representation, kind=kind,
            seed=seed, exposure="unknown" if kind in ENCODERS else "none",
            settings={} if self.only is None else {"n_active_asked": len(self.only)},
            permute_labels_seed=None,
        )  # fmt: skip
        return score


def find_protocols(
    text: str, columns: Sequence[str], options: Mapping[str, Any], *, seed: int
) -> tuple[list[ProfileProtocol], dict[str, str]]:
    """Those of "nsc,activity" whose columns are there, in their order; and why others are not run.

    columns: of the metadata. A treatment is a compound at a dose, where there is a column `DOSE`.
    options: "average", "permutations", "pair_lists", "activities" and "retrieval" of the config;
      "active_q" and "least_replicates", by default as in `benchmarks/retrieval.py`.
    Raises `InputError` for a name that there is not, one given twice, or none at all.
    """
    treatment = (COMPOUND, DOSE) if DOSE in columns else (COMPOUND,)
    plate = (PLATE,) if PLATE in columns else ()
    average, permutations = options["average"], options["permutations"]
    q = options.get("active_q", retrieval.ACTIVE)
    replicates = options.get("least_replicates", retrieval.REPLICATES)

    cuts = _percentiles(options.get("percentiles", ""))

    def moa(rule: str, *batch: str) -> list[ProfileProtocol]:
        benchmark = Moa(rule, average=average, treatment=treatment, batch=batch)
        target = _target(benchmark.name, CLASS, "accuracy", COMPOUND)
        return [
            ProfileProtocol(benchmark, target, (COMPOUND, CLASS, *batch), (CLASS,), (COMPOUND,))
        ]

    def activity() -> list[ProfileProtocol]:
        benchmark = retrieval.Activity(treatment, plate, permutations, seed, q, replicates)
        target = _target(benchmark.name, COMPOUND, retrieval.METRIC, COMPOUND)
        permuted = (*treatment, CONTROL)
        return [ProfileProtocol(benchmark, target, (COMPOUND, CONTROL), permuted, within=plate)]

    def consistency() -> list[ProfileProtocol]:
        benchmark = retrieval.Consistency(treatment, average, permutations, seed, active_q=q)
        target = _target(benchmark.name, CLASS, retrieval.METRIC, COMPOUND)
        return [ProfileProtocol(benchmark, target, (COMPOUND, CLASS), (CLASS,), (COMPOUND,))]

    def recall() -> list[ProfileProtocol]:
        found = []
        for source in names(options["pair_lists"]):
            is_file = Path(source).suffix in (".csv", ".tsv")
            pairs = (
                relationships.read_pairs(Path(source))
                if is_file
                else relationships.installed_pairs(source)
            )
            benchmark = relationships.Relationships(pairs, permutations, seed, ARM, cuts)
            target = _target(benchmark.name, GENE, relationships.METRIC, GENE)
            found.append(ProfileProtocol(benchmark, target, (GENE,), (GENE,), (GENE,), once=True))
        return found

    def targets_of_compounds() -> list[ProfileProtocol]:
        if not options["activities"]:
            return []
        known = compound_gene.read_activities(Path(options["activities"]))
        benchmark = compound_gene.CompoundGene(known, GENE, DOSE, seed=seed)
        target = _target(benchmark.name, COMPOUND, compound_gene.METRIC, COMPOUND)
        needs = (COMPOUND, GENE, DOSE)
        return [ProfileProtocol(benchmark, target, needs, (GENE,), (GENE,), once=True)]

    def by_pair_rules() -> list[ProfileProtocol]:
        found = []
        for name, asked in sorted(options["retrieval"].items()):
            own = {key: tuple(names(asked[key])) for key in RULES}
            benchmark = PairRetrieval(
                PairRules(**own, multilabel=asked["multilabel"] or None), asked["null"],
                tuple(names(asked["within"])), permutations, seed, q, name=f"retrieval_{name}",
            )  # fmt: skip
            label, unit = benchmark.label, asked["unit"]
            target = _target(benchmark.name, label, retrieval.METRIC, unit)
            needs = tuple(dict.fromkeys((*benchmark.rules.columns, unit, *benchmark.within)))
            moved = (label, CONTROL) if benchmark.of_controls else (label,)
            blocks = () if unit == label else (unit,)
            found.append(ProfileProtocol(benchmark, target, needs, moved, blocks, benchmark.within))
        return found

    makers: dict[str, Callable[[], list[ProfileProtocol]]] = {
        "nsc": lambda: moa(NSC),
        "nscb_deepprofiler": lambda: moa(DEEPPROFILER, BATCH),
        "nscb_unidino": lambda: moa(UNIDINO, BATCH),
        "activity": activity,
        "consistency": consistency,
        "relationships": recall,
        "compound_gene": targets_of_compounds,
        "retrieval": by_pair_rules,
    }
    # What the config does not name, and the columns that its protocols would read besides.
    lacks: dict[str, tuple[str, tuple[str, ...]]] = {
        "relationships": ("evaluate.pair_lists names no list of known pairs", (GENE,)),
        "compound_gene": (
            "evaluate.activities names no file of known activities",
            (COMPOUND, GENE, DOSE),
        ),
        "retrieval": ("evaluate.retrieval names no pair rules", ()),
    }
    asked = names(text)
    if not asked or len(set(asked)) < len(asked):
        raise InputError(f"{KEY}: {text!r}, expected some of {', '.join(makers)}")
    found, missing = [], {}
    for name in asked:
        if name not in makers:
            raise InputError(f"{KEY}: {name!r}, expected some of {', '.join(makers)}")
        made = makers[name]()
        if not made:
            reason, needs = lacks[name]
            absent = [column for column in needs if column not in columns]
            and_no = f", and {_no_column(absent)}" if absent else ""
            missing[name] = reason + and_no
        for protocol in made:
            absent = [column for column in protocol.needs if column not in columns]
            if absent:
                missing[protocol.name] = _no_column(absent)
            else:
                found.append(protocol)
    if len({protocol.name for protocol in found}) < len(found):
        raise InputError(
            f"evaluate.pair_lists: {options['pair_lists']!r}, expected lists of different names"
        )
    return found, missing


def _no_column(absent: Sequence[str]) -> str:
    return f"the metadata have no column {' and no column '.join(absent)}"


def of_metadata(table: FeatureTable, columns: Sequence[str]) -> AlignedTable:
    """Columns of the metadata as the features of a table."""
    made = MetadataRepresentation(table.obs, columns)
    ((_, features),) = made.features({"index": np.arange(len(table.obs))}).items()
    return unaligned(table, np.asarray(features))


def _percentiles(text: str) -> tuple[float, float]:
    """The two of "0.05,0.95"; those of the protocol for ""."""
    if not text:
        return relationships.PERCENTILES
    try:
        low, high = map(float, names(text))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0.0 < low < high < 1.0:
        raise InputError(
            f'evaluate.percentiles: {text!r}, expected two numbers between 0 and 1: "0.05,0.95"'
        )
    return low, high


def _target(name: str, column: str, metric: str, unit: str) -> Target:
    about: dict[str, Any] = {"split": "leave_one_out", "metric": metric}
    return Target(name=name, column=column, unit=(unit,), **about)

"""What scores of images say beyond a confound: `evaluate.beyond`, after everything is scored.

Rows are plain JSON under "conditional" of results.json (docs/results_schema.md). Those of an
encoder are kept on disk: a run that was stopped goes on with the next one.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bioimg_jax import command_line
from bioimg_jax.benchmarks.benchmark import Benchmark, layers_for
from bioimg_jax.benchmarks.beyond_probe import Probed, beyond_itself, beyond_probe, label_blocks
from bioimg_jax.benchmarks.confound import Confound, refused_row
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.candidates import Config
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, rows_of
from bioimg_jax.errors import InputError
from bioimg_jax.features.aggregate import ProfileTable, aggregate
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.kept import kept
from bioimg_jax.representations.nuclei import FEATURE_NAMES
from bioimg_jax.representations.representation import ENCODERS

COUNT = "count"  # of nuclei, which the representation "nuclei" segments
NUCLEI = "nuclei"
# Keys of `evaluate` in a config.
ASKED, BLOCKS, PERMUTATIONS = "beyond", "beyond_blocks", "beyond_permutations"
TableOf = Callable[[str], FeatureTable]


def check_beyond(settings: Config, columns: Sequence[str], represented: Sequence[str]) -> None:
    """`InputError` for a confound, or a column of blocks, that there is not, or an older config.

    columns: of the metadata; represented: names of what is scored.
    """
    command_line.check_keys(settings, "evaluate", ASKED, BLOCKS, PERMUTATIONS)
    asked = command_line.names(settings[ASKED])
    if settings[PERMUTATIONS] < 1:
        raise InputError(f"evaluate.{PERMUTATIONS}: {settings[PERMUTATIONS]}, expected 1 or more")
    for name in asked:
        if name == COUNT and NUCLEI not in represented:
            raise InputError(
                f"evaluate.{ASKED}: {COUNT!r} is the number of nuclei; add {NUCLEI!r} to "
                "evaluate.representations"
            )
        if name != COUNT and name not in columns:
            raise InputError(
                f"evaluate.{ASKED}: {name!r}, expected {COUNT} or a column of the metadata, which "
                f"has {', '.join(columns)}"
            )
    for name in command_line.names(settings[BLOCKS]):
        if name not in columns:
            raise InputError(
                f"evaluate.{BLOCKS}: {name!r}, expected columns of the metadata, which has "
                f"{', '.join(columns)}"
            )


def n_asked(settings: Config, targets: Sequence[Target]) -> dict[str, int]:
    """Target -> confounds it is asked about: none of permuted labels and of nuisance columns."""
    asked = 0 if settings["permute_labels"] else len(command_line.names(settings[ASKED]))
    return {target.name: 0 if target.nuisance else asked for target in targets}


def conditional_rows(
    settings: Config,
    benchmarks: Sequence[Benchmark],
    targets: Sequence[Target],
    folds: Mapping[str, Sequence[Fold]],
    scores: Sequence[Score],
    table_of: TableOf,
    workdir: Path,
    *,
    seed: int,
    between: Callable[[], None],
) -> list[dict[str, Any]]:
    """Every encoder on every benchmark and target beyond every confound, and each beyond itself.

    Nothing for a run whose labels are permuted, and for targets that are nuisance columns.

    Args:
      folds: of each target, on rows of the tables.
      scores: of all representations; what is asked about are those of the layer validation chose.
      between: called after every question, whose rows are then kept; may raise to stop there.
    """
    asked = command_line.names(settings[ASKED])
    if not any(n_asked(settings, targets).values()):
        return []
    count = table_of(NUCLEI) if COUNT in asked else None
    found: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        for target in (target for target in targets if not target.nuisance):
            mine = _judged(scores, benchmark.name, target.name)
            for name in asked:
                about = {"benchmark": benchmark.name, "target": target.name, "beyond": name}
                ask = _Question(settings, benchmark, target, folds[target.name], name, count, seed)
                for score in mine.values():
                    representation = score.representation
                    found += [
                        about | {"representation": representation} | row
                        for row in ask.rows(table_of(representation), score, workdir)
                    ]
                    between()
                if mine:
                    score = next(iter(mine.values()))
                    table = table_of(score.representation)
                    found += [
                        about | {"representation": name} | row
                        for row in ask.itself(table, score, workdir)
                    ]
                    between()
                print(f"{target.name}, {benchmark.name}: beyond {name}", file=sys.stderr)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    """One benchmark, target and confound; count: the table of nuclei, where that is asked for."""

    settings: Config
    benchmark: Benchmark
    target: Target
    folds: Sequence[Fold]
    confound: str
    count: FeatureTable | None
    seed: int

    def rows(self, table: FeatureTable, score: Score, workdir: Path) -> list[dict[str, Any]]:
        """Of one encoder."""
        answers = score.answers
        scored = [None if answers is None else list(answers.layers), score.per_unit]
        ask = functools.partial(beyond_probe, answers=answers)
        return self._kept(table, score.representation, scored, workdir, ask)

    def itself(self, table: FeatureTable, score: Score, workdir: Path) -> list[dict[str, Any]]:
        """Of the confound, on the rows of an encoder's table."""
        ask = functools.partial(beyond_itself, answers=score.answers)
        return self._kept(table, "itself", [score.answers is None], workdir, ask)

    def _kept(
        self,
        table: FeatureTable,
        name: str,
        scored: list[Any],
        workdir: Path,
        ask: Callable[..., list[dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """The rows of one question, from disk if they are there."""
        permutations = self.settings[PERMUTATIONS]
        made_of = {
            "table": table.provenance["key"],
            "count": self.count.provenance["key"] if self.count is not None else None,
            "benchmark": self.benchmark.identity,
            "target": dataclasses.asdict(self.target),
            "folds": [fold.digests for fold in self.folds],
            "scored": scored,
            "settings": [self.settings[BLOCKS], permutations, self.seed],
        }

        def make() -> list[dict[str, Any]]:
            try:
                probed, confound, blocks = self._given(table)
            except InputError as error:
                return [refused_row(None, error) | {"blocks": None}]
            rows = ask(probed, confound, permutations=permutations, seed=self.seed)
            return [row | {"blocks": blocks} for row in rows]

        name = f"{name}-{self.benchmark.name}-{self.target.name}-{self.confound}"
        return list(kept(workdir / "beyond", name, made_of, make))

    def _given(self, table: FeatureTable) -> tuple[Probed, Confound, str]:
        """What the benchmark was given, profiles where the target declares them; the blocks."""
        part = table.only(layers_for(self.benchmark, table.widths))
        examples, folds = aggregate(part, self.folds, self.target)
        columns = command_line.names(self.settings[BLOCKS])
        if isinstance(examples, ProfileTable):
            told = {of: examples.column_of(table.obs, of) for of in columns}
            examples = dataclasses.replace(examples, obs=examples.obs.assign(**told))
        blocks, names = label_blocks(examples.obs, folds, self.target, columns)
        confound = self._confound(table, examples)
        if not columns and not confound.is_number:
            self._check_one_a_block(confound, names[rows_of(folds)], rows_of(folds), blocks)
        return Probed(self.benchmark, examples, folds, self.target, names), confound, blocks

    def _check_one_a_block(
        self, confound: Confound, names: np.ndarray, rows: np.ndarray, blocks: str
    ) -> None:
        """Blocks that were not named by the config are not cut by a confound either: whether the
        parts of a compound may change places on their own is not for software to guess."""
        values = confound.values.iloc[rows]
        several = values.groupby(names).nunique() > 1
        if several.any():
            raise InputError(
                f"{self.target.name}: labels were given to {blocks}, of which {several.idxmax()!r} "
                f"has several values of {confound.name}; name the columns of smaller blocks in "
                f"evaluate.{BLOCKS}, if labels may change places among those"
            )

    def _confound(self, table: FeatureTable, examples: FeatureTable) -> Confound:
        if self.confound == COUNT and self.count is not None:
            nuclei, _ = aggregate(self.count, self.folds, self.target)
            values = nuclei.layer(NUCLEI)[:, FEATURE_NAMES.index("count")]
            return Confound.of_number(COUNT, values, examples.obs)
        found = Confound.of_column(table.obs, self.confound)
        if isinstance(examples, ProfileTable):
            values = examples.column_of(table.obs, self.confound)
            return dataclasses.replace(found, values=values)
        return found


def _judged(scores: Sequence[Score], benchmark: str, target: str) -> dict[str, Score]:
    """Name -> the row of the layer that validation chose, of what was trained or imported."""
    return {
        score.representation: score  # the last one
        for score in scores
        if (score.benchmark, score.target) == (benchmark, target)
        and score.kind in ENCODERS
        and score.seed is not None
        and "held_out" not in score.settings
    }

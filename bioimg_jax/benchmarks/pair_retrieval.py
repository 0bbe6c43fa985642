"""Retrieval of wells by pair rules of a config's own: copairs' question, whatever it is.

A well's positives agree with it in every column of `pos_sameby` and differ in every column of
`pos_diffby`; its negatives follow their two rules (`probes/pairs.py`). Each well is a query of its
own; a column of several labels, "a|b", makes one query of each of them.

* **Controls** take part where the rules say `neg_diffby=control`: they are then the only negatives,
  and never those that an alignment has seen (`AlignedTable.parts`).
* **The label** is the first column of `pos_sameby`, or the one of several labels.
* **p-values** of every label: "permuted" shuffles it among wells that agree in `within`, the other
  rules stay (`statistics/map_null.permutation_p`); "copairs" compares with random rankings, as
  copairs does, which is too small a p where wells are alike for another reason (their plate). One
  of two parts (`statistics/parts.py`); q by Benjamini and Hochberg.
* **Value**: the mean over queries of (AP - E[AP]) / (1 - E[AP]), chance that of random rankings.
* **Units.** Where controls are the negatives a unit's value is its own; else its wells are others'
  neighbours, and it is a pseudo-value of the score without them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from bioimg_jax.benchmarks.classification import PSEUDO_VALUES
from bioimg_jax.benchmarks.profile_score import ProfileBenchmark, profile_score
from bioimg_jax.benchmarks.retrieval import ACTIVE, LEVEL, METRIC
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, rows_of, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, AlignedTable
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.average_precision import AveragePrecision, average_precision
from bioimg_jax.probes.pairs import PairRules
from bioimg_jax.statistics.map_null import permutation_p, ranking_p
from bioimg_jax.statistics.neighbours import with_angles
from bioimg_jax.statistics.parts import p_of_parts
from bioimg_jax.statistics.resampling import centred_pseudo_values

PERMUTED, COPAIRS = "permuted", "copairs"
SEPARATOR = "|"  # of the labels of a cell


@dataclasses.dataclass(frozen=True)
class PairRetrieval(ProfileBenchmark):
    """Mean normalised average precision of wells by these rules.

    null: `PERMUTED` or `COPAIRS`; permutations: of labels, or random rankings; 0 for no p-values.
    within: columns inside whose joint value labels are permuted.
    active_q: a label of a smaller q is active.
    jackknife: without it units that are others' neighbours have no values.

    Raises:
      InputError: a null that there is not, controls anywhere but in `neg_diffby`, or rules whose
        label no negatives of permuted labels follow.
    """

    rules: PairRules
    null: str = PERMUTED
    within: tuple[str, ...] = ()
    permutations: int = 1_000
    seed: int = 0
    active_q: float = ACTIVE
    jackknife: bool = True
    name: str = "retrieval"
    metric = METRIC

    def __post_init__(self) -> None:
        rules = self.rules
        if self.null not in (PERMUTED, COPAIRS):
            raise InputError(f"{self.name}: null {self.null!r}, expected {PERMUTED} or {COPAIRS}")
        if not rules.pos_sameby:
            raise InputError(f"{self.name}: pos_sameby names no column, expected one or more")
        if CONTROL in (*rules.pos_sameby, *rules.pos_diffby, *rules.neg_sameby):
            raise InputError(f"{self.name}: {CONTROL!r} may stand in neg_diffby alone")
        if self.of_controls and rules.multilabel:
            raise InputError(f"{self.name}: wells of several labels have no controls as negatives")
        if self.null == PERMUTED and not (self.of_controls or self.label in rules.neg_diffby):
            raise InputError(
                f"{self.name}: labels are permuted where negatives differ in the label; add "
                f"{self.label!r} to neg_diffby, or take the null {COPAIRS}"
            )

    @property
    def label(self) -> str:
        return self.rules.multilabel or self.rules.pos_sameby[0]

    @property
    def of_controls(self) -> bool:
        """Are controls the negatives?"""
        return CONTROL in self.rules.neg_diffby

    @property
    def besides(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @property
    def settings(self) -> dict[str, Any]:
        rules = {key: list(value) if isinstance(value, (tuple, list)) else value
                 for key, value in dataclasses.asdict(self.rules).items()}  # fmt: skip
        return {
            **rules,
            "null": self.null,
            "within": list(self.within),
            "permutations": self.permutations,
            "active_q": self.active_q,
        }

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        """One score. Raises `InputError` where no well has a positive and a negative."""
        self.check(target)
        if not isinstance(table, AlignedTable):
            raise InputError(f"{self.name} needs a table of profiles, by `features.aligned`")
        wells = rows_of(folds)
        nobody = np.zeros(len(table.obs), bool)
        parts = list(table.parts()) if self.of_controls else [(table.features, nobody)]
        asked = [_Asked.of(self, table.obs, wells, *part) for part in parts]
        scored = [part.scored() for part in asked]
        value = float(np.mean([of.normalised.mean() for of in scored]))
        units = unit_names(table.obs, target.unit)
        names, per_unit = self._per_unit(asked, scored, units, value)
        tests = self._tests(asked, scored)
        n_active = int(np.sum(tests["q"] < self.active_q))
        some = len(tests) > 0
        excluded = pd.DataFrame([of.excluded for of in scored]).mean()
        return [
            profile_score(
                self.name,
                target,
                names,
                per_unit,
                value,
                chance=0.0,
                layer=table.default,
                about=about,
                other_metrics={
                    "map": float(np.mean([of.values.mean() for of in scored])),
                    "fraction_active": n_active / len(tests) if some else None,
                    "fraction_p05": float(np.mean(tests["p"] <= LEVEL)) if some else None,
                },
                settings={
                    **self.settings,
                    "parts": len(asked),
                    "n_queries": int(np.mean([len(of.queries) for of in scored])),
                    "n_excluded": {reason: int(number) for reason, number in excluded.items()},
                    "n_tested": len(tests),
                    "n_active": n_active,
                    "chance_by": "random rankings",
                    **({} if self.of_controls else {"per_unit": PSEUDO_VALUES}),
                },
            )
        ]

    def _per_unit(
        self,
        asked: Sequence["_Asked"],
        scored: Sequence[AveragePrecision],
        units: np.ndarray,
        value: float,
    ) -> tuple[list[str], np.ndarray]:
        """The units that ask, and the value of each."""
        of_query = pd.concat([
            pd.Series(of.normalised, index=units[part.rows[of.queries]].astype(str))
            for part, of in zip(asked, scored, strict=True)
        ]).groupby(level=0, sort=True)  # fmt: skip
        means = of_query.mean()
        if self.of_controls:
            return means.index.tolist(), means.to_numpy()
        if not self.jackknife:
            return [], np.array([])
        (part,) = asked
        own = units[part.rows].astype(str)
        without = [part.kept(own != unit).scored().normalised.mean() for unit in means.index]
        return means.index.tolist(), centred_pseudo_values(value, np.array(without))

    def _tests(self, asked: Sequence["_Asked"], scored: Sequence[AveragePrecision]) -> pd.DataFrame:
        """p and q of every label; nothing without permutations."""
        if not self.permutations:
            return pd.DataFrame({"p": [], "q": []})
        held = [part.p(of) for part, of in zip(asked, scored, strict=True)]
        p = p_of_parts(pd.concat(held).groupby(level=0, sort=True).mean(), len(held))
        return pd.DataFrame({"p": p, "q": false_discovery_control(p)})


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """What one part of a table is asked: features [m, d] and metadata [m] of its rows, int [m].

    treated: bool [m], the wells that ask; the others are controls.
    """

    benchmark: PairRetrieval
    features: np.ndarray
    metadata: pd.DataFrame
    rows: np.ndarray
    treated: np.ndarray

    @classmethod
    def of(
        cls,
        benchmark: PairRetrieval,
        obs: pd.DataFrame,
        wells: np.ndarray,
        features: np.ndarray,
        negatives: np.ndarray,
    ) -> "_Asked":
        if benchmark.of_controls and not negatives.any():
            raise InputError(f"{benchmark.name}: no well is a control, expected some")
        rows = np.concatenate([wells, np.setdiff1d(np.flatnonzero(negatives), wells)])
        treated = np.arange(len(rows)) < len(wells)
        metadata = obs.iloc[rows].reset_index(drop=True)
        several = benchmark.rules.multilabel
        if several is not None:
            metadata[several] = [_labels(cell) for cell in metadata[several]]
        if benchmark.of_controls:
            metadata[CONTROL] = np.where(treated, "treated", CONTROL)
        return cls(benchmark, with_angles(features[rows]), metadata, rows, treated)

    def kept(self, of: np.ndarray) -> "_Asked":
        """Those of these rows, bool [m], alone."""
        return dataclasses.replace(
            self,
            features=self.features[of],
            metadata=self.metadata[of].reset_index(drop=True),
            rows=self.rows[of],
            treated=self.treated[of],
        )

    def scored(self) -> AveragePrecision:
        return average_precision(
            self.features, self.metadata, self.benchmark.rules, queries=self.treated
        )

    def p(self, scored: AveragePrecision) -> pd.Series:
        """Of every label with a query, by its name."""
        benchmark, rules = self.benchmark, self.benchmark.rules
        if benchmark.null == COPAIRS:
            labels = scored.labels
            if labels is None:
                labels = self.metadata[benchmark.label].to_numpy(object)[scored.queries]
            test = ranking_p(scored, labels, rankings=benchmark.permutations, seed=benchmark.seed)
        else:
            told = (benchmark.label, CONTROL)  # by other arguments
            others = {
                key: tuple(column for column in getattr(rules, key) if column not in told)
                for key in ("pos_sameby", "pos_diffby", "neg_sameby", "neg_diffby")
            }
            test = permutation_p(
                self.features, self.metadata, benchmark.label,
                controls=~self.treated if benchmark.of_controls else None,
                within=benchmark.within, multilabel=rules.multilabel is not None,
                permutations=benchmark.permutations, seed=benchmark.seed, **others,
            )  # fmt: skip
        return pd.Series(test.p, index=[str(group) for group in test.groups])


def _labels(cell: object) -> list[str]:
    """Those of "a|b", in order, each once."""
    parts = (part.strip() for part in str(cell).split(SEPARATOR))
    return list(dict.fromkeys(part for part in parts if part))

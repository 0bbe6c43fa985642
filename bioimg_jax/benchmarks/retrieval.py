"""Are replicates found among controls, and treatments of one class among the others?

    activity     replicates of a treatment against control wells (phenotypic activity)
    consistency  treatments of one class against those of others, on their profiles

Both rank by cosine and score by average precision (`probes/average_precision.py`), of which the
part above chance is taken: (AP - E[AP]) / (1 - E[AP]), 0 by chance and 1 at best, so that groups of
different sizes are one mean (Kalinin et al., Nature Communications 16, 2025).

* **Chance.** Of consistency the exact expectation over random rankings. Of activity what its own
  labels score when they are permuted among the treatment's wells and the controls of their plates:
  wells of one plate share what aligning it got wrong, so that negatives of the own plate are nearer
  than replicates on others, and without an effect the average precision lies below that of random
  rankings (32 features, 8 controls a plate: -0.4 on the scale where chance is 0). The value by
  random rankings, copairs' `normalized_average_precision`, stands beside it in `other_metrics`.
* **One column**, as some floors have, gets a constant one: `neighbours.with_angles`.
* **Controls.** An alignment and the negatives never share controls: `AlignedTable.parts`. A value
  is the mean over the parts.
* **Units.** The compound. For activity a compound's value is its own, whatever other compounds do;
  for consistency its treatments are others' neighbours, so it is a pseudo-value of the whole score
  without them.
* **Which treatments are active**: p-values by permuted labels within plates
  (`statistics/map_null.py`), one of two parts (`statistics/parts.py`); q by Benjamini and Hochberg.
  **Which classes are consistent**: the same by classes permuted among compounds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from bioimg_jax.benchmarks.classification import PSEUDO_VALUES
from bioimg_jax.benchmarks.moa import Treatments
from bioimg_jax.benchmarks.profile_score import ProfileBenchmark, profile_score
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import AlignedTable
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.average_precision import average_precision, chance
from bioimg_jax.probes.pairs import PairRules
from bioimg_jax.statistics.map_null import permutation_p
from bioimg_jax.statistics.neighbours import unit_rows, with_angles
from bioimg_jax.statistics.parts import p_of_parts
from bioimg_jax.statistics.resampling import centred_pseudo_values

ACTIVE = 0.05  # q below it
REPLICATES = 2  # of a treatment: one has no other to be found
LEVEL = 0.05  # of a p-value by itself: its share where no treatment does anything
METRIC = "normalised_map"
BY_RANKINGS = "normalised_map_by_rankings"
DIGITS = 9  # of a cosine, beyond which two are equal
GROUP, TREATED = "treatment", "treated"  # columns that pairs are made by


@dataclasses.dataclass(frozen=True)
class Activity(ProfileBenchmark):
    """Mean normalised average precision of replicates against controls.

    treatment: columns whose joint value is one. plate: replicates are ranked among the controls of
    their own plate, and labels are permuted inside it; without it among all controls.
    permutations: 0 for no p-values, and then no treatment is tested, and chance is that of random
    rankings: another metric. `ProfileProtocol.untested` keeps the metric.
    active_q: a treatment of a smaller q is active. least_replicates: wells a treatment has to have;
    those of others are not there, and the treatments are counted ("n_few_replicates").
    """

    treatment: tuple[str, ...] = ("compound", "dose")
    plate: tuple[str, ...] = ()
    permutations: int = 1_000
    seed: int = 0
    active_q: float = ACTIVE
    least_replicates: int = REPLICATES
    name: str = "activity"
    metric = METRIC
    fewest_permutations: ClassVar[int] = 99  # that its chance is made of, where no p is asked for

    @property
    def besides(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "treatment": list(self.treatment),
            "plate": list(self.plate),
            "permutations": self.permutations,
            "active_q": self.active_q,
            "least_replicates": self.least_replicates,
        }

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        """One score. Raises `InputError` for a table without controls, or without replicates."""
        self.check(target)
        if not isinstance(table, AlignedTable):
            raise InputError(f"{self.name} needs a table with controls, by `features.aligned`")
        wells = np.unique(np.concatenate([fold.test for fold in folds]))
        asked = pd.Series(unit_names(table.obs.iloc[wells], self.treatment))
        size = asked.groupby(asked).transform("size").to_numpy()
        enough = size >= self.least_replicates
        if not enough.any():
            raise InputError(
                f"{self.name}: no treatment has {self.least_replicates} wells, the least that "
                "evaluate.least_replicates asks for"
            )
        wells = wells[enough]
        parts = [self._part(table.obs, wells, *part) for part in table.parts()]
        found, excluded = ([part[side] for part in parts] for side in (0, 1))
        by_treatment = pd.concat(found).groupby(level=0, sort=True)
        mean = by_treatment[METRIC].mean()
        p = p_of_parts(by_treatment["p"].mean(), len(found))
        tested = p.notna().to_numpy()
        q = np.full(len(p), np.nan)
        if tested.any():
            q[tested] = false_discovery_control(p[tested])
        names = unit_names(table.obs.iloc[wells], self.treatment)
        units = pd.Series(unit_names(table.obs.iloc[wells], target.unit), index=names)
        of_unit = units[~units.index.duplicated()].reindex(mean.index)
        per_unit = mean.groupby(of_unit.to_numpy()).mean()
        active = mean.index[q < self.active_q].tolist()
        return [
            profile_score(
                self.name,
                target,
                per_unit.index.tolist(),
                per_unit.to_numpy(),
                float(per_unit.mean()),
                chance=0.0,
                layer=table.default,
                about=about,
                other_metrics={
                    "map": float(by_treatment["map"].mean().mean()),
                    BY_RANKINGS: float(by_treatment[BY_RANKINGS].mean().mean()),
                    "fraction_active": len(active) / max(int(tested.sum()), 1),
                    "fraction_p05": float(np.mean(p[tested] <= LEVEL)) if tested.any() else None,
                },
                settings={
                    **self.settings,
                    "parts": len(found),
                    "n_treatments": len(mean),
                    "n_tested": int(tested.sum()),
                    "n_active": len(active),
                    "active": active,
                    "n_few_replicates": asked[~enough].nunique(),
                    "n_without_value": len(set(names)) - len(mean),
                    "n_excluded": pd.DataFrame(excluded).mean().astype(int).to_dict(),
                    "chance_by": "permuted labels" if self.permutations else "random rankings",
                },
            )
        ]

    def _part(
        self, obs: pd.DataFrame, wells: np.ndarray, features: np.ndarray, negatives: np.ndarray
    ) -> tuple[pd.DataFrame, dict[str, int]]:
        """Of every treatment with replicates: normalised mAP, mAP and p, by its name; and how many
        wells have none of it, by reason."""
        if not negatives.any():
            raise InputError(f"{self.name}: no well is a control, expected some on every plate")
        rows = np.concatenate([wells, np.setdiff1d(np.flatnonzero(negatives), wells)])
        treated = np.arange(len(rows)) < len(wells)
        pairs = obs.iloc[rows].reset_index(drop=True)
        names = unit_names(pairs, self.treatment)
        pairs[GROUP] = pd.Series(names).where(treated)
        pairs[TREATED] = treated.astype(str)
        rules = PairRules(pos_sameby=(GROUP,), neg_sameby=self.plate, neg_diffby=(TREATED,))
        wide = with_angles(features[rows])
        scored = average_precision(wide, pairs, rules, queries=treated)
        of_query = pd.DataFrame(
            {
                GROUP: names[scored.queries],
                METRIC: scored.normalised,
                "map": scored.values,
                BY_RANKINGS: scored.normalised,
            }
        )
        found = of_query.groupby(GROUP).mean()
        if not self.permutations:
            return found.assign(p=np.nan), scored.excluded
        test = permutation_p(
            wide, pairs, GROUP, controls=~treated, within=self.plate,
            neg_sameby=self.plate, permutations=self.permutations, seed=self.seed,
        )  # fmt: skip
        p, null = (pd.Series(of, index=test.groups) for of in (test.p, test.null))
        null = null.reindex(found.index)
        above = (found["map"] - null) / (1.0 - null)
        value = above.where(null.notna(), found[METRIC])
        return found.assign(**{METRIC: value}, p=p.reindex(found.index)), scored.excluded


@dataclasses.dataclass(frozen=True)
class Consistency(ProfileBenchmark):
    """Mean normalised average precision of treatments that share a class, of other compounds.

    average: of the wells of a treatment, "median" or "mean".
    permutations: of classes among compounds, for the p of every class; 0 for none.
    jackknife: without it a score has no values of units, and takes a step instead of one a unit.
    active_q: a class of a smaller q is consistent.
    """

    treatment: tuple[str, ...] = ("compound", "dose")
    average: str = "median"
    permutations: int = 0
    seed: int = 0
    jackknife: bool = True
    active_q: float = ACTIVE
    name: str = "consistency"
    metric = METRIC

    @property
    def besides(self) -> dict[str, Any]:
        return {"seed": self.seed}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "treatment": list(self.treatment),
            "average": self.average,
            "permutations": self.permutations,
            "active_q": self.active_q,
        }

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        """One score a layer. Raises `InputError` where no class has two compounds."""
        self.check(target)
        treatments = Treatments.of(
            table.obs,
            np.unique(np.concatenate([fold.test for fold in folds])),
            treatment=self.treatment,
            compound=target.unit,
            label=target.column,
        )
        asked = _with_partner(treatments)
        units = np.unique(treatments.compounds[asked]) if self.jackknife else np.array([], int)
        found = []
        for layer in table.widths:
            profiles = with_angles(treatments.profiles(table.layer(layer), self.average))
            value, mean_ap = _consistency(profiles, treatments, np.ones(len(profiles), bool))
            without = [
                _consistency(profiles, treatments, treatments.compounds != unit)[0]
                for unit in units
            ]
            p = np.array([])
            if self.permutations:
                p = _class_p(profiles, treatments, self.permutations, self.seed)
            n_consistent = int(np.sum(false_discovery_control(p) < self.active_q)) if len(p) else 0
            found.append(
                profile_score(
                    self.name,
                    target,
                    [treatments.compound_names[unit] for unit in units],
                    centred_pseudo_values(value, np.array(without)) if without else np.array([]),
                    value,
                    chance=0.0,
                    layer=layer,
                    about=about,
                    other_metrics={
                        "map": mean_ap,
                        "fraction_consistent": n_consistent / len(p) if len(p) else None,
                    },
                    settings={
                        **self.settings,
                        "per_unit": PSEUDO_VALUES,
                        "n_classes_tested": len(p),
                        "n_consistent": n_consistent,
                        "n_treatments": int(asked.sum()),
                        "n_alone": int((~asked).sum()),  # no other compound has their class
                    },
                )
            )
        return found


def _with_partner(treatments: Treatments) -> np.ndarray:
    """Treatments whose class some other compound has too, bool [t]."""
    held = pd.DataFrame({"compound": treatments.compounds, "label": treatments.labels})
    return (held.groupby("label")["compound"].transform("nunique") > 1).to_numpy()


def _consistency(
    profiles: np.ndarray, treatments: Treatments, kept: np.ndarray
) -> tuple[float, float]:
    """Mean normalised AP and mean AP of the treatments that are kept, bool [t]."""
    pairs = pd.DataFrame({"compound": treatments.compounds[kept], "label": treatments.labels[kept]})
    rules = PairRules(pos_sameby=("label",), pos_diffby=("compound",), neg_diffby=("label",))
    scored = average_precision(profiles[kept], pairs, rules)
    return float(scored.normalised.mean()), float(scored.values.mean())


def _class_p(
    profiles: np.ndarray, treatments: Treatments, permutations: int, seed: int
) -> np.ndarray:
    """p of every class with a partner, by classes permuted among compounds; float64 [classes].

    (1 + #{mean normalised AP of the class drawn ≥ its own})/(1 + permutations). All treatments of a
    compound move together. Of equal similarities those of the treatment that is named first come
    first, whatever the labels, so that every draw is asked the same.

    Memory: 25 bytes times the square of the number of treatments.
    """
    x = unit_rows(profiles)
    similarity = x @ x.T
    order = np.argsort(-np.round(similarity, DIGITS), axis=1, kind="stable")
    compounds = treatments.compounds
    foreign = compounds[order] != compounds[:, None]
    first = np.unique(compounds, return_index=True)[1]  # compounds are 0, 1, ...
    given = treatments.labels[first]
    tested = np.unique(treatments.labels[_with_partner(treatments)])

    def means(of_compound: np.ndarray) -> np.ndarray:
        label = of_compound[compounds]
        same = label[order] == label[:, None]
        positive, negative = same & foreign, ~same
        right = np.cumsum(positive, axis=1, dtype=np.int32)
        shown = right + np.cumsum(negative, axis=1, dtype=np.int32)
        n, total = right[:, -1], shown[:, -1]
        precision = np.divide(right, shown, where=positive, out=np.zeros(right.shape, np.float32))
        asks = (n > 0) & (total > n)
        value = precision.sum(axis=1)[asks] / n[asks]
        expected = chance(n[asks], total[asks])
        normalised = (value - expected) / (1.0 - expected)
        sums = np.bincount(label[asks], normalised, len(treatments.classes))
        return (sums / np.maximum(np.bincount(label[asks], minlength=len(sums)), 1))[tested]

    own = means(given)
    rng = np.random.default_rng(seed)
    above = sum(means(rng.permutation(given)) >= own - 1e-12 for _ in range(permutations))
    return np.asarray((1 + above) / (1 + permutations))

"""Mechanism of action: is the treatment that looks most alike, of another compound, in its class?

Wells become treatments (compound x dose) by mean or median, and every treatment takes the class of
its nearest neighbour by cosine among the treatments that a rule allows it:

    nsc           not the same compound (Ljosa et al., J Biomol Screen 18, 2013)
    deepprofiler  nor any in the same batch; as the notebook of DeepProfilerExperiments has it
    unidino       nor any of its class in the same batch; as the figures of uniDINO have it

The batch of a treatment is the set of batches of its wells. Both rules with batches leave out, as
queries and as neighbours, the classes in a single batch, which no treatment could be matched with.

* **Ties.** Similarities within `TIE` of the largest share the vote: the exact expectation over all
  orders of the treatments. Neither their order nor that of the wells changes anything.
* **Units.** The compound. Its neighbours are other units, so its value is a pseudo-value: the whole
  score, with the classes that take part, is computed again without it, as query and as neighbour.
* **Narrow tables.** An angle needs two columns, and many floors have one or few: as for `Knn` they
  get a constant column, here of the size of their features, so that it does not matter in which
  unit they are; and equal rows stay the nearest. Otherwise features are taken as they are, because
  what is done to them before (`features/alignment.py`) is part of the protocol.
* **Memory.** The similarities of all treatments, 8 t² bytes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.classification import PSEUDO_VALUES, permute_labels
from bioimg_jax.benchmarks.profile_score import ProfileBenchmark
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.knn import TIE
from bioimg_jax.statistics.intervals import t_interval
from bioimg_jax.statistics.neighbours import NARROW, unit_rows, with_angles
from bioimg_jax.statistics.resampling import centred_pseudo_values

NSC, DEEPPROFILER, UNIDINO = RULES = ("nsc", "deepprofiler", "unidino")
NAMES = {NSC: "nsc", DEEPPROFILER: "nscb_deepprofiler", UNIDINO: "nscb_unidino"}
AVERAGES: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median}


@dataclasses.dataclass(frozen=True, eq=False)
class Treatments:
    """Treatments [t], sorted by the values of their columns, and the wells behind them.

    wells: rows of the table, one array a treatment.
    compounds, labels, batches: int [t]; positions in compound_names, classes and batch_names.
    """

    names: list[str]
    wells: list[np.ndarray]
    compounds: np.ndarray
    labels: np.ndarray
    batches: np.ndarray
    compound_names: list[str]
    classes: list[str]
    batch_names: list[str]  # "Week1", or "Week1+Week4" for a treatment with wells in both

    @classmethod
    def of(
        cls,
        obs: pd.DataFrame,
        rows: np.ndarray,
        *,
        treatment: Sequence[str],
        compound: Sequence[str],
        label: str,
        batch: Sequence[str] = (),
    ) -> "Treatments":
        """The treatments of these rows of a table.

        Args:
          obs: metadata [n], a row a well.
          treatment, compound, batch: columns whose joint value is one of them; without `batch` all
            are in the same.

        Raises:
          InputError: a column that is not there or has a missing value; a treatment with several
            compounds or classes; no row at all.
        """
        mine = obs.iloc[rows]
        if not len(mine):
            raise InputError("no well has a class: check the target's label and its filter")
        for column in dict.fromkeys((*treatment, *compound, label, *batch)):
            if column not in obs.columns:
                raise InputError(
                    f"column {column!r} of the treatments does not exist; the metadata columns "
                    f"are: {', '.join(obs.columns)}"
                )
            missing = mine[column].isna().to_numpy()
            if missing.any():
                row = rows[np.argmax(missing)]
                raise InputError(f"row {row} has no {column!r}, expected one of every well")
        groups = mine.groupby(list(treatment), observed=True).ngroup().to_numpy()  # sorted
        first = np.unique(groups, return_index=True)[1]
        names = unit_names(mine.iloc[first], treatment)

        def one(values: np.ndarray, what: str) -> tuple[list[str], np.ndarray]:
            """The different values, sorted, and the position of each treatment's among them."""
            odd = np.flatnonzero(values != values[first][groups])
            if len(odd):
                group = groups[odd[0]]
                raise InputError(
                    f"treatment {names[group]!r} has the {what} {values[first[group]]!r} in row "
                    f"{rows[first[group]]} and {values[odd[0]]!r} in row {rows[odd[0]]}; "
                    "expected one"
                )
            different, position = np.unique(values[first].astype(str), return_inverse=True)
            return different.tolist(), position

        compound_names, compounds = one(unit_names(mine, compound), "/".join(compound))
        classes, labels = one(mine[label].astype(str).to_numpy(object), label)
        wells = [np.flatnonzero(groups == group) for group in range(len(first))]
        of_well = unit_names(mine, batch) if len(batch) else np.full(len(mine), "", object)
        batches_of = [tuple(sorted(set(of_well[well]))) for well in wells]
        different = sorted(set(batches_of))
        return cls(
            names=names.tolist(),
            wells=[rows[well] for well in wells],
            compounds=compounds,
            labels=labels,
            batches=np.array([different.index(batch) for batch in batches_of]),
            compound_names=compound_names,
            classes=classes,
            batch_names=["+".join(batch) for batch in different],
        )

    def profiles(self, features: np.ndarray, average: str) -> np.ndarray:
        """Features [n, d] of the table, averaged ("mean" or "median") to float64 [t, d].

        Values are sorted first, so that a sum has no trace of the order of the wells.
        """
        return np.stack([
            AVERAGES[average](np.sort(features[well].astype(np.float64), axis=0), axis=0)
            for well in self.wells
        ])  # fmt: skip

    def taking_part(self, rule: str, *, without: int = -1) -> np.ndarray:
        """Which are queries and neighbours, bool [t], once compound `without` is not there."""
        present = self.compounds != without
        if rule == NSC:
            return present
        held = np.zeros((len(self.classes), len(self.batch_names)), bool)
        held[self.labels[present], self.batches[present]] = True
        return present & (held.sum(axis=1) > 1)[self.labels]

    def allowed(self, rule: str) -> np.ndarray:
        """Whether the column may be the row's neighbour, bool [t, t]."""
        refused = self.compounds[:, None] == self.compounds[None, :]
        if rule != NSC:
            same_batch = self.batches[:, None] == self.batches[None, :]
            same_class = self.labels[:, None] == self.labels[None, :]
            refused |= same_batch if rule == DEEPPROFILER else same_batch & same_class
        takes_part = self.taking_part(rule)
        return ~refused & takes_part[:, None] & takes_part[None, :]


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """What the nearest neighbours say of every treatment, and what is left without each compound.

    takes_part: bool [t]; of the others nothing is counted.
    votes: float [t, c], the share of the nearest neighbours in each class.
    chance: float [t], the share of the allowed neighbours that are of the treatment's class.
    value: the share of right answers.
    without: float [g], the same without each of the compounds `units`, int [g], that take part;
      what then has no neighbour left is wrong.
    """

    treatments: Treatments
    takes_part: np.ndarray
    votes: np.ndarray
    chance: np.ndarray
    value: float
    without: np.ndarray
    units: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """Expected right answers of the treatments, float [t]."""
        return self.votes[np.arange(len(self.votes)), self.treatments.labels]

    @property
    def confusion(self) -> np.ndarray:
        """Expected numbers of treatments, float [c, c]: the row's class taken for the column's."""
        confusion = np.zeros((len(self.treatments.classes),) * 2)
        np.add.at(confusion, self.treatments.labels, self.votes)
        return confusion

    @property
    def per_class(self) -> dict[str, float]:
        """The share of right answers in each class that takes part."""
        mine = self.takes_part
        labels = self.treatments.labels[mine]
        counts = np.bincount(labels, minlength=len(self.treatments.classes))
        hits = np.bincount(labels, self.hits[mine], minlength=len(counts))
        return {
            self.treatments.classes[k]: float(hits[k] / counts[k]) for k in np.flatnonzero(counts)
        }

    @property
    def counts(self) -> np.ndarray:
        """Treatments of each unit, int [g]."""
        return np.bincount(self.treatments.compounds[self.takes_part])[self.units]

    @property
    def without_queries(self) -> np.ndarray:
        """As `without`, with the compound still among the neighbours, float [g]."""
        mine = self.takes_part
        hits = np.bincount(self.treatments.compounds[mine], self.hits[mine])[self.units]
        return (hits.sum() - hits) / (self.counts.sum() - self.counts)


@dataclasses.dataclass(frozen=True)
class Moa(ProfileBenchmark):
    """The share of treatments whose nearest neighbour is of their class; no probe, no folds.

    Scores the wells that some fold tests. The compound is the target's unit.

    treatment: columns whose joint value is a treatment. batch: those of a batch, which the rules
    "deepprofiler" and "unidino" need. jackknife: without it a score has no values of units.
    """

    rule: str = NSC
    average: str = "median"
    treatment: tuple[str, ...] = ("compound", "dose")
    batch: tuple[str, ...] = ()
    jackknife: bool = True
    metric = "accuracy"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"moa: rule {self.rule!r} is none of {', '.join(RULES)}")
        if self.average not in AVERAGES:
            raise InputError(f"moa: average {self.average!r} is none of {', '.join(AVERAGES)}")
        if not self.treatment:
            raise InputError("moa: no column of a treatment, expected for example compound, dose")
        if self.rule != NSC and not self.batch:
            raise InputError(f"moa: rule {self.rule!r} needs a column of the batch")

    @property
    def name(self) -> str:
        return NAMES[self.rule]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "average": self.average,
            "treatment": list(self.treatment),
            "batch": list(self.batch),
            "constant_column_below": NARROW,
        }

    def check(self, target: Target) -> None:
        super().check(target)
        if target.aggregate:
            raise InputError(
                f"target {target.name!r} aggregates over {'/'.join(target.aggregate)}; {self.name} "
                "takes the wells and averages them itself, expected no aggregate"
            )

    def scores(
        self,
        table: FeatureTable,
        folds: Sequence[Fold],
        target: Target,
        *,
        representation: str,
        kind: str,
        seed: int,
        exposure: str,
        settings: Mapping[str, Any] | None = None,
        permute_labels_seed: int | None = None,
    ) -> list[Score]:
        """One score a layer. There is no validation side, and so no row "selected".

        Raises `InputError` as `Treatments.of` and `match` do.
        """
        self.check(target)
        treatments = Treatments.of(
            table.obs,
            np.unique(np.concatenate([fold.test for fold in folds])),
            treatment=self.treatment,
            compound=target.unit,
            label=target.column,
            batch=self.batch,
        )
        shared = {**self.settings, "per_unit": PSEUDO_VALUES}
        if permute_labels_seed is not None:
            shared["permute_labels_seed"] = permute_labels_seed
            rng = np.random.default_rng(permute_labels_seed)
            labels = permute_labels(treatments.labels, treatments.compounds, rng)
            treatments = dataclasses.replace(treatments, labels=labels)
        found = []
        for layer, width in table.widths.items():
            profiles = treatments.profiles(table.layer(layer), self.average)
            profiles = with_angles(profiles)
            matches = match(profiles, treatments, self.rule, jackknife=self.jackknife)
            units = [treatments.compound_names[unit] for unit in matches.units]
            values, fixed = (
                centred_pseudo_values(matches.value, without) if units else np.array([])
                for without in (matches.without, matches.without_queries)
            )
            shown = t_interval(fixed)
            mine = matches.takes_part
            block, _, pooling = layer.rpartition("/")
            found.append(
                Score(
                    benchmark=self.name,
                    target=target.name,
                    split="no folds",
                    metric=target.metric,
                    higher_is_better=True,
                    chance=float(matches.chance[mine].mean()),
                    ceiling=float((matches.chance[mine] > 0).mean()),
                    representation=representation,
                    kind=kind,
                    block=block or layer,
                    pooling=pooling if block else "",
                    seed=seed,
                    value=matches.value,
                    per_unit=dict(zip(units, values.tolist(), strict=True)),
                    interval=t_interval(values),
                    n_units=len(units),
                    unit=target.unit,
                    exposure=exposure,
                    search_budget=1,
                    other_metrics={
                        "balanced_accuracy": float(np.mean(list(matches.per_class.values()))),
                        "fixed_gallery_low": None if shown is None else shown[0],
                        "fixed_gallery_high": None if shown is None else shown[1],
                    },
                    unit_rows=dict(zip(units, matches.counts.tolist(), strict=True)),
                    settings={
                        **shared,
                        "layer": layer,
                        "constant_column": width < NARROW,
                        "n_treatments": int(mine.sum()),
                        "n_left_out": int((~mine).sum()),
                        "per_class": matches.per_class,
                        "classes": treatments.classes,
                        "confusion": matches.confusion.tolist(),
                        **(settings or {}),
                    },
                )
            )
        return found


def match(
    profiles: np.ndarray, treatments: Treatments, rule: str, *, jackknife: bool = True
) -> Matches:
    """Nearest neighbours of profiles [t, d] by cosine; a profile of zeros is like no other.

    jackknife: otherwise no unit is left out, and `Matches.units` is empty.

    Raises `InputError` where fewer than two classes take part, or none without some compound.
    """
    labels, compounds = treatments.labels, treatments.compounds
    takes_part, allowed = treatments.taking_part(rule), treatments.allowed(rule)
    if len(np.unique(labels[takes_part])) < 2:
        raise InputError(
            f"{NAMES[rule]}: {len(np.unique(labels[takes_part]))} of {len(treatments.classes)} "
            "classes take part, expected two or more"
            + ("" if rule == NSC else " that are in several batches")
        )
    rows = unit_rows(profiles)
    similarity = rows @ rows.T
    classes = np.eye(len(treatments.classes))[labels]  # [t, c]
    nearest = _nearest(similarity, allowed)
    votes = _shares(nearest, classes)
    hits = (votes * classes).sum(axis=1)
    units = np.unique(compounds[takes_part]) if jackknife else np.array([], int)
    without = np.empty(len(units))
    for i, unit in enumerate(units):
        left = treatments.taking_part(rule, without=unit)
        if not left.any():
            name = treatments.compound_names[unit]
            raise InputError(f"{NAMES[rule]}: no treatment takes part without those of {name!r}")
        # An answer changes only if one of the nearest is gone.
        again = np.flatnonzero(left & nearest[:, ~left].any(axis=1))
        hits_left = hits.copy()
        nearest_left = _nearest(similarity[again], allowed[again] & left)
        hits_left[again] = (_shares(nearest_left, classes) * classes[again]).sum(axis=1)
        without[i] = hits_left[left].mean()
    return Matches(
        treatments=treatments,
        takes_part=takes_part,
        votes=votes,
        chance=(_shares(allowed, classes) * classes).sum(axis=1),
        value=float(hits[takes_part].mean()),
        without=without,
        units=units,
    )


def _nearest(similarity: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Which of the allowed are the nearest or tie with it, bool like the two [q, t]."""
    similarity = np.where(allowed, similarity, -np.inf)
    return allowed & (similarity >= similarity.max(axis=1, keepdims=True) - TIE)


def _shares(neighbours: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The share of each class among the neighbours [q, t] of a row, float [q, c]; 0 without any."""
    count = neighbours.sum(axis=1, keepdims=True)
    return (neighbours @ classes) / np.maximum(count, 1)

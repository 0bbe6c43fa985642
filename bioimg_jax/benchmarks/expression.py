"""Gene expression from H&E by the protocol of HEST-Benchmark, and by every variant in use, at once.

The protocol (Jaume et al., "HEST-1k", 2024): features are standardised by the training spots and
projected on their first 256 principal components; a ridge regression without intercept and with
alpha = 100 / (components · genes) predicts log1p of the raw counts of 50 genes; Pearson's r of a
gene is taken over the concatenated test spots of a fold, the score is the mean over genes and then
over folds. `PROTOCOLS` has the variants, each with one thing changed.

* **Width.** Where there are fewer than 256 features or training spots, as many components as there
  are, where the benchmark's own code stops; `Expression.settings` says how many. Decompositions are
  exact: the benchmark's own are a randomised one and an iterative solver.
* **Constant genes.** A gene whose counts do not differ among the test spots has no r. It is left
  out of the mean and counted, for every representation alike. Where only the prediction is
  constant, nothing was predicted: r is 0, and that is counted too.
* **Units.** The score is no mean over units (`Experiment.units`), so theirs are its jackknife
  pseudo-values: what a unit's test spots are worth, moved to have the score as their mean, so that
  a gain is the difference of two scores. The probes stay as they are, and a fold without a test
  spot left is left out.
* **Memory.** A standardised float64 copy of one fold's training rows.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import linalg, sparse
from sklearn.preprocessing import StandardScaler

from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.probes.ridge import ALPHAS, fit_ridge
from bioimg_jax.statistics.intervals import MIN_UNITS
from bioimg_jax.statistics.resampling import centred_pseudo_values, redrawn_units

COMPONENTS = 256
STRENGTH = 100.0  # alpha = STRENGTH / (features of the ridge · genes)
INNER_FOLDS = 5  # at most, of training units, to choose alpha by
RESAMPLES = 1_000
# Share of a sum of squares that rounding leaves of it. One spot of 5,000 that has a count more than
# the others leaves 1e-5.
ROUNDING = 1e-10
NOTHING = 1e-20  # variance of a prediction, as a share of the counts', that predicts nothing


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to score; the defaults are the benchmark's own."""

    components: int | None = COMPONENTS  # of the PCA, at most; None: no PCA
    below_rows: bool = False  # at most n - 1 of them: as many as n training spots span
    choose_alpha: bool = False  # by cross-validation over training units
    choose_genes: bool = False  # the most variable ones of the training spots
    size_factors: bool = False  # counts of each spot scaled to the training spots' median total
    per_section: bool = False  # r inside each test section, then their mean


OFFICIAL = "official"
PROTOCOLS: dict[str, Variant] = {
    OFFICIAL: Variant(),
    "no_pca": Variant(components=None),
    "pca_below_rows": Variant(below_rows=True),
    "chosen_alpha": Variant(choose_alpha=True),
    "training_genes": Variant(choose_genes=True),
    "size_factors": Variant(size_factors=True),
    "per_section": Variant(per_section=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """What is predicted, for all representations: made by `make_experiment`.

    counts: raw, csr float64 [n, m]; names: of the m genes; genes: columns of those that the
    benchmark lists; totals: [n] of all genes; sections, units: text [n]; folds: train and test
    rows.
    """

    counts: sparse.csr_array
    names: tuple[str, ...]
    genes: np.ndarray
    totals: np.ndarray
    sections: np.ndarray
    units: np.ndarray
    folds: tuple[Fold, ...]

    @functools.cached_property
    def undefined(self) -> dict[str, str]:
        """Kinds of variant that these data do not have, with the reason."""
        found = {}
        if len(self.names) == len(self.genes):
            found["choose_genes"] = f"there are no genes but the {len(self.genes)} of the list"
        for fold in self.folds:
            if _inner_groups(self, fold.train) is None:
                found["choose_alpha"] = f"fold {fold.name!r} trains on a single section"
                break
        return found

    @functools.cached_property
    def training_genes(self) -> tuple[np.ndarray, ...]:
        """Of each fold, as many genes as are listed: those whose log1p varies most in training."""
        return tuple(self._most_variable(fold.train) for fold in self.folds)

    def _most_variable(self, rows: np.ndarray) -> np.ndarray:
        part = self.counts[rows]
        part.data = np.log1p(part.data)
        mean, n = part.sum(axis=0) / len(rows), len(rows)
        variance = part.power(2).sum(axis=0) / n - mean**2
        order = np.lexsort((np.array(self.names), -variance))  # of equals by name
        return np.sort(order[: len(self.genes)])

    def targets(self, protocol: Variant, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns of the genes [g], and log1p of train [n, g] and test counts [t, g]."""
        columns = self.training_genes[fold] if protocol.choose_genes else self.genes
        train, test = self.folds[fold].train, self.folds[fold].test
        usual = float(np.median(self.totals[train])) if protocol.size_factors else 0.0

        def targets(rows: np.ndarray) -> np.ndarray:
            values = self.counts[rows][:, columns].toarray()
            if protocol.size_factors:  # a spot without any count stays without
                values *= (usual / np.maximum(self.totals[rows], 1.0))[:, None]
            return np.log1p(values)

        return columns, targets(train), targets(test)


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A representation scored by one protocol.

    value: the score; per_fold: its parts, but for folds in which no gene varies.
    per_unit: pseudo-value of each test unit, whose mean is the score.
    per_gene: gene -> mean over the folds where it varies of r over all test spots.
    per_section: test section -> mean over its genes of r inside it; without sections in which no
      gene varies.
    constant: fold, or fold/section for `Variant.per_section` -> genes left out of the score.
    n_flat: predictions that are constant where the counts are not, scored 0.
    settings: fold -> "components" of the PCA (None: no PCA), "alpha", "genes".
    """

    value: float
    per_fold: dict[str, float]
    per_unit: dict[str, float]
    per_gene: dict[str, float]
    per_section: dict[str, float]
    constant: dict[str, tuple[str, ...]]
    n_flat: int
    settings: dict[str, dict[str, Any]]
    folds: tuple["_FoldSums", ...] = dataclasses.field(repr=False)

    @property
    def n_constant(self) -> int:
        """Genes left out, over folds or sections."""
        return sum(map(len, self.constant.values()))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two variants rank the same representations.

    tau: Kendall's tau-b, 1 the same order and -1 the opposite; None where a variant scores all
      representations alike.
    interval: 95 % percentiles over redrawn test units, None below `MIN_UNITS` of them. Shown only:
      it decides nothing, and is too narrow for few units.
    best: what each of the two puts first.
    """

    first: str
    second: str
    tau: float | None
    interval: tuple[float, float] | None
    n_units: int
    n_representations: int
    best: tuple[str, str]


def make_experiment(
    counts: Any,
    names: Sequence[str],
    genes: Sequence[str],
    *,
    sections: Sequence[str] | np.ndarray,
    units: Sequence[str] | np.ndarray,
    folds: Sequence[Fold],
) -> Experiment:
    """Checks everything that does not depend on the features.

    Args:
      counts: raw, dense or sparse [n, m].
      names: of the m genes. genes: those of them that the benchmark lists.
      sections, units: [n]; a unit of independence is a patient, or a section where that is all
        that is known.
      folds: rows of train and test, whole units each.

    Raises:
      InputError: what does not fit, by row, gene, unit or fold.
    """
    matrix = sparse.csr_array(counts, dtype=np.float64)
    n, m = matrix.shape
    section, unit = (np.asarray(v).astype(str).astype(object) for v in (sections, units))
    names, genes = tuple(map(str, names)), tuple(map(str, genes))
    if (len(section), len(unit), len(names)) != (n, n, m):
        raise InputError(
            f"counts are [{n}, {m}], but there are {len(section)} sections, {len(unit)} units and "
            f"{len(names)} names of genes"
        )
    odd = ~((matrix.data >= 0) & (matrix.data == np.rint(matrix.data)) & (matrix.data < np.inf))
    if odd.any():
        at = int(np.argmax(odd))
        row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
        raise InputError(
            f"row {row}: {matrix.data[at]:g} for gene {names[matrix.indices[at]]!r}; expected raw "
            "counts, whole numbers from 0"
        )
    for what, values in (("names of genes", names), ("list of genes", genes)):
        if len(set(values)) < len(values):
            twice = pd.Series(values)[pd.Series(values).duplicated()].iloc[0]
            raise InputError(f"{what}: {twice!r} occurs twice")
    if not genes:
        raise InputError("list of genes: it is empty")
    place = pd.Index(names).get_indexer(pd.Index(genes))
    if (place < 0).any():
        raise InputError(f"gene {genes[int(np.argmin(place))]!r} of the list has no counts")
    if not folds:
        raise InputError("no fold: expected at least one with units for training and for test")
    if len({fold.name for fold in folds}) < len(folds):
        raise InputError(f"two folds have the same name: {[fold.name for fold in folds]}")
    for fold in folds:
        _check_fold(fold, n, unit)
    for column, of in (("section", section), ("unit", unit)):
        if (of == "").any():
            raise InputError(f"row {int(np.argmax(of == ''))} has no {column}")
    found = Experiment(
        matrix, names, place, np.asarray(matrix.sum(axis=1)), section, unit, tuple(folds)
    )
    for i, fold in enumerate(folds):
        _, _, test = found.targets(Variant(), i)
        if (test == test[0]).all():
            raise InputError(f"fold {fold.name!r}: every gene is constant on the test side")
    return found


def _check_fold(fold: Fold, n: int, units: np.ndarray) -> None:
    for part in ("train", "test"):
        rows = getattr(fold, part)
        if len(rows) < 2:
            raise InputError(f"fold {fold.name!r} has {len(rows)} {part} spots, expected 2 or more")
        if rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) < len(rows):
            raise InputError(
                f"fold {fold.name!r}: {part} rows are from {rows.min()} to {rows.max()}, expected "
                f"different ones from 0 to {n - 1}"
            )
    shared = sorted(set(units[fold.train]) & set(units[fold.test]))
    if shared:
        raise InputError(
            f"fold {fold.name!r}: unit {shared[0]!r} is in training and test, which measures "
            "replicates; expected it on one side"
        )


def score_expression(
    features: np.ndarray,
    experiment: Experiment,
    protocols: Mapping[str, Variant] = PROTOCOLS,
) -> dict[str, Expression]:
    """Scores features [n, d] by every protocol that the experiment has (`undefined_protocols`).

    Raises:
      InputError: a feature that is not finite, or another number of rows.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) != len(experiment.sections) or not features.shape[1]:
        raise InputError(
            f"features {features.shape}, expected [{len(experiment.sections)}, d]: a row a spot"
        )
    check_finite(features, "spot")
    absent = undefined_protocols(experiment, protocols)
    chosen = {name: protocol for name, protocol in protocols.items() if name not in absent}
    found: dict[str, list[tuple[_FoldSums, dict[str, Any]]]] = {name: [] for name in chosen}
    most = max((protocol.components or 0 for protocol in chosen.values()), default=0)
    for i, fold in enumerate(experiment.folds):
        # The folds of alpha are other rows, whose moments and components are their own.
        space = _Space(features, fold.train, fold.test, most)
        for name, protocol in chosen.items():
            columns, train, test = experiment.targets(protocol, i)
            alpha = _choose_alpha(features, experiment, protocol, fold, train)
            x, new, components = space.of(protocol)
            alpha = alpha or STRENGTH / (x.shape[1] * len(columns))
            probe = fit_ridge(x, train, alphas=(alpha,), intercept=False)
            genes = tuple(experiment.names[column] for column in columns)
            sums = _FoldSums.of(fold, genes, test, probe.predictions(new, 0), experiment)
            settings = {"components": components, "alpha": alpha, "genes": genes}
            found[name].append((sums, settings))
    return {
        name: _summary([sums for sums, _ in of], [s for _, s in of], chosen[name])
        for name, of in found.items()
    }


def official_predictions(features: np.ndarray, experiment: Experiment, fold: int) -> np.ndarray:
    """log1p of the listed genes of the fold's test spots by the benchmark's own protocol [t, g]."""
    train, test = experiment.folds[fold].train, experiment.folds[fold].test
    _, targets, _ = experiment.targets(Variant(), fold)
    return _official(train, test, targets, features)


def joint_predictions(
    features: np.ndarray, columns: np.ndarray, experiment: Experiment, fold: int
) -> np.ndarray:
    """As `official_predictions`, by the components of the features and columns [n, p] together.

    By the columns alone where those predict training units, held out in turn, at least as well.
    (Sections where all are of one unit; with one section there is nothing to choose by, and both
    are taken.)
    """
    train, test = experiment.folds[fold].train, experiment.folds[fold].test
    _, targets, _ = experiment.targets(Variant(), fold)
    groups = _inner_groups(experiment, train)
    if groups is not None:
        gain = 0.0
        for group in range(groups.max() + 1):
            held = groups == group
            inner = (train[~held], train[held], targets[~held])
            joint, alone = _official(*inner, features, columns), _official(*inner, columns)
            gain += _mean_r(targets[held], joint) - _mean_r(targets[held], alone)
        if gain <= 0.0:
            return _official(train, test, targets, columns)
    return _official(train, test, targets, features, columns)


def _official(
    train: np.ndarray,
    other: np.ndarray,
    targets: np.ndarray,
    features: np.ndarray,
    beside: np.ndarray | None = None,
) -> np.ndarray:
    """Predictions [t, g] of other rows, fitted to targets of training rows [n, g].

    beside: columns that the regression is given beside the components, standardised.
    """
    x, new, _ = _Space(features, train, other, COMPONENTS).of(Variant())
    if beside is not None:
        more, more_new, _ = _Space(beside, train, other, 0).of(Variant(components=None))
        x, new = np.hstack([more, x]), np.hstack([more_new, new])
    alpha = STRENGTH / (x.shape[1] * targets.shape[1])
    return fit_ridge(x, targets, alphas=(alpha,), intercept=False).predictions(new, 0)


def _mean_r(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Over the genes that vary, 0 where none does."""
    r, _ = _pearson(_moments(targets, predictions).sum(axis=0))
    return float(np.nan_to_num(_mean(r)))


def scored_predictions(
    experiment: Experiment, folds: Sequence[Fold], targets: np.ndarray, predictions: Sequence[Any]
) -> Expression:
    """The official score of predictions [t, g] of the test spots of each fold.

    folds: with the test spots that count; targets: [n, g], of all spots.
    """
    genes = tuple(experiment.names[column] for column in experiment.genes)
    sums = [
        _FoldSums.of(fold, genes, targets[fold.test], of, experiment)
        for fold, of in zip(folds, predictions, strict=True)
    ]
    return _summary(sums, [{} for _ in sums], Variant())


def undefined_protocols(
    experiment: Experiment, protocols: Mapping[str, Variant] = PROTOCOLS
) -> dict[str, str]:
    """Protocols that these data do not have, with the reason; whatever the features."""
    return {
        name: reason
        for name, protocol in protocols.items()
        for kind, reason in experiment.undefined.items()
        if getattr(protocol, kind)
    }


def audit_features(
    x: np.ndarray, y: np.ndarray, totals: np.ndarray, sections: Sequence[str] | np.ndarray
) -> dict[str, np.ndarray]:
    """What is known of a spot without its image, as features for `score_expression`, float64.

    "position" [n, 5]: x and y, standardised inside the section, their squares and product, so that
    a centre and an edge are told apart; "total_counts" [n, 1]: log1p of them; and both [n, 6],
    "position_and_total_counts".

    Args:
      x, y: of the spots in the section [n]. totals: counts of all genes [n].

    Raises:
      InputError: a value that is not finite, or a total below 0.
    """
    columns = np.stack([np.asarray(v, np.float64) for v in (x, y, totals)], axis=1)
    check_finite(columns, "spot", column="audit column (x, y, total counts)")
    if (columns[:, 2] < 0).any():
        row = int(np.argmax(columns[:, 2] < 0))
        raise InputError(f"total counts of spot {row}: {columns[row, 2]:g}, expected 0 or more")
    by_section = pd.DataFrame(columns[:, :2]).groupby(np.asarray(sections).astype(str))
    spread = by_section.transform(lambda v: v.std(ddof=0) or 1.0)
    a, b = ((pd.DataFrame(columns[:, :2]) - by_section.transform("mean")) / spread).to_numpy().T
    position = np.stack([a, b, a * a, b * b, a * b], axis=1)
    total = np.log1p(columns[:, 2:])
    return {
        "position": position,
        "total_counts": total,
        "position_and_total_counts": np.hstack([position, total]),
    }


def rank_agreement(
    scores: Mapping[str, Mapping[str, Expression]], *, resamples: int = RESAMPLES
) -> list[Agreement]:
    """Kendall's tau between every two variants, over the same representations.

    Args:
      scores: representation -> variant -> its score.

    Raises:
      InputError: fewer than two representations or variants, or not the same ones everywhere.
    """
    if len(scores) < 2:
        raise InputError(f"{len(scores)} representations cannot be ranked, expected 2 or more")
    names = list(scores)
    variants = list(scores[names[0]])
    for name, of in scores.items():
        if set(of) != set(variants):
            odd = sorted(set(of) ^ set(variants))[0]
            raise InputError(f"variant {odd!r} is not there for both {names[0]!r} and {name!r}")
    if len(variants) < 2:
        raise InputError(f"{len(variants)} variants cannot be compared, expected 2 or more")
    whole = {v: np.array([scores[name][v].value for name in names]) for v in variants}
    units = sorted(scores[names[0]][variants[0]].per_unit)
    for name, of in scores.items():
        if any(sorted(of[v].per_unit) != units for v in variants):
            raise InputError(f"{name!r} and {names[0]!r} were scored on different units")
    drawn: dict[str, np.ndarray] = {}
    if len(units) >= MIN_UNITS:
        weights = np.concatenate(list(redrawn_units(len(units), resamples))).astype(np.float64)
        for v in variants:
            columns = [_values(scores[name][v].folds, units, weights) for name in names]
            drawn[v] = np.stack(columns, axis=1)  # [resamples, representations]
    found = []
    for first, second in itertools.combinations(variants, 2):
        tau = float(_tau(whole[first][None], whole[second][None])[0])
        interval = None
        if drawn and not np.isnan(taus := _tau(drawn[first], drawn[second])).all():
            low, high = np.nanquantile(taus, (0.025, 0.975))
            interval = (float(low), float(high))
        found.append(
            Agreement(
                first,
                second,
                tau=None if np.isnan(tau) else tau,
                interval=interval,
                n_units=len(units),
                n_representations=len(names),
                best=(names[whole[first].argmax()], names[whole[second].argmax()]),
            )
        )
    return found


class _Space:
    """Training and other rows of one split, standardised and, where wanted, projected.

    components: as many as any protocol wants.
    """

    def __init__(
        self, features: np.ndarray, train: np.ndarray, other: np.ndarray, components: int
    ) -> None:
        scaler = StandardScaler(copy=False)  # constant features become 0
        self._train = scaler.fit_transform(features[train].astype(np.float64))
        self._other = scaler.transform(features[other].astype(np.float64))
        self._components = min(components, *self._train.shape)

    def of(self, protocol: Variant) -> tuple[np.ndarray, np.ndarray, int | None]:
        """Training rows [n, k], other rows [t, k], and the number of components."""
        if protocol.components is None:
            return self._train, self._other, None
        train, other = self._projected
        k = min(protocol.components, self._components)
        k = min(k, len(train) - 1) if protocol.below_rows else k
        return train[:, :k], other[:, :k], k

    @functools.cached_property
    def _projected(self) -> tuple[np.ndarray, np.ndarray]:
        """Both on the first principal axes, from the smaller of XᵀX and X Xᵀ (`probes.ridge`).

        An axis along which the training rows do not differ is not defined, and 0 if it comes of
        X Xᵀ.
        """
        x, k = self._train, self._components
        gram = x.T @ x if len(x) >= x.shape[1] else x @ x.T
        last = len(gram) - 1
        squares, axes = linalg.eigh(gram, subset_by_index=(last - k + 1, last))
        squares, axes = squares[::-1], axes[:, ::-1]
        if len(x) < x.shape[1]:
            kept = squares > ROUNDING * squares[0]
            axes = x.T @ (axes * np.where(kept, 1.0 / np.sqrt(np.where(kept, squares, 1.0)), 0.0))
        return x @ axes, self._other @ axes


def _inner_groups(experiment: Experiment, rows: np.ndarray) -> np.ndarray | None:
    """Group int [n] of training rows: units dealt in the order of their names; sections where there
    is one unit; None where there is one section.
    """
    for names in (experiment.units[rows], experiment.sections[rows]):
        known, position = np.unique(names.astype(str), return_inverse=True)
        if len(known) > 1:
            return position % min(INNER_FOLDS, len(known))
    return None


def _choose_alpha(
    features: np.ndarray,
    experiment: Experiment,
    protocol: Variant,
    fold: Fold,
    targets: np.ndarray,
) -> float | None:
    """The alpha with the best mean r inside the training units, of equals the strongest."""
    if not protocol.choose_alpha:
        return None
    groups = _inner_groups(experiment, fold.train)
    assert groups is not None  # else the protocol is undefined
    scores = np.zeros(len(ALPHAS))
    for group in range(groups.max() + 1):
        held = groups == group
        space = _Space(features, fold.train[~held], fold.train[held], protocol.components or 0)
        x, new, _ = space.of(protocol)
        probe = fit_ridge(x, targets[~held], alphas=ALPHAS, intercept=False)
        for i, predictions in enumerate(probe.predictions(new)):
            scores[i] += _mean_r(targets[held], predictions)
    return probe.alphas[int(scores.argmax())]


def _moments(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """1, y, p, y², p², y p of each spot [t, 6, g]: their sums over any set of spots give its r.

    targets, predictions: [t, g]. Taken from their means, against cancellation.
    """
    y, p = targets - targets.mean(axis=0), predictions - predictions.mean(axis=0)
    return np.stack([np.ones_like(y), y, p, y * y, p * p, y * p], axis=1)


def _pearson(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r [..., g] of summed `_moments` [..., 6, g], and where predictions alone are constant.

    There r is 0; where the counts are constant it is NaN.
    """
    n, y, p, yy, pp, yp = np.moveaxis(sums, -2, 0)
    n = np.maximum(n, 1.0)
    counts, predicted = yy - y * y / n, pp - p * p / n
    varies = counts > ROUNDING * yy
    flat = varies & ((predicted <= ROUNDING * pp) | (predicted <= NOTHING * counts))
    scale = np.sqrt(np.where(varies & ~flat, counts * predicted, 1.0))
    r = np.clip(np.where(flat, 0.0, (yp - y * p / n) / scale), -1.0, 1.0)
    return np.where(varies, r, np.nan), flat


@dataclasses.dataclass(frozen=True, eq=False)
class _FoldSums:
    """Test side of one fold: sums [k, 6, g] over the spots of each unit and section there."""

    name: str
    genes: tuple[str, ...]
    units: np.ndarray  # text [k]
    sections: np.ndarray  # text [k]
    sums: np.ndarray
    per_section: bool = False

    @classmethod
    def of(
        cls,
        fold: Fold,
        genes: tuple[str, ...],
        targets: np.ndarray,
        predictions: np.ndarray,
        experiment: Experiment,
    ) -> "_FoldSums":
        spots = _moments(targets, predictions)
        names = pd.DataFrame(
            {"unit": experiment.units[fold.test], "section": experiment.sections[fold.test]}
        )
        group = names.groupby(["unit", "section"], sort=True).ngroup().to_numpy()
        first = np.unique(group, return_index=True)[1]
        sums = np.zeros((len(first), *spots.shape[1:]))
        np.add.at(sums, group, spots)
        units, sections = (names[c].to_numpy()[first] for c in ("unit", "section"))
        return cls(fold.name, genes, units, sections, sums)

    def pooled(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """r and flat [b, g] over all spots, those of group k being there `weights` [b, k] times."""
        return _pearson(np.tensordot(weights, self.sums, axes=1))

    def by_section(self, weights: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Section, r and flat [b, g] of each."""
        for section in dict.fromkeys(self.sections):
            inside = self.sections == section
            yield section, *_pearson(np.tensordot(weights[:, inside], self.sums[inside], axes=1))

    def value(self, weights: np.ndarray) -> np.ndarray:
        """The fold's score [b]; NaN where no gene varies."""
        if not self.per_section:
            return _mean(self.pooled(weights)[0])
        sections = list(self.by_section(weights))
        values = np.stack([_mean(r) for _, r, _ in sections])  # [s, b]
        spots = self.sums[:, 0, 0]
        often = []  # how often each section is there, all or part of it [s, b]
        for section, *_ in sections:
            inside = self.sections == section
            often.append(weights[:, inside] @ spots[inside] / spots[inside].sum())
        return _mean(values.T, np.stack(often, axis=1))


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean over the last axis of what is there; NaN where nothing is."""
    weights = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    total = weights.sum(axis=-1)
    sums = (np.nan_to_num(values) * weights).sum(axis=-1)
    return np.where(total > 0, sums / np.where(total > 0, total, 1.0), np.nan)


def _values(
    folds: Sequence[_FoldSums], units: Sequence[str], weights: np.ndarray, *, whole: bool = False
) -> np.ndarray:
    """Scores [b] where unit u is there `weights` [b, u] times.

    A fold counts as often as its units do on average; with `whole`, once where one is left.
    """
    index = pd.Index(units)
    values, shares = [], []
    for fold in folds:
        mine = weights[:, index.get_indexer(fold.units)]
        values.append(fold.value(mine))
        distinct = weights[:, index.get_indexer(np.unique(fold.units.astype(str)))]
        shares.append(distinct.any(axis=1).astype(float) if whole else distinct.mean(axis=1))
    return _mean(np.stack(values, axis=1), np.stack(shares, axis=1))


def _summary(
    folds: Sequence[_FoldSums], settings: Sequence[dict[str, Any]], protocol: Variant
) -> Expression:
    folds = tuple(dataclasses.replace(fold, per_section=protocol.per_section) for fold in folds)
    units = sorted({unit for fold in folds for unit in fold.units})
    all_units = np.ones((1, len(units)))
    value = float(_values(folds, units, all_units)[0])
    if np.isnan(value):
        raise InputError(f"no gene varies among the test spots of fold {folds[0].name!r}")
    per_unit = {units[0]: value}
    if len(units) > 1:
        without = _values(folds, units, 1.0 - np.eye(len(units)), whole=True)
        # A unit without which no gene varies anywhere is all there is: nothing changes without it.
        pseudo = centred_pseudo_values(value, np.where(np.isnan(without), value, without))
        per_unit = dict(zip(units, pseudo.tolist(), strict=True))
    by_gene: dict[str, list[float]] = {}
    by_section: dict[str, list[float]] = {}
    constant: dict[str, tuple[str, ...]] = {}
    per_fold, n_flat = {}, 0
    for fold in folds:
        ones = np.ones((1, len(fold.units)))
        per_fold[fold.name] = float(fold.value(ones)[0])
        pooled, flat = (part[0] for part in fold.pooled(ones))
        scored = [] if protocol.per_section else [(fold.name, pooled, flat)]
        for gene, r in zip(fold.genes, pooled.tolist(), strict=True):
            if not np.isnan(r):
                by_gene.setdefault(gene, []).append(r)
        for section, inside, flats in fold.by_section(ones):
            if not np.isnan(inside[0]).all():
                by_section.setdefault(section, []).append(float(np.nanmean(inside[0])))
            if protocol.per_section:
                scored.append((f"{fold.name}/{section}", inside[0], flats[0]))
        for where, r, flats in scored:
            n_flat += int(flats.sum())
            if np.isnan(r).any():
                constant[where] = tuple(np.array(fold.genes)[np.isnan(r)].tolist())
    return Expression(
        value=value,
        per_fold={name: r for name, r in per_fold.items() if not np.isnan(r)},
        per_unit=per_unit,
        per_gene={gene: float(np.mean(r)) for gene, r in by_gene.items()},
        per_section={section: float(np.mean(r)) for section, r in by_section.items()},
        constant=constant,
        n_flat=n_flat,
        settings={fold.name: of for fold, of in zip(folds, settings, strict=True)},
        folds=folds,
    )


def _tau(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kendall's tau-b [b] between rows of two [b, r]; NaN where all of a row are equal."""
    i, j = np.triu_indices(first.shape[1], 1)
    a, b = np.sign(first[:, i] - first[:, j]), np.sign(second[:, i] - second[:, j])
    size = np.sqrt((a != 0).sum(axis=1) * (b != 0).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(size > 0, (a * b).sum(axis=1) / size, np.nan)

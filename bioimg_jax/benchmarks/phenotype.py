"""Phenotype strength: how far wells lie from the negative controls of their plate, and its test.

Features are aligned ones (`features/alignment.py`). Negative controls that an alignment was fitted
to are not negatives here: they lie closer together than any other well, and treatments without
effect come out as active.

Two things are asked of a distance to the mean of m controls:

* A control is part of that mean, a treated well is not, so a control is held against the mean of
  the *other* controls. Squared distances of wells without effect are then σ²(1 + 1/m) for treated
  and σ²(1 + 1/(m − 1)) for controls, and in many dimensions that difference alone tells them apart:
  both are divided by their factor.
* A treatment's p-value comes from exchanging the labels "treated" and "control" within each plate,
  which needs no distribution: where a treatment does nothing, its wells and the controls of the
  plate are exchangeable. (They are not if the controls sit in columns of their own and position
  matters: `plate_layout`.)
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from bioimg_jax.benchmarks.columns import Column, feature_rows, flags, names
from bioimg_jax.benchmarks.mean_profiles import canonical_order
from bioimg_jax.errors import InputError

DRAWS = 9_999
BLOCK = 1 << 20  # float64 of summed features at a time, 8 MiB
FEW = 24  # treated wells
TIE = 1e-9  # relative: squares that are equal on paper


@dataclasses.dataclass(frozen=True, eq=False)
class WellStrengths:
    """Distance of each well to the negative controls of its plate.

    values: float64 [n], nan for the wells of a plate that is excluded.
    excluded: plate -> why it has no strengths.
    """

    values: np.ndarray
    excluded: dict[str, str]


def well_strengths(features: np.ndarray, plates: Column, negatives: Column) -> WellStrengths:
    """Euclidean distance of every well to the mean of its plate's (other) negative controls.

    Multiplied by √(k / (k + 1)) for a mean of k controls, so that wells without effect have the
    same expected square, controls or not. A plate with fewer than two controls is excluded.

    Args:
      features: [n, d], a row a well.
      plates: [n]; negatives: bool [n].

    Raises:
      InputError: features that are not finite, a row without a plate, no negative control at all.
    """
    x = feature_rows(features)
    plate = names(plates, len(x), "plate")
    negative = _negatives(negatives, len(x))
    values, excluded = np.full(len(x), np.nan), {}
    for name in np.unique(plate):
        here = np.flatnonzero(plate == name)
        controls = negative[here]
        m = int(controls.sum())
        if m < 2:
            excluded[str(name)] = f"{m} negative control wells, expected 2 or more"
            continue
        inside = x[here][controls]
        inside = inside[canonical_order(inside)]  # sums of any order of wells are then the same
        offset = x[here] - inside[0]  # of equal wells exactly 0
        distance = np.linalg.norm(offset - (inside - inside[0]).mean(axis=0), axis=1)
        # x - mean of the others = (x - mean) m / (m - 1).
        values[here] = distance * np.sqrt(m / np.where(controls, m - 1, m + 1))
    return WellStrengths(values, excluded)


@dataclasses.dataclass(frozen=True)
class TreatmentStrength:
    """How far a treatment lies from its controls, and how often that happens by lot.

    strength: length of the mean over its wells of (well - mean of its plate's controls).
    p: of "its wells are controls like the others"; smallest_p: no smaller one can come out.
    n_wells, n_plates: that count; n_left_out: its wells on plates without a negative control.
    """

    treatment: str
    strength: float
    p: float
    smallest_p: float
    n_wells: int
    n_plates: int
    n_left_out: int


@dataclasses.dataclass(frozen=True)
class StrengthTest:
    """One `TreatmentStrength` a treatment, by name; excluded: treatment -> why it has none."""

    treatments: tuple[TreatmentStrength, ...]
    excluded: dict[str, str]


def strength_test(
    features: np.ndarray,
    plates: Column,
    treatments: Column,
    negatives: Column,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> StrengthTest:
    """Permutation test of every treatment's strength against the controls of its plates.

    Labels are exchanged among a plate's treated and control wells and the distance of the means is
    formed anew, so a control that is drawn as treated is not in the mean it is held against. With
    at most `draws` ways to exchange them p is exact, the share of those at least as far; else it is
    (1 + number as far) / (1 + draws) of random ones (Phipson & Smyth, Statistical Applications in
    Genetics and Molecular Biology 9, 2010). Both are super-uniform. A p depends on the treatment's
    wells, their controls and the seed alone, not on other treatments or the order of rows.

    Args:
      features: [n, d], a row a well; plates: [n].
      treatments: [n] treatment of each well; those of negatives are not looked at.
      negatives: bool [n].

    Raises:
      InputError: as `well_strengths`; a well that is not a negative and has no treatment.
    """
    x = feature_rows(features)
    plate = names(plates, len(x), "plate")
    negative = _negatives(negatives, len(x))
    labels = names(treatments, len(x), "treatment", rows=~negative)
    if draws < 1:
        raise InputError(f"draws of a permutation test: {draws}, expected 1 or more")
    controls = {name: np.flatnonzero(negative & (plate == name)) for name in np.unique(plate)}
    found, excluded = [], {}
    for name in np.unique(labels[~negative]).tolist():
        mine = np.flatnonzero((labels == name) & ~negative)
        of_plate = [(mine[plate[mine] == p], controls[p]) for p in np.unique(plate[mine])]
        parts = [(wells, others) for wells, others in of_plate if len(others)]
        if not parts:
            excluded[name] = f"no negative control on the {len(of_plate)} plates of its wells"
            continue
        n_wells = sum(len(wells) for wells, _ in parts)
        strength, p, smallest = _exchanged(x, parts, draws, seed)
        left_out = len(mine) - n_wells
        found.append(TreatmentStrength(name, strength, p, smallest, n_wells, len(parts), left_out))
    return StrengthTest(tuple(found), excluded)


def _exchanged(
    x: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]], draws: int, seed: int
) -> tuple[float, float, float]:
    """(strength, p, smallest p) of wells and their controls, plate by plate.

    With r of n treated wells on a plate of m controls, all centred on their common mean, the sum s
    of the treated is minus that of the controls: the plate adds r/n (s/r + s/m) = (1 + r/m)/n · s.
    """
    n = sum(len(wells) for wells, _ in parts)
    pooled, weights, observed, design, first = [], [], [], [], 0
    for wells, controls in parts:
        rows = np.concatenate([wells, controls])
        rows = rows[canonical_order(x[rows])]  # the same draws whatever order the wells came in
        offset = x[rows] - x[rows[0]]  # of equal wells exactly 0
        pooled.append(offset - offset.mean(axis=0))
        weights.append(np.full(len(wells), (1 + len(wells) / len(controls)) / n))
        observed.append(first + np.flatnonzero(np.isin(rows, wells)))
        design.append((len(wells), len(rows)))
        first += len(rows)
    centred, weight = np.concatenate(pooled), np.concatenate(weights)

    ways = math.prod(math.comb(total, r) for r, total in design)
    exact = ways <= draws
    if exact:
        taken = _all_ways(tuple(design))
    else:
        starts = np.cumsum([0] + [total for _, total in design[:-1]])
        taken = np.concatenate(
            [
                _random_ways(r, total, draws, seed, i) + start
                for i, ((r, total), start) in enumerate(zip(design, starts, strict=True))
            ],
            axis=1,
        )
    own = float(_squares(np.concatenate(observed)[None], weight, centred)[0])
    drawn = _squares(taken, weight, centred)
    reached = int((drawn >= own - TIE * max(own, float(drawn.max()))).sum())
    p = reached / ways if exact else (1 + reached) / (1 + draws)
    return math.sqrt(own), p, 1 / ways if exact else 1 / (1 + draws)


def _squares(taken: np.ndarray, weight: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """‖Σ weight · row‖² float64 [b] of the rows taken [b, r] among centred rows [n, d].

    Of a few rows by their inner products, r² / 2 numbers and not r d: 13 times as fast for 4 rows.
    """
    squares = np.zeros(len(taken))
    if taken.shape[1] <= FEW:
        inner = centred @ centred.T
        for i, j in itertools.combinations_with_replacement(range(taken.shape[1]), 2):
            twice = (1 + (i != j)) * weight[i] * weight[j]
            squares += twice * inner[taken[:, i], taken[:, j]]
        return np.maximum(squares, 0.0)
    step = max(1, BLOCK // centred.shape[1])
    for first in range(0, len(taken), step):
        part = taken[first : first + step]
        b, r = part.shape
        adder = sparse.csr_array(
            (np.tile(weight, b), part.ravel(), np.arange(0, b * r + 1, r)), (b, len(centred))
        )
        squares[first : first + b] = np.square(adder @ centred).sum(axis=1)
    return squares


def _all_ways(design: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Every choice of r of the rows of each plate, int [ways, Σ r]."""
    choices, first = [], 0
    for r, total in design:
        choices.append(list(itertools.combinations(range(first, first + total), r)))
        first += total
    return np.array([sum(way, ()) for way in itertools.product(*choices)], np.int32)


@functools.lru_cache(maxsize=32)
def _random_ways(r: int, total: int, draws: int, seed: int, plate: int) -> np.ndarray:
    """`draws` choices of r of the rows of one plate, int32 [draws, r]."""
    rng = np.random.default_rng([seed, plate, r, total])
    ways = np.empty((draws, r), np.int32)
    step = max(1, BLOCK // total)
    for first in range(0, draws, step):
        part = ways[first : first + step]
        part[:] = np.argpartition(rng.random((len(part), total)), r - 1, axis=1)[:, :r]
    return ways


def _negatives(negatives: Column, n: int) -> np.ndarray:
    found = flags(negatives, n, "negative control")
    if not found.any():
        raise InputError("no well is a negative control, expected at least two a plate")
    return found

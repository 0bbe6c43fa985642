"""Do the replicates of a perturbation resemble each other, and differ from the controls?

Of every perturbation with at least two replicates:

* `cosine`: the mean cosine of all pairs of its replicates; its p-value is of as high a mean.
* `energy`: the squared energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of replicates X and
  controls Y, every row with itself included (Székely & Rizzo, J. Stat. Plan. Inference 143, 2013);
  its p-value is of as long a distance.
* `ks_max`, `ks_mean`: largest and mean Kolmogorov-Smirnov statistic of the features.

**p-values** compare with groups as large as the perturbation, drawn from its own replicates and the
controls together, as many from each stratum (a plate) as it has there. Under the null the
perturbation is one of these groups, so P(p <= a) <= a whatever the number of controls. Groups of
controls alone overlap and vary less than a new group does: with 6 replicates and 8 controls 14 % of
null perturbations had p <= 0.05.

Order leaves no trace: rows are sorted by their bytes, and draws are seeded by the name.
"""

import dataclasses
import zlib

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from bioimg_jax.benchmarks.mean_profiles import canonical_order, check_rows, checked_names
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.neighbours import unit_rows
from bioimg_jax.statistics.subsets import drawn_subsets

MOST_CONTROLS = 4096  # compared with each other: 2 matrices of 128 MiB
BLOCK_NUMBERS = 1 << 21
TIE = 1e-12  # means and distances this close, in units of the largest there is, are equal


@dataclasses.dataclass(frozen=True, eq=False)
class ReplicateConsistency:
    """One number a perturbation [p], names ascending.

    replicates, controls: rows behind each, those of strata that hold both.
    single: perturbations left out because fewer than two such replicates remain; rows_alone:
    treated rows whose stratum has no control.
    """

    perturbations: np.ndarray
    replicates: np.ndarray
    controls: np.ndarray
    cosine: np.ndarray
    cosine_p: np.ndarray
    energy: np.ndarray
    energy_p: np.ndarray
    ks_max: np.ndarray
    ks_mean: np.ndarray
    single: tuple[str, ...]
    rows_alone: int


def replicate_consistency(
    features: np.ndarray,
    perturbations: np.ndarray | pd.Series,
    is_control: np.ndarray | pd.Series,
    *,
    strata: np.ndarray | pd.Series | None = None,
    permutations: int = 1_000,
    seed: int = 0,
) -> ReplicateConsistency:
    """Of every perturbation with its replicates and the controls of its strata.

    Args:
      features: [n, d], any float dtype, aligned: cosine counts from the origin.
      perturbations: [n]; those of controls are not read.
      is_control: bool [n]. More than `MOST_CONTROLS` in the strata of a perturbation are sampled.
      strata: [n], within which treated and control rows are exchangeable; None: one.

    Raises:
      InputError: features that are not finite, columns of other lengths, a treated row without a
        perturbation, a row without a stratum, no control, or no perturbation with two replicates.
    """
    check_rows(features, perturbations=perturbations, is_control=is_control)
    control = np.asarray(is_control)
    if control.dtype != bool:
        raise InputError(f"is_control holds {control.dtype}, expected true or false")
    if permutations < 1:
        raise InputError(f"{permutations} permutations, expected 1 or more")
    for kind, rows in (("control", control), ("treated", ~control)):
        if not rows.any():
            raise InputError(f"none of the {len(rows)} rows is {kind}; expected some")
    treated, controls = np.flatnonzero(~control), np.flatnonzero(control)
    codes, found = pd.factorize(checked_names(perturbations, "perturbation", treated), sort=True)
    names = np.asarray(found, object)
    stratum = np.zeros(len(features), np.int64)
    if strata is not None:
        check_rows(features, strata=strata)
        stratum = pd.factorize(checked_names(strata, "stratum"), sort=True)[0]

    beside = np.isin(stratum[treated], stratum[controls])
    n_alone = int((~beside).sum())
    treated, codes = treated[beside], codes[beside]
    order = canonical_order(features[treated], codes * len(features) + stratum[treated])
    treated, codes = treated[order], codes[order]
    controls = controls[canonical_order(features[controls], stratum[controls])]
    replicates = np.bincount(codes, minlength=len(names))
    enough = np.flatnonzero(replicates >= 2)
    if not len(enough):
        raise InputError(
            f"none of {len(names)} perturbations has two replicates beside controls; expected one"
        )
    rows_of = np.split(treated, np.cumsum(replicates)[:-1])
    together: dict[tuple[int, ...], list[int]] = {}
    for code in enough.tolist():
        held = tuple(np.unique(stratum[rows_of[code]]).tolist())
        together.setdefault(held, []).append(code)

    found_controls = np.zeros(len(names), np.int64)
    values = np.full((len(names), 6), np.nan)
    for held, members in together.items():
        some = _sample(controls[np.isin(stratum[controls], held)], stratum, seed)
        found_controls[members] = len(some)
        here = np.isin(codes, members)
        values[members, 4:] = _kolmogorov_smirnov(
            features[treated[here]], codes[here], features[some]
        )
        pool = _Pool.of(features[some], stratum[some], int(replicates[members].max()))
        for code in members:
            rows = rows_of[code]
            rng = np.random.default_rng([seed, zlib.crc32(names[code].encode())])
            values[code, :4] = pool.tested(features[rows], stratum[rows], permutations, rng)
    columns = values[enough].T
    return ReplicateConsistency(
        names[enough],
        replicates[enough],
        found_controls[enough],
        cosine=columns[0],
        cosine_p=columns[1],
        energy=columns[2],
        energy_p=columns[3],
        ks_max=columns[4],
        ks_mean=columns[5],
        single=tuple(str(name) for name in names[replicates < 2]),
        rows_alone=n_alone,
    )


def _sample(controls: np.ndarray, stratum: np.ndarray, seed: int) -> np.ndarray:
    """At most `MOST_CONTROLS` of the rows, the same share of each stratum, in their order."""
    share = min(1.0, MOST_CONTROLS / len(controls))
    kept = np.random.default_rng(seed).random(len(controls))
    rank = pd.Series(kept).groupby(stratum[controls]).rank()
    size = pd.Series(stratum[controls]).map(pd.Series(stratum[controls]).value_counts())
    return controls[(rank <= np.ceil(share * size)).to_numpy()]


@dataclasses.dataclass(frozen=True, eq=False)
class _Pool:
    """Controls [c] and room for m replicates after them.

    rows: float64 [c, d]; stratum: int [c]; cosines, distances: [c + m, c + m] between different
    rows, 0 on the diagonal.
    """

    rows: np.ndarray
    stratum: np.ndarray
    cosines: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, controls: np.ndarray, stratum: np.ndarray, most: int) -> "_Pool":
        rows = controls.astype(np.float64)
        c = len(rows)
        cosines, distances = np.zeros((2, c + most, c + most))
        unit = unit_rows(rows)
        cosines[:c, :c] = unit @ unit.T
        np.fill_diagonal(cosines, 0.0)
        distances[:c, :c] = cdist(rows, rows)
        return cls(rows, stratum, cosines, distances)

    def tested(
        self, replicates: np.ndarray, stratum: np.ndarray, draws: int, rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Mean cosine and energy distance, each with its p, of replicates [r, d] in strata [r]."""
        c, r = len(self.rows), len(replicates)
        n = c + r
        x = replicates.astype(np.float64)
        unit = unit_rows(x)
        for matrix, across, within in (
            (self.cosines, unit @ unit_rows(self.rows).T, unit @ unit.T),
            (self.distances, cdist(x, self.rows), cdist(x, x)),
        ):
            matrix[c:n, :c], matrix[:c, c:n], matrix[c:n, c:n] = across, across.T, within
        np.fill_diagonal(self.cosines, 0.0)
        parts = []
        for held in np.unique(stratum):
            own = c + np.flatnonzero(stratum == held)
            members = np.concatenate([np.flatnonzero(self.stratum == held), own])
            drawn = members[drawn_subsets(rng, len(members), len(own), draws)]
            parts.append(np.concatenate([own[None], drawn]))
        groups = np.concatenate(parts, axis=1)  # [1 + draws, r], the replicates first

        distances = self.distances[:n, :n]
        from_each = distances.sum(axis=1)
        cosine, energy = np.empty((2, len(groups)))
        step = max(1, BLOCK_NUMBERS // r**2)
        for first in range(0, len(groups), step):
            some = groups[first : first + step]
            cell = (some[:, :, None], some[:, None, :])
            cosine[first : first + step] = self.cosines[cell].sum(axis=(1, 2)) / (r * (r - 1))
            inside = distances[cell].sum(axis=(1, 2))
            across = from_each[some].sum(axis=1) - inside
            outside = from_each.sum() - 2.0 * across - inside
            energy[first : first + step] = 2.0 * across / (r * c) - inside / r**2 - outside / c**2
        as_high = cosine >= cosine[0] - TIE
        as_far = energy >= energy[0] - TIE * distances.max()
        return float(cosine[0]), float(as_high.mean()), float(energy[0]), float(as_far.mean())


def _kolmogorov_smirnov(
    features: np.ndarray, codes: np.ndarray, controls: np.ndarray
) -> np.ndarray:
    """Largest and mean statistic over features [g, 2] of each group; codes [m] ascending."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    sizes = np.diff(np.append(starts, len(codes)))
    size = np.repeat(sizes, sizes)
    place = np.arange(1, len(codes) + 1) - np.repeat(starts, sizes)  # 1 ... size
    largest, total = np.zeros((2, len(starts)))
    for feature in range(features.shape[1]):
        column = features[:, feature]
        sorted_column = column[np.lexsort((column, codes))]
        reference = np.sort(controls[:, feature])
        # Apart the most at a replicate's value, or just below it: between two of them only the
        # controls' share grows. Of equal values the last is right above, and the first below.
        upto, below = (
            np.searchsorted(reference, sorted_column, side=side) / len(reference)
            for side in ("right", "left")
        )
        apart = np.maximum(place / size - upto, below - (place - 1) / size)
        statistic = np.maximum.reduceat(apart, starts)
        largest = np.maximum(largest, statistic)
        total += statistic
    return np.stack([largest, total / features.shape[1]], axis=1)

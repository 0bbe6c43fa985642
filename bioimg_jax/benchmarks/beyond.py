"""What a protocol's score on profiles says beyond a confound, such as the number of cells.

Three ways, in order of what they are worth (`statistics/conditional.py`, of which the first and the
last are):

1. conditional permutation: profiles stay, and what the protocol is told of them (classes, names of
   genes, which wells are treated) is permuted inside strata of the confound and scored again.
2. added value: the protocol on profiles of floor and encoder together, less on those of the floor,
   paired by unit. Each side is standardised and has the same weight, and a floor of one number is
   spread over waves of several lengths, so that near counts are alike and far ones are not: an
   encoder that only bends the count adds nothing to it. Nothing is fitted, so that a floor which
   says all there is may lose by company: a loss means nothing.
3. linear residualisation: descriptive only, what is not linear in the confound stays.

All are of the rows that `find_overlap` leaves; where none are left the reason is all there is.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.confound import (
    ADDED,
    PERMUTATION,
    RESIDUALISED,
    Confound,
    conditional_row,
    rows_by_method,
)
from bioimg_jax.benchmarks.protocols import ProfileProtocol
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.splits import has_value, unit_names
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, AlignedTable, controls_of, unaligned
from bioimg_jax.statistics.conditional import (
    Overlap,
    conditional_permutation,
    find_overlap,
    p_of_gain,
    residualised,
)
from bioimg_jax.statistics.intervals import t_interval
from bioimg_jax.statistics.parts import p_of_parts

WAVES = (0.5, 1.0, 2.0, 4.0, 8.0)  # half turns over all ranks


def beyond(
    protocol: ProfileProtocol,
    table: AlignedTable,
    confound: Confound,
    floor: AlignedTable,
    *,
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of "method", `COLUMNS` and "refused", why a method has none of them, else "".

    value: beyond the confound; of the residualised the score itself. observed: the score on the
    retained rows. alone: the mean under permutations, or the score of the floor. Of an alignment in
    parts (`AlignedTable.parts`) the mean, and the p of `p_of_parts`.

    Args:
      confound: of every row of the table.
      floor: the confound as features, whose score is that of the confound alone.

    Raises:
      InputError: labels and confound do not overlap.
    """
    protocol = protocol.untested()  # its own p-values are of something else
    parts = list(_parts(protocol, table, confound, floor))

    def of_parts(method: Callable[..., dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        return lambda: _mean([method(*part) for part in parts])

    return rows_by_method(
        {
            PERMUTATION: of_parts(
                lambda part, _, overlap: _permuted(protocol, part, overlap, permutations, seed)
            ),
            ADDED: of_parts(lambda part, floor, overlap: _added(protocol, part, floor, overlap)),
            RESIDUALISED: of_parts(
                lambda part, _, overlap: _residualised(protocol, part, confound, overlap)
            ),
        }
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """The rows a protocol asks about: features [m, d], obs [m], where they come from, int [m]."""

    features: np.ndarray
    obs: pd.DataFrame
    asked: np.ndarray
    like: AlignedTable

    @classmethod
    def of(
        cls,
        protocol: ProfileProtocol,
        table: AlignedTable,
        features: np.ndarray,
        negatives: np.ndarray,
    ) -> "_Part":
        asked = protocol.fold(table.obs).test
        for column in protocol.permuted:
            if column in protocol.blocks and column != protocol.target.column:
                others = has_value(table.obs[column]) & ~controls_of(table.obs)
                asked = np.union1d(asked, np.flatnonzero(others))
        obs = table.obs
        if CONTROL in protocol.needs:
            asked = np.union1d(asked, np.flatnonzero(negatives))
            # Controls are one label, whatever their compound and dose, which may be empty.
            others = [column for column in protocol.permuted if column != CONTROL]
            named = {c: obs[c].astype(object).where(~negatives, CONTROL) for c in others}
            obs = obs.assign(**named, **{CONTROL: negatives})
        return cls(features[asked], obs.iloc[asked].reset_index(drop=True), asked, table)

    def overlap(self, protocol: ProfileProtocol, confound: Confound) -> Overlap:
        known = np.all([has_value(self.obs[column]) for column in protocol.permuted], axis=0)
        labels = pd.Series(unit_names(self.obs, protocol.permuted), dtype=object).where(known)
        rows = np.array([f"row {row}" for row in self.asked], object)
        blocks = rows
        if protocol.blocks:
            blocks = np.where(known, unit_names(self.obs, protocol.blocks), rows)
        held = confound.values.iloc[self.asked].reset_index(drop=True)
        return find_overlap(
            labels,
            held.to_frame(confound.name),
            blocks,
            within=self.obs[list(protocol.within)] if protocol.within else None,
            numbers=(confound.name,) if confound.is_number else (),
            once=protocol.once,
        )

    def score(
        self, protocol: ProfileProtocol, overlap: Overlap, labels: np.ndarray, features: np.ndarray
    ) -> Score:
        """Of the retained rows with these labels, int [rows]."""
        obs = self.obs.copy()
        known = np.flatnonzero(
            np.all([has_value(obs[column]) for column in protocol.permuted], axis=0)
        )
        names = unit_names(obs, protocol.permuted)
        values, first = np.unique(names[known].astype(str), return_index=True)
        like = known[first][np.searchsorted(values, np.array(overlap.names)[labels])]
        for column in protocol.permuted:
            held = obs[column].to_numpy(object)
            new = held.copy()
            new[known] = False if column == CONTROL else None
            new[overlap.rows] = held[like]
            obs[column] = new.astype(bool) if column == CONTROL else new
        kept = np.ones(len(obs), bool)
        kept[known] = False
        kept[overlap.rows] = True
        mine = dataclasses.replace(self.like, obs=obs[kept].reset_index(drop=True))
        return protocol.score(unaligned(mine, features[kept]), representation="", kind="", seed=0)


def _parts(
    protocol: ProfileProtocol, table: AlignedTable, confound: Confound, floor: AlignedTable
) -> Iterator[tuple[_Part, np.ndarray, Overlap]]:
    """Each part of the table, the floor's features of the same rows, and what overlaps there."""
    whole = CONTROL not in protocol.needs
    nobody = np.zeros(len(table.obs), bool)
    mine = [(table.features, nobody)] if whole else table.parts()
    floors = [(floor.features, nobody)] if whole else floor.parts()
    held = list(floors)
    for i, (features, negatives) in enumerate(mine):
        # A floor from metadata is not aligned, and has the same features in every part.
        of_floor = held[min(i, len(held) - 1)][0]
        part = _Part.of(protocol, table, features, negatives)
        yield part, of_floor[part.asked], part.overlap(protocol, confound)


def _permuted(
    protocol: ProfileProtocol, part: _Part, overlap: Overlap, permutations: int, seed: int
) -> dict[str, Any]:
    # Of a draw the whole score is enough: the values of its units cost a score each.
    fast = protocol.with_settings(jackknife=False)
    found = conditional_permutation(
        overlap,
        lambda labels: part.score(protocol, overlap, labels, part.features).per_unit,
        null=lambda labels: part.score(fast, overlap, labels, part.features).value,
        n_permutations=permutations,
        seed=seed,
    )
    about = {"observed": found.observed, "alone": found.null, "p": found.p}
    return conditional_row(PERMUTATION, found.value, found.interval, overlap, **about)


def _added(
    protocol: ProfileProtocol, part: _Part, floor: np.ndarray, overlap: Overlap
) -> dict[str, Any]:
    floor = _standardised(_waves(floor) if floor.shape[1] == 1 else floor)
    both = np.hstack([floor, _standardised(part.features)])
    joint, alone = (
        part.score(protocol, overlap, overlap.labels, of).per_unit for of in (both, floor)
    )
    units = [unit for unit in joint if unit in alone]
    if not units:
        raise InputError("the floor and both together have no unit in common")
    gain = np.array([joint[unit] - alone[unit] for unit in units])
    means = {side: float(np.mean([of[unit] for unit in units]))
             for side, of in (("observed", joint), ("alone", alone))}  # fmt: skip
    return conditional_row(
        ADDED, float(gain.mean()), t_interval(gain), overlap, **means, p=p_of_gain(gain)
    )


def _residualised(
    protocol: ProfileProtocol, part: _Part, confound: Confound, overlap: Overlap
) -> dict[str, Any]:
    """Fitted on the retained rows, and taken from those beside them too, such as the compounds that
    genes are compared with: a row that lacks the confound counts as one with the mean of it."""
    columns = confound.columns[part.asked]
    lacks = ~has_value(confound.values)[part.asked]
    columns[lacks] = columns[overlap.rows].mean(axis=0)
    left = residualised(part.features, columns, overlap.rows)
    score = part.score(protocol, overlap, overlap.labels, left.features)
    about = {"observed": None, "alone": None, "p": None}
    return conditional_row(RESIDUALISED, score.value, score.interval, overlap, **about)


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of those of the parts."""
    found = dict(rows[0])
    for key in ("value", "lower", "upper", "observed", "alone", "p"):
        values = [row[key] for row in rows]
        found[key] = None if None in values else float(np.mean(values))
    if found["p"] is not None:
        found["p"] = float(p_of_parts(found["p"], len(rows)))
    return found


def _waves(column: np.ndarray) -> np.ndarray:
    """A number [n, 1] as cosines and sines of its rank, float64 [n, 2 len(WAVES)].

    Their products fall with the distance of two ranks, as those of a narrow kernel do.
    """
    rank = pd.Series(column[:, 0]).rank(pct=True).to_numpy()[:, None]
    angle = np.pi * rank * np.array(WAVES)
    return np.hstack([np.cos(angle), np.sin(angle)])


def _standardised(features: np.ndarray) -> np.ndarray:
    """Float32 [n, d] with a mean square length of 1; a constant column is 0."""
    x = features.astype(np.float64)
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    varies = spread > 1e-9 * max(float(spread.max()), 1e-300)
    x = np.where(varies, x / np.where(varies, spread, 1.0), 0.0)
    return (x / np.sqrt(max(int(varies.sum()), 1))).astype(np.float32)

"""Could a group's mean average precision be chance? Two null distributions.

**Permuted labels** (`permutation_p`, the default). A group's labels are drawn anew among its own
and the control wells of each plate, as many a plate as before, and its mAP is computed again: the
share of drawings that reach what was observed is a p-value whatever ties the wells of a plate to
each other, because under the null hypothesis the wells that carry the labels are any of them. Only
the group's own labels move, so what other treatments do does not matter. Without controls the
labels of all groups are shuffled; for one group that is the same drawing with everybody else.

Drawings cost little: every well's similarities are sorted once, into how many of the wells that
may be negatives are above and tied with each other well; a drawing looks those numbers up for its
positives and corrects them for the few wells that changed sides.

**Random rankings** (`ranking_p`), the rule of `copairs.map`, for comparison: average precisions of
rankings in which every order is as likely. All queries of a group with the same numbers of
positives and negatives get the *same* random rankings there and here. It knows nothing of how wells
depend on each other, and its p-values are too small where they do.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from bioimg_jax.errors import InputError
from bioimg_jax.probes.average_precision import AveragePrecision
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.probes.knn import TIE, by_bytes, unit_length
from bioimg_jax.probes.linear import padded_rows
from bioimg_jax.probes.pairs import Side, check_columns, levels_of, memberships, read_side

PERMUTATIONS = 10_000
EQUAL = 1e-6  # mAPs that are equal on paper differ by about 1e-7 in float32
WELLS = 1024  # treated wells whose similarities are held at once, beside those of the controls
NUMBERS = 1 << 19  # similarities of drawings held at once
MOST_RANKINGS = 200_000  # listed one by one


@dataclasses.dataclass(frozen=True)
class MapTest:
    """mAP of groups and its test, sorted by group.

    groups: [g]; values: float64 [g], mean average precision; queries: int [g], of so many;
    p, q: float64 [g], q by Benjamini-Hochberg over the groups tested.
    null: float64 [g], the mean of what each value was compared with.
    excluded: how many groups were left out, by reason.
    """

    groups: np.ndarray
    values: np.ndarray
    queries: np.ndarray
    p: np.ndarray
    q: np.ndarray
    excluded: dict[str, int]
    null: np.ndarray

    def fraction_active(self, level: float = 0.05) -> float:
        """The share of the groups tested with q below the level."""
        return float(np.mean(self.q < level))


def permutation_p(
    features: np.ndarray,
    metadata: pd.DataFrame,
    group: str,
    *,
    controls: np.ndarray | None,
    within: Sequence[str] = (),
    multilabel: bool = False,
    pos_sameby: Sequence[str] = (),
    pos_diffby: Sequence[str] = (),
    neg_sameby: Sequence[str] = (),
    neg_diffby: Sequence[str] = (),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> MapTest:
    """p = (#{drawn mAP ≥ observed} + 1)/(permutations + 1) for every group of wells.

    Positives of a well are the others of its group; negatives are the controls, or all wells of
    other groups where `controls` is None.

    Args:
      features: [n, d], any float dtype.
      metadata: [n]; its index does not matter.
      group: the column of labels that are permuted; in a control's row it is not read.
      controls: bool [n].
      within: labels stay inside rows that agree in these columns (the plate).
      multilabel: cells of the group column hold several labels, each a group; negatives share none
        of a well's labels, and the labels of a well move together. Only without controls.
      pos_sameby ... neg_diffby: further pair rules, on columns that belong to the well and do not
        move with the label.

    Memory: 16 bytes times the square of the number of controls and `WELLS`; without controls, of
    the number of all rows.

    Raises:
      InputError: a column that is not there, features that are not finite, no control, no group of
        two wells with a positive and a negative pair.
    """
    n = len(metadata)
    if features.ndim != 2 or len(features) != n:
        raise InputError(f"features {features.shape} for {n} rows of metadata, expected [n, d]")
    check_finite(features, "row")
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, not {permutations}")
    check_columns(metadata, [group, *within, *pos_sameby, *pos_diffby, *neg_sameby, *neg_diffby])
    extra = {"pos": (*pos_sameby, *pos_diffby), "neg": (*neg_sameby, *neg_diffby)}
    for kind, columns in extra.items():
        if group in columns or len(set(columns)) < len(columns):
            raise InputError(f"{kind}_sameby and {kind}_diffby name {group!r} or a column twice")
    plate = read_side(metadata, within, ()).same
    treated = np.ones(n, bool)
    if controls is not None:
        if np.shape(controls) != (n,) or np.asarray(controls).dtype != bool:
            raise InputError(f"controls must be true or false for each of the {n} rows")
        treated = ~np.asarray(controls)
        if treated.all():
            raise InputError("no row is a control")
    labels = np.zeros((n, 0), bool)
    if multilabel:
        if controls is not None:
            raise InputError("labels of a multilabel column are permuted without controls")
        labels, names = memberships(metadata[group], group)
        label = np.where(labels.any(axis=1), 0, -1)
    else:
        moving = metadata[group].reset_index(drop=True).where(treated)
        label, names = levels_of(moving, group)
    label = np.where(plate < 0, -1, label)
    if not (label >= 0).any():
        raise InputError(f"no well has a group in column {group!r}")
    background = (~treated & (plate >= 0)) if controls is not None else label >= 0
    wells = _Wells.of(
        unit_length(features),
        label,
        labels,
        background,
        plate,
        read_side(metadata, pos_sameby, pos_diffby),
        read_side(metadata, neg_sameby, neg_diffby),
    )
    test = _tested(wells, names, permutations, seed)
    if (plate < 0).any():
        test.excluded["rows without a plate"] = int(np.sum(plate < 0))
    return test


class _Wells(NamedTuple):
    """Wells in an order of their own: the background first, by plate; then the rest, by group.

    rows: float32 [n, d] of length 1; label: int [n], −1 in no group; labels: bool [n, l], the
    groups where a well has several; background: bool [n]; plate: int [n]; positive, negative: what
    the wells themselves allow.
    """

    rows: np.ndarray
    label: np.ndarray
    labels: np.ndarray
    background: np.ndarray
    plate: np.ndarray
    positive: Side
    negative: Side

    @classmethod
    def of(cls, rows: np.ndarray, *columns: Any) -> "_Wells":
        label, labels, background, plate, positive, negative = columns
        wanted = np.flatnonzero(background | (label >= 0))
        held = np.packbits(labels, axis=1)
        codes = np.column_stack([label, plate, *positive, *negative, held]).astype(np.int32)
        wanted = wanted[by_bytes(codes[wanted])]
        wanted = wanted[by_bytes(rows[wanted])]
        place = np.where(background, plate, label)[wanted]
        wanted = wanted[np.lexsort((place, ~background[wanted]))]
        number = np.arange(len(wanted), dtype=np.int32)

        def side(old: Side) -> Side:
            different = np.column_stack([old.different[wanted], number])
            return Side(old.same[wanted], different.astype(np.int32))

        return cls(
            rows[wanted], label[wanted], labels[wanted], background[wanted], plate[wanted],
            side(positive), side(negative),
        )  # fmt: skip

    def members(self, groups: int) -> list[np.ndarray]:
        """The wells of every group."""
        if self.labels.shape[1]:
            return [np.flatnonzero(column) for column in self.labels.T]
        by_label = np.argsort(self.label, kind="stable")
        return np.split(by_label, np.searchsorted(self.label[by_label], np.arange(groups + 1)))[
            1:-1
        ]

    def related(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Other wells that share a label with one of a group's, and who is no negative of whom.

        The second is int32 [k, k + r], of the group's own k wells and the r others.
        """
        if not self.labels.shape[1]:
            return own[:0], np.ones((len(own), len(own)), np.int32)
        shared = self.labels[own].astype(np.float32) @ self.labels.T.astype(np.float32) > 0.5
        others = np.setdiff1d(np.flatnonzero(shared.any(axis=0)), own)
        return others, shared[:, np.concatenate([own, others])].astype(np.int32)


class _Known(NamedTuple):
    """What a drawing looks up, of m wells: the background and the other members of some groups.

    table: float32 [m · m, 3], for a well and another: their similarity, and how many of the
    background's wells that may be negatives of the first are above the second, at least tie with
    it; together, because a drawing looks them up in one place. negatives: float32 [m], of so many.
    harmonic: float32 [h, 2], H_0, H_1, ... and what float32 leaves of them.
    """

    table: Any
    negatives: Any
    background: Any
    positive: Side
    negative: Side
    harmonic: Any


def _tested(wells: _Wells, names: np.ndarray, permutations: int, seed: int) -> MapTest:
    members = wells.members(len(names))
    values, p, means = np.full((3, len(names)), np.nan)
    queries, free = np.zeros(len(names), int), np.ones(len(names), bool)
    lookup = _Lookup.of(wells)
    for some in _chunks(members):
        known, local = lookup.known([members[g] for g in some])
        for g in some:
            rng = np.random.default_rng((seed, g))
            others, related = wells.related(members[g])
            slots = np.concatenate([members[g], others])
            drawn = np.vstack([slots, lookup.drawings(rng, slots, permutations)])
            outside = not wells.background[members[g]].all()
            null, number = _mean_aps(known, local[drawn], related, outside)
            values[g], queries[g] = null[0], number[0]
            free[g] = len(members[g]) < lookup.pool(members[g])
            if number[0] and free[g]:
                reach = ~(null[1:] < null[0] - EQUAL)  # a drawing without any pair reaches it too
                p[g] = (np.sum(reach) + 1) / (permutations + 1)
                means[g] = np.nanmean(null[1:]) if not np.isnan(null[1:]).all() else np.nan
    sizes = np.array([len(own) for own in members])
    excluded = {
        "no well": int(np.sum(sizes == 0)),
        "single replicate": int(np.sum(sizes == 1)),
        "no other well on its plates": int(np.sum(~free)),
        "no pair": int(np.sum((sizes > 1) & free & np.isnan(p))),
    }
    tested = np.flatnonzero(~np.isnan(p))
    if not len(tested):
        counts = ", ".join(f"{number} with {reason}" for reason, number in excluded.items())
        raise InputError(f"no group of wells can be tested: {counts}")
    q = false_discovery_control(p[tested])  # Benjamini and Hochberg's
    return MapTest(
        names[tested], values[tested], queries[tested], p[tested], q, excluded, means[tested]
    )


def _chunks(members: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Groups of several wells, about `WELLS` wells at a time."""
    some: list[int] = []
    for g, own in enumerate(members):
        if len(own) < 2:
            continue
        if some and sum(len(members[other]) for other in some) + len(own) > WELLS:
            yield some
            some = []
        some.append(g)
    if some:
        yield some


@dataclasses.dataclass(frozen=True)
class _Lookup:
    """The background's similarities, computed once for all groups.

    table: float32 [b, b, 3] as in `_Known`; by_size: similarities that count, every row sorted.
    room: for so many other wells at a time, so that few programs are compiled.
    start, count: int [plates], where the background's wells of a plate are.
    """

    wells: _Wells
    n_background: int
    table: np.ndarray
    by_size: np.ndarray
    start: np.ndarray
    count: np.ndarray
    room: int

    @classmethod
    def of(cls, wells: _Wells) -> "_Lookup":
        n = int(wells.background.sum())
        background = wells.negative.of(slice(n))
        similarity = _product(wells.rows[:n], wells.rows[:n])
        by_size = _by_size(similarity, background, background)
        count = np.bincount(wells.plate[:n], minlength=int(wells.plate.max()) + 1)
        others = len(wells.rows) - n
        room = min(WELLS, padded_rows(others)) if others else 0
        start = np.cumsum(count) - count
        return cls(wells, n, _ranked(by_size, similarity), by_size, start, count, room)

    def known(self, groups: Sequence[np.ndarray]) -> tuple[_Known, np.ndarray]:
        """Tables of the background and these groups; and the place of every well in them."""
        wells, n = self.wells, self.n_background
        own = np.concatenate(groups)
        outside = own[~wells.background[own]]
        chosen = np.concatenate([np.arange(n), outside])
        local = np.full(len(wells.rows), -1)
        local[chosen] = np.arange(len(chosen))
        m = max(n + self.room, len(chosen))
        table = np.zeros((m, m, 3), np.float32)
        table[:n, :n] = self.table
        by_size = self.by_size
        if len(outside):
            across = _product(wells.rows[outside], wells.rows[chosen])  # [o, n + o]
            table[:n, n : len(chosen)] = _ranked(by_size, across[:, :n].T)
            background, negative = wells.negative.of(slice(n)), wells.negative.of(outside)
            from_outside = _by_size(across[:, :n], negative, background)
            table[n : len(chosen), :n] = _ranked(from_outside, across[:, :n])
            by_size = np.concatenate([by_size, from_outside])
            for group in groups:  # no drawing has wells of two groups
                at = local[group]
                table[np.ix_(at, at)] = _ranked(by_size[at], across[np.ix_(at - n, at)])
        negatives = np.zeros(m, np.float32)
        negatives[: len(chosen)] = np.sum(by_size > NOBODY, axis=1)
        padding = np.concatenate([chosen, np.zeros(m - len(chosen), int)])
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, 2 * m + 1))])
        high = harmonic.astype(np.float32)
        known = _Known(
            table.reshape(-1, 3), negatives, wells.background[padding],
            wells.positive.of(padding), wells.negative.of(padding),
            np.stack([high, harmonic - high], axis=1).astype(np.float32),
        )  # fmt: skip
        return jax.tree.map(jnp.asarray, known), local

    def pool(self, own: np.ndarray) -> int:
        """The number of wells that a group's labels may be given to."""
        outside = np.sum(~self.wells.background[own])
        return int(outside + self.count[np.unique(self.wells.plate[own])].sum())

    def drawings(self, rng: np.random.Generator, own: np.ndarray, number: int) -> np.ndarray:
        """Wells int [number, k] that carry the labels of k wells, as many of each plate.

        In the pool of a plate these wells come first, as far as they are not in the background.
        """
        order = np.argsort(self.wells.plate[own], kind="stable")
        by_plate = own[order]
        plate = self.wells.plate[by_plate]
        first = np.searchsorted(plate, plate)
        more = np.where(self.wells.background[by_plate], 0, np.bincount(plate)[plate])
        place = np.arange(len(own)) - first
        drawn = _first_of_shuffles(rng, place, self.count[plate] + more, number)
        treated = by_plate[np.minimum(first + drawn, len(own) - 1)]
        wells = np.empty_like(drawn)
        wells[:, order] = np.where(drawn < more, treated, self.start[plate] + drawn - more)
        return wells


NOBODY = -2.0  # below every cosine


def _product(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(_inner(queries, gallery))


@jax.jit
def _inner(queries: jax.Array, gallery: jax.Array) -> jax.Array:
    return queries @ gallery.T


def _by_size(similarity: np.ndarray, queries: Side, others: Side) -> np.ndarray:
    """Similarities [m, n] of possible negatives sorted in every row, after `NOBODY` for others."""
    return np.sort(np.where(queries.across(others), similarity, np.float32(NOBODY)), axis=1)


def _ranked(by_size: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """`_Known.table`, float32 [m, c, 3], of similarities [m, c] of wells with `by_size` [m, n]."""
    table = np.empty((*similarity.shape, 3), np.float32)
    table[:, :, 0] = similarity
    tie, n = np.float32(TIE), by_size.shape[1]
    for row, values, limits in zip(table, by_size, similarity, strict=True):
        order = np.argsort(limits)  # limits that rise are looked up much faster
        limits = limits[order]
        row[order, 1] = n - np.searchsorted(values, limits + tie, side="right")
        row[order, 2] = n - np.searchsorted(values, limits - tie)
    return table


def _mean_aps(
    known: _Known, slots: np.ndarray, related: np.ndarray, outside: bool
) -> tuple[np.ndarray, np.ndarray]:
    """mAP float64 [n] of groups drawn, and the number of queries that it is the mean of.

    slots: int [n, k + r], the wells in place of a group's k wells and of the r related ones; the
    first row is the group itself. related: int32 [k, k + r]; outside: are its wells no background?
    """
    n, (k, every) = len(slots), related.shape
    width, more = _width(k), _width(every - k)
    size = padded_rows(-(-n // -(-n * width**2 // NUMBERS)))
    places = np.zeros((-(-n // size) * size, width + more), np.int32)
    places[:n, :k], places[:n, width : width + every - k] = slots[:, :k], slots[:, k:]
    sharing = np.zeros((width, width + more), np.int32)
    sharing[:k, :k], sharing[:k, width : width + every - k] = related[:, :k], related[:, k:]
    real = np.arange(width) < k
    own = places[0, : width if outside else 0]
    found = [
        _drawn(known, places[first : first + size].T, real, own, sharing)
        for first in range(0, len(places), size)
    ]
    values, queries = (np.concatenate([np.asarray(part[i]) for part in found])[:n] for i in (0, 1))
    return values.astype(np.float64), queries


def _width(k: int) -> int:
    """0, or the next 2^i or 3 · 2^i: few widths, few compiled programs."""
    if k == 0:
        return 0
    power = 1 << (k - 1).bit_length()
    return power * 3 // 4 if k <= power * 3 // 4 else power


@jax.jit
def _drawn(
    known: _Known, slots: jax.Array, real: jax.Array, own: jax.Array, related: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """mAP [b] and its queries [b] of the first k of the wells slots [k + r, b].

    real: bool [k], not padding; related: [k, k + r]. own: int [k], the wells that the group has, or
    [0] where they are in the background.
    """
    k, m = len(real), len(known.negatives)
    members, others = slots[:k], slots[k:]

    def look_up(wells: jax.Array) -> tuple[jax.Array, ...]:
        """Three float32 [k, x, b], of the members and wells [x, b]."""
        place = members[:, None].astype(jnp.uint32) * m + wells[None].astype(jnp.uint32)
        found = known.table.at[place].get(mode="promise_in_bounds")
        return found[..., 0], found[..., 1], found[..., 2]

    limits, above, at_least = look_up(members)
    pair = (real[:, None] & real[None, :])[:, :, None]
    positive = pair & _paired(known.positive, members[:, None], members[None])
    # Those in the group, and related ones, are no negatives; they were counted where background.
    counted = -related[:, :, None] * known.background[slots][None]  # [k, k + r, b]
    # The group's own wells that were left are negatives, and were not counted unless background.
    still = (own[:, None, None] == members[None]) & real[None, :, None]
    left = (real[: len(own)] & ~known.background[own])[:, None] & ~still.any(axis=1)  # [o, b]
    others = jnp.concatenate([others, jnp.broadcast_to(own[:, None], left.shape)])
    changed = jnp.concatenate([slots, others[len(slots) - k :]])
    sign = jnp.concatenate([counted, jnp.broadcast_to(left[None], (k, *left.shape))], axis=1)
    theirs = sign * _paired(known.negative, members[:, None], changed[None])  # [k, x, b]
    ours = jnp.concatenate([positive, jnp.zeros((k, *others.shape), bool)], axis=1)
    similarity = jnp.concatenate([limits, look_up(others)[0]], axis=1)

    def count(counts: tuple, change: tuple) -> tuple[tuple, None]:
        above, at_least, ours_above, ours_at_least = counts
        similarity, theirs, ours = (part[:, None] for part in change)  # [k, 1, b]
        higher, not_lower = similarity > limits + TIE, similarity >= limits - TIE
        return (
            above + jnp.where(higher, theirs + ours, 0.0),
            at_least + jnp.where(not_lower, theirs + ours, 0.0),
            ours_above + jnp.where(higher, ours, 0.0),
            ours_at_least + jnp.where(not_lower, ours, 0.0),
        ), None

    counts = above, at_least, jnp.zeros_like(above), jnp.zeros_like(above)
    parts = similarity, theirs.astype(jnp.float32), ours.astype(jnp.float32)
    changes = tuple(part.transpose(1, 0, 2) for part in parts)  # [x, k, b]
    (above, at_least, ours_above, ours_at_least), _ = jax.lax.scan(count, counts, changes, unroll=8)
    each = _expected_precision(
        known.harmonic, above, ours_above, at_least - above, ours_at_least - ours_above
    )
    number = jnp.sum(positive, axis=1)  # [k, b]
    precision = jnp.sum(jnp.where(positive, each, 0.0), axis=1) / jnp.maximum(number, 1)
    negatives = known.negatives[members] + jnp.sum(theirs, axis=1)
    asks = (number > 0) & (negatives > 0)
    queries = jnp.sum(asks, axis=0)
    return jnp.sum(jnp.where(asks, precision, 0.0), axis=0) / queries, queries


def _paired(side: Side, wells: jax.Array, others: jax.Array) -> jax.Array:
    """Are the wells and the others pairs? Of two shapes that broadcast."""
    pair = (side.same[wells] == side.same[others]) & (side.same[others] >= 0)
    for k in range(side.different.shape[1]):
        column = side.different[:, k]
        pair = pair & (column[wells] != column[others])
    return pair


def _expected_precision(
    harmonic: jax.Array, above: jax.Array, ours_above: jax.Array, tied: jax.Array, ours: jax.Array
) -> jax.Array:
    """`average_precision.expected_precision` in float32, which needs both parts of H."""
    tied = jnp.maximum(tied, 1.0)
    first, last = above.astype(jnp.uint32), (above + tied).astype(jnp.uint32)
    h_last, h_first = (harmonic.at[i].get(mode="promise_in_bounds") for i in (last, first))
    sums = jnp.sum(h_last - h_first, axis=-1)
    others = (ours - 1.0) / jnp.maximum(tied - 1.0, 1.0)
    return others + (ours_above + 1.0 - others * (above + 1.0)) * sums / tied


def ranking_p(
    scores: AveragePrecision,
    groups: np.ndarray,
    *,
    rule: Literal["above", "at least", "exact"] = "above",
    rankings: int = PERMUTATIONS,
    seed: int = 0,
) -> MapTest:
    """copairs' p-value: the mAP among those of random rankings.

    Args:
      groups: [q], of the queries of `scores`; a missing value is in no group.
      rule: "above" is copairs', p = (#{random > observed} + 1)/(rankings + 1). "at least" counts
        equal ones too. "exact" lists every ranking, p = P(random ≥ observed), where all queries of
        a group have the same numbers of positives and negatives and there are at most
        `MOST_RANKINGS`; elsewhere it is "at least".

    Raises:
      InputError: an unknown rule, groups of another length, no group.
    """
    if rule not in ("above", "at least", "exact"):
        raise InputError(f"rule must be 'above', 'at least' or 'exact', not {rule!r}")
    if len(groups) != len(scores.values):
        raise InputError(f"{len(groups)} groups for {len(scores.values)} queries")
    if rankings < 1:
        raise InputError(f"rankings must be at least 1, not {rankings}")
    group, names = levels_of(pd.Series(groups), "groups")
    if not len(names):
        raise InputError("no query is in a group")
    shapes, shape = np.unique(
        np.stack([scores.positives, scores.positives + scores.negatives], axis=1),
        axis=0,
        return_inverse=True,
    )

    @functools.cache
    def null(kind: int) -> np.ndarray:
        positives, total = map(int, shapes[kind])
        rng = np.random.default_rng((seed, positives, total))
        return _random_aps(rng, positives, total, rankings)

    values, p, means = np.empty((3, len(names)))
    queries = np.bincount(group[group >= 0], minlength=len(names))
    for g in range(len(names)):
        own = group == g
        values[g] = scores.values[own].mean()
        kinds, share = np.unique(shape[own], return_counts=True)
        if rule == "exact" and len(kinds) == 1:
            positives, total = map(int, shapes[kinds[0]])
            if math.comb(total, positives) <= MOST_RANKINGS:
                every = _every_ap(positives, total)
                p[g], means[g] = np.mean(every >= values[g] - 1e-9), every.mean()
                continue
        random = sum(w * null(i) for i, w in zip(kinds, share / own.sum(), strict=True))
        limit = values[g] + (1e-9 if rule == "above" else -1e-9)  # equal on paper
        p[g], means[g] = (np.sum(random > limit) + 1) / (rankings + 1), random.mean()
    q = false_discovery_control(p)
    return MapTest(names, values, queries, p, q, dict(scores.excluded), means)


def _random_aps(rng: np.random.Generator, positives: int, total: int, number: int) -> np.ndarray:
    """Average precisions float64 [number] of random rankings."""
    out = np.empty(number)
    step = max(1, NUMBERS // int(total))
    for first in range(0, number, step):
        size = min(step, number - first)
        if positives**2 < total:
            place = np.arange(positives)
            ranks = _first_of_shuffles(rng, place, np.full(positives, total), size)
        else:
            ranks = rng.random((size, total)).argpartition(positives - 1)[:, :positives]
        out[first : first + size] = _aps(np.sort(ranks, axis=1))
    return out


def _every_ap(positives: int, total: int) -> np.ndarray:
    """Average precisions of all rankings, each once."""
    return _aps(np.array(list(itertools.combinations(range(total), positives))))


def _aps(ranks: np.ndarray) -> np.ndarray:
    """Average precision [n] of the rising ranks [n, p] of the positives, from 0."""
    return np.mean(np.arange(1, ranks.shape[1] + 1) / (ranks + 1), axis=1)


def _first_of_shuffles(
    rng: np.random.Generator, place: np.ndarray, size: np.ndarray, number: int
) -> np.ndarray:
    """Items int [number, k] at the first places of shuffled pools, without repetition.

    place: int [k], 0, 1, ... within each pool; size: int [k] of the pool. Of the shuffle of Fisher
    and Yates only what ends up there is followed: step t brings item t to the place it picks.
    """
    picked = rng.integers(place, size, (number, len(place)))
    items = picked.copy()
    for t in range(len(place)):
        for before in range(t - 1, t - 1 - place[t], -1):
            items[picked[:, before] == items[:, t], t] = place[before]
    return items

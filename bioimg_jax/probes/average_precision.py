"""Average precision of every row's cosine ranking: positive pairs among positives and negatives.

The average precision of a query is the mean, over its positives, of the share of positives in the
ranking down to there.

* **Ties.** Similarities within `TIE` of each other are equal. A positive that ties with m − 1
  others, p positives in all, below a items with b positives among them, is at each of the m places
  with equal chance; at place j the precision down to it is (b + 1 + (j − 1)(p − 1)/(m − 1))/(a + j)
  on average, so that its share is the mean of that over j: the exact expectation over all orders of
  tied rows. With everything tied it is the average precision by chance.
* **Counting.** A query has few positives, so nothing is sorted: for each positive the negatives
  above it and tied with it are counted, while the similarities of one block to the next pass by.
  Queries that may have more than `FEW` positives are sorted instead.
* **Order.** Rows are sorted by their own bytes before any product, as in `knn`.
* **Zero vectors** have similarity 0 with everything.
* **Memory.** Blocks of `QUERY_BLOCK` queries meet blocks of `GALLERY_BLOCK` rows. Rows that are
  nobody's negative are left out, and rows that agree in `neg_sameby` lie together, so that a query
  meets little else.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite
from bioimg_jax.probes.knn import TIE, padded, unit_length
from bioimg_jax.probes.linear import padded_rows
from bioimg_jax.probes.pairs import PairRules, Pairs, Side, joint, read_pairs

QUERY_BLOCK = 512
GALLERY_BLOCK = 2048
FEW = 64  # comparing with each costs about what the product of 384 features does
SORTED_NUMBERS = 1 << 23  # similarities held at once where queries have many positives


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """One number a query, in the order of the table; with `per_label` one a query and label.

    queries: int64 [q], rows of the table; labels: object [q], or None without `per_label`.
    values: float64 [q]; positives, negatives: int64 [q], how many there were to rank.
    excluded: how many rows that asked have no value, by reason: "missing value" in a column of the
      rules, "no positive", "no negative".
    """

    queries: np.ndarray
    labels: np.ndarray | None
    values: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    excluded: dict[str, int]

    @property
    def chance(self) -> np.ndarray:
        """The expectation [q] over random rankings."""
        return chance(self.positives, self.positives + self.negatives)

    @property
    def normalised(self) -> np.ndarray:
        """(AP − chance) / (1 − chance) [q]: 0 by chance, 1 at best."""
        return (self.values - self.chance) / (1.0 - self.chance)


def average_precision(
    features: np.ndarray,
    metadata: pd.DataFrame,
    rules: PairRules,
    *,
    per_label: bool = True,
    queries: np.ndarray | None = None,
) -> AveragePrecision:
    """Average precision of the rows of a table that have positives and negatives.

    Args:
      features: [n, d], any float dtype; cosine takes them as they are.
      metadata: [n], with the columns of the rules; its index does not matter.
      per_label: of a multilabel column, one value for each label of a query, whose positives share
        that label (`copairs.map.multilabel`); else positives share any label.
      queries: bool [n], the rows that ask; by default all. The others are still ranked.

    Raises:
      InputError: rules that the table cannot follow, features that are not finite, a pair that is
        positive and negative, or no query with both kinds of pair.
    """
    n = len(metadata)
    if features.ndim != 2 or len(features) != n:
        raise InputError(f"features {features.shape} for {n} rows of metadata, expected [n, d]")
    asks = np.ones(n, bool) if queries is None else np.asarray(queries)
    if asks.shape != (n,) or asks.dtype != bool:
        raise InputError(f"queries must be true or false for each of the {n} rows")
    check_finite(features, "row")
    pairs = read_pairs(metadata, rules)
    rows = unit_length(features)
    order = pairs.canonical(rows)
    table = _Table(rows[order], pairs.ordered(order), order)

    asked = _asked(table.pairs, asks[order], per_label)
    values = np.full(len(asked.row), np.nan)
    positives, negatives = np.zeros((2, len(values)), np.int64)
    with jax.default_matmul_precision("highest"):
        for some, counts in _counted(table, asked):
            positives[some] = counts.is_positive.sum(axis=1)
            negatives[some] = counts.negatives
            values[some] = _mean_precision(counts)
    row = order[asked.row]
    excluded = _excluded(table, asks, row[positives > 0], row[(positives > 0) & (negatives > 0)])
    by_row = np.lexsort((asked.label, row))
    by_row = by_row[(positives[by_row] > 0) & (negatives[by_row] > 0)]
    if not len(by_row):
        counted = ", ".join(f"{number} with {reason}" for reason, number in excluded.items())
        raise InputError(
            f"no query has a positive and a negative pair by pos_sameby {list(rules.pos_sameby)}, "
            f"pos_diffby {list(rules.pos_diffby)}, neg_sameby {list(rules.neg_sameby)}, "
            f"neg_diffby {list(rules.neg_diffby)}: {counted}"
        )
    label = asked.label[by_row]
    return AveragePrecision(
        queries=row[by_row],
        labels=None if label[0] < 0 else pairs.label_names[label],
        values=values[by_row],
        positives=positives[by_row],
        negatives=negatives[by_row],
        excluded=excluded,
    )


def expected_precision(
    above: np.ndarray, positives_above: np.ndarray, tied: np.ndarray, positives_tied: np.ndarray
) -> np.ndarray:
    """Expected precision at a positive that is one of `tied` items of equal rank; any shape.

    above, tied: items of either kind; positives_above, positives_tied (itself too): of them.
    (1/m) Σ_j (b + 1 + (j − 1) r)/(a + j) with r = (p − 1)/(m − 1), in closed form
    r + (b + 1 − r (a + 1)) (H_{a+m} − H_a)/m.
    """
    above, tied = np.asarray(above), np.asarray(tied)
    harmonic = _harmonic(int((above + tied).max(initial=0)))
    others = (np.asarray(positives_tied) - 1) / np.maximum(tied - 1, 1)
    sums = harmonic[above + tied] - harmonic[above]
    return others + (positives_above + 1 - others * (above + 1)) * sums / tied


def chance(positives: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Expected average precision of random rankings, (p−1)/(n−1) + H_n (n−p)/(n(n−1))."""
    return expected_precision(np.zeros_like(total), np.zeros_like(total), total, positives)


def _harmonic(n: int) -> np.ndarray:
    """H_0 ... H_n."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])


class _Table(NamedTuple):
    """Rows of length 1, float32 [n, d], and their pairs in canonical order; order: int [n]."""

    rows: np.ndarray
    pairs: Pairs
    order: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Queries [q]; label −1 stands for any.

    Elements [e] are memberships of rows in groups whose members may be positives of each other;
    query_of: the query [e] that a membership belongs to, −1 where its row does not ask.
    """

    row: np.ndarray
    label: np.ndarray
    element_row: np.ndarray
    element_key: np.ndarray
    query_of: np.ndarray
    at_most: np.ndarray  # [q] positives


class _Counts(NamedTuple):
    """What is above and tied with the positives [q, p] of some queries; negatives: [q]."""

    is_positive: np.ndarray
    positives_above: np.ndarray
    positives_tied: np.ndarray
    negatives_above: np.ndarray
    negatives_tied: np.ndarray
    negatives: np.ndarray


def _mean_precision(counts: _Counts) -> np.ndarray:
    """Average precision [q]; not a number without a positive."""
    each = expected_precision(
        counts.negatives_above + counts.positives_above,
        counts.positives_above,
        np.maximum(counts.negatives_tied + counts.positives_tied, 1),
        counts.positives_tied,
    )
    number = counts.is_positive.sum(axis=1)
    total = np.where(counts.is_positive, each, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def _asked(pairs: Pairs, asks: np.ndarray, per_label: bool) -> _Asked:
    same = pairs.positive.same
    if pairs.labels.shape[1]:
        row, label = np.nonzero(pairs.labels & (same >= 0)[:, None])
        key = joint([same[row], label.astype(np.int32)])
    else:
        row = np.flatnonzero(same >= 0)
        label, key = np.full(len(row), -1), same[row]
    split = per_label and bool(pairs.labels.shape[1])
    mine = asks[row]
    query_of = np.full(len(row), -1)
    if split:
        query_of[mine] = np.arange(mine.sum())
        query_row, query_label = row[mine], label[mine]
    else:
        query_row, query_of[mine] = np.unique(row[mine], return_inverse=True)
        query_label = np.full(len(query_row), -1)
    size = np.bincount(key, minlength=1)
    at_most = np.bincount(query_of[mine], size[key[mine]] - 1, minlength=len(query_row))
    return _Asked(query_row, query_label, row, key, query_of, at_most)


def _counted(table: _Table, asked: _Asked) -> Iterator[tuple[np.ndarray, _Counts]]:
    """Blocks of queries, by number in `asked`, and their counts."""
    positives, is_positive = _listed(table, asked)
    found = is_positive.sum(axis=1)
    listed = np.flatnonzero(found)
    sorted_out = np.flatnonzero(asked.at_most > FEW)
    weights = np.zeros(len(table.rows))
    weights[asked.row[listed]] = 1.0
    if len(listed):
        gallery = _Gallery.of(table, np.flatnonzero(table.pairs.negative.partners(weights) > 0.5))
        width = 1 << np.ceil(np.log2(found[listed])).astype(int)
        for p in np.unique(width):
            some = listed[width == p]
            place = table.pairs.negative.same[asked.row[some]]
            some = some[np.argsort(place, kind="stable")]
            size = min(QUERY_BLOCK, padded_rows(len(some)))
            for first in range(0, len(some), size):
                block = some[first : first + size]
                chosen = positives[block, :p], is_positive[block, :p]
                yield block, gallery.count(table, asked.row[block], *chosen, size)
    size = max(1, SORTED_NUMBERS // len(table.rows))
    for first in range(0, len(sorted_out), size):
        block = sorted_out[first : first + size]
        for number, counts in zip(block, _sort(table, asked, block), strict=True):
            yield np.array([number]), counts


def _listed(table: _Table, asked: _Asked) -> tuple[np.ndarray, np.ndarray]:
    """The positives of the queries that have few: rows int32 [q, p], and which of them are real."""
    mine = np.flatnonzero(asked.query_of >= 0)
    mine = mine[asked.at_most[asked.query_of[mine]] <= FEW]
    by_key = np.argsort(asked.element_key, kind="stable")
    size = np.bincount(asked.element_key, minlength=1)
    start = np.cumsum(size) - size
    number = size[asked.element_key[mine]]
    within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    other = by_key[np.repeat(start[asked.element_key[mine]], number) + within]
    query, other = np.repeat(asked.query_of[mine], number), asked.element_row[other]
    row = asked.row[query]
    positive, negative, labels = table.pairs.positive, table.pairs.negative, table.pairs.labels
    real = positive.of(row).together(positive.of(other))
    n = len(table.rows)
    query, other = np.divmod(np.unique(query[real] * n + other[real]), n)
    row = asked.row[query]
    both = negative.of(row).together(negative.of(other))
    if both.any() and not labels.shape[1]:
        _refuse_both(table, row[both], other[both])
    found = np.bincount(query, minlength=len(asked.row))
    width = 1 << (int(found.max(initial=1)) - 1).bit_length()  # few widths, few programs
    positives = np.zeros((len(found), width), np.int32)
    place = np.arange(len(query)) - (np.cumsum(found) - found)[query]
    positives[query, place] = other
    return positives, np.arange(width) < found[:, None]


def _refuse_both(table: _Table, row: np.ndarray, other: np.ndarray) -> None:
    first, second = min(map(sorted, zip(table.order[row], table.order[other], strict=True)))
    raise InputError(
        f"rows {first} and {second} are a positive and a negative pair: a column of pos_sameby "
        "belongs in neg_diffby, or one of pos_diffby in neg_sameby"
    )


class _Block(NamedTuple):
    """Some rows on the device: float32 [b, d], codes, labels float32 [b, l]."""

    rows: jax.Array
    side: Side
    labels: jax.Array

    @classmethod
    def of(cls, table: _Table, chosen: np.ndarray, size: int) -> "_Block":
        """The rows chosen, and padding that is in no pair."""
        negative = table.pairs.negative.of(chosen)
        same = np.full(size, -1, np.int32)
        same[: len(chosen)] = negative.same
        different = padded(negative.different, size)
        labels = padded(table.pairs.labels[chosen].astype(np.float32), size)
        return cls(
            jnp.asarray(padded(table.rows[chosen], size)),
            Side(jnp.asarray(same), jnp.asarray(different)),
            jnp.asarray(labels),
        )


@dataclasses.dataclass(frozen=True)
class _Gallery:
    """The rows that are somebody's negative, those of one `same` together.

    block: padded to whole tiles of `tile` rows; same: int32 [g], rising, without the padding.
    """

    block: _Block
    same: np.ndarray
    tile: int

    @classmethod
    def of(cls, table: _Table, chosen: np.ndarray) -> "_Gallery":
        place = table.pairs.negative.same[chosen]
        chosen = chosen[np.argsort(place, kind="stable")]
        tile = min(GALLERY_BLOCK, padded_rows(len(chosen)))
        size = -(-max(len(chosen), 1) // tile) * tile
        return cls(_Block.of(table, chosen, size), np.sort(place), tile)

    def count(
        self,
        table: _Table,
        queries: np.ndarray,  # int [b] rows
        positives: np.ndarray,  # int [b, p] rows
        is_positive: np.ndarray,
        size: int,
    ) -> _Counts:
        place = table.pairs.negative.same[queries]
        first = np.searchsorted(self.same, max(place.min(), 0)) // self.tile
        last = -(-np.searchsorted(self.same, place.max(), side="right") // self.tile)
        counts = _count(
            self.block,
            _Block.of(table, queries, size),
            table.rows[padded(positives, size)],
            padded(is_positive, size),
            np.int32(first),
            np.int32(last),
            self.tile,
        )
        found = [np.asarray(part)[: len(queries)] for part in counts]
        return _Counts(is_positive, *found)


@functools.partial(jax.jit, static_argnames=("tile",))
def _count(
    gallery: _Block,
    queries: _Block,  # b of them
    positives: jax.Array,  # [b, p, d]
    is_positive: jax.Array,  # [b, p]
    first: jax.Array,  # the tiles that any of the queries has negatives in
    last: jax.Array,
    tile: int,
) -> tuple[jax.Array, ...]:
    """Positives above and tied, negatives above and tied, int32 [b, p], and negatives [b]."""
    similarity = jnp.einsum("bd,bpd->pb", queries.rows, positives)
    ours_above, ours_at_least = _ranks(
        similarity,
        jnp.where(is_positive.T, similarity, -2.0),  # below every cosine
    )

    def add(i: jax.Array, counts: tuple) -> tuple:
        above, at_least, number = counts
        part = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, i * tile, tile, axis=0), gallery
        )
        real = part.side.across(queries.side) & (part.labels @ queries.labels.T < 0.5)  # [t, b]
        theirs = jnp.where(real, part.rows @ queries.rows.T, -2.0)
        more_above, more_at_least = _ranks(similarity, theirs)
        number = number + jnp.sum(real, axis=0, dtype=jnp.int32)
        return above + more_above, at_least + more_at_least, number

    none = jnp.zeros(similarity.shape, jnp.int32)
    start = (none, none, jnp.zeros(similarity.shape[1], jnp.int32))
    above, at_least, number = jax.lax.fori_loop(first, last, add, start)
    counts = ours_above, ours_at_least - ours_above, above, at_least - above
    return *(part.T for part in counts), number


def _ranks(similarity: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many of the values [t, b] are above each similarity [p, b], and at least tie with it.

    One p at a time and down the columns: so XLA's loop on CPU compares a register at once, ten
    times as fast as over all p or along rows.
    """

    def one(similarity: jax.Array) -> tuple[jax.Array, jax.Array]:
        above = values > similarity[None, :] + TIE
        at_least = values >= similarity[None, :] - TIE
        return jnp.sum(above, axis=0, dtype=jnp.int32), jnp.sum(at_least, axis=0, dtype=jnp.int32)

    return jax.lax.map(one, similarity)


def _sort(table: _Table, asked: _Asked, block: np.ndarray) -> Iterator[_Counts]:
    """Counts of queries with many positives, one at a time: their similarities are sorted."""
    row, label, pairs = asked.row[block], asked.label[block], table.pairs
    similarity = np.asarray(_product(table.rows[row], table.rows))  # [b, n]
    positive = pairs.positive.of(row).across(pairs.positive)
    negative = pairs.negative.of(row).across(pairs.negative)
    if pairs.labels.shape[1]:
        shared = pairs.labels[row].astype(np.float32) @ pairs.labels.T.astype(np.float32) > 0.5
        negative &= ~shared
        positive &= np.where(label[:, None] < 0, shared, pairs.labels[:, label].T)
    both = np.nonzero(positive & negative)
    if len(both[0]):
        _refuse_both(table, row[both[0]], both[1])
    for i in range(len(block)):
        ours, theirs = np.sort(similarity[i, positive[i]]), np.sort(similarity[i, negative[i]])
        ranks = *_sorted_ranks(ours, ours), *_sorted_ranks(ours, theirs)
        real, number = np.ones((1, len(ours)), bool), np.array([len(theirs)])
        yield _Counts(real, ranks[0][None], ranks[1][None], ranks[2][None], ranks[3][None], number)


def _sorted_ranks(limits: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the sorted values are above each limit, and how many tie with it."""
    above = len(values) - np.searchsorted(values, limits + np.float32(TIE), side="right")
    at_least = len(values) - np.searchsorted(values, limits - np.float32(TIE))
    return above, at_least - above


@jax.jit
def _product(queries: jax.Array, gallery: jax.Array) -> jax.Array:
    return queries @ gallery.T


def _excluded(
    table: _Table, asks: np.ndarray, has_positive: np.ndarray, has_value: np.ndarray
) -> dict[str, int]:
    """Rows that ask and have no value, by reason; the last two are numbers of rows."""
    missing = np.empty(len(asks), bool)
    sides = table.pairs.positive, table.pairs.negative
    missing[table.order] = np.any([side.same < 0 for side in sides], axis=0)
    without = asks & ~np.isin(np.arange(len(asks)), has_value)
    alone = ~np.isin(np.arange(len(asks)), has_positive)
    return {
        "missing value": int(np.sum(without & missing)),
        "no positive": int(np.sum(without & ~missing & alone)),
        "no negative": int(np.sum(without & ~missing & ~alone)),
    }

"""How a statistic grows with the number of replicates: what more wells would have bought."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from bioimg_jax.benchmarks.columns import Column, flags, names
from bioimg_jax.errors import InputError

DRAWS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ReplicateCurve:
    """A statistic at k replicates of every treatment.

    sizes: k, ascending; values: for each k the statistic of every draw, one where there is a single
      way to draw; mean: float [k]; sd: of the draws, None for a single one.
    largest: the most replicates that all treatments have; n_treatments: how many those are.
    excluded: treatment -> why it is in no draw.

    Draws at one k share wells, all of them at `largest` if it is everyone's number, so `sd` says
    how much the choice of wells matters. It is no standard error: that is over treatments.
    """

    sizes: tuple[int, ...]
    values: tuple[np.ndarray, ...]
    mean: tuple[float, ...]
    sd: tuple[float | None, ...]
    largest: int
    n_treatments: int
    excluded: dict[str, str]


def replicate_curve(
    statistic: Callable[[np.ndarray], float],
    treatments: Column,
    ids: Column,
    *,
    always: Column | None = None,
    sizes: Sequence[int] | None = None,
    at_least: int = 1,
    draws: int = DRAWS,
    seed: int = 0,
) -> ReplicateCurve:
    """Subsamples k wells of every treatment without replacement and asks for the statistic.

    A draw puts each treatment's wells in a random order and takes the first k for every k, so the
    curve of one draw grows by adding wells. Ids and seed decide alone: no order of rows matters.

    Args:
      statistic: row numbers int [m], ascending -> a finite number.
      treatments: [n] of each row; those of rows that are always there are not looked at.
      ids: [n], what names each row, all different.
      always: bool [n], rows that every draw has, such as negative controls.
      sizes: numbers of replicates, by default 1 ... `largest`.
      at_least: treatments with fewer replicates are excluded, at every k alike.

    Raises:
      InputError: a size that some treatment does not reach, ids that repeat, no treatment left, a
        statistic that is not finite.
    """
    n = len(ids)
    kept = np.zeros(n, bool) if always is None else flags(always, n, "always there")
    label = names(treatments, n, "treatment", rows=~kept)
    by_id, counts_of_ids = np.unique(names(ids, n, "id"), return_counts=True)
    if len(by_id) < n:
        raise InputError(f"id {str(by_id[counts_of_ids.argmax()])!r} is there twice, expected once")
    if draws < 1 or at_least < 1:
        raise InputError(f"draws {draws} and at_least {at_least}, expected 1 or more")
    all_names, all_counts = np.unique(label[~kept], return_counts=True)
    enough = all_counts >= at_least
    excluded = {
        str(name): f"{count} replicates, expected {at_least} or more"
        for name, count in zip(all_names[~enough], all_counts[~enough], strict=True)
    }
    chosen, counts = all_names[enough], all_counts[enough]
    if not len(chosen):
        raise InputError(f"no treatment has {at_least} replicates")
    largest = int(counts.min())
    sizes = range(1, largest + 1) if sizes is None else sorted(set(sizes))
    scarcest = str(chosen[counts.argmin()])
    for k in (sizes[0], sizes[-1]) if len(sizes) else (0,):
        if not 1 <= k <= largest:
            raise InputError(
                f"{k} replicates of every treatment: {scarcest!r} has {largest}, "
                f"expected 1 to {largest}"
            )

    rows = np.flatnonzero(~kept & np.isin(label, chosen))
    rows = rows[np.argsort(names(ids, n, "id")[rows])]
    code = np.searchsorted(chosen, label[rows])
    starts = np.cumsum(counts) - counts
    values: list[list[float]] = [[] for _ in sizes]
    for draw in range(draws):
        shuffled = np.lexsort((np.random.default_rng([seed, draw]).random(len(rows)), code))
        place = np.empty(len(rows), int)  # of a row among its treatment's, in this draw
        place[shuffled] = np.arange(len(rows)) - np.repeat(starts, counts)
        for k, found in zip(sizes, values, strict=True):
            if draw and (counts == k).all():
                continue  # there is one way to take everything
            taken = np.sort(np.concatenate([np.flatnonzero(kept), rows[place < k]]))
            value = float(statistic(taken))
            if not np.isfinite(value):
                raise InputError(f"the statistic of {k} replicates is {value} in draw {draw}")
            found.append(value)
    arrays = tuple(np.array(found) for found in values)
    return ReplicateCurve(
        sizes=tuple(sizes),
        values=arrays,
        mean=tuple(float(of.mean()) for of in arrays),
        sd=tuple(float(of.std(ddof=1)) if len(of) > 1 else None for of in arrays),
        largest=largest,
        n_treatments=len(chosen),
        excluded=excluded,
    )

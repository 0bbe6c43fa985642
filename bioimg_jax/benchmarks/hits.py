"""Hits of a screen at a false discovery rate, and how far two representations agree on them.

A hit list means little until it is laid beside that of a floor: where an encoder finds what a cell
count finds, it has found treatments that kill.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from bioimg_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class HitList:
    """Treatments tested, by name.

    q: treatment -> Benjamini-Hochberg q-value; hits: those below alpha.
    excluded: treatment -> why it was not tested. It does not count in the correction.
    """

    alpha: float
    q: dict[str, float]
    hits: tuple[str, ...]
    excluded: dict[str, str]


def hit_list(
    p_values: Mapping[str, float | None],
    *,
    smallest: Mapping[str, float] | None = None,
    alpha: float = 0.05,
) -> HitList:
    """Hits by Benjamini-Hochberg (Journal of the Royal Statistical Society B 57, 1995).

    q of the i-th smallest of m p-values is the least m p₍ⱼ₎ / j over j ≥ i. A treatment without a
    p-value (None or nan) is excluded.

    Args:
      p_values: treatment -> p (`phenotype.strength_test`, or of average precisions).
      smallest: treatment -> the smallest p that its wells and controls allow. Where that is not
        below alpha it can be no hit whatever its features, and is excluded: knowing so needs no
        features, so the rate stays what it is and the others gain power.

    Raises:
      InputError: a p outside 0 ... 1, or below the smallest that is possible; an alpha outside.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha of a hit list: {alpha}, expected a number between 0 and 1")
    tested, excluded = {}, {}
    for name in sorted(p_values):
        p, least = p_values[name], (smallest or {}).get(name, 0.0)
        if p is None or math.isnan(p):
            excluded[name] = "no p-value"
        elif not 0 <= p <= 1 or p < least * (1 - 1e-9):
            raise InputError(f"p-value of {name!r} is {p}, expected {least:g} to 1")
        elif least >= alpha:
            excluded[name] = f"its wells and controls allow no p-value below {least:.3g}"
        else:
            tested[name] = float(p)
    corrected = stats.false_discovery_control(list(tested.values())) if tested else np.zeros(0)
    q = dict(zip(tested, corrected.tolist(), strict=True))
    return HitList(alpha, q, tuple(name for name in q if q[name] < alpha), excluded)


@dataclasses.dataclass(frozen=True)
class HitOverlap:
    """Two hit lists on the treatments that both have tested.

    only_here, only_there, both: hits, by name; n_neither: treatments that are hits of none.
    not_compared: tested by one of the two, by name.
    jaccard: shared hits of all hits; None where there is none.
    odds_ratio: n_both n_neither / (n_only_here n_only_there), infinite where only the denominator
      is 0, None where the numerator is too.
    fisher_p: two-sided, of "whether one finds a treatment says nothing about the other".
    """

    only_here: tuple[str, ...]
    only_there: tuple[str, ...]
    both: tuple[str, ...]
    n_neither: int
    not_compared: tuple[str, ...]
    jaccard: float | None
    odds_ratio: float | None
    fisher_p: float


def hit_overlap(here: HitList, there: HitList) -> HitOverlap:
    """How far the hits of one representation are those of another, such as the count floor.

    Raises:
      InputError: lists at different alphas, or without a treatment that both have tested.
    """
    if here.alpha != there.alpha:
        raise InputError(f"hit lists at alpha {here.alpha} and {there.alpha}, expected one alpha")
    tested = here.q.keys() & there.q.keys()
    if not tested:
        raise InputError("no treatment was tested in both hit lists")
    mine, theirs = set(here.hits) & tested, set(there.hits) & tested
    a, b, c = len(mine & theirs), len(mine - theirs), len(theirs - mine)
    d = len(tested) - a - b - c
    odds = a * d / (b * c) if b * c else math.inf if a * d else None
    return HitOverlap(
        only_here=tuple(sorted(mine - theirs)),
        only_there=tuple(sorted(theirs - mine)),
        both=tuple(sorted(mine & theirs)),
        n_neither=d,
        not_compared=tuple(sorted(here.q.keys() ^ there.q.keys())),
        jaccard=a / (a + b + c) if a + b + c else None,
        odds_ratio=odds,
        fisher_p=min(1.0, float(stats.fisher_exact([[a, b], [c, d]]).pvalue)),
    )

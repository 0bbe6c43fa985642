"""Geometry and similarity of all representations of a data set, as rows of a table.

Each number is read beside the encoder's untrained twin, so both are measured on the same examples
at the same number of features.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import threadpoolctl

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.geometry import geometry
from bioimg_jax.statistics.similarity import similarity

# OpenBLAS has one thread here: on cores that others use too, its threads wait for each other, and
# an eigendecomposition of 384 features took 3 s in place of 0.06 s.
ROWS = 2_000
POOL = 20_000  # rows from which those of one group are drawn


def geometry_rows(
    tables: Mapping[str, np.ndarray],
    twins: Mapping[str, str],
    ids: Sequence[Any] | np.ndarray,
    groups: np.ndarray | None = None,
    *,
    n: int = ROWS,
    standardise: Collection[str] = (),
) -> list[dict[str, Any]]:
    """`geometry` of every representation, at equal n and, for encoders and twins, at equal d.

    d is the smallest width among the encoders and their twins; wider ones are projected at random.
    What has no twin (a floor) keeps its width where that is smaller.

    Args:
      tables: name -> features [rows, width], the same examples in the same order.
      twins: encoder -> its untrained twin, both in `tables`.
      ids: what names each example [rows], all different: its number in the data set, say. They
        alone decide which rows are drawn, so that the order of the rows changes nothing.
      groups: the treatment of each row [rows], for LiDAR and alignment.
      n: rows drawn, or all of them where there are fewer.
      standardise: names whose columns have units of their own (pixels, nuclei): brought to unit sd.

    Returns:
      [{"representation", "twin": name or None, "width", what `geometry` returns, "minus_twin":
      {measure: this less the twin's} or None}] in the order of the tables.

    Raises:
      InputError: tables of different lengths, ids that repeat, a twin that is not there.
    """
    _check_lengths(tables, ids)
    pool = drawn_rows(ids, POOL)
    named = {name for pair in twins.items() for name in pair}
    for name in sorted(named - set(tables)):
        raise InputError(f"geometry: no features of {name!r}; there are {', '.join(tables)}")
    d = min((tables[name].shape[1] for name in named), default=None)
    found = {}
    for name, features in tables.items():
        x = _standardised(features[pool]) if name in standardise else features[pool]
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            found[name] = geometry(
                x,
                None if groups is None else np.asarray(groups)[pool],
                n=min(n, len(pool)),
                d=None if d is None else min(d, x.shape[1]),
            )
    rows = []
    for name, values in found.items():
        twin = twins.get(name)
        rows.append(
            {
                "representation": name,
                "twin": twin,
                "width": int(tables[name].shape[1]),
                **values,
                "minus_twin": None if twin is None else _differences(values, found[twin]),
            }
        )
    return rows


def similarity_rows(
    tables: Mapping[str, np.ndarray],
    twins: Mapping[str, str],
    ids: Sequence[Any] | np.ndarray,
    *,
    against: Sequence[str] = ("pixels",),
    n: int = ROWS,
    standardise: Collection[str] = (),
) -> list[dict[str, Any]]:
    """`similarity` of each encoder to its twin, and of both to the representations in `against`.

    An encoder that is like pixels is no finding where its twin is as like them. Arguments as for
    `geometry_rows`; a name of `against` that is not among the tables is left out.

    Returns:
      [{"x", "y", "x_width", "y_width", what `similarity` returns}]; biased CKA and Procrustes
      compare between rows of equal widths only.
    """
    _check_lengths(tables, ids)
    drawn = drawn_rows(ids, n)
    compared = [name for name in against if name in tables]
    pairs = []
    for encoder, twin in twins.items():
        pairs += [(encoder, twin)]
        pairs += [(x, y) for y in compared for x in (encoder, twin)]
    rows = []
    for x, y in dict.fromkeys(pairs):  # two encoders may share a twin
        sides = []
        for name in (x, y):
            if name not in tables:
                raise InputError(
                    f"similarity: no features of {name!r}; there are {', '.join(tables)}"
                )
            side = tables[name][drawn]
            sides.append(_standardised(side) if name in standardise else side)
        widths = {"x_width": sides[0].shape[1], "y_width": sides[1].shape[1]}
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            rows.append({"x": x, "y": y, **widths, **similarity(*sides, n=len(drawn))})
    return rows


def drawn_rows(ids: Sequence[Any] | np.ndarray, n: int) -> np.ndarray:
    """At most n row numbers, which ones and in which order decided by the ids alone (a hash).

    The same examples whatever order the rows are in; `InputError` for an id that comes twice.
    """
    texts = [str(i) for i in ids]
    if len(set(texts)) < len(texts):
        raise InputError("two rows have the same id, expected ids that are all different")
    order = np.argsort(np.array([_hashed(text) for text in texts], np.uint64), kind="stable")
    return order[:n]


def _check_lengths(tables: Mapping[str, np.ndarray], ids: Sequence[Any] | np.ndarray) -> None:
    for name, features in tables.items():
        if len(features) != len(ids):
            raise InputError(f"comparisons: {len(features)} rows of {name!r} for {len(ids)} ids")


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _standardised(x: np.ndarray) -> np.ndarray:
    """Columns [n, d] of zero mean and unit sd; a constant one is zero."""
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    sd = x.std(axis=0)
    constant = sd <= 1e-9 * max(float(sd.max(initial=0.0)), math.ulp(0.0))
    return np.where(constant, 0.0, x / np.where(constant, 1.0, sd))


def _differences(
    values: Mapping[str, float | None], twin: Mapping[str, float | None]
) -> dict[str, float | None]:
    differences: dict[str, float | None] = {}
    for name, value in values.items():
        other = twin[name]
        if name not in ("n", "d", "n_groups", "n_grouped"):
            differences[name] = None if value is None or other is None else value - other
    return differences

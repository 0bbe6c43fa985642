"""Which rows of a table are pairs: rules on metadata columns, as in copairs.

Two rows are a positive pair when they agree in every column of `pos_sameby` and differ in every
column of `pos_diffby`; negative pairs follow their own two rules. A missing value neither agrees
nor differs: its row is in no pair of that kind. The rules of `copairs.map.average_precision`
(Kalinin et al., Nature Communications 16, 2025).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError
from bioimg_jax.probes.knn import by_bytes


@dataclasses.dataclass(frozen=True)
class PairRules:
    """Columns in which rows of a positive, of a negative pair agree and differ.

    multilabel: a column of `pos_sameby` and `neg_diffby` whose cells hold several labels. Positives
      share a label, negatives share none; a cell without labels is a missing value.

    Raises:
      InputError: a column named twice or with both rules of a kind, a kind without any column.
    """

    pos_sameby: Sequence[str]
    pos_diffby: Sequence[str] = ()
    neg_sameby: Sequence[str] = ()
    neg_diffby: Sequence[str] = ()
    multilabel: str | None = None

    def __post_init__(self) -> None:
        for name in ("pos_sameby", "pos_diffby", "neg_sameby", "neg_diffby"):
            columns = getattr(self, name)
            if isinstance(columns, str):
                raise InputError(f"{name} must be a list of columns, not the text {columns!r}")
            twice = [c for i, c in enumerate(columns) if c in columns[:i]]
            if twice:
                raise InputError(f"{name} names column {twice[0]!r} twice")
        for kind, same, different in (
            ("pos", self.pos_sameby, self.pos_diffby),
            ("neg", self.neg_sameby, self.neg_diffby),
        ):
            both = [c for c in same if c in different]
            if both:
                raise InputError(
                    f"column {both[0]!r} is in {kind}_sameby and {kind}_diffby: no pair agrees and "
                    "differs in it"
                )
            if not same and not different:
                raise InputError(f"{kind}_sameby and {kind}_diffby name no column")
        label = self.multilabel
        if label is not None and (label not in self.pos_sameby or label not in self.neg_diffby):
            raise InputError(
                f"the multilabel column {label!r} must be in pos_sameby and in neg_diffby"
            )

    @property
    def columns(self) -> list[str]:
        """Every column of the rules, once."""
        kinds = (self.pos_sameby, self.pos_diffby, self.neg_sameby, self.neg_diffby)
        return list(dict.fromkeys(itertools.chain(*kinds)))


class Side(NamedTuple):
    """One kind of pair: rows of one `same` that differ in every column of `different`.

    same: int32 [n], −1 for a row in no pair; different: int32 [n, k].
    """

    same: Any
    different: Any

    def of(self, rows: Any) -> "Side":
        """The rows chosen, by numbers or a slice."""
        return Side(self.same[rows], self.different[rows])

    def together(self, other: "Side") -> np.ndarray:
        """Row by row, bool [n]: are the two a pair?"""
        pair = (self.same == other.same) & (self.same >= 0)
        return pair & (self.different != other.different).all(axis=1)

    def across(self, other: "Side") -> Any:
        """Every row with every other one's, bool [n, m]; NumPy's or JAX's, as the codes are."""
        pair = (self.same[:, None] == other.same[None, :]) & (other.same >= 0)[None, :]
        for k in range(self.different.shape[1]):
            pair = pair & (self.different[:, k, None] != other.different[None, :, k])
        return pair

    def partners(self, weights: np.ndarray) -> np.ndarray:
        """The summed weight [n] of every row's partners, without a table of pairs.

        By inclusion and exclusion over the columns of `different`.
        """
        total = np.zeros(len(self.same))
        columns = list(self.different.T)
        for size in range(len(columns) + 1):
            for chosen in itertools.combinations(columns, size):
                group = joint([self.same, *chosen])
                inside = group >= 0
                sums = np.bincount(group[inside], weights[inside], minlength=1)
                total[inside] += (-1) ** size * sums[group[inside]]
        return total


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Both kinds of pair of n rows; labels: bool [n, l] of the multilabel column, else [n, 0]."""

    positive: Side
    negative: Side
    labels: np.ndarray
    label_names: np.ndarray

    def ordered(self, order: np.ndarray) -> "Pairs":
        """The rows in another order; from now on no row is its own partner."""
        number = np.arange(len(order), dtype=np.int32)

        def side(old: Side) -> Side:
            different = np.column_stack([old.different[order], number])
            return Side(old.same[order], different)

        labels = self.labels[order]
        return Pairs(side(self.positive), side(self.negative), labels, self.label_names)

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """The order int [n] that sorts rows [n, d] by their bytes, equal ones by their codes."""
        codes = np.column_stack(
            [*self.positive, *self.negative, np.packbits(self.labels, axis=1).astype(np.int32)]
        )
        order = by_bytes(codes)
        return order[by_bytes(rows[order])]


def read_pairs(metadata: pd.DataFrame, rules: PairRules) -> Pairs:
    """The rules as codes of the n rows of a table; its index does not matter.

    Raises:
      InputError: a column that is not there or there twice, a cell of several labels in a column
        that is not the multilabel one, a single label where several are expected.
    """
    check_columns(metadata, rules.columns)
    label = rules.multilabel
    labels, names = np.zeros((len(metadata), 0), bool), np.zeros(0, object)
    if label is not None:
        labels, names = memberships(metadata[label], label)

    def side(same: Sequence[str], different: Sequence[str]) -> Side:
        plain = read_side(
            metadata,
            [c for c in same if c != label],
            different=[c for c in different if c != label],
        )
        if label is None:
            return plain
        return Side(np.where(labels.any(axis=1), plain.same, -1), plain.different)

    positive = side(rules.pos_sameby, rules.pos_diffby)
    return Pairs(positive, side(rules.neg_sameby, rules.neg_diffby), labels, names)


def read_side(metadata: pd.DataFrame, same: Sequence[str], different: Sequence[str]) -> Side:
    """One kind of pair; without any column all rows agree."""
    agree = [levels_of(metadata[column], column)[0] for column in same]
    differ = [levels_of(metadata[column], column)[0] for column in different]
    nothing = np.zeros(len(metadata), np.int32)
    group = joint([*agree, nothing])
    missing = np.min([*differ, nothing], axis=0) < 0
    columns = np.array(differ, np.int32).reshape(len(differ), len(metadata)).T
    return Side(np.where(missing, np.int32(-1), group), columns)


def check_columns(metadata: pd.DataFrame, columns: Iterable[str]) -> None:
    """Each is in the metadata, once. Raises `InputError`."""
    for column in columns:
        found = list(metadata.columns).count(column)
        if found != 1:
            raise InputError(
                f"column {column!r} is {'twice' if found else 'not'} in the metadata; its columns "
                f"are: {', '.join(map(str, metadata.columns))}"
            )


def joint(codes: Sequence[np.ndarray]) -> np.ndarray:
    """One code int32 [n] for the joint value of several [n]; −1 where one of them is."""
    key = np.zeros(len(codes[0]), np.int64)
    for code in codes:
        key = np.unique(key * (int(code.max(initial=0)) + 2) + code + 1, return_inverse=True)[1]
    return np.where(np.min(codes, axis=0) < 0, -1, key).astype(np.int32)


def levels_of(values: pd.Series, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The values as 0, 1, ... in their order and −1 for a missing one, int32 [n]; and each once."""
    try:
        codes, names = pd.factorize(values, sort=True)
    except TypeError:
        row = next(i for i, cell in enumerate(values) if pd.api.types.is_list_like(cell))
        raise InputError(
            f"column {column!r}, row {row} holds several values: name it as multilabel column"
        ) from None
    return codes.astype(np.int32), np.asarray(names)


def memberships(cells: Iterable[Any], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Which label each row has, bool [n, l], and the labels in order."""
    rows, found, n = [], [], 0
    for row, cell in enumerate(cells):
        n += 1
        if pd.api.types.is_list_like(cell):
            own = [label for label in cell if not pd.isna(label)]
        elif pd.isna(cell):
            own = []
        else:
            raise InputError(
                f"multilabel column {column!r}, row {row}: a list of labels was expected, not "
                f"{cell!r}"
            )
        rows += [row] * len(own)
        found += own
    codes, names = pd.factorize(np.array([*found, None], object)[:-1], sort=True)
    labels = np.zeros((n, len(names)), bool)
    labels[rows, codes] = True
    return labels, names

"""Known relationships: how many known pairs of genes lie in the tails of all pairs' cosines.

All n (n - 1)/2 pairs of a map's mean profiles are ranked by their cosine, 1 ... N upwards. A pair
of rank r counts when r/N <= the lower percentile or (r - 1)/N >= the upper one, the rule of
`efaar_benchmarking` (`known_relationship_benchmark`); recall is the share of a source's pairs that
count, and chance the share of all pairs that do: 0.10, less what whole ranks cost.

* **Ties.** Cosines that differ by no more than `TIE` from the next are equal, and each of the m
  equal pairs counts the share of their m places that lie in a tail: the exact expectation over
  their orders. `efaar_benchmarking` counts such pairs only where all their places lie in one tail;
  `Recall.tied` says how many pairs that concerns. Features of one column have two cosines only.
* **Memory.** Cosines are made in blocks and never kept: histograms narrow each tail's threshold
  down to a window of about as many pairs as there are genes, which is sorted. The null keeps one
  byte for each of the n² pairs.
* **Units** are the genes that have a known pair. A gene left out leaves the pairs and the ranking;
  its thresholds lie in the same windows, so that each recall without a gene is exact. The
  pseudo-values are shifted to have the recall as their mean: recall jumps where a threshold passes
  a known pair, for all genes left out at once, so that the jackknife's own estimate of the bias is
  noise. On random maps of 80 and 200 genes the unshifted mean varied 3 to 4 times as much as the
  recall and its 95 % intervals covered 0.5 to 0.8; shifted ones cover 0.97 to 1.0 (too wide rather
  than too narrow, because both genes of a pair count it).
* **Null.** The names of genes are permuted among genes of like phenotype strength, the length of
  the profile: genes without a phenotype have small random cosines, and those with one resemble each
  other whatever they do.
* **Order.** Genes are sorted by name and rows by their bytes before anything is computed.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.classification import PSEUDO_VALUES
from bioimg_jax.benchmarks.mean_profiles import check_rows, checked_names, mean_profiles
from bioimg_jax.benchmarks.profile_score import ProfileBenchmark, profile_score
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.statistics.neighbours import unit_rows, with_angles

METRIC = "recall"
PERCENTILES = (0.05, 0.95)
STRATA = 10  # of phenotype strength
HEADERS = (("gene1", "gene2"), ("entity1", "entity2"))
# Pair lists that come with `efaar_benchmarking`.
SOURCES = ("CORUM", "HuMAP", "Reactome", "SIGNOR", "StringDB")

GRID = 2.0**-50  # cosines are rounded to it: equal ones differ by a few 1e-16 between blocks
TIE = 2.0**-46  # 1.4e-14; two of 10^8 pairs lie about 1e-8 apart
BLOCK_NUMBERS = 1 << 22  # cosines held at once, 32 MiB
BINS = 1 << 14


@dataclasses.dataclass(frozen=True)
class PairList:
    """The known pairs of one source, each once, its names ascending.

    names: object [m, 2]; rows: how many were read, `duplicates` (in either order) and `self_pairs`
    of which are left out.
    first_line: of a file of two columns that are not called as in `HEADERS`: where both are genes
    of a map it is a pair, which would be lost, and the map refuses the file.
    """

    source: str
    names: np.ndarray
    rows: int
    duplicates: int
    self_pairs: int
    first_line: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the names."""
        text = "\n".join("\t".join(pair) for pair in self.names.tolist())
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class ArmAudit:
    """What chromosome arms alone explain; a gene without an arm is in none with anybody.

    within: share of the known pairs that lie within an arm; all_within: of all pairs.
    recall_within, recall_between: of the known pairs of either kind, None where there is none.
    recall, per_unit: of profiles that say nothing but the arm, with the units of `Recall`.
    """

    within: float
    all_within: float
    recall_within: float | None
    recall_between: float | None
    recall: float
    per_unit: dict[str, float]
    genes_without_arm: int


@dataclasses.dataclass(frozen=True)
class Recall:
    """Recall of one source's known pairs.

    chance: share of all pairs that count. pairs: known ones in the map; tied: of them those that
    count in part. unknown_genes, unknown_pairs: names that the map lacks, and pairs lost to them.
    per_unit: pseudo-values of the genes with a known pair, whose mean is the recall; none where one
    gene is in every pair.
    p_value: one-sided, of as high a recall under the null, whose mean is `null_mean`; None without
    permutations.
    """

    source: str
    recall: float
    chance: float
    genes: int
    zero_profiles: int
    pairs: int
    tied: int
    unknown_genes: int
    unknown_pairs: int
    duplicates: int
    self_pairs: int
    per_unit: dict[str, float]
    p_value: float | None
    null_mean: float | None
    arms: ArmAudit | None


def read_pairs(path: Path, *, source: str = "", columns: tuple[str, str] | None = None) -> PairList:
    """The pairs of a CSV file (`.tsv`: by tabs) with the names of genes in two columns.

    columns: what they are called; by default there are two and no others, whatever they are called
    (`PairList.first_line`). source: the file's stem by default.

    Raises:
      InputError: a file that cannot be read, without these columns, with an empty name, or without
        a pair of two different genes.
    """
    try:
        table = pd.read_csv(
            path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False
        )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    table.columns = table.columns.str.strip()
    if columns is None:
        if len(table.columns) != 2:
            expected = " or ".join(",".join(header) for header in HEADERS)
            raise InputError(
                f"{path}: the first line is {','.join(table.columns)!r}, expected two columns such "
                f"as {expected}, or the names of two columns to be given"
            )
        columns = (table.columns[0], table.columns[1])
    for column in columns:
        if list(table.columns).count(column) != 1:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(table.columns)}")
    names = table[list(columns)].apply(lambda column: column.str.strip())
    if (blank := np.argwhere(names.to_numpy() == "")).size:
        row, column = blank[0]
        raise InputError(f"{path}: row {row + 1} has no {columns[column]}")
    found = pair_list(source or path.stem, names.to_numpy(object), where=f"{path}: ")
    first_line = () if columns in HEADERS else columns
    return dataclasses.replace(found, first_line=first_line)


def installed_pairs(source: str) -> PairList:
    """A pair list of the installed package `efaar_benchmarking`, whose code is not run.

    Raises:
      InputError: a source that is not one of `SOURCES`, or the package or its file is not there.
    """
    if source not in SOURCES:
        raise InputError(f"no pair list {source!r}; there are {', '.join(SOURCES)}")
    spec = importlib.util.find_spec("efaar_benchmarking")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the pair list {source!r} comes with efaar_benchmarking, which is not installed; "
            "or name a CSV file of pairs"
        )
    folder = Path(spec.submodule_search_locations[0]) / "benchmark_annotations"
    return read_pairs(folder / f"{source}.txt", source=source)


def pair_list(source: str, names: np.ndarray, where: str = "") -> PairList:
    """`PairList` of names [m, 2], in any order; `InputError` where no two different genes pair."""
    ordered = np.sort(names.astype(object), axis=1)
    self_pairs = ordered[:, 0] == ordered[:, 1]
    unique = pd.DataFrame(ordered[~self_pairs], columns=["first", "second"])
    unique = unique.drop_duplicates().sort_values(["first", "second"])
    if unique.empty:
        raise InputError(f"{where}no pair of two different genes for {source!r}")
    duplicates = int((~self_pairs).sum()) - len(unique)
    return PairList(source, unique.to_numpy(object), len(names), duplicates, int(self_pairs.sum()))


def known_relationships(
    features: np.ndarray,
    genes: np.ndarray | pd.Series,
    pair_lists: Sequence[PairList],
    *,
    percentiles: tuple[float, float] = PERCENTILES,
    permutations: int = 1_000,
    seed: int = 0,
    arms: Mapping[str, str] | None = None,
) -> list[Recall]:
    """`Recall` of every pair list in the map of mean profiles.

    Args:
      features: [n, d], any float dtype, aligned: cosine and strength count from the origin.
      genes: [n], the perturbation of each row; rows of one gene are averaged. All that is here is
        ranked, so controls are left out before.
      permutations: of the null, 0 for none.
      arms: gene -> chromosome arm, for the audit.

    Raises:
      InputError: features that are not finite, a row without a gene, percentiles that are not in
        order, too few genes for a tail, a list none of whose pairs is in the map, or arms of no
        gene of the map.
    """
    check_rows(features, genes=genes)
    low, high = percentiles
    if not 0.0 < low < high < 1.0:
        raise InputError(f"percentiles {percentiles}, expected 0 < lower < upper < 1")
    codes, found = pd.factorize(checked_names(genes, "gene"), sort=True)
    names = np.asarray(found, object)
    means = mean_profiles(features, codes)
    strength = np.linalg.norm(means, axis=1)
    known = [_Known.of(pairs, names) for pairs in pair_lists]
    map_ = _Map.of(unit_rows(means), percentiles)
    recalls = [map_.recall(pairs.index) for pairs in known]
    nulls = _null(map_, [pairs.index for pairs in known], strength, permutations, seed)
    audits: list[ArmAudit | None] = [None] * len(known)
    if arms is not None:
        arm = _arm_codes(names, arms)
        one_hot = np.equal(arm[:, None], np.arange(arm.max() + 1)).astype(np.float64)
        by_arm = _Map.of(one_hot, percentiles)
        audits = [
            _audit(pairs, scores, by_arm, arm, names)
            for pairs, (scores, _) in zip(known, recalls, strict=True)
        ]
    return [
        Recall(
            source=pairs.listed.source,
            recall=float(scores.mean()),
            chance=map_.chance,
            genes=len(names),
            zero_profiles=int((strength == 0.0).sum()),
            pairs=len(scores),
            tied=int(((scores > 0.0) & (scores < 1.0)).sum()),
            unknown_genes=pairs.unknown_genes,
            unknown_pairs=len(pairs.listed.names) - len(scores),
            duplicates=pairs.listed.duplicates,
            self_pairs=pairs.listed.self_pairs,
            per_unit=_named(per_unit, names),
            p_value=None if not permutations else _p_value(null, float(scores.mean())),
            null_mean=None if not permutations else float(null.mean()),
            arms=audit,
        )
        for pairs, (scores, per_unit), null, audit in zip(
            known, recalls, nulls, audits, strict=True
        )
    ]


@dataclasses.dataclass(frozen=True)
class Relationships(ProfileBenchmark):
    """Recall of one list of known pairs, as a benchmark; its unit is the gene.

    arm: column of the chromosome arms, for the audit; "" for none.
    percentiles: between which a pair is no prediction.
    """

    pairs: PairList
    permutations: int = 1_000
    seed: int = 0
    arm: str = ""
    percentiles: tuple[float, float] = PERCENTILES
    metric = METRIC

    @property
    def name(self) -> str:
        return f"recall_{self.pairs.source}"

    @property
    def besides(self) -> dict[str, Any]:
        pairs = [self.pairs.digest, *self.pairs.first_line]
        return {"pairs": pairs, "seed": self.seed, "arm": self.arm}

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "percentiles": list(self.percentiles),
            "permutations": self.permutations,
            "pairs_listed": len(self.pairs.names),
        }

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        """One score a layer. Raises `InputError` as `known_relationships` does."""
        self.check(target)
        rows = np.unique(np.concatenate([fold.test for fold in folds]))
        genes = table.obs[target.column].iloc[rows]
        arms = _arms(genes, table.obs[self.arm].iloc[rows]) if self.arm in table.obs else None
        found = []
        for layer in table.widths:
            (recall,) = known_relationships(
                with_angles(table.layer(layer)[rows]), genes, [self.pairs],
                percentiles=self.percentiles, permutations=self.permutations, seed=self.seed,
                arms=arms,
            )  # fmt: skip
            if not recall.per_unit:
                raise InputError(f"{self.name}: one gene is in every pair, so that nothing is left")
            counted = ("genes", "zero_profiles", "pairs", "tied", "unknown_genes", "unknown_pairs",
                       "duplicates", "self_pairs")  # fmt: skip
            settings = {**self.settings, **{name: getattr(recall, name) for name in counted}}
            if recall.arms is not None:
                audited = dataclasses.asdict(recall.arms)
                settings["arms"] = {k: v for k, v in audited.items() if k != "per_unit"}
            found.append(
                profile_score(
                    self.name,
                    target,
                    list(recall.per_unit),
                    np.array(list(recall.per_unit.values())),
                    recall.recall,
                    chance=recall.chance,
                    layer=layer,
                    about=about,
                    other_metrics={"p": recall.p_value, "null_mean": recall.null_mean},
                    settings={**settings, "per_unit": PSEUDO_VALUES},
                )
            )
        return found


def _arms(genes: pd.Series, arms: pd.Series) -> dict[str, str]:
    """Gene -> chromosome arm of those that have one; `InputError` for a gene with two."""
    known = arms.notna() & (arms.astype(str).str.strip() != "")
    pairs = pd.DataFrame({"gene": genes[known].astype(str), "arm": arms[known].astype(str)})
    pairs = pairs.drop_duplicates()
    twice = pairs["gene"].duplicated()
    if twice.any():
        gene = pairs["gene"][twice].iloc[0]
        both = pairs["arm"][pairs["gene"] == gene]
        raise InputError(f"gene {gene!r} is on the arms {' and '.join(both)}, expected one")
    return dict(zip(pairs["gene"], pairs["arm"], strict=True))


@dataclasses.dataclass(frozen=True)
class _Known:
    """A source's pairs in the map: index int [m, 2], positions in its names."""

    listed: PairList
    index: np.ndarray
    unknown_genes: int

    @classmethod
    def of(cls, listed: PairList, names: np.ndarray) -> "_Known":
        if listed.first_line and set(listed.first_line) <= set(names):
            line = ",".join(listed.first_line)
            raise InputError(
                f"the first line of {listed.source!r} is {line!r}, which are genes of the map; "
                f"expected names of the columns, such as {','.join(HEADERS[0])}"
            )
        index = pd.Index(names).get_indexer(listed.names.ravel()).reshape(-1, 2)
        unknown = np.unique(listed.names[index < 0].astype(str))
        index = index[(index >= 0).all(axis=1)]
        if not len(index):
            raise InputError(
                f"none of the {len(listed.names)} pairs of {listed.source!r} is in the map; it "
                f"lacks {', '.join(unknown[:3])} and has {', '.join(names[:3])} ..."
            )
        return cls(listed, index, len(unknown))


@dataclasses.dataclass(frozen=True)
class _Tail:
    """Pairs by value = sign · cosine upwards, as far as the places of one tail reach.

    A level is a group of equal values. starts, ends: its least and largest value [l], of the levels
    around the threshold; everything below `starts[0]` counts. level, share: the level in which the
    places end and the share of it that counts, of the whole map [0] and without each gene [1 + n].
    """

    sign: float
    starts: np.ndarray
    ends: np.ndarray
    level: np.ndarray
    share: np.ndarray

    def levels(self, cosines: np.ndarray) -> np.ndarray:
        """The level of each pair, -1 below all of them; beyond the last one it is the number."""
        value = self.sign * cosines
        level = np.searchsorted(self.starts - TIE / 2, value, side="right") - 1
        beyond = (level == len(self.starts) - 1) & (value > self.ends[-1] + TIE / 2)
        return np.where(beyond, len(self.starts), level)

    def counted(self, level: np.ndarray, without: np.ndarray | int = 0) -> np.ndarray:
        """How much of each pair counts, of its level [...]; without: row of `level`, `share`."""
        at = self.level[without]
        return (level < at) + (level == at) * self.share[without]


@dataclasses.dataclass(frozen=True)
class _Map:
    """rows: profiles of length 1 [n, d]; chance: share of all pairs that count."""

    rows: np.ndarray
    tails: tuple[_Tail, _Tail]
    chance: float

    @classmethod
    def of(cls, rows: np.ndarray, percentiles: tuple[float, float]) -> "_Map":
        n = len(rows)
        whole, fewer = _places(n, percentiles), _places(n - 1, percentiles)
        total = n * (n - 1) // 2
        if not min(whole):
            raise InputError(
                f"{n} genes make {total} pairs, none of which is beyond percentiles {percentiles}; "
                "expected more genes"
            )
        low, high = (_tail(rows, *of) for of in zip((1.0, -1.0), whole, fewer, strict=True))
        return cls(rows, (low, high), sum(whole) / total)

    def recall(self, pairs: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
        """How much of each pair int [m, 2] counts [m], and the pseudo-value of each of its genes.

        Of g genes with a pair, with recall θ, and θ₋ᵢ without gene i in pairs and map:
        g θ - (g - 1) θ₋ᵢ, less the mean of that over genes, plus θ.
        """
        step = max(1, BLOCK_NUMBERS // self.rows.shape[1])
        cosines = np.concatenate(
            [
                np.einsum("md,md->m", self.rows[part[:, 0]], self.rows[part[:, 1]])
                for part in np.split(pairs, range(step, len(pairs), step))
            ]
        )
        scores = np.zeros(len(pairs))
        genes = np.unique(pairs)
        both = np.concatenate([pairs[:, 0], pairs[:, 1]])
        hits = np.zeros(len(self.rows))
        for tail in self.tails:
            level = tail.levels(cosines)
            scores += tail.counted(level)
            # Over all pairs at once: how many lie below the level where each gene's tail ends.
            sorted_levels = np.sort(level)
            at, share = tail.level[1:], tail.share[1:]
            below, upto = (np.searchsorted(sorted_levels, at, side=s) for s in ("left", "right"))
            own = tail.counted(np.concatenate([level, level]), 1 + both)
            hits += below + (upto - below) * share - np.bincount(both, own, len(self.rows))
        left = len(pairs) - np.bincount(both, minlength=len(self.rows))
        if not left.min():
            return scores, {}
        without = hits[genes] / left[genes]
        pseudo = scores.mean() + (len(genes) - 1) * (without.mean() - without)
        return scores, dict(zip(genes.tolist(), pseudo.tolist(), strict=True))


def _places(n: int, percentiles: tuple[float, float]) -> tuple[int, int]:
    """How many of the n (n - 1)/2 pairs lie in the lower and in the upper tail.

    By the rule's own divisions: 0.95 times a whole number need not be one where it should.
    """
    total = n * (n - 1) // 2
    if not total:
        return 0, 0
    near = np.arange(-2, 3)
    low, high = (int(percentile * total) + near for percentile in percentiles)
    last, first = low[low / total <= percentiles[0]], high[high / total >= percentiles[1]]
    return max(int(last.max()), 0), total - int(first.min())


def _tail(rows: np.ndarray, sign: float, places: int, fewer: int) -> _Tail:
    """The tail of the smallest sign · cosine: `places` of all pairs, `fewer` without one gene."""
    n = len(rows)
    low, high = _window(rows, sign, max(min(places, fewer), 1), max(places, fewer + n - 1))
    n_below = 0
    below = np.zeros(n, np.int64)  # of each gene
    found = _Entries.none()
    for first, values in _blocks(rows, sign):
        under = values < low
        n_below += int(under.sum())
        below[first : first + len(values)] += under.sum(axis=1)
        below[first:] += under.sum(axis=0)
        i, j = np.nonzero((values >= low) & (values < high))
        found = found.with_pairs(values[i, j], first + i, first + j)
    found = found.merged()
    distinct, level = np.unique(found.values, return_inverse=True)
    opens = np.diff(distinct, prepend=-np.inf) > TIE
    level = (np.cumsum(opens) - 1)[level]
    starts, ends = distinct[opens], distinct[np.append(opens[1:], True)]
    held = np.bincount(level, found.counts, len(starts)) / 2.0  # each pair is with both its genes

    whole, share = _where_places_end(held[None], np.array([n_below]), places)
    levels, shares = [whole], [share]
    bounds = np.searchsorted(found.genes, np.arange(n + 1))
    step = max(1, BLOCK_NUMBERS // len(starts))
    for first in range(0, n, step):
        last = min(first + step, n)
        some = slice(bounds[first], bounds[last])
        cell = (found.genes[some] - first) * len(starts) + level[some]
        own = np.bincount(cell, found.counts[some], (last - first) * len(starts))
        rest = held[None] - own.reshape(last - first, len(starts))
        whole, share = _where_places_end(rest, n_below - below[first:last], fewer)
        levels.append(whole)
        shares.append(share)
    return _Tail(sign, starts, ends, np.concatenate(levels), np.concatenate(shares))


def _where_places_end(
    held: np.ndarray, below: np.ndarray, places: int
) -> tuple[np.ndarray, np.ndarray]:
    """The level and the share of it [g] that fill the places; pairs held [g, l], and below [g]."""
    upto = below[:, None] + np.cumsum(held, axis=1)
    level = np.minimum((upto < places).sum(axis=1), held.shape[1] - 1)
    here = (np.arange(len(held)), level)
    count = held[here]
    share = (places - (upto[here] - count)) / np.maximum(count, 1.0)
    return level, np.clip(share, 0.0, 1.0)


def _window(rows: np.ndarray, sign: float, first: int, last: int) -> tuple[float, float]:
    """Bounds of sign · cosine around ranks first ... last (from 1), with few others in between."""
    low, high = -1.01, 1.01
    while True:
        width = (high - low) / BINS
        counts = np.zeros(BINS + 1, np.int64)
        for _, values in _blocks(rows, sign):
            near = values[values < high]
            # Bin 0 is all below the window.
            bins = np.clip(np.floor((near - low) / width), -1, BINS - 1).astype(np.int64) + 1
            counts += np.bincount(bins, minlength=BINS + 1)
        upto = np.cumsum(counts)
        # A bin more on either side: equal values must not be cut apart.
        start = max(int(np.searchsorted(upto, first)) - 1, 1)
        stop = min(int(np.searchsorted(upto, last)) + 1, BINS)
        inside = upto[stop] - upto[start - 1]
        low, high = low + (start - 1) * width, low + stop * width
        narrow = stop - start > BINS // 2 or high - low < BINS * GRID
        if narrow or inside <= 4 * len(rows):
            return low, high


def _blocks(rows: np.ndarray, sign: float = 1.0) -> Iterator[tuple[int, np.ndarray]]:
    """First gene of a block and its values [b, n - first] with the genes from it on.

    A pair is there once, with its first gene; the rest is infinite.
    """
    step = max(1, BLOCK_NUMBERS // len(rows))
    for first in range(0, len(rows), step):
        values = rows[first : first + step] @ rows[first:].T
        values = np.rint(values * (sign / GRID)) * GRID
        values[np.tril_indices(len(values), m=values.shape[1])] = np.inf
        yield first, values


@dataclasses.dataclass(frozen=True)
class _Entries:
    """How many pairs of a value each gene has: values, genes, counts [e], sorted by the two."""

    values: np.ndarray
    genes: np.ndarray
    counts: np.ndarray

    @classmethod
    def none(cls) -> "_Entries":
        return cls(np.empty(0), np.empty(0, np.int64), np.empty(0))

    def with_pairs(self, values: np.ndarray, first: np.ndarray, second: np.ndarray) -> "_Entries":
        more = _Entries(
            np.concatenate([self.values, values, values]),
            np.concatenate([self.genes, first, second]),
            np.concatenate([self.counts, np.ones(2 * len(values))]),
        )
        return more.merged() if len(values) > len(self.values) else more

    def merged(self) -> "_Entries":
        """Sorted by gene and value, each of the two once."""
        order = np.lexsort((self.values, self.genes))
        values, genes = self.values[order], self.genes[order]
        new = np.flatnonzero(
            (np.diff(genes, prepend=-1) != 0) | (np.diff(values, prepend=-np.inf) != 0)
        )
        counts = np.add.reduceat(self.counts[order], new) if len(new) else self.counts
        return _Entries(values[new], genes[new], counts)


def _null(
    map_: _Map,
    sources: Sequence[np.ndarray],
    strength: np.ndarray,
    permutations: int,
    seed: int,
) -> list[np.ndarray]:
    """Recalls [permutations] of each source's pairs [m, 2] with the genes of a stratum permuted."""
    if not permutations:
        return [np.empty(0) for _ in sources]
    n = len(strength)
    code, counted = _coded(map_)
    edges = np.quantile(strength, np.arange(1, STRATA) / STRATA)
    stratum = np.searchsorted(edges, strength, side="right")  # equal strengths stay together
    members = np.argsort(stratum, kind="stable")
    rng = np.random.default_rng(seed)
    recalls = np.empty((len(sources), permutations))
    moved = np.empty(n, np.int64)
    for draw in range(permutations):
        moved[members] = np.lexsort((rng.random(n), stratum))
        for source, pairs in enumerate(sources):
            first, second = np.sort(moved[pairs], axis=1).T
            recalls[source, draw] = counted[code[first, second]].mean()
    return list(recalls)


def _coded(map_: _Map) -> tuple[np.ndarray, np.ndarray]:
    """A byte for every pair [n, n] with its first gene first, and how much each code counts."""
    n = len(map_.rows)
    code = np.zeros((n, n), np.uint8)
    for tail, unit in zip(map_.tails, (1, 3), strict=True):
        level = tail.level[0]
        least, most = tail.starts[level] - TIE / 2, tail.ends[level] + TIE / 2
        for first, values in _blocks(map_.rows, tail.sign):
            part = code[first : first + len(values), first:]
            part += (
                unit * (values < least) + 2 * unit * ((values >= least) & (values <= most))
            ).astype(np.uint8)
    low, high = (np.array([0.0, 1.0, tail.share[0]]) for tail in map_.tails)
    return code, (low[None, :] + high[:, None]).ravel()


def _p_value(null: np.ndarray, recall: float) -> float:
    """Of a recall at least as high, the observed one counted in (Phipson & Smyth 2010)."""
    return float((1 + np.sum(null >= recall - 1e-9)) / (1 + len(null)))


def _arm_codes(names: np.ndarray, arms: Mapping[str, str]) -> np.ndarray:
    """The arm of each gene, int [n]; -1 for a gene without one."""
    given = pd.Series([arms.get(name) for name in names], dtype=object)
    given = given.where(given.notna() & (given.astype(str).str.strip() != ""))
    if given.isna().all():
        raise InputError(
            f"none of the {len(names)} genes of the map has a chromosome arm; it has "
            f"{', '.join(names[:3])} ..., the arms are of {', '.join(list(arms)[:3])} ..."
        )
    return pd.factorize(given.astype(str).where(given.notna()), sort=True)[0]


def _audit(
    pairs: _Known, scores: np.ndarray, by_arm: _Map, arm: np.ndarray, names: np.ndarray
) -> ArmAudit:
    """scores: how much each pair counts [m]; by_arm: the map of arms alone; arm: int [n]."""
    first, second = arm[pairs.index].T
    within = (first == second) & (first >= 0)
    sizes = np.bincount(arm[arm >= 0])
    n = len(arm)
    by_arm_scores, per_unit = by_arm.recall(pairs.index)
    return ArmAudit(
        within=float(within.mean()),
        all_within=float((sizes * (sizes - 1)).sum() / (n * (n - 1))),
        recall_within=float(scores[within].mean()) if within.any() else None,
        recall_between=float(scores[~within].mean()) if not within.all() else None,
        recall=float(by_arm_scores.mean()),
        per_unit=_named(per_unit, names),
        genes_without_arm=int((arm < 0).sum()),
    )


def _named(per_unit: Mapping[int, float], names: np.ndarray) -> dict[str, float]:
    return {str(names[gene]): value for gene, value in per_unit.items()}

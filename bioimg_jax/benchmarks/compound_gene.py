"""Compound-gene: are a compound's known targets among the genes whose profile is most like its own?

The protocol of RxRx3-core (`compound_gene_benchmark` of `efaar_benchmarking`): of every compound
and gene the |cosine| of their mean profiles, the largest over the compound's doses. Per compound
the genes known to respond at 1 µM or less are positive, those at 1 to 10 µM are left out, and
max(2 positives, 20) negatives are drawn from the other genes of the activity table, once a seed.
Average precision and AUROC of this ranking, mean over seeds, then over compounds. A compound
without a positive, or with too few others, is left out and counted.

* **Ties.** |cosines| within `TIE` are equal and count their exact expectation over all orders.
* **Chance** is exact for the numbers of each compound: (p - 1)/(n - 1) + H_n (n - p)/(n (n - 1))
  for p positives of n, and 1/2.
* **Units** are the compounds.
* **Order** leaves no trace, and neither does which other compounds there are: negatives are drawn
  from genes in the order of their names, seeded by the compound's.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.mean_profiles import check_rows, checked_names, mean_profiles
from bioimg_jax.benchmarks.profile_score import ProfileBenchmark, profile_score
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, has_value
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import controls_of
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.probes.average_precision import chance, expected_precision
from bioimg_jax.statistics.neighbours import unit_rows, with_angles
from bioimg_jax.statistics.subsets import drawn_subsets

METRIC = "average_precision"
COMPOUND_KIND, GENE_KIND = "compound", "gene"
ACTIVE_UM = 1.0
INACTIVE_UM = 10.0
LEAST_NEGATIVES = 20
NEGATIVES = 2  # for each positive
SEEDS = 100
TIE = 1e-12
# Columns of compound, gene and concentration, and how many of its units are a µM.
HEADERS = (
    ("compound", "gene", "concentration_um", 1.0),
    ("treatment", "gene_symbol", "nM_value", 1000.0),  # as `efaar_benchmarking` has it
)


@dataclasses.dataclass(frozen=True, eq=False)
class Activities:
    """Known activities: at which least concentration a compound acts on a gene.

    compounds, genes: object [m], each pair once and sorted; um: float64 [m]; rows: how many were
    read, `duplicates` of which gave no lower concentration.
    """

    compounds: np.ndarray
    genes: np.ndarray
    um: np.ndarray
    rows: int
    duplicates: int

    @property
    def digest(self) -> str:
        """SHA-256 of the pairs and their concentrations."""
        rows = zip(self.compounds, self.genes, self.um.tolist(), strict=True)
        text = "\n".join(f"{compound}\t{gene}\t{um!r}" for compound, gene, um in rows)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Rankings:
    """One number a compound [c], names ascending; scores are means over seeds.

    seed_sd: of the mean average precision, over seeds, 0 where all negatives there are were drawn.
    no_profile, no_positive, few_negatives: compounds of the activity table left out; genes_missing:
    genes of it without a profile. other_rows: profiles that are neither compound nor gene.
    """

    compounds: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    average_precision: np.ndarray
    auroc: np.ndarray
    chance: np.ndarray
    seed_sd: float
    genes: int
    no_profile: tuple[str, ...]
    no_positive: tuple[str, ...]
    few_negatives: tuple[str, ...]
    genes_missing: tuple[str, ...]
    other_rows: int
    zero_profiles: int


def read_activities(path: Path) -> Activities:
    """The activities of a CSV file that has the columns of one of `HEADERS`, others aside.

    Raises:
      InputError: a file that cannot be read, without these columns, with an empty name, or with a
        concentration that is not a number above 0.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    table.columns = table.columns.str.strip()
    header = next((h for h in HEADERS if set(h[:3]) <= set(table.columns)), None)
    if header is None:
        expected = " or ".join(",".join(h[:3]) for h in HEADERS)
        raise InputError(f"{path}: has {', '.join(table.columns)}, expected columns {expected}")
    compound, gene, column, per_um = header
    amount = pd.to_numeric(table[column], errors="coerce")
    if (bad := np.flatnonzero(amount.isna())).size:
        raise InputError(
            f"{path}: row {bad[0] + 1} has {column} {table[column][bad[0]]!r}, expected a number"
        )
    try:
        return activities(table[compound], table[gene], amount.to_numpy(np.float64) / per_um)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def activities(
    compounds: np.ndarray | pd.Series, genes: np.ndarray | pd.Series, um: np.ndarray | pd.Series
) -> Activities:
    """`Activities` of three columns [m]; of a pair that is there twice the lowest concentration."""
    if not len(compounds) == len(genes) == len(um):
        raise InputError(
            f"{len(compounds)} compounds, {len(genes)} genes, {len(um)} concentrations"
        )
    names = checked_names(compounds, "compound"), checked_names(genes, "gene")
    amount = np.asarray(um, np.float64)
    if (bad := np.flatnonzero(~(np.isfinite(amount) & (amount > 0.0)))).size:
        raise InputError(f"row {bad[0]} has {amount[bad[0]]} µM, expected a number above 0")
    table = pd.DataFrame({"compound": names[0], "gene": names[1], "um": amount})
    least = table.groupby(["compound", "gene"], sort=True)["um"].min().reset_index()
    return Activities(
        least["compound"].to_numpy(object),
        least["gene"].to_numpy(object),
        least["um"].to_numpy(),
        len(table),
        len(table) - len(least),
    )


def compound_gene(
    features: np.ndarray,
    perturbations: np.ndarray | pd.Series,
    kinds: np.ndarray | pd.Series,
    doses_um: np.ndarray | pd.Series,
    known: Activities,
    *,
    compound_kind: str = COMPOUND_KIND,
    gene_kind: str = GENE_KIND,
    seeds: int = SEEDS,
    seed: int = 0,
) -> Rankings:
    """`Rankings` of the compounds of the activity table that have a profile.

    Args:
      features: [n, d], any float dtype, aligned; rows of one compound and dose, or of one gene,
        are averaged.
      perturbations, kinds: [n], the name of each row and what it is.
      doses_um: float [n], of compounds; a gene's is not read.
      seeds: how often negatives are drawn; seed: of the first.

    Raises:
      InputError: features that are not finite, columns of other lengths, a row without a name or
        kind, a compound's row without a dose, no compound or no gene among the rows, or no
        compound left to score.
    """
    check_rows(features, perturbations=perturbations, kinds=kinds, doses_um=doses_um)
    if seeds < 1:
        raise InputError(f"{seeds} seeds, expected 1 or more")
    kind = checked_names(kinds, "kind")
    rows = {}
    for wanted in (compound_kind, gene_kind):
        rows[wanted] = np.flatnonzero(kind == wanted)
        if not len(rows[wanted]):
            raise InputError(f"no row of kind {wanted!r}; there are {', '.join(sorted(set(kind)))}")
    of_compounds, of_genes = rows[compound_kind], rows[gene_kind]
    dose = np.asarray(doses_um, np.float64)[of_compounds]
    if (bad := np.flatnonzero(~(np.isfinite(dose) & (dose >= 0.0)))).size:
        raise InputError(
            f"row {of_compounds[bad[0]]}, a compound, has dose {dose[bad[0]]}; expected µM"
        )
    gene_code, genes = pd.factorize(checked_names(perturbations, "name", of_genes), sort=True)
    names = checked_names(perturbations, "name", of_compounds)
    treatments = pd.DataFrame({"compound": names, "dose": dose})
    code = treatments.groupby(["compound", "dose"], sort=True).ngroup().to_numpy()
    compound_of = treatments.groupby(["compound", "dose"], sort=True).size().reset_index()
    treated = mean_profiles(features[of_compounds], code)
    knocked = mean_profiles(features[of_genes], gene_code)
    cosines = np.abs(unit_rows(treated) @ unit_rows(knocked).T)  # [compound and dose, gene]

    pool = np.flatnonzero(np.isin(genes, known.genes))  # genes of the table, in their order
    left_out: dict[str, list[str]] = {"no_profile": [], "no_positive": [], "few_negatives": []}
    found = {}
    dose_rows = compound_of.groupby("compound").indices
    for name, at in pd.Series(known.um).groupby(known.compounds, sort=True).groups.items():
        if name not in dose_rows:
            left_out["no_profile"].append(name)
            continue
        concentration = pd.Series(known.um[at], index=known.genes[at]).reindex(genes).to_numpy()
        active = concentration <= ACTIVE_UM  # of every gene; not known: nan, and so neither
        positive = np.flatnonzero(active)
        others = pool[~active[pool] & ~(concentration[pool] <= INACTIVE_UM)]
        n_negatives = max(NEGATIVES * len(positive), LEAST_NEGATIVES)
        if not len(positive):
            left_out["no_positive"].append(name)
        elif len(others) < n_negatives:
            left_out["few_negatives"].append(name)
        else:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            drawn = drawn_subsets(rng, len(others), n_negatives, seeds)
            likeness = cosines[dose_rows[name]].max(axis=0)
            precision, auroc = _ranking(likeness[positive], likeness[others], drawn)
            found[name] = (len(positive), n_negatives, precision, auroc.mean())
    if not found:
        reasons = ", ".join(f"{len(of)} {why.replace('_', ' ')}" for why, of in left_out.items())
        raise InputError(f"no compound of the activity table can be scored: {reasons}")
    positives, negatives, precisions, aurocs = (list(c) for c in zip(*found.values(), strict=True))
    by_seed = np.stack(precisions)  # [c, seeds]
    return Rankings(
        compounds=np.array(list(found), object),
        positives=np.array(positives),
        negatives=np.array(negatives),
        average_precision=by_seed.mean(axis=1),
        auroc=np.array(aurocs),
        chance=chance(np.array(positives), np.array(positives) + np.array(negatives)),
        seed_sd=float(by_seed.mean(axis=0).std(ddof=1)) if seeds > 1 else 0.0,
        genes=len(pool),
        no_profile=tuple(left_out["no_profile"]),
        no_positive=tuple(left_out["no_positive"]),
        few_negatives=tuple(left_out["few_negatives"]),
        genes_missing=tuple(np.setdiff1d(known.genes.astype(str), genes.astype(str)).tolist()),
        other_rows=len(features) - len(of_compounds) - len(of_genes),
        zero_profiles=int(sum((~x.any(axis=1)).sum() for x in (treated, knocked))),
    )


@dataclasses.dataclass(frozen=True)
class CompoundGene(ProfileBenchmark):
    """Mean average precision of the compounds' known genes, as a benchmark.

    gene, dose: columns of the gene that a well's perturbation hits, empty in wells of compounds,
    and of the compound's dose in µM.
    """

    known: Activities
    gene: str = "gene"
    dose: str = "dose"
    seeds: int = SEEDS
    seed: int = 0
    name: str = "compound_gene"
    metric = METRIC

    @property
    def besides(self) -> dict[str, Any]:
        return {"known": self.known.digest, "seed": self.seed, "columns": [self.gene, self.dose]}

    @property
    def settings(self) -> dict[str, Any]:
        return {"activities": len(self.known.genes), "seeds": self.seeds}

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        """One score a layer. Raises `InputError` for a well that is compound and gene, or as
        `compound_gene` does.
        """
        self.check(target)
        wells = np.unique(np.concatenate([fold.test for fold in folds]))
        of_gene = has_value(table.obs[self.gene]) & ~controls_of(table.obs)
        if (both := wells[of_gene[wells]]).size:
            raise InputError(
                f"row {both[0]} has the gene {table.obs[self.gene].iloc[both[0]]!r} and the "
                f"compound {table.obs[target.column].iloc[both[0]]!r}, expected one of them"
            )
        rows = np.union1d(wells, np.flatnonzero(of_gene))
        obs = table.obs.iloc[rows]
        name = obs[self.gene].where(of_gene[rows], obs[target.column])
        kind = np.where(of_gene[rows], GENE_KIND, COMPOUND_KIND)
        dose = pd.to_numeric(obs[self.dose], errors="coerce")  # of what is no number nan: refused
        found = []
        for layer in table.widths:
            ranked = compound_gene(
                with_angles(table.layer(layer)[rows]), name, kind, dose, self.known,
                seeds=self.seeds, seed=self.seed,
            )  # fmt: skip
            left_out = ("no_profile", "no_positive", "few_negatives", "genes_missing")
            found.append(
                profile_score(
                    self.name,
                    target,
                    ranked.compounds.tolist(),
                    ranked.average_precision,
                    float(ranked.average_precision.mean()),
                    chance=float(ranked.chance.mean()),
                    layer=layer,
                    about=about,
                    other_metrics={"auroc": float(ranked.auroc.mean())},
                    settings={
                        **self.settings,
                        **{f"n_{part}": len(getattr(ranked, part)) for part in left_out},
                        "genes": ranked.genes,
                        "zero_profiles": ranked.zero_profiles,
                        "seed_sd": ranked.seed_sd,
                    },
                )
            )
        return found


def _ranking(
    positive: np.ndarray, others: np.ndarray, drawn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC [seeds] of scores [p] among drawn others; drawn: int [seeds, k].

    Counting is enough: how many items are above each positive, and how many equal to it.
    """
    above, equal = _compared(others, positive)  # [others, p]
    negatives_above = above[drawn].sum(axis=1)  # [seeds, p]
    negatives_equal = equal[drawn].sum(axis=1)
    own_above, own_equal = (of.sum(axis=0)[None] for of in _compared(positive, positive))
    precision = expected_precision(
        negatives_above + own_above, own_above, negatives_equal + own_equal, own_equal
    )
    beaten = 1.0 - (negatives_above + 0.5 * negatives_equal) / drawn.shape[1]
    return precision.mean(axis=1), beaten.mean(axis=1)


def _compared(items: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each item is above, and equal to, each score: bool [items, scores] twice."""
    difference = items[:, None] - scores[None, :]
    return difference > TIE, np.abs(difference) <= TIE

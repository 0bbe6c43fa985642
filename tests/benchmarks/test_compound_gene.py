import dataclasses
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from bioimg_jax.benchmarks import compound_gene as module
from bioimg_jax.benchmarks.compound_gene import activities, compound_gene, read_activities
from bioimg_jax.errors import InputError
from bioimg_jax.probes.average_precision import chance

N_GENES = 40


def screen(compounds=3, doses=(0.1, 1.0), d=8, *, copies=1, seed=0):
    """Gene profiles g00 ..., and compounds c0 ... at each dose."""
    rng = np.random.default_rng(seed)
    genes = [f"g{i:02d}" for i in range(N_GENES)]
    rows = [(gene, "gene", np.nan) for gene in genes]
    rows += [(f"c{i}", "compound", dose) for i in range(compounds) for dose in doses]
    rows *= copies
    names, kinds, dose = (np.array(column, object) for column in zip(*rows, strict=True))
    return rng.normal(size=(len(rows), d)), names, kinds, dose.astype(float)


def table(compounds=3, positives=2):
    """Each compound acts on its own genes; all other genes are inactive on the first compound."""
    rows = [(f"c{i}", f"g{positives * i + j:02d}", 0.5) for i in range(compounds)
            for j in range(positives)]  # fmt: skip
    rows += [("c0", f"g{i:02d}", 50.0) for i in range(positives, N_GENES)]
    return activities(*(np.array(column, object) for column in zip(*rows, strict=True)))


def expected_scores(positive, others, k):
    """Exact mean AP and AUROC over every draw of k others, no two scores equal."""
    precision = []
    for score in positive:
        above, own = int((others > score).sum()), int((positive > score).sum())
        m = np.arange(k + 1)
        chance = stats.hypergeom(len(others), above, k).pmf(m)
        precision.append(np.sum(chance * (own + 1) / (own + 1 + m)))
    return np.mean(precision), np.mean(positive[:, None] > others[None])


def test_means_over_seeds_approach_the_exact_expectation():
    features, names, kinds, dose = screen(copies=2)
    found = compound_gene(features, names, kinds, dose, table(), seeds=4_000)
    assert found.compounds.tolist() == ["c0", "c1", "c2"]
    assert found.positives.tolist() == [2] * 3 and found.negatives.tolist() == [20] * 3
    gene = np.stack([features[names == f"g{i:02d}"].mean(axis=0) for i in range(N_GENES)])
    for i in range(3):
        likeness = []
        for level in (0.1, 1.0):
            mine = features[(names == f"c{i}") & (dose == level)].mean(axis=0)
            lengths = np.linalg.norm(gene, axis=1) * np.linalg.norm(mine)
            likeness.append(np.abs(gene @ mine) / lengths)
        best = np.max(likeness, axis=0)
        mine = np.arange(2 * i, 2 * i + 2)
        precision, auroc = expected_scores(best[mine], np.delete(best, mine), 20)
        assert found.average_precision[i] == pytest.approx(precision, abs=0.01)
        assert found.auroc[i] == pytest.approx(auroc, abs=0.01)
    assert 0.0 < found.seed_sd < 0.1


def test_a_drawn_ranking_is_scikit_learns():
    rng = np.random.default_rng(0)
    positive, others = rng.normal(size=4) + 0.5, rng.normal(size=30)
    drawn = np.stack([rng.permutation(30)[:12] for _ in range(5)])
    precision, auroc = module._ranking(positive, others, drawn)
    labels = np.repeat([1, 0], [4, 12])
    for i in range(5):
        scores = np.concatenate([positive, others[drawn[i]]])
        assert precision[i] == pytest.approx(average_precision_score(labels, scores))
        assert auroc[i] == pytest.approx(roc_auc_score(labels, scores))


def orders_of(scores, labels, rng, n=4_000):
    """Mean average precision and AUROC over random orders of equal scores."""
    found = []
    for _ in range(n):
        order = np.lexsort((rng.random(len(scores)), -scores))
        hit = labels[order]
        found.append((np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit > 0].mean())
    return np.mean(found), roc_auc_score(labels, scores)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_ties_are_the_expectation_over_orders(levels):
    rng = np.random.default_rng(levels)
    positive, others = rng.integers(0, levels, 5) * 1.0, rng.integers(0, levels, 14) * 1.0
    precision, auroc = module._ranking(positive, others + 1e-15, np.arange(14)[None])
    labels = np.repeat([1, 0], [5, 14])
    expected = orders_of(np.concatenate([positive, others]), labels, rng)
    assert precision[0] == pytest.approx(expected[0], abs=0.01)
    assert auroc[0] == pytest.approx(expected[1])
    if levels == 1:
        assert precision[0] == pytest.approx(chance(np.array([5]), np.array([19]))[0])


@pytest.mark.parametrize(("p", "n"), [(1, 1), (1, 6), (2, 7), (4, 8), (7, 7)])
def test_chance_is_the_mean_over_all_rankings(p, n):
    values = []
    for places in combinations(range(1, n + 1), p):
        values.append(np.mean([(i + 1) / place for i, place in enumerate(places)]))
    assert chance(np.array([p]), np.array([n]))[0] == pytest.approx(np.mean(values))
    if n > 1:
        harmonic = np.sum(1 / np.arange(1, n + 1))
        formula = (p - 1) / (n - 1) + harmonic * (n - p) / (n * (n - 1))
        assert chance(np.array([p]), np.array([n]))[0] == pytest.approx(formula)


def test_profiles_that_say_nothing_score_chance():
    features, names, kinds, dose = screen()
    for flat in (np.ones_like(features), np.zeros_like(features), features[:, :1]):
        found = compound_gene(flat, names, kinds, dose, table())
        np.testing.assert_allclose(found.average_precision, found.chance)
        np.testing.assert_allclose(found.auroc, 0.5)
        assert found.seed_sd < 1e-12
    assert found.zero_profiles == 0
    assert compound_gene(features * 0, names, kinds, dose, table()).zero_profiles == N_GENES + 6


def test_random_profiles_score_chance_on_average():
    scores = [compound_gene(*screen(3, seed=i), table(), seeds=10) for i in range(60)]
    gain = np.array([np.mean(s.average_precision - s.chance) for s in scores])
    assert abs(gain.mean()) < 3 * gain.std(ddof=1) / np.sqrt(60)


def test_a_target_is_found_at_any_dose_and_sign():
    features, names, kinds, dose = screen()
    for i, sign in enumerate((1.0, -1.0, 1.0)):
        at = np.flatnonzero((names == f"c{i}") & (dose == (0.1, 1.0)[i % 2]))
        features[2 * i + 1] = features[2 * i]
        features[at] = sign * 5 * features[2 * i]
    found = compound_gene(features, names, kinds, dose, table())
    np.testing.assert_allclose(found.average_precision, 1.0)
    np.testing.assert_allclose(found.auroc, 1.0)


def test_who_is_positive_left_out_and_negative():
    rows = [("c0", "g00", 1.0), ("c0", "g00", 500.0), ("c0", "g01", 1.0001), ("c0", "g02", 10.0)]
    rows += [("c0", "g03", 10.1), ("c1", "g03", 100.0)]
    rows += [("c2", f"g{i:02d}", 1.0) for i in range(4, 27)]
    known = activities(*(np.array(column, object) for column in zip(*rows, strict=True)))
    assert (known.rows, known.duplicates) == (len(rows), 1)
    features, names, kinds, dose = screen(2)
    # Of 27 genes in the table g00 is positive, g01 and g02 are left out: 24 others, 20 drawn.
    found = compound_gene(features, names, kinds, dose, known)
    assert found.compounds.tolist() == ["c0"]
    assert (found.positives.tolist(), found.negatives.tolist(), found.genes) == ([1], [20], 27)
    assert found.no_positive == ("c1",) and found.no_profile == ("c2",)
    # With fewer than 20 others nothing is drawn, and g01 and g02 are still not among them.
    fewer = ~np.isin(names, [f"g{i:02d}" for i in range(4, 9)])
    with pytest.raises(InputError, match="1 no profile, 1 no positive, 1 few negatives"):
        compound_gene(features[fewer], names[fewer], kinds[fewer], dose[fewer], known)


def test_negatives_are_twice_the_positives():
    features, names, kinds, dose = screen(2)
    found = compound_gene(features, names, kinds, dose, table(2, 12))
    assert found.negatives.tolist() == [24, 24]
    # 24 of 28 others are drawn; of 24 all, and no seed differs.
    some = ~np.isin(names, ["g39", "g38", "g37", "g36"])
    everyone = compound_gene(features[some], names[some], kinds[some], dose[some], table(2, 12))
    assert everyone.seed_sd < 1e-12 < found.seed_sd
    assert everyone.genes_missing == ("g36", "g37", "g38", "g39")


def test_order_and_other_compounds_leave_no_trace():
    features, names, kinds, dose = screen(copies=3)
    found = compound_gene(features, names, kinds, dose, table(), seeds=7)
    order = np.random.default_rng(0).permutation(len(names))
    again = compound_gene(
        features[order], names[order], kinds[order], dose[order], table(), seeds=7
    )
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    some = names != "c1"
    fewer = compound_gene(features[some], names[some], kinds[some], dose[some], table(), seeds=7)
    np.testing.assert_array_equal(fewer.average_precision, found.average_precision[[0, 2]])
    other = compound_gene(features, names, kinds, dose, table(), seeds=7, seed=1)
    assert (other.average_precision != found.average_precision).any()


def test_rows_of_other_kinds_are_counted_and_a_name_may_be_of_both():
    features, names, kinds, dose = screen()
    kinds[-1] = "control"
    names[0] = "c0"
    found = compound_gene(features, names, kinds, dose, table())
    assert found.other_rows == 1 and found.compounds.tolist() == ["c0", "c1", "c2"]
    kinds[kinds == "gene"], kinds[kinds == "compound"] = "CRISPR", "COMPOUND"
    kind = {"compound_kind": "COMPOUND", "gene_kind": "CRISPR"}
    named = compound_gene(features, names, kinds, dose, table(), **kind)
    np.testing.assert_array_equal(named.average_precision, found.average_precision)


def test_a_file_of_activities(tmp_path):
    path = tmp_path / "known.csv"
    path.write_text(
        'gene_symbol,nM_value,database,treatment\nBCL2,4.4,"a, b",ABT-199\nMCL1,2500.0,a,ABT-199\n'
    )
    known = read_activities(path)
    assert known.genes.tolist() == ["BCL2", "MCL1"] and known.compounds[0] == "ABT-199"
    np.testing.assert_allclose(known.um, [0.0044, 2.5])
    path.write_text("compound,gene,concentration_um\nA,G,1\nA,G,0.5\nA,NA,7\n")
    known = read_activities(path)
    assert known.genes.tolist() == ["G", "NA"] and known.um.tolist() == [0.5, 7.0]
    assert (known.rows, known.duplicates) == (3, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compound,gene,dose\nA,G,1\n", "has compound, gene, dose, expected columns compound,gene"),
        ("compound,gene,concentration_um\nA,G,>10\n", "row 1 has concentration_um '>10'"),
        ("compound,gene,concentration_um\nA,G,1\nA,H,\n", "row 2 has concentration_um ''"),
        ("compound,gene,concentration_um\nA,G,0\n", r"row 0 has 0\.0 µM, expected a number above"),
        ("compound,gene,concentration_um\nA,G,-1\n", r"row 0 has -1\.0 µM"),
        ("compound,gene,concentration_um\nA,G,inf\n", "row 0 has inf µM"),
        ("compound,gene,concentration_um\n,G,1\n", "row 0 has no compound"),
        ("compound,gene,concentration_um\nA, ,1\n", "row 0 has no gene"),
        ("", "No columns to parse"),
    ],
)
def test_a_file_that_holds_no_activities_is_refused(tmp_path, text, message):
    path = tmp_path / "known.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_activities(path)
    assert "known.csv" in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        read_activities(tmp_path / "none.csv")
    with pytest.raises(InputError, match="1 compounds, 2 genes, 1 concentrations"):
        activities(np.array(["A"]), np.array(["G", "H"]), np.array([1.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((46, 8), np.nan)}, "feature 0 of row 0 is not finite"),
        ({"features": np.zeros((46, 0))}, r"features \(46, 0\)"),
        ({"perturbations": np.array(["a"] * 45)}, "45 values of perturbations for 46 rows"),
        ({"kinds": np.array(["gene"] * 45)}, "45 values of kinds for 46 rows"),
        ({"doses_um": np.zeros(45)}, "45 values of doses_um for 46 rows"),
        ({"kinds": np.array([None] * 46)}, "row 0 has no kind"),
        ({"kinds": np.array(["gene"] * 46)}, "no row of kind 'compound'; there are gene"),
        ({"kinds": np.array(["compound"] * 46), "doses_um": np.ones(46)}, "no row of kind 'gene'"),
        ({"compound_kind": "COMPOUND"}, "no row of kind 'COMPOUND'; there are compound, gene"),
        ({"doses_um": np.full(46, np.nan)}, "row 40, a compound, has dose nan; expected µM"),
        ({"doses_um": np.full(46, -1.0)}, r"row 40, a compound, has dose -1\.0"),
        ({"perturbations": np.array(["a"] * 45 + [None], object)}, "row 45 has no name"),
        ({"perturbations": np.array([None] + ["a"] * 45, object)}, "row 0 has no name"),
        ({"seeds": 0}, "0 seeds, expected 1 or more"),
        ({"perturbations": np.array(["a"] * 46, object)}, "no compound of the activity table"),
    ],
)
def test_a_wrong_screen_is_refused(change, message):
    features, names, kinds, dose = screen()
    given = {"features": features, "perturbations": names, "kinds": kinds, "doses_um": dose}
    with pytest.raises(InputError, match=message) as raised:
        compound_gene(**(given | {"known": table()} | change))
    assert "\n" not in str(raised.value)

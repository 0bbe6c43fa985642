import dataclasses

import numpy as np
import pytest

from bioimg_jax.benchmarks import relationships
from bioimg_jax.benchmarks.relationships import (
    PERCENTILES,
    installed_pairs,
    known_relationships,
    pair_list,
    read_pairs,
)
from bioimg_jax.errors import InputError


@pytest.fixture(params=[(1 << 22, 1 << 14), (200, 16)], ids=["one_block", "many_blocks"])
def blocks(request, monkeypatch):
    """In the second, thresholds are narrowed down several times."""
    monkeypatch.setattr(relationships, "BLOCK_NUMBERS", request.param[0])
    monkeypatch.setattr(relationships, "BINS", request.param[1])


def gene_names(n):
    return np.array([f"G{i:03d}" for i in range(n)], object)


def drawn_pairs(names, m, seed=0, source="known"):
    rng = np.random.default_rng(seed)
    chosen = {tuple(sorted(rng.choice(len(names), 2, replace=False))) for _ in range(m)}
    return pair_list(source, names[np.array(sorted(chosen))])


def counted_shares(means, pairs, percentiles=PERCENTILES):
    """The definition: the share of the places of a pair and its equals that lie in a tail."""
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    rows = np.divide(means, norms, out=np.zeros_like(means), where=norms > 0)
    cosines = rows @ rows.T
    everything = cosines[np.triu_indices(len(means), 1)]
    total = len(everything)
    shares = []
    for i, j in pairs:
        first = int((everything < cosines[i, j] - 1e-10).sum())
        last = int((everything <= cosines[i, j] + 1e-10).sum())
        ranks = np.arange(first + 1, last + 1)
        tails = (ranks / total <= percentiles[0]) | ((ranks - 1) / total >= percentiles[1])
        shares.append(tails.mean())
    return np.array(shares)


def left_out(means, pairs, gene, percentiles=PERCENTILES):
    rest = np.delete(np.arange(len(means)), gene)
    stay = pairs[(pairs != gene).all(axis=1)]
    return counted_shares(means[rest], np.searchsorted(rest, stay), percentiles).mean()


FEATURES = {
    "no_ties": lambda rng: rng.normal(size=(31, 5)),
    "uncentred": lambda rng: rng.normal(size=(31, 5)) + 1e3,
    "one_column": lambda rng: rng.normal(size=(31, 1)),
    "few_directions": lambda rng: rng.integers(-1, 2, size=(31, 2)).astype(float),
    "equal_profiles": lambda rng: np.repeat(rng.normal(size=(8, 4)), 4, axis=0)[:31],
    "constant": lambda rng: np.ones((31, 3)),
    "zeros": lambda rng: np.zeros((31, 3)),
}


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("percentiles", [PERCENTILES, (0.1, 0.9), (0.2, 0.3)])
def test_recall_and_pseudo_values_are_the_definition(kind, percentiles, blocks):
    means = FEATURES[kind](np.random.default_rng(0))
    names = gene_names(31)
    listed = drawn_pairs(names, 40)
    (found,) = known_relationships(means, names, [listed], percentiles=percentiles, permutations=0)
    pairs = np.searchsorted(names.astype(str), listed.names.astype(str))
    expected = counted_shares(means, pairs, percentiles)
    assert found.recall == pytest.approx(expected.mean(), abs=1e-12)
    assert found.tied == ((expected > 0) & (expected < 1)).sum()
    known = np.unique(pairs)
    without = np.array([left_out(means, pairs, gene, percentiles) for gene in known])
    pseudo = len(known) * expected.mean() - (len(known) - 1) * without
    assert list(found.per_unit) == names[known].tolist()
    shifted = pseudo - pseudo.mean() + expected.mean()
    np.testing.assert_allclose(list(found.per_unit.values()), shifted, atol=1e-9)
    assert (found.genes, found.pairs, found.p_value) == (31, len(pairs), None)
    assert found.zero_profiles == (31 if kind == "zeros" else (means == 0).all(axis=1).sum())


@pytest.mark.parametrize("kind", FEATURES)
def test_chance_is_the_recall_of_all_pairs(kind, blocks):
    means, names = FEATURES[kind](np.random.default_rng(1)), gene_names(31)
    everything = pair_list("all", names[np.argwhere(np.triu(np.ones((31, 31)), 1))])
    (found,) = known_relationships(means, names, [everything], permutations=0)
    assert found.recall == pytest.approx(found.chance, abs=1e-12)
    # 465 pairs: ranks 1 ... 23 and 443 ... 465.
    assert found.chance == pytest.approx((23 + 23) / 465)


@pytest.mark.parametrize(
    ("n", "places"), [(7, (1, 1)), (16, (6, 6)), (25, (15, 15)), (41, (41, 41)), (96, (228, 228))]
)
def test_whole_percentiles_are_inside(n, places):
    # 120, 300, 820 and 4560 pairs: 5 % is a whole number of them.
    assert relationships._places(n, PERCENTILES) == places


def test_rows_of_a_gene_are_averaged_and_order_leaves_no_trace(blocks):
    rng = np.random.default_rng(2)
    names = np.repeat(gene_names(30), 3)
    features = rng.normal(size=(90, 4)).astype(np.float32)
    listed = drawn_pairs(gene_names(30), 50)
    options = {"permutations": 20, "arms": {f"G{i:03d}": f"{i % 4}p" for i in range(25)}}
    (found,) = known_relationships(features, names, [listed], **options)
    means = features.astype(np.float64).reshape(30, 3, 4).mean(axis=1)
    (of_means,) = known_relationships(means, gene_names(30), [listed], permutations=0)
    assert found.recall == of_means.recall
    order = rng.permutation(90)
    swapped = pair_list("known", listed.names[::-1, ::-1])
    (again,) = known_relationships(features[order], names[order], [swapped], **options)
    assert dataclasses.asdict(again) == dataclasses.asdict(found)
    (scaled,) = known_relationships(features * 4, names, [listed], **options)
    assert dataclasses.asdict(scaled) == dataclasses.asdict(found)


def test_related_genes_are_found_and_sources_do_not_meet():
    rng = np.random.default_rng(3)
    names = gene_names(60)
    means = rng.normal(size=(60, 20))
    means[1::2] = means[::2] + 0.3 * rng.normal(size=(30, 20))
    related = pair_list("related", names.reshape(30, 2))
    both = known_relationships(means, names, [related, drawn_pairs(names, 60)], permutations=199)
    assert both[0].recall == 1.0 and both[0].p_value == 1 / 200
    assert both[1].recall < 0.3 and both[1].p_value > 0.01
    assert [found.source for found in both] == ["related", "known"]
    (alone,) = known_relationships(means, names, [related], permutations=199)
    assert alone == both[0]
    # Opposite profiles count too.
    means[1::2] *= -1
    (opposite,) = known_relationships(means, names, [related], permutations=0)
    assert opposite.recall == 1.0


def test_the_null_permutes_within_strength_only():
    """Strong genes resemble each other; the known pairs are random pairs of strong genes."""
    rng = np.random.default_rng(4)
    names = gene_names(100)
    means = 0.1 * rng.normal(size=(100, 10))
    means[:20] += np.array([5.0] * 3 + [0.0] * 7) * rng.uniform(1, 2, size=(20, 1))
    listed = drawn_pairs(names[:20], 60)
    (found,) = known_relationships(means, names, [listed], permutations=99)
    assert found.recall == 1.0 and found.chance < 0.11
    assert found.null_mean == 1.0 and found.p_value == 1.0


def test_p_values_of_random_pairs_are_uniform():
    rng = np.random.default_rng(5)
    names = gene_names(50)
    listed = [drawn_pairs(names, 40, seed=i, source=str(i)) for i in range(60)]
    means = rng.normal(size=(50, 8)) * rng.lognormal(size=(50, 1))
    p = [f.p_value for f in known_relationships(means, names, listed, permutations=99)]
    assert np.mean(np.array(p) <= 0.2) < 0.2 + 3 * np.sqrt(0.2 * 0.8 / 60)
    assert 0.35 < np.mean(p) < 0.75


def test_intervals_over_genes_cover_and_are_not_absurdly_wide():
    """Complexes of 2 to 7 genes, 60 % of which show; profiles and complexes are drawn anew."""
    names, found = gene_names(60), []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        complexes = np.sort(rng.integers(0, 15, 60))
        shows = rng.random((60, 1)) < 0.6
        means = rng.normal(size=(60, 10)) + 1.5 * rng.normal(size=(15, 10))[complexes] * shows
        same = np.triu(complexes[:, None] == complexes[None], 1)
        listed = pair_list("complexes", names[np.argwhere(same)])
        (one,) = known_relationships(means, names, [listed], permutations=0)
        values = np.array(list(one.per_unit.values()))
        assert values.mean() == pytest.approx(one.recall)
        found.append((one.recall, values.std(ddof=1) / np.sqrt(len(values))))
    recall, error = np.array(found).T
    assert np.mean(np.abs(recall - recall.mean()) <= 2.0 * error) > 0.9
    assert 0.9 < error.mean() / recall.std(ddof=1) < 2.0


def test_a_gene_in_every_pair_leaves_no_pseudo_values():
    means, names = np.random.default_rng(6).normal(size=(10, 3)), gene_names(10)
    star = pair_list("star", np.stack([names[[0, 0, 0]], names[[1, 2, 3]]], axis=1))
    (found,) = known_relationships(means, names, [star], permutations=0)
    assert found.per_unit == {} and found.pairs == 3


def test_arms_explain_proximity():
    """Profiles of an arm resemble each other, and most known pairs lie within an arm."""
    rng = np.random.default_rng(7)
    names = gene_names(80)
    arm = np.arange(80) // 4
    means = rng.normal(size=(20, 10))[arm] + 0.4 * rng.normal(size=(80, 10))
    within = [(4 * a + i, 4 * a + j) for a in range(20) for i, j in ((0, 1), (2, 3))]
    between = [(a, a + 40) for a in range(0, 40, 4)]
    listed = pair_list("known", names[np.array(within + between)])
    arms = {str(name): f"arm {a}" for name, a in zip(names, arm, strict=True)}
    (found,) = known_relationships(means, names, [listed], permutations=0, arms=arms)
    audit = found.arms
    assert audit.within == pytest.approx(0.8) and audit.genes_without_arm == 0
    assert audit.all_within == pytest.approx(20 * 6 / (80 * 79 / 2))
    assert audit.recall_within > 0.9 and audit.recall_between < 0.4
    # 120 of 3160 pairs at cosine 1 fill the upper tail of 158 with 38 of the 3040 others, which
    # fill the lower one of 158.
    assert audit.recall == pytest.approx(0.8 + 0.2 * (38 + 158) / 3040)
    assert set(audit.per_unit) == set(found.per_unit)
    one_hot = np.eye(20)[arm]
    (as_profiles,) = known_relationships(one_hot, names, [listed], permutations=0)
    assert audit.per_unit == as_profiles.per_unit


def test_genes_without_an_arm_are_near_nobody():
    means, names = np.random.default_rng(8).normal(size=(30, 4)), gene_names(30)
    listed = pair_list("known", names[np.array([(0, 1), (2, 3), (4, 5)])])
    arms = {"G000": "1p", "G001": "1p", "G002": "2q", "G003": " ", "G004": None, "elsewhere": "9q"}
    (found,) = known_relationships(means, names, [listed], permutations=0, arms=arms)
    assert found.arms.genes_without_arm == 27
    assert found.arms.within == pytest.approx(1 / 3)
    assert found.arms.all_within == pytest.approx(1 / 435)


def test_kinds_of_pairs_that_are_not_there_have_no_recall():
    means, names = np.random.default_rng(8).normal(size=(30, 4)), gene_names(30)
    listed = pair_list("known", names[np.array([(0, 1), (2, 3)])])
    one_arm = dict.fromkeys(names, "1p")
    (found,) = known_relationships(means, names, [listed], permutations=0, arms=one_arm)
    assert found.arms.recall_between is None and found.arms.within == 1.0
    own_arms = {name: name for name in names}
    (found,) = known_relationships(means, names, [listed], permutations=0, arms=own_arms)
    assert found.arms.recall_within is None and found.arms.within == 0.0


def test_a_file_of_pairs(tmp_path):
    path = tmp_path / "CORUM.txt"
    path.write_text("entity1,entity2\nB,A\nA, B\nA,A\nC,NA\nnan,B\nB,A\n")
    listed = read_pairs(path)
    assert listed.source == "CORUM"
    assert listed.names.tolist() == [["A", "B"], ["B", "nan"], ["C", "NA"]]
    assert (listed.rows, listed.duplicates, listed.self_pairs) == (6, 2, 1)
    tabs = tmp_path / "own.tsv"
    tabs.write_text("score\tfrom\tto\n0.5\tA\tB\n")
    assert read_pairs(tabs, columns=("to", "from"), source="mine").names.tolist() == [["A", "B"]]


def test_any_two_columns_are_pairs_unless_their_names_are_genes_of_the_map(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("bait,prey\nG00,G01\nG02,G03\n")
    features = np.random.default_rng(0).normal(size=(30, 8))
    genes = np.array([f"G{i:02d}" for i in range(30)], object)
    (found,) = known_relationships(features, genes, [read_pairs(path)], permutations=0)
    assert found.pairs == 2 and found.unknown_pairs == 0 and found.source == "own"
    path.write_text("G00,G01\nG02,G03\n")  # no names of columns: a pair would be lost
    message = "first line of 'own' is 'G00,G01', which are genes of the map; expected names of the"
    with pytest.raises(InputError, match=message):
        known_relationships(features, genes, [read_pairs(path)], permutations=0)
    path.write_text("X,Y\nG02,G03\n")  # of genes that are not there nothing is lost
    (found,) = known_relationships(features, genes, [read_pairs(path)], permutations=0)
    assert found.pairs == 1
    path.write_text("gene1,gene2\nG02,G03\n")  # names of `HEADERS` are never genes
    assert read_pairs(path).first_line == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\nC\n", r"first line is 'A', expected two columns such as gene1,gene2 or entity1"),
        ("gene1,gene2,score\nA,B,1\n", "first line is 'gene1,gene2,score'"),
        ("gene1;gene2\nA;B\n", "first line is 'gene1;gene2'"),
        ("gene1,gene2\nA,B\nC,\n", "row 2 has no gene2"),
        ("gene1,gene2\nA,B\nC\n", "row 2 has no gene2"),
        ("gene1,gene2\n  ,B\n", "row 1 has no gene1"),
        ("gene1,gene2\nA,A\n", "no pair of two different genes for 'list'"),
        ("gene1,gene2\n", "no pair of two different genes"),
        ("gene1,gene2\nA,B\nC,D,E\n", "Expected 2 fields in line 3, saw 3"),
        ("", "No columns to parse"),
    ],
)
def test_a_file_that_is_no_list_of_pairs_is_refused(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_pairs(path)
    assert "list.csv" in str(raised.value) and "\n" not in str(raised.value)


def test_files_and_columns_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv.*No such file"):
        read_pairs(tmp_path / "none.csv")
    path = tmp_path / "list.csv"
    path.write_text("a,b,b\nA,B,C\n")
    with pytest.raises(InputError, match=r"list\.csv: no column 'c'; it has a, b"):
        read_pairs(path, columns=("a", "c"))
    path.write_bytes(b"gene1,gene2\n\xff\xfe,B\n")
    with pytest.raises(InputError, match="decode"):
        read_pairs(path)


def test_an_installed_list_is_asked_for_by_name(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no pair list 'corum'; there are CORUM, HuMAP"):
        installed_pairs("corum")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="efaar_benchmarking, which is not installed"):
        installed_pairs("CORUM")


def test_an_installed_list_is_read_without_running_its_package(monkeypatch, tmp_path):
    package = tmp_path / "efaar_benchmarking"
    (package / "benchmark_annotations").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "benchmark_annotations" / "SIGNOR.txt").write_text("entity1,entity2\nB,A\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_pairs("SIGNOR").names.tolist() == [["A", "B"]]
    with pytest.raises(InputError, match=r"CORUM\.txt.*No such file"):
        installed_pairs("CORUM")


def test_unknown_genes_are_counted():
    means, names = np.random.default_rng(9).normal(size=(30, 4)), gene_names(30)
    listed = pair_list("known", np.array([["G000", "G001"], ["G000", "X"], ["X", "Y"]], object))
    (found,) = known_relationships(means, names, [listed], permutations=0)
    assert (found.pairs, found.unknown_pairs, found.unknown_genes) == (1, 2, 2)
    nothing = pair_list("known", np.array([["g000", "g001"]], object))
    with pytest.raises(InputError, match=r"none of the 1 pairs of 'known' is in the map.*g000"):
        known_relationships(means, names, [nothing])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((30, 0))}, r"features \(30, 0\), expected"),
        ({"features": np.zeros(30)}, r"features \(30,\), expected"),
        ({"features": np.zeros((29, 4))}, "30 values of genes for 29 rows"),
        ({"features": np.full((30, 4), np.nan)}, "feature 0 of row 0 is not finite"),
        ({"genes": np.array([*gene_names(29), None], object)}, "row 29 has no gene"),
        ({"genes": np.array([" ", *gene_names(29)], object)}, "row 0 has no gene"),
        ({"percentiles": (0.95, 0.05)}, r"percentiles \(0.95, 0.05\), expected 0 < lower"),
        ({"percentiles": (5, 95)}, "expected 0 < lower < upper < 1"),
        ({"percentiles": (0.0, 0.95)}, "expected 0 < lower"),
        ({"percentiles": (0.001, 0.95)}, "30 genes make 435 pairs, none of which is beyond"),
        ({"genes": np.array(["G000", "G001"] * 15, object)}, "2 genes make 1 pairs"),
        ({"arms": {"TP53": "17p"}}, "none of the 30 genes of the map has a chromosome arm"),
        ({"arms": {}}, "none of the 30 genes of the map has a chromosome arm"),
    ],
)
def test_a_wrong_map_is_refused(change, message):
    names = gene_names(30)
    features = np.random.default_rng(10).normal(size=(30, 4))
    listed = pair_list("known", names[[[0, 1]]])
    given = {"features": features, "genes": names, "permutations": 0} | change
    with pytest.raises(InputError, match=message) as raised:
        known_relationships(given.pop("features"), given.pop("genes"), [listed], **given)
    assert "\n" not in str(raised.value)

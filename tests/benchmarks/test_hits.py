import numpy as np
import pytest
from scipy import stats

from bioimg_jax.benchmarks.hits import HitList, hit_list, hit_overlap
from bioimg_jax.errors import InputError


def slow_q(p):
    """The definition: the least rate at which the step-up procedure rejects each."""
    m, ordered = len(p), sorted(p)
    return [min(m * ordered[j] / (j + 1) for j in range(m) if ordered[j] >= value) for value in p]


@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_q_values_follow_the_definition(kind):
    p = np.random.default_rng(0).beta(0.4, 1, 60)
    p = np.round(p, 1) if kind == "ties" else p
    named = {f"t{i:02}": float(value) for i, value in enumerate(p)}
    found = hit_list(named, alpha=0.2)
    np.testing.assert_allclose(list(found.q.values()), slow_q(list(named.values())))
    assert found.hits == tuple(name for name in named if found.q[name] < 0.2)
    assert 0 < len(found.hits) < 60
    backwards = hit_list(dict(reversed(named.items())), alpha=0.2)
    assert backwards == found


def test_the_false_discovery_rate_is_kept():
    rng, shares = np.random.default_rng(0), []
    for _ in range(300):
        null = rng.random(80)
        active = stats.norm.sf(rng.normal(3, 1, 20))
        p = {f"n{i}": v for i, v in enumerate(null)} | {f"a{i}": v for i, v in enumerate(active)}
        hits = hit_list(p, alpha=0.1).hits
        shares.append(sum(name[0] == "n" for name in hits) / max(len(hits), 1))
    assert np.mean(shares) == pytest.approx(0.1 * 0.8, abs=3 * np.std(shares) / np.sqrt(300))


def test_treatments_that_cannot_be_tested_are_excluded_and_do_not_count():
    p = {"a": 0.001, "b": 0.04, "c": None, "d": float("nan"), "e": 0.06}
    found = hit_list(p, smallest={"a": 0.0001, "e": 1 / 17}, alpha=0.05)
    assert found.q == {"a": 0.002, "b": 0.04} and found.hits == ("a", "b")
    assert found.excluded == {
        "c": "no p-value",
        "d": "no p-value",
        "e": "its wells and controls allow no p-value below 0.0588",
    }


def test_no_treatments_are_no_hits():
    assert hit_list({}) == HitList(0.05, {}, (), {})
    assert hit_list({"a": None}).excluded == {"a": "no p-value"}


def lists(both, here, there, neither):
    names = [f"t{i:03}" for i in range(both + here + there + neither)]
    mine = set(names[: both + here])
    theirs = set(names[:both]) | set(names[both + here : both + here + there])
    return [
        HitList(0.05, {n: 0.01 if n in of else 0.5 for n in names}, tuple(sorted(of)), {})
        for of in (mine, theirs)
    ]


def test_overlap_by_hand():
    found = hit_overlap(*lists(6, 2, 3, 20))
    assert found.both == tuple(f"t{i:03}" for i in range(6))
    assert found.only_here == ("t006", "t007") and found.only_there == ("t008", "t009", "t010")
    assert found.n_neither == 20 and found.not_compared == ()
    assert found.jaccard == 6 / 11 and found.odds_ratio == 6 * 20 / (2 * 3)
    # Two-sided: all tables with these margins that are no more likely than this one.
    law = stats.hypergeom(31, 8, 9)
    chances = law.pmf(np.arange(9))
    assert found.fisher_p == pytest.approx(chances[chances <= law.pmf(6) * (1 + 1e-9)].sum())


@pytest.mark.parametrize(
    ("counts", "jaccard", "odds"),
    [
        ((0, 0, 0, 9), None, None),
        ((3, 0, 0, 9), 1.0, np.inf),
        ((3, 2, 0, 9), 0.6, np.inf),
        ((0, 2, 3, 9), 0.0, 0.0),
        ((0, 2, 0, 9), 0.0, None),
        ((9, 0, 0, 0), 1.0, None),
    ],
)
def test_empty_cells(counts, jaccard, odds):
    found = hit_overlap(*lists(*counts))
    assert found.jaccard == jaccard and found.odds_ratio == odds
    assert 0 < found.fisher_p <= 1
    if not counts[3] or not counts[0] + counts[1] or not counts[0] + counts[2]:
        assert found.fisher_p == 1.0  # a margin is empty: nothing could be learned


def test_overlap_is_over_treatments_that_both_have_tested():
    here = hit_list({"a": 0.001, "b": 0.001, "c": 0.9, "d": None})
    there = hit_list({"a": 0.001, "c": 0.8, "d": 0.001, "e": 0.5})
    found = hit_overlap(here, there)
    assert found.both == ("a",) and found.only_here == found.only_there == ()
    assert found.n_neither == 1 and found.not_compared == ("b", "d", "e")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hit_list({"a": 1.2}), "p-value of 'a' is 1.2, expected 0 to 1"),
        (lambda: hit_list({"a": -0.1}), "p-value of 'a' is -0.1, expected 0 to 1"),
        (lambda: hit_list({"a": 0.01}, smallest={"a": 0.02}), "'a' is 0.01, expected 0.02 to 1"),
        (lambda: hit_list({"a": 0.1}, alpha=0.0), "alpha of a hit list: 0.0, expected a number"),
        (lambda: hit_list({"a": 0.1}, alpha=5), "alpha of a hit list: 5"),
        (
            lambda: hit_overlap(hit_list({"a": 0.1}), hit_list({"a": 0.1}, alpha=0.1)),
            "hit lists at alpha 0.05 and 0.1, expected one alpha",
        ),
        (
            lambda: hit_overlap(hit_list({"a": 0.1}), hit_list({"b": 0.1})),
            "no treatment was tested in both hit lists",
        ),
    ],
)
def test_wrong_input_is_one_line(call, said):
    with pytest.raises(InputError, match=said):
        call()

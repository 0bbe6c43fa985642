"""The robustness index beside a slow rendering of its definition."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from bioimg_jax.errors import InputError
from bioimg_jax.statistics import neighbours
from bioimg_jax.statistics.resampling import pseudo_values
from bioimg_jax.statistics.robustness import robustness_index


@pytest.fixture(params=[1 << 24, 3_000], ids=["one_block", "many_blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_NUMBERS", request.param)


def problem(n=80, seed=0, classes=3, centres=4):
    rng = np.random.default_rng(seed)
    biology, centre = rng.integers(0, classes, n), rng.integers(0, centres, n)
    features = rng.normal(size=(n, 6))
    features += rng.normal(size=(classes, 6))[biology] + rng.normal(size=(centres, 6))[centre]
    return features, biology, centre


def slow(features, biology, centre, k, apart=None):
    """SO and OS, one row and neighbour at a time; no ties."""
    same_other = other_same = 0
    for i, row in enumerate(cdist(features, features, "cosine")):
        near = [
            j
            for j in np.argsort(row, kind="stable")
            if j != i and (apart is None or apart[i] != apart[j])
        ]
        for j in near[:k]:
            same_other += biology[i] == biology[j] and centre[i] != centre[j]
            other_same += biology[i] != biology[j] and centre[i] == centre[j]
    return same_other, other_same


@pytest.mark.parametrize("k", [1, 7, 79])
def test_agrees_with_its_definition(k, block):
    features, biology, centre = problem()
    found = robustness_index(features, biology, centre, k=k)
    same_other, other_same = slow(features, biology, centre, k)
    assert (found.same_other, found.other_same) == pytest.approx((same_other, other_same))
    assert found.value == pytest.approx(same_other / (same_other + other_same))
    assert (found.n, found.n_classes, found.n_centres) == (80, 3, 4)
    assert found.higher_is_better is None and found.per_unit == {} and found.interval is None


def test_rows_of_a_slide_are_no_neighbours_of_each_other(block):
    features, biology, centre = problem()
    slide = np.arange(80) // 4
    features += 5 * np.random.default_rng(3).normal(size=(20, 6))[slide]  # much alike
    found = robustness_index(features, biology, centre, k=5, apart=slide)
    assert (found.same_other, found.other_same) == pytest.approx(
        slow(features, biology, centre, 5, slide)
    )


def test_chance_of_equal_cells_is_known():
    for classes, centres in ((2, 2), (3, 5), (6, 2)):
        cells = np.array(list(itertools.product(range(classes), range(centres))) * 7)
        found = robustness_index(np.ones((len(cells), 1)), cells[:, 0], cells[:, 1], k=3)
        known = (centres - 1) / (centres + classes - 2)
        assert found.chance == pytest.approx(known)
        assert found.value == pytest.approx(known)  # all rows tie: any neighbour is as good


def test_chance_of_unequal_cells_is_that_of_all_permutations():
    features = np.random.default_rng(0).normal(size=(6, 3))
    biology, centre = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 0, 1])
    counts = [
        slow(features, biology[list(p)], centre[list(p)], 2)
        for p in itertools.permutations(range(6))
    ]
    same_other, other_same = np.mean(counts, axis=0)
    found = robustness_index(features, biology, centre, k=2)
    assert found.chance == pytest.approx(same_other / (same_other + other_same))


@pytest.mark.parametrize("slides", [False, True])
def test_noise_is_at_chance(slides):
    off = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        biology, centre = rng.choice(3, 400, p=[0.6, 0.3, 0.1]), rng.choice(4, 400)
        apart = np.arange(400) // 8 if slides else None
        found = robustness_index(rng.normal(size=(400, 8)), biology, centre, k=20, apart=apart)
        off.append(found.value - found.chance)
    assert abs(np.mean(off)) < 3 * np.std(off, ddof=1) / 20**0.5


def test_the_extremes_are_one_and_zero():
    rng = np.random.default_rng(0)
    biology, centre, noise = rng.choice(3, 200), rng.choice(4, 200), rng.normal(size=(200, 8))
    assert robustness_index(noise + 99 * np.eye(8)[biology], biology, centre, k=20).value == 1.0
    assert robustness_index(noise + 99 * np.eye(8)[centre], biology, centre, k=20).value == 0.0


def test_ties_have_the_expectation_over_their_orders(block):
    features, biology, centre = problem(40)
    twice = np.concatenate([features[:20]] * 2)  # each row has an equal
    biology, centre = biology[:40], centre[:40]
    found = robustness_index(twice, biology, centre, k=2)
    # By lot: the second neighbour is one of two equal rows.
    near = cdist(features[:20], features[:20], "cosine") + 9 * np.eye(20)
    second = near.argmin(axis=1)
    same_other = other_same = 0.0
    for i in range(40):
        options = [((i + 20) % 40, 1.0), (second[i % 20], 0.5), (second[i % 20] + 20, 0.5)]
        for j, weight in options:
            same_other += weight * (biology[i] == biology[j] and centre[i] != centre[j])
            other_same += weight * (biology[i] != biology[j] and centre[i] == centre[j])
    assert (found.same_other, found.other_same) == pytest.approx((same_other, other_same))


def test_the_order_of_rows_does_not_matter():
    features, biology, centre = problem()
    features[40:] = features[:40]
    unit = np.array([f"slide {i % 9}" for i in range(80)])
    order = np.random.default_rng(0).permutation(80)
    one = robustness_index(features, biology, centre, k=6, units=unit)
    other = robustness_index(features[order], biology[order], centre[order], k=6, units=unit[order])
    assert one.value == pytest.approx(other.value, abs=1e-12)
    assert one.per_unit == pytest.approx(other.per_unit, abs=1e-9)


@pytest.mark.parametrize("tied", ["no ties", "pairs", "all alike"])
@pytest.mark.parametrize("slides", [False, True])
def test_pseudo_values_leave_a_unit_out_of_queries_and_gallery(tied, slides, block):
    features, biology, centre = problem(90)
    if tied == "pairs":
        features[45:] = features[:45]
    if tied == "all alike":
        features[:] = np.round(features[0])
    unit = np.sort(np.random.default_rng(1).integers(0, 8, 90))  # of unequal sizes
    apart = np.arange(90) // 3 if slides else None

    def without(staying):
        rows = np.flatnonzero(np.isin(unit, staying))
        part = None if apart is None else apart[rows]
        return robustness_index(features[rows], biology[rows], centre[rows], k=6, apart=part).value

    found = robustness_index(features, biology, centre, k=6, units=unit, apart=apart)
    assert list(found.per_unit.values()) == pytest.approx(pseudo_values(without, 8))
    half = stats.t.ppf(0.975, 7) * stats.sem(list(found.per_unit.values()))
    assert found.interval == pytest.approx((found.value - half, found.value + half))


def test_classes_of_one_centre_are_counted_and_a_value_may_not_exist():
    biology, centre = np.array(list("aabbcc")), np.array(list("xyxyxx"))
    features = np.eye(6)
    assert robustness_index(features, biology, centre, k=2).single_centre == 2
    # Each row's only neighbour is its own double, of the same class and centre.
    doubles = np.repeat(np.eye(4), 2, axis=0)
    cells = np.repeat(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), 2, axis=0)
    found = robustness_index(doubles, cells[:, 0], cells[:, 1], k=1, units=np.arange(8) // 2)
    assert found.value is None and found.per_unit == {} and found.chance == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros(8)}, r"features \(8,\), expected \[n, d\]"),
        ({"biology": list("aab")}, "3 biology for 8 rows"),
        ({"centre": list("xy")}, "2 centre for 8 rows"),
        ({"units": [1]}, "1 units for 8 rows"),
        ({"apart": [1] * 9}, "9 apart for 8 rows"),
        ({"centre": ["x", None, *"xyxyxy"]}, "row 1 has no centre"),
        ({"biology": ["a"] * 8}, "one class in 8 rows, expected 2 or more"),
        ({"centre": ["x"] * 8}, "one centre in 8 rows, expected 2 or more"),
        ({"biology": list("aaaabbbb"), "centre": list("xxxxyyyy")}, "lives in a single centre"),
        ({"k": 0}, "k = 0, expected 1 to 7"),
        ({"k": 8}, "k = 8, expected 1 to 7: row 0 may have 7 neighbours of 8"),
        ({"apart": list("ppppqrst"), "k": 5}, "1 to 4: row 0 may have 4 neighbours"),
        ({"units": list("ppppqrst"), "k": 4}, "expected 1 to 3: .* less a unit of up to 4"),
        ({"features": np.where(np.eye(8) > 0, np.nan, 1.0)}, "feature 0 of row 0 is not finite"),
    ],
)  # fmt: skip
def test_rows_that_are_wrong_are_named(changes, message):
    given = {"features": np.eye(8), "biology": list("aabbaabb"), "centre": list("xyxyxyxy"), "k": 2}
    with pytest.raises(InputError, match=message):
        robustness_index(**{**given, **changes})

import itertools

import numpy as np
import pytest

from bioimg_jax.benchmarks import phenotype
from bioimg_jax.benchmarks.phenotype import strength_test, well_strengths
from bioimg_jax.errors import InputError


def screen(n_plates=3, controls=8, treatments=6, d=5, effect=0.0, seed=0):
    """A well of every treatment on every plate; effect moves treatment t0 only."""
    rng = np.random.default_rng(seed)
    per_plate = controls + treatments
    plates = np.repeat([f"p{i}" for i in range(n_plates)], per_plate)
    names = np.tile([None] * controls + [f"t{i}" for i in range(treatments)], n_plates)
    negatives = np.tile(np.arange(per_plate) < controls, n_plates)
    x = rng.normal(size=(len(plates), d)) + 5 * np.repeat(
        rng.normal(size=(n_plates, d)), per_plate, 0
    )
    x[names == "t0", 0] += effect
    return x, plates, names, negatives


def test_strengths_are_distances_to_the_mean_of_other_controls():
    x, plates, _, negatives = screen()
    found = well_strengths(x, plates, negatives)
    assert not found.excluded
    for i in range(len(x)):
        others = negatives & (plates == plates[i]) & (np.arange(len(x)) != i)
        k = others.sum()
        expected = np.linalg.norm(x[i] - x[others].mean(axis=0)) * np.sqrt(k / (k + 1))
        assert found.values[i] == pytest.approx(expected, rel=1e-12)


def test_wells_without_effect_are_as_far_as_controls_in_many_dimensions():
    # Without the factor three controls would be √(1.5 / 1.33) times as far: 6 %, of an sd of 1 %.
    x, plates, _, negatives = screen(n_plates=40, controls=3, treatments=3, d=4_000)
    values = well_strengths(x, plates, negatives).values
    assert values[negatives].mean() == pytest.approx(values[~negatives].mean(), rel=0.005)
    assert np.square(values).mean() == pytest.approx(4_000, rel=0.005)


def test_plates_without_two_controls_are_excluded_by_name():
    x, plates, _, negatives = screen()
    negatives = negatives.copy()
    negatives[plates == "p0"] = False
    negatives[np.flatnonzero(negatives & (plates == "p1"))[1:]] = False
    found = well_strengths(x, plates, negatives)
    assert found.excluded == {
        "p0": "0 negative control wells, expected 2 or more",
        "p1": "1 negative control wells, expected 2 or more",
    }
    assert (np.isnan(found.values) == (plates != "p2")).all()


def test_order_of_rows_changes_no_bit():
    x, plates, names, negatives = screen(effect=1.0)
    order = np.random.default_rng(1).permutation(len(x))
    shuffled = x[order], plates[order], names[order], negatives[order]
    values = well_strengths(x, plates, negatives).values
    np.testing.assert_array_equal(
        well_strengths(shuffled[0], shuffled[1], shuffled[3]).values, values[order]
    )
    one, other = (
        strength_test(x, plates, names, negatives, draws=99),
        strength_test(*shuffled, draws=99),
    )
    assert [t.p for t in one.treatments] == [t.p for t in other.treatments]
    strengths = [[t.strength for t in of.treatments] for of in (one, other)]
    np.testing.assert_allclose(*strengths, rtol=1e-12)


def slow_p(x, plates, mine, negatives):
    """Every exchange of labels within plates, the distance of the means formed anew."""
    used = [p for p in np.unique(plates[mine]) if (negatives & (plates == p)).any()]
    pools = [np.flatnonzero((mine | negatives) & (plates == p)) for p in used]
    sizes = [int((mine & (plates == p)).sum()) for p in used]

    def strength(taken):
        total = 0.0
        for rows, pool in zip(taken, pools, strict=True):
            controls = np.setdiff1d(pool, rows)
            total = total + (x[list(rows)] - x[controls].mean(axis=0)).sum(axis=0)
        return np.linalg.norm(total / sum(sizes))

    own = strength([np.flatnonzero(mine & (plates == p)) for p in used])
    ways = itertools.product(
        *[itertools.combinations(pool, r) for pool, r in zip(pools, sizes, strict=True)]
    )
    drawn = np.array([strength(way) for way in ways])
    return own, np.mean(drawn >= own - 1e-9), len(drawn)


@pytest.mark.parametrize("few", [24, 0])
@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_p_is_the_share_of_all_exchanges_where_they_can_be_listed(few, kind, monkeypatch):
    monkeypatch.setattr(phenotype, "FEW", few)  # both ways to sum
    monkeypatch.setattr(phenotype, "BLOCK", 64)
    x, plates, names, negatives = screen(n_plates=2, controls=4, treatments=3, d=2, effect=1.0)
    if kind == "ties":
        x = np.round(x / 4)
    names[names == "t1"] = "t0"  # two wells a plate, of treatment t0
    found = strength_test(x, plates, names, negatives, draws=1_000)
    assert [t.treatment for t in found.treatments] == ["t0", "t2"]
    for one in found.treatments:
        own, p, ways = slow_p(x, plates, (names == one.treatment) & ~negatives, negatives)
        assert one.strength == pytest.approx(own)
        assert one.p == pytest.approx(p) and one.smallest_p == 1 / ways
        drawn = strength_test(x, plates, names, negatives, draws=ways - 1).treatments
        (again,) = [t for t in drawn if t.treatment == one.treatment]
        assert again.p == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / ways) + 2 / ways)
        assert again.smallest_p == 1 / ways  # (1 + 0) / (1 + draws)


def test_both_ways_to_sum_agree():
    rng = np.random.default_rng(0)
    centred, weight = rng.normal(size=(30, 7)), rng.random(5)
    taken = np.stack([rng.choice(30, 5, replace=False) for _ in range(50)])
    expected = [np.square((weight[:, None] * centred[rows]).sum(axis=0)).sum() for rows in taken]
    np.testing.assert_allclose(phenotype._squares(taken, weight, centred), expected)


def test_treatments_without_effect_have_super_uniform_p_values_and_others_are_found():
    p = []
    for seed in range(20):
        x, plates, names, negatives = screen(
            n_plates=4, controls=6, treatments=25, d=20, effect=6.0, seed=seed
        )
        found = strength_test(x, plates, names, negatives, draws=499, seed=seed).treatments
        assert found[0].treatment == "t0" and found[0].p < 0.01
        p += [t.p for t in found[1:]]
    # 24 treatments share their controls, so screens are the units of the standard error.
    p = np.array(p).reshape(20, -1)
    for a in (0.01, 0.05, 0.2):
        share = (p <= a).mean(axis=1)
        assert share.mean() <= a + 3 * max(share.std(ddof=1), np.sqrt(a / 24)) / np.sqrt(20)
    assert 0.4 < p.mean() < 0.6


def test_controls_that_an_alignment_was_fitted_to_make_everything_active():
    """What the docstring warns of: whitened by their own covariance, controls lie together."""
    x, plates, names, negatives = screen(n_plates=1, controls=24, treatments=40, d=20)
    fitted = x[negatives]
    values, basis = np.linalg.eigh(np.cov(fitted.T))
    white = (x - fitted.mean(axis=0)) @ basis / np.sqrt(values)
    found = strength_test(white, plates, names, negatives).treatments
    assert np.mean([t.p <= 0.05 for t in found]) > 0.4


def test_a_p_depends_on_no_other_treatment():
    x, plates, names, negatives = screen(effect=2.0)
    whole = {t.treatment: t for t in strength_test(x, plates, names, negatives).treatments}
    some = negatives | (names == "t0")
    alone = strength_test(x[some], plates[some], names[some], negatives[some]).treatments
    assert alone[0].p == whole["t0"].p


def test_equal_wells_have_p_one():
    x, plates, names, negatives = screen()
    found = strength_test(np.full_like(x, 0.1), plates, names, negatives, draws=99)
    assert all(t.p == 1.0 and t.strength == 0.0 for t in found.treatments)


def test_wells_on_plates_without_controls_are_counted():
    x, plates, names, negatives = screen()
    negatives = negatives & (plates != "p0")
    names = names.astype(object)
    names[plates == "p0"] = "t0"
    names[np.flatnonzero(plates == "p0")[0]] = "only there"
    found = strength_test(x, plates, names, negatives, draws=99)
    first = found.treatments[0]
    assert (first.treatment, first.n_wells, first.n_plates, first.n_left_out) == ("t0", 2, 2, 13)
    assert found.excluded == {"only there": "no negative control on the 1 plates of its wells"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"negatives": lambda v: np.zeros_like(v)}, "no well is a negative control"),
        ({"negatives": lambda v: v.astype(int)}, "negative control of row 0 is 1"),
        ({"plates": lambda v: v[:-1]}, r"plate: a column of shape \(41,\) for 42 rows"),
        ({"treatments": lambda v: np.where(v == "t5", None, v)}, "row 13 has no treatment"),
        ({"features": lambda v: np.where(v > 5, np.nan, v)}, "feature . of row .* is not finite"),
        ({"draws": lambda v: 0}, "draws of a permutation test: 0, expected 1 or more"),
    ],
)
def test_wrong_input_is_one_line(change, said):
    x, plates, names, negatives = screen()
    given = {"features": x, "plates": plates, "treatments": names, "negatives": negatives}
    for key, new in change.items():
        given[key] = new(given.get(key))
    with pytest.raises(InputError, match=said):
        strength_test(**given)

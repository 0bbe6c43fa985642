import numpy as np
import pytest
from scipy import stats

from bioimg_jax.benchmarks.phenotype import well_strengths
from bioimg_jax.benchmarks.plate_quality import MEASURES, plate_quality
from bioimg_jax.errors import InputError


def plates_of(n_plates=3, wells=12, d=4, seed=0):
    rng = np.random.default_rng(seed)
    n = n_plates * wells
    plates = np.repeat([f"p{i}" for i in range(n_plates)], wells)
    kind = np.tile(np.arange(wells) % 3, n_plates)  # 0 positive, 1 negative, 2 neither
    x = rng.normal(size=(n, d)) + 4 * (kind == 0)[:, None]
    return x, plates, kind == 0, kind == 1


def test_agrees_with_the_definitions():
    x, plates, positives, negatives = plates_of()
    found = plate_quality(x, plates, positives, negatives)
    assert found.plates == ("p0", "p1", "p2") and not found.excluded
    assert found.n_positive.tolist() == found.n_negative.tolist() == [4, 4, 4]
    for i, plate in enumerate(found.plates):
        for j in range(x.shape[1]):
            up, down = (x[rows & (plates == plate), j] for rows in (positives, negatives))
            gap = np.mean(up) - np.mean(down)
            sds = np.std(up, ddof=1), np.std(down, ddof=1)
            assert found.z_prime[i, j] == pytest.approx(1 - 3 * sum(sds) / abs(gap))
            assert found.ssmd[i, j] == pytest.approx(gap / np.hypot(*sds))
            gap = np.median(up) - np.median(down)
            mads = [stats.median_abs_deviation(side, scale="normal") for side in (up, down)]
            assert found.robust_z_prime[i, j] == pytest.approx(1 - 3 * sum(mads) / abs(gap))
            assert found.robust_ssmd[i, j] == pytest.approx(gap / np.hypot(*mads))


def test_one_score_a_well_is_one_number_a_plate():
    x, plates, positives, negatives = plates_of()
    score = well_strengths(x, plates, negatives).values
    found = plate_quality(score, plates, positives, negatives)
    assert found.z_prime.shape == (3,)
    same = plate_quality(score[:, None], plates, positives, negatives)
    for measure in MEASURES:
        np.testing.assert_array_equal(getattr(found, measure), getattr(same, measure)[:, 0])


def test_large_samples_reach_the_values_of_normal_controls():
    rng = np.random.default_rng(0)
    n = 200_000
    positives = np.arange(2 * n) < n
    values = np.where(positives, rng.normal(10, 1, 2 * n), rng.normal(0, 2, 2 * n))
    found = plate_quality(values, ["a"] * (2 * n), positives, ~positives)
    for measure, expected in zip(MEASURES, (0.1, 10 / np.sqrt(5)) * 2, strict=True):
        assert getattr(found, measure)[0] == pytest.approx(expected, abs=0.02)


def test_robust_measures_forget_an_outlier():
    x, plates, positives, negatives = plates_of(n_plates=1, wells=60, d=1)
    clean = plate_quality(x[:, 0], plates, positives, negatives)
    x[np.flatnonzero(positives)[0]] = 1_000
    spoilt = plate_quality(x[:, 0], plates, positives, negatives)
    assert spoilt.z_prime[0] < -5 < -1 < clean.z_prime[0]
    assert spoilt.robust_z_prime[0] == pytest.approx(clean.robust_z_prime[0], abs=0.3)


def test_no_order_of_rows_changes_a_bit():
    x, plates, positives, negatives = plates_of()
    order = np.random.default_rng(1).permutation(len(x))
    one = plate_quality(x, plates, positives, negatives)
    other = plate_quality(x[order], plates[order], positives[order], negatives[order])
    for measure in MEASURES:
        np.testing.assert_array_equal(getattr(one, measure), getattr(other, measure))


def test_what_does_not_exist_is_nan_and_counted():
    # Columns: constant and equal; constant and different; one side varies; the usual.
    positive = [[0.1, 1, 1, 1], [0.1, 1, 1, 2], [0.1, 1, 1, 3]]
    negative = [[0.1, 0, 1, 0], [0.1, 0, 2, 1], [0.1, 0, 0, 2]]
    kind = np.arange(6) < 3
    found = plate_quality(np.array(positive + negative), ["a"] * 6, kind, ~kind)
    np.testing.assert_array_equal(found.z_prime[0], [np.nan, 1, np.nan, 1 - 6])
    np.testing.assert_allclose(found.ssmd[0], [np.nan, np.nan, 0, 1 / np.sqrt(2)])
    np.testing.assert_allclose(found.robust_ssmd[0, :3], [np.nan, np.nan, 0])
    assert found.undefined == dict(zip(MEASURES, (2, 2, 2, 2), strict=True))


def test_plates_without_controls_are_excluded_by_name():
    x, plates, positives, negatives = plates_of()
    positives = positives & (plates != "p0")
    negatives = negatives & (plates != "p0")
    negatives[np.flatnonzero(negatives & (plates == "p2"))[1:]] = False
    found = plate_quality(x, plates, positives, negatives)
    assert found.plates == ("p1",) and found.z_prime.shape == (1, 4)
    assert found.excluded == {
        "p0": "0 positive control wells and 0 negative control wells, expected 2 or more",
        "p2": "1 negative control wells, expected 2 or more",
    }
    nothing = plate_quality(x[:12], plates[:12], np.arange(12) < 1, np.arange(12) == 3)
    assert nothing.plates == () and nothing.z_prime.shape == (0, 4) and "p0" in nothing.excluded


def test_other_wells_may_have_no_score():
    x, plates, positives, negatives = plates_of()
    score = x[:, 0].copy()
    score[~positives & ~negatives] = np.nan
    assert np.isfinite(plate_quality(score, plates, positives, negatives).z_prime).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positives": lambda v: np.zeros_like(v)}, "no well is a positive control"),
        ({"negatives": lambda v: np.zeros_like(v)}, "no well is a negative control"),
        ({"negatives": lambda v: np.ones_like(v)}, "row 0 is a positive and a negative control"),
        ({"positives": lambda v: v.astype(float)}, "positive control of row 0 is 1.0"),
        ({"values": lambda v: np.where(v > 4, np.nan, v)}, "feature . of row .* is not finite"),
        ({"values": lambda v: v[:-1]}, r"plate: a column of shape \(36,\) for 35 rows"),
        ({"values": lambda v: v[:, None]}, r"scores of shape \(36, 1, 4\), expected \[wells\]"),
        ({"plates": lambda v: [None, *v[1:]]}, "row 0 has no plate"),
    ],
)
def test_wrong_input_is_one_line(change, said):
    keys = ("values", "plates", "positives", "negatives")
    given = dict(zip(keys, plates_of(), strict=True))
    for key, new in change.items():
        given[key] = new(given[key])
    with pytest.raises(InputError, match=said):
        plate_quality(**given)

import itertools

import numpy as np
import pytest

from bioimg_jax.benchmarks.replicate_curve import replicate_curve
from bioimg_jax.errors import InputError


def table(counts=(5, 6, 8), controls=4):
    treatments = np.repeat(["a", "b", "c"], counts).astype(object)
    treatments = np.append(treatments, [None] * controls)
    always = np.arange(len(treatments)) >= sum(counts)
    ids = np.array([f"well {i}" for i in range(len(treatments))])
    return treatments, ids, always


def test_every_draw_has_k_wells_of_each_treatment_and_those_that_are_always_there():
    treatments, ids, always = table()
    seen = []

    def statistic(rows):
        assert (np.diff(rows) > 0).all()
        seen.append(rows)
        return len(rows)

    found = replicate_curve(statistic, treatments, ids, always=always, draws=3)
    assert found.sizes == (1, 2, 3, 4, 5) and found.largest == 5 and found.n_treatments == 3
    assert found.mean == (7.0, 10.0, 13.0, 16.0, 19.0) and found.sd == (0.0,) * 5
    assert [len(v) for v in found.values] == [3] * 5 and not found.excluded
    for rows in seen:
        assert np.isin(np.flatnonzero(always), rows).all()
        mine = treatments[rows[~always[rows]]]
        assert len(set(np.unique(mine.astype(str), return_counts=True)[1])) == 1
    # The curve of one draw adds wells to those it has.
    for draw in range(3):
        sets = [set(rows) for rows in seen[5 * draw : 5 * draw + 5]]
        assert all(a < b for a, b in itertools.pairwise(sets))


def test_every_well_is_as_likely_as_any_other():
    treatments, ids, _ = table(controls=0)
    counts = np.zeros(19)

    def statistic(rows):
        counts[rows] += 1
        return 0.0

    draws = 4_000
    replicate_curve(statistic, treatments, ids, sizes=[2], draws=draws)
    expected = np.repeat([2 / 5, 2 / 6, 2 / 8], (5, 6, 8))
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(counts / draws - expected) < 4 * error).all()


def test_the_spread_is_that_of_sampling_without_replacement():
    treatments, ids, _ = table(counts=(12, 12, 12), controls=0)
    values = np.random.default_rng(0).normal(size=36)
    found = replicate_curve(
        lambda rows: values[rows].mean(), treatments, ids, draws=3_000, sizes=[3, 9]
    )
    by_treatment = values.reshape(3, 12)
    for k, mean, sd in zip(found.sizes, found.mean, found.sd, strict=True):
        # Cochran (1977), theorem 2.2: (1 - k / n) s² / k.
        error = np.sqrt(np.mean(by_treatment.var(axis=1, ddof=1)) * (1 - k / 12) / k / 3)
        assert sd == pytest.approx(error, rel=0.06)
        assert mean == pytest.approx(values.mean(), abs=4 * error / np.sqrt(3_000))


def test_one_way_to_draw_is_asked_for_once():
    treatments, ids, _ = table(counts=(3, 3, 3), controls=0)
    calls = []
    found = replicate_curve(
        lambda rows: calls.append(rows) or 1.0, treatments, ids, draws=7, sizes=[2, 3]
    )
    assert [len(v) for v in found.values] == [7, 1] and len(calls) == 8
    assert found.sd == (0.0, None)


def test_treatments_with_too_few_replicates_leave_at_every_size():
    treatments, ids, always = table(counts=(2, 6, 8))
    rows_seen = set()
    found = replicate_curve(
        lambda rows: rows_seen.update(rows) or 0.0,
        treatments, ids, always=always, at_least=3, draws=9,
    )  # fmt: skip
    assert found.excluded == {"a": "2 replicates, expected 3 or more"}
    assert found.largest == 6 and found.n_treatments == 2 and not rows_seen & {0, 1}


def test_order_of_rows_changes_nothing_and_the_seed_does():
    treatments, ids, always = table()
    values = np.random.default_rng(0).normal(size=len(ids))

    def curve(order, seed=0):
        of = values[order]
        return replicate_curve(
            lambda rows: np.sort(of[rows]).sum(),
            treatments[order], ids[order], always=always[order], seed=seed,
        )  # fmt: skip

    plain = np.arange(len(ids))
    one, other = curve(plain), curve(np.random.default_rng(1).permutation(len(ids)))
    np.testing.assert_array_equal(np.array(one.values), np.array(other.values))
    assert curve(plain, seed=1).mean != one.mean


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sizes": [6]}, "6 replicates of every treatment: 'a' has 5, expected 1 to 5"),
        ({"sizes": [0, 2]}, "0 replicates of every treatment"),
        ({"sizes": []}, "0 replicates of every treatment"),
        ({"at_least": 9}, "no treatment has 9 replicates"),
        ({"at_least": 0}, "draws 20 and at_least 0, expected 1 or more"),
        ({"draws": 0}, "draws 0 and at_least 1, expected 1 or more"),
        ({"ids": ["x"] * 23}, "id 'x' is there twice, expected once"),
        ({"ids": [None] * 23}, "row 0 has no id"),
        ({"always": None}, "row 19 has no treatment"),
        ({"always": [1] * 23}, "always there of row 0 is 1"),
        ({"statistic": lambda rows: np.nan}, "the statistic of 1 replicates is nan in draw 0"),
    ],
)
def test_wrong_input_is_one_line(change, said):
    treatments, ids, always = table()
    given = {"statistic": len, "treatments": treatments, "ids": ids, "always": always} | change
    with pytest.raises(InputError, match=said):
        replicate_curve(**given)

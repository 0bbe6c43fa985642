import itertools

import jax
import numpy as np
import pandas as pd
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.probes import average_precision as ap
from bioimg_jax.probes.average_precision import average_precision, chance, expected_precision
from bioimg_jax.probes.pairs import PairRules

ALL_RULES = {
    "all others": PairRules(["compound"], neg_diffby=["compound"]),
    "across plates": PairRules(["compound"], ["plate"], ["plate"], ["compound"]),
    "two columns": PairRules(["compound", "batch"], ["plate"], ["plate"], ["batch"]),
    "same batch": PairRules(["compound"], ["plate"], ["batch"], ["compound", "plate"]),
}
LABELS = PairRules(["target"], [], [], ["target"], multilabel="target")


def screen(n=60, d=5, seed=1):
    rng = np.random.default_rng(seed)
    metadata = pd.DataFrame(
        {
            "compound": [f"c{i}" for i in rng.integers(0, 8, n)],
            "plate": rng.integers(0, 3, n),
            "batch": rng.choice(["x", "y"], n),
            "target": [list(rng.choice(list("pqrst"), k, False)) for k in rng.integers(1, 3, n)],
        }
    )
    return rng.normal(size=(n, d)), metadata


def of_ranking(is_positive):
    """Average precision of a ranking from the best to the last."""
    places = 1 + np.flatnonzero(is_positive)
    return np.mean(np.arange(1, len(places) + 1) / places)


def of_tied(similarity, is_positive, orders=None):
    """Its mean over orders of the items, each sorted stably: all orders of few items."""
    if orders is None:
        orders = itertools.permutations(range(len(similarity)))
    similarity, is_positive = np.round(similarity, 7), np.asarray(is_positive)
    values = []
    for order in orders:
        order = np.array(order)
        order = order[np.argsort(-similarity[order], kind="stable")]
        values.append(of_ranking(is_positive[order]))
    return np.mean(values)


def reference(features, metadata, rules, label=None):
    """{query: average precision} in plain NumPy, without ties."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1.0)

    def agree(i, j, column):
        a, b = metadata[column].iloc[i], metadata[column].iloc[j]
        return bool(set(a) & set(b)) if column == rules.multilabel else a == b

    def pair(i, j, same, different):
        agreed = [agree(i, j, c) for c in same]
        return i != j and all(agreed) and not any(agree(i, j, c) for c in different)

    values = {}
    for i, j in itertools.product(range(len(unit)), repeat=2):
        values.setdefault(i, ([], []))
        both = label is None or all(label in metadata["target"].iloc[row] for row in (i, j))
        if both and pair(i, j, rules.pos_sameby, rules.pos_diffby):
            values[i][0].append(unit[i] @ unit[j])
        if pair(i, j, rules.neg_sameby, rules.neg_diffby):
            values[i][1].append(unit[i] @ unit[j])
    return {
        i: of_tied(
            np.array(ours + theirs),
            [True] * len(ours) + [False] * len(theirs),
            [range(len(ours + theirs))],
        )
        for i, (ours, theirs) in values.items()
        if ours and theirs
    }


@pytest.fixture(params=["few positives", "many positives"])
def both_ways(request, monkeypatch):
    """Counted and sorted; a few rows are several blocks."""
    monkeypatch.setattr(ap, "QUERY_BLOCK", 16)
    monkeypatch.setattr(ap, "GALLERY_BLOCK", 32)
    monkeypatch.setattr(ap, "SORTED_NUMBERS", 500)
    if request.param == "many positives":
        monkeypatch.setattr(ap, "FEW", 0)


@pytest.mark.parametrize("rules", ALL_RULES.values(), ids=ALL_RULES)
def test_agrees_with_plain_numpy(rules, both_ways):
    features, metadata = screen()
    with jax.numpy_dtype_promotion("strict"):
        found = average_precision(features, metadata, rules)
    expected = reference(features, metadata, rules)
    np.testing.assert_array_equal(found.queries, list(expected))
    np.testing.assert_allclose(found.values, list(expected.values()), atol=1e-12)
    assert found.labels is None and sum(found.excluded.values()) == 60 - len(expected)


def test_labels_of_several_kinds_agree_with_plain_numpy(both_ways):
    features, metadata = screen()
    found = average_precision(features, metadata, LABELS)
    for label in "pqrst":
        expected = reference(features, metadata, LABELS, label)
        own = found.labels == label
        np.testing.assert_array_equal(found.queries[own], list(expected))
        np.testing.assert_allclose(found.values[own], list(expected.values()), atol=1e-12)
    any_label = average_precision(features, metadata, LABELS, per_label=False)
    expected = reference(features, metadata, LABELS)
    np.testing.assert_array_equal(any_label.queries, list(expected))
    np.testing.assert_allclose(any_label.values, list(expected.values()), atol=1e-12)
    assert any_label.labels is None


@pytest.mark.parametrize("seed", range(4))
def test_ties_are_the_mean_over_all_orders_of_the_rows(seed, both_ways):
    rng = np.random.default_rng(seed)
    features = rng.integers(-1, 2, (8, 2)).astype(np.float64)  # rows of zeros among them
    metadata = pd.DataFrame({"compound": ["a"] * 4 + ["b"] * 4})
    found = average_precision(features, metadata, ALL_RULES["all others"])
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1.0)
    for i, value in zip(found.queries, found.values, strict=True):
        others = np.delete(np.arange(8), i)
        positive = (others < 4) == (i < 4)
        assert value == pytest.approx(of_tied(unit[others] @ unit[i], positive), abs=1e-9)


def test_a_tie_by_hand():
    # Similarities to (1, 0): positives 1 and 0.8, negatives 0.8 and 0: 1, then 2/2 or 2/3.
    features = np.array([[3.0, 0.0], [1.0, 0.0], [4.0, 3.0], [8.0, 6.0], [0.0, 1.0]])
    metadata = pd.DataFrame({"compound": [0, 0, 0, 1, 1]})
    found = average_precision(features, metadata, ALL_RULES["all others"])
    assert found.values[0] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)


def test_chance_is_the_mean_over_all_rankings():
    for total in range(2, 9):
        for positives in range(1, total + 1):
            rankings = [
                of_ranking(np.isin(np.arange(total), places))
                for places in itertools.combinations(range(total), positives)
            ]
            expected = chance(np.array([positives]), np.array([total]))
            np.testing.assert_allclose(expected, np.mean(rankings), rtol=1e-12)
    harmonic = np.sum(1 / np.arange(1, 1008))
    published = 6 / 1006 + harmonic * (1007 - 7) / (1007 * 1006)
    assert chance(np.array(7), np.array(1007)) == pytest.approx(published, rel=1e-12)


def test_expected_precision_is_the_mean_over_places():
    above, positives_above, tied, positives_tied = 5, 2, 7, 3
    places = np.arange(1, 8)
    each = (positives_above + 1 + (places - 1) * 2 / 6) / (above + places)
    value = expected_precision(*np.array([above, positives_above, tied, positives_tied]))
    assert value == pytest.approx(each.mean(), rel=1e-12)


def test_equal_features_are_at_chance_and_perfect_ones_at_one():
    metadata = pd.DataFrame({"compound": np.repeat(np.arange(5), 4)})
    rules = ALL_RULES["all others"]
    for features in (np.zeros((20, 3)), np.ones((20, 3))):
        found = average_precision(features, metadata, rules)
        np.testing.assert_allclose(found.normalised, 0.0, atol=1e-12)
    found = average_precision(np.eye(5)[metadata["compound"]], metadata, rules)
    np.testing.assert_array_equal(found.values, 1.0)
    np.testing.assert_array_equal(found.normalised, 1.0)


@pytest.mark.parametrize("kind", ["plain", "whole numbers", "repeated"])
@pytest.mark.parametrize("rules", [ALL_RULES["across plates"], LABELS], ids=["plain", "labels"])
def test_order_and_index_of_rows_change_no_bit(kind, rules, both_ways):
    features, metadata = screen(200, 4)
    rng = np.random.default_rng(1)
    if kind == "whole numbers":
        features = np.round(features[:, :2])
    elif kind == "repeated":
        features = features[rng.integers(0, 20, 200)]
    order = rng.permutation(200)
    found = average_precision(features, metadata, rules)
    shuffled = average_precision(
        features[order], metadata.iloc[order].set_axis(rng.integers(0, 3, 200)), rules
    )
    back = order[shuffled.queries]
    names = (
        np.zeros(len(back))
        if shuffled.labels is None
        else pd.factorize(shuffled.labels, sort=True)[0]
    )
    sort = np.lexsort((names, back))
    np.testing.assert_array_equal(found.queries, back[sort])
    np.testing.assert_array_equal(found.values, shuffled.values[sort])
    np.testing.assert_array_equal(found.negatives, shuffled.negatives[sort])


def test_length_of_a_row_does_not_matter_in_any_precision():
    features, metadata = screen()
    features = features.astype(np.float16)
    rules = ALL_RULES["all others"]
    found = average_precision(features, metadata, rules)
    far = features.astype(np.float64) * 3e200
    np.testing.assert_array_equal(average_precision(far, metadata, rules).values, found.values)


def test_rows_without_a_value_are_counted_by_reason():
    metadata = pd.DataFrame(
        {
            "compound": ["a", "a", "b", "b", "c", None, "d", "d"],
            "plate": [1, 1, 1, 1, 1, 1, 2, 2],
        }
    )
    rules = PairRules(["compound"], [], ["plate"], ["compound"])
    features = np.random.default_rng(0).normal(size=(8, 3))
    found = average_precision(features, metadata, rules)
    assert found.queries.tolist() == [0, 1, 2, 3]
    assert found.excluded == {"missing value": 1, "no positive": 1, "no negative": 2}
    assert found.positives.tolist() == [1] * 4 and found.negatives.tolist() == [3] * 4
    asked = average_precision(features, metadata, rules, queries=np.arange(8) < 3)
    assert asked.queries.tolist() == [0, 1, 2] and sum(asked.excluded.values()) == 0
    np.testing.assert_array_equal(asked.values, found.values[:3])


def test_memory_does_not_grow_with_the_rows():
    def scratch(tiles):
        def block(n):
            side = ap.Side(
                jax.ShapeDtypeStruct((n,), np.int32), jax.ShapeDtypeStruct((n, 2), np.int32)
            )
            f32 = np.float32
            return ap._Block(
                jax.ShapeDtypeStruct((n, 8), f32), side, jax.ShapeDtypeStruct((n, 0), f32)
            )

        positives = jax.ShapeDtypeStruct((256, 8, 8), np.float32)
        real = jax.ShapeDtypeStruct((256, 8), bool)
        limits = np.int32(0), np.int32(tiles)
        lowered = ap._count.lower(block(512 * tiles), block(256), positives, real, *limits, 512)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert scratch(64) <= scratch(4) + 4096 < 16 * 256 * 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((3, 2))}, r"features \(3, 2\) for 4 rows"),
        ({"features": np.zeros(4)}, r"features \(4,\) for 4 rows"),
        ({"features": np.full((4, 2), np.nan)}, "feature 0 of row 0 is not finite"),
        ({"queries": np.array([0, 1])}, "queries must be true or false for each of the 4 rows"),
        ({"rules": PairRules(["dose"], neg_diffby=["compound"])}, "'dose' is not in the metadata"),
        (
            {"rules": PairRules(["compound"], neg_diffby=["plate"])},
            "rows 0 and 1 are a positive and a negative pair",
        ),
        ({"queries": np.zeros(4, bool)}, "no query has a positive and a negative pair"),
        (
            {"rules": PairRules(["well"], neg_diffby=["well"])},
            r"no query has .* by pos_sameby \['well'\].*: 0 with missing value, 4 with no positive",
        ),
        (
            {"rules": PairRules(["all"], neg_diffby=["all"])},
            "0 with no positive, 4 with no negative",
        ),
    ],
)
def test_bad_input_is_refused(change, message, both_ways):
    metadata = pd.DataFrame(
        {"compound": [0, 0, 1, 1], "plate": [0, 1, 0, 1], "well": range(4), "all": 0}
    )
    given = {"features": np.eye(4), "rules": ALL_RULES["all others"], **change}
    with pytest.raises(InputError, match=message):
        average_precision(given.pop("features"), metadata, given.pop("rules"), **given)

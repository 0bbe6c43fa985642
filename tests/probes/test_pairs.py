import itertools

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.probes.pairs import PairRules, joint, read_pairs


def table(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "compound": rng.choice(["a", "b", "c", None], n),
            "plate": rng.choice([1.0, 2.0, np.nan], n),
            "batch": pd.Categorical(rng.choice(["x", "y"], n)),
        }
    )


@pytest.mark.parametrize(
    ("same", "different"),
    [
        (["compound"], ["plate"]),
        (["compound", "plate"], []),
        ([], ["batch", "plate", "compound"]),
        (["batch"], ["compound"]),
    ],
)
def test_pairs_agree_and_differ_as_the_rules_say_and_missing_values_do_neither(same, different):
    metadata = table()
    rules = PairRules(same, different, neg_diffby=["batch"])
    side = read_pairs(metadata, rules).ordered(np.arange(len(metadata))).positive
    expected = np.zeros((len(metadata), len(metadata)), bool)
    for i, j in itertools.permutations(range(len(metadata)), 2):
        a, b = metadata.iloc[i], metadata.iloc[j]
        known = not any(pd.isna(row[c]) for row in (a, b) for c in (*same, *different))
        agree = known and all(a[c] == b[c] for c in same)
        expected[i, j] = agree and all(a[c] != b[c] for c in different)
    np.testing.assert_array_equal(side.across(side), expected)
    i, j = np.indices(expected.shape).reshape(2, -1)
    np.testing.assert_array_equal(side.of(i).together(side.of(j)), expected.ravel())
    weights = np.random.default_rng(1).random(len(metadata))
    np.testing.assert_allclose(side.partners(weights), expected @ weights, atol=1e-12)


def test_codes_follow_the_order_of_values_whatever_the_order_of_rows():
    metadata = table()
    order = np.random.default_rng(2).permutation(len(metadata))
    rules = PairRules(["compound"], ["plate"], ["batch"], ["compound"])
    pairs, shuffled = read_pairs(metadata, rules), read_pairs(metadata.iloc[order], rules)
    np.testing.assert_array_equal(pairs.positive.same[order], shuffled.positive.same)
    np.testing.assert_array_equal(pairs.negative.different[order], shuffled.negative.different)


def test_joint_codes_tell_every_combination_apart():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-1, 4, 100), rng.integers(-1, 3, 100)
    code = joint([a, b])
    for i, j in itertools.combinations(range(100), 2):
        missing = min(a[i], b[i]) < 0 or min(a[j], b[j]) < 0
        assert missing or (code[i] == code[j]) == (a[i] == a[j] and b[i] == b[j])
    assert ((code < 0) == ((a < 0) | (b < 0))).all()


def test_labels_are_sets_and_an_empty_cell_is_a_missing_value():
    cells = [["x", "y", "x"], ("y",), [], None, {"z"}, np.array(["x"]), [None, "z"]]
    rules = PairRules(["target"], neg_diffby=["target"], multilabel="target")
    pairs = read_pairs(pd.DataFrame({"target": cells}), rules)
    assert pairs.label_names.tolist() == ["x", "y", "z"]
    expected = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(pairs.labels, np.array(expected, bool))
    assert (pairs.positive.same >= 0).tolist() == [True, True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"pos_sameby": "compound"}, "pos_sameby must be a list of columns"),
        ({"pos_sameby": ["a", "b", "a"], "neg_diffby": ["a"]}, "pos_sameby names column 'a' twice"),
        ({"pos_sameby": ["a"], "pos_diffby": ["a"]}, "'a' is in pos_sameby and pos_diffby"),
        (
            {"pos_sameby": ["a"], "neg_sameby": ["b"], "neg_diffby": ["a", "b"]},
            "'b' is in neg_sameby and neg_diffby",
        ),
        ({"pos_sameby": [], "neg_diffby": ["a"]}, "pos_sameby and pos_diffby name no column"),
        ({"pos_sameby": ["a"]}, "neg_sameby and neg_diffby name no column"),
        (
            {"pos_sameby": ["a"], "neg_diffby": ["b"], "multilabel": "a"},
            "'a' must be in pos_sameby and in neg_diffby",
        ),
    ],
)
def test_rules_that_contradict_themselves_are_refused(rules, message):
    with pytest.raises(InputError, match=message):
        PairRules(**rules)


@pytest.mark.parametrize(
    ("metadata", "rules", "message"),
    [
        ({"a": [1, 2]}, PairRules(["b"], neg_diffby=["a"]), "'b' is not in the metadata.*: a"),
        (
            pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]),
            PairRules(["a"], neg_diffby=["a"]),
            "'a' is twice in the metadata",
        ),
        (
            {"a": [1, [2, 3]]},
            PairRules(["a"], neg_diffby=["a"]),
            "'a', row 1 holds several values",
        ),
        (
            {"a": [["x"], "x|y"]},
            PairRules(["a"], neg_diffby=["a"], multilabel="a"),
            r"'a', row 1: a list of labels was expected, not 'x\|y'",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_rules_is_refused(metadata, rules, message):
    with pytest.raises(InputError, match=message):
        read_pairs(pd.DataFrame(metadata), rules)

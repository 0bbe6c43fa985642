"""Conditional scores, by simulations whose answer is known."""

import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.neighbors import KNeighborsClassifier

from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.conditional import (
    DESCRIPTIVE,
    added_value,
    answers,
    conditional_permutation,
    find_overlap,
    residualised,
)


def of(values, name="count"):
    return pd.DataFrame({name: values})


def folds_of(group, n_folds=4):
    """Fold i tests groups ≡ i, validates on the next, trains on the rest."""
    part = np.asarray(group) % n_folds
    return [
        Fold(
            f"fold={i}",
            np.flatnonzero((part != i) & (part != (i + 1) % n_folds)),
            np.flatnonzero(part == (i + 1) % n_folds),
            np.flatnonzero(part == i),
            ("plate",),
        )
        for i in range(n_folds)
    ]


def screen(n=1_600, plates=16, seed=0):
    """Counts, a signal beyond them, labels that follow both, the count in waves, and plates."""
    rng = np.random.default_rng(seed)
    count, beyond = rng.normal(size=(2, n))
    odds = np.exp(1.5 * np.cos(2 * count) + 1.5 * beyond)
    return (
        count,
        beyond,
        np.where(rng.random(n) < odds / (1 + odds), "hit", "no"),
        np.arange(n) % plates,
    )


def guess_by(count, beyond=0.0):
    """The best that the count alone can say in `screen`, or that both can."""
    return np.where(np.cos(2 * count) + beyond > 0, "hit", "no")


# Overlap


def test_a_plate_of_one_number_is_one_bin():
    labels, plate = np.arange(40) % 2, np.repeat(["one", "two"], 20)
    count = np.where(plate == "one", 7.0, np.arange(40) + 0.5)
    overlap = find_overlap(labels, of(count), np.arange(40), within=of(plate, "plate"))
    assert len(overlap.rows) == 40 and len(set(overlap.strata[:20])) == 1
    assert len(set(overlap.strata)) == overlap.n_strata > 3


def test_labels_of_one_stratum_leave_and_then_strata_of_one_label():
    # "c" lives in stratum z only; without it z holds "b" alone, and leaves too.
    labels = np.array(list("aabbbcab"))
    strata = np.array(list("xyxyzzxx"))
    overlap = find_overlap(labels, of(strata), np.arange(8))
    assert overlap.rows.tolist() == [0, 1, 2, 3, 6, 7] and overlap.single == {"c": 1}
    assert overlap.names == ("a", "b") and overlap.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert (overlap.n, overlap.n_strata, overlap.n_missing) == (8, 2, 0)
    assert overlap.permutations == math.comb(4, 2) * math.comb(2, 1)


def test_permutations_are_counted_as_enumeration_counts_them():
    labels, strata = np.array([0, 1, 1, 2, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    overlap = find_overlap(labels, of(strata), np.arange(8))
    one = set(itertools.permutations(labels[:4].tolist()))
    two = set(itertools.permutations(labels[4:].tolist()))
    assert overlap.permutations == len(one) * len(two) == 12 * 12
    rng = np.random.default_rng(0)
    many = find_overlap(rng.integers(0, 2, 500), of(np.arange(500) % 2), np.arange(500))
    assert many.permutations == 10**9


def test_labels_that_meet_in_one_stratum_overlap_there():
    strata = np.array(list("xxyyzzxyyz"))
    overlap = find_overlap(np.array(list("aaabbbaabb")), of(strata), np.arange(10))
    assert overlap.rows.tolist() == [2, 3, 7, 8] and overlap.n_strata == 1
    assert overlap.permutations == 6 and overlap.single == {}


def test_a_number_is_cut_at_quantiles_and_whole_numbers_of_few_values_are_names():
    count = np.random.default_rng(0).normal(size=400)
    labels = np.arange(400) % 3
    np.testing.assert_array_equal(
        find_overlap(labels, of(count), np.arange(400), bins=20).strata,
        pd.qcut(count, 20, labels=False),
    )
    few = find_overlap(labels[:300], of(count[:300]), np.arange(300))
    np.testing.assert_array_equal(few.strata, pd.qcut(count[:300], 20, labels=False))
    assert find_overlap(labels, of(count), np.arange(400), bins=5).n_strata == 5
    assert (
        find_overlap(np.arange(1_600) % 3, of(np.arange(1_600)), np.arange(1_600)).n_strata == 100
    )
    assert find_overlap(labels, of(np.arange(400) % 25), np.arange(400)).n_strata == 25
    assert find_overlap(labels, of(np.arange(400)), np.arange(400)).n_strata == 25
    joint = pd.DataFrame({"count": count, "plate": np.arange(400) % 2})
    joint = find_overlap(labels, joint, np.arange(400), bins=20)
    assert joint.n_strata == 40 and joint.confound == "count and plate"


def test_a_block_has_the_mean_of_its_numbers_and_counts_once():
    well = np.repeat(np.arange(60), 5)
    rng = np.random.default_rng(0)
    cells, label = rng.normal(size=300) + well, np.repeat(rng.integers(0, 2, 60), 5)
    overlap = find_overlap(label, of(cells), well, bins=4)
    mean = cells.reshape(60, 5).mean(axis=1)
    np.testing.assert_array_equal(overlap.strata, np.repeat(pd.qcut(mean, 4, labels=False), 5))
    by_well = find_overlap(label[::5], of(mean), np.arange(60), bins=4)
    assert overlap.permutations == by_well.permutations


def test_rows_without_a_label_or_a_confound_are_counted():
    labels = np.array(["a", "b", None, "", "a", "b", "a", "b"], object)
    week = np.array(["1", "1", "1", "1", "2", "2", None, ""], object)
    overlap = find_overlap(labels, of(week), np.arange(8))
    assert overlap.n_missing == 4 and overlap.rows.tolist() == [0, 1, 4, 5]


def test_every_compound_in_one_week_is_refused():
    compound = np.repeat([f"compound {i}" for i in range(12)], 8)
    week = np.repeat([f"week {i // 3}" for i in range(12)], 8)
    with pytest.raises(
        InputError,
        match=r"beyond week: labels do not overlap .* 4 strata, and 0 of 96 rows are left",
    ) as error:
        find_overlap(compound, of(week, "week"), np.arange(96))
    assert "do not live in a single stratum, as 'compound 0' does" in str(error.value)
    # Three of them given again in another week: those, and no more, can be judged.
    week[[0, 8, 9, 16]] = "week 3"
    overlap = find_overlap(compound, of(week, "week"), np.arange(96))
    assert overlap.names == ("compound 0", "compound 1", "compound 2") and len(overlap.rows) == 24
    assert len(overlap.single) == 9 and overlap.single["compound 11"] == 8


def test_labels_that_are_numbers_need_strata_of_two_values_only():
    y, week = np.array([0.1, 0.2, 0.3, 0.4, 0.4]), np.array(list("aabcc"))
    overlap = find_overlap(y, of(week), np.arange(5))
    assert overlap.rows.tolist() == [0, 1] and overlap.names == () and overlap.single == {}
    with pytest.raises(InputError, match="0 of 5 rows are left"):
        find_overlap(y, of(list("abcdd")), np.arange(5))


# Conditional permutation


def test_the_null_is_that_of_all_permutations():
    labels, strata = np.array([0, 1, 1, 2, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    predictions, units = np.array([0, 1, 2, 2, 0, 0, 2, 1]), np.array(list("uuvvuuvv"))
    overlap = find_overlap(labels, of(strata), np.arange(8))
    every = [
        (np.array(p + q) == predictions)
        for p in itertools.permutations(labels[:4].tolist())
        for q in itertools.permutations(labels[4:].tolist())
    ]
    score = answers(overlap, predictions.astype(str), units, metric="accuracy")
    found = conditional_permutation(overlap, score, n_permutations=4_000)
    means = np.mean(every, axis=1)
    observed = np.mean(labels == predictions)
    assert found.observed == pytest.approx(observed)
    assert found.null == pytest.approx(means.mean(), abs=4 * means.std() / 4_000**0.5)
    assert found.null_sd == pytest.approx(means.std(), rel=0.05)
    assert found.p == pytest.approx(np.mean(means >= observed - 1e-12), abs=0.02)
    per_unit = np.mean(every, axis=0)
    expected = {
        u: (labels == predictions)[units == u].mean() - per_unit[units == u].mean() for u in "uv"
    }
    assert found.per_unit == pytest.approx(expected, abs=0.03)
    assert found.value == pytest.approx(np.mean(list(found.per_unit.values())))
    assert found.says == "beyond count" and found.interval is None


def test_every_draw_is_counted_as_the_given_labels_are():
    # Every unit holds both classes, and few rows of each: most draws leave some unit one class.
    rng = np.random.default_rng(0)
    labels, units = np.tile([0, 0, 1, 1], 4), np.repeat(np.arange(4), 4)
    guess = np.where(rng.random(16) < 0.7, labels, 1 - labels)
    score = answers(find_overlap(labels, of(list("xy") * 8), np.arange(16)), guess, units)
    one_class = 0
    for _ in range(200):
        drawn = rng.permutation(labels)
        inside = [
            np.mean([np.mean(guess[held][drawn[held] == k] == k) for k in set(drawn[held])])
            for held in (units == u for u in range(4))
        ]
        one_class += any(len(set(drawn[units == u])) == 1 for u in range(4))
        assert list(score(drawn).values()) == pytest.approx(inside)
    assert one_class > 40
    # A unit without a class: pseudo-values of all rows, also where a draw gives each unit both.
    labels = np.array([0, 0, 0, 0, *[0, 0, 1, 1] * 3])
    score = answers(find_overlap(labels, of(list("xy") * 8), np.arange(16)), guess, units)
    drawn = np.roll(labels, 1)
    drawn[:4], drawn[4:8] = [0, 1, 0, 0], [0, 0, 1, 0]
    assert all(len(set(drawn[units == u])) == 2 for u in range(4))
    kept = [units != u for u in range(4)]
    pseudo = [
        4 * balanced_accuracy_score(drawn, guess)
        - 3 * balanced_accuracy_score(drawn[mine], guess[mine])
        for mine in kept
    ]
    assert list(score(drawn).values()) == pytest.approx(pseudo)


def test_p_is_never_zero_and_a_perfect_score_has_the_smallest():
    labels = np.arange(200) % 2
    overlap = find_overlap(labels, of(np.arange(200) // 50), np.arange(200))
    score = answers(overlap, labels.astype(str), np.arange(200) % 8)
    found = conditional_permutation(overlap, score, n_permutations=99)
    assert found.p == 0.01 and found.observed == 1.0 and found.interval is not None
    worse = conditional_permutation(overlap, score, n_permutations=99, higher_is_better=False)
    assert worse.p == 1.0


def test_predictions_from_the_confound_alone_say_nothing_beyond_it():
    count, _, label, plate = screen()
    assert balanced_accuracy_score(label, guess_by(count)) > 0.65
    overlap = find_overlap(label, of(count), np.arange(len(label)))
    found = conditional_permutation(overlap, answers(overlap, guess_by(count), plate))
    assert found.interval[0] < 0 < found.interval[1] and found.p > 0.05
    assert abs(found.value) < 0.006 and found.null > 0.64
    assert found.n == 1_600 and found.n_retained > 1_500 and found.n_missing == 0


def test_predictions_with_signal_beyond_the_confound_are_found():
    count, beyond, label, plate = screen()
    overlap = find_overlap(label, of(count), np.arange(len(label)))
    for predictions in (guess_by(count, beyond), np.where(beyond > 0, "hit", "no")):
        score = answers(overlap, predictions, plate)
        found = conditional_permutation(overlap, score, n_permutations=199)
        assert found.p == 0.005 and found.interval[0] > 0.1


def test_what_a_bin_leaves_of_a_sharp_confound_shrinks_with_more_bins():
    # A threshold inside a bin: the confound's own predictions show what to subtract in thought.
    rng = np.random.default_rng(0)
    count = rng.normal(size=4_000)
    guess = np.where(count > 0.7, "hit", "no")
    label = np.where(rng.random(4_000) < 0.1, np.where(guess == "hit", "no", "hit"), guess)
    left = []
    for bins in (10, 40, 160):
        overlap = find_overlap(label, of(count), np.arange(4_000), bins=bins)
        score = answers(overlap, guess, np.zeros(4_000), metric="accuracy")
        left.append(conditional_permutation(overlap, score, n_permutations=49).value)
    assert 0.05 > left[0] > 2 * left[1] and left[1] > 2 * abs(left[2])


def test_p_is_uniform_where_nothing_is_beyond_and_rows_of_a_well_go_together():
    # A treatment is given to a well, whose ten cells look alike for reasons of their own.
    by_well, by_cell = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        count = rng.normal(size=24)
        label = (rng.random(24) < stats.norm.cdf(0.5 * count)).astype(int)
        look = np.repeat(rng.integers(0, 2, 24), 10)
        well = np.repeat(np.arange(24), 10)
        cells = np.repeat(label, 10), of(np.repeat(count, 10))
        for names, ps in ((well, by_well), (np.arange(240), by_cell)):
            overlap = find_overlap(*cells, names, bins=3)
            score = answers(overlap, look.astype(str), np.zeros(240), metric="accuracy")
            ps.append(conditional_permutation(overlap, score, n_permutations=39, seed=seed).p)
    for level in (0.05, 0.2):
        error = 3 * math.sqrt(level * (1 - level) / 100)
        assert np.mean(np.array(by_well) <= level) <= level + error
    assert np.mean(np.array(by_cell) <= 0.05) > 0.25  # what blocks are for


def test_any_score_can_be_conditional():
    # Nearest neighbours of profiles: the labels of gallery and queries are permuted together.
    rng = np.random.default_rng(0)
    count, label = rng.normal(size=120), np.arange(120) % 3
    profiles = np.column_stack([3 * count, rng.normal(size=(120, 2)) + 1.5 * np.eye(3)[label, :2]])
    overlap = find_overlap(label, of(count), np.arange(120), bins=6)
    distance = np.linalg.norm(profiles[:, None] - profiles[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    seen = []

    def score(labels):
        seen.append(labels)
        return {str(k): np.mean((labels[nearest] == labels)[label == k]) for k in range(3)}

    found = conditional_permutation(overlap, score, n_permutations=99)
    assert found.p < 0.05 and found.value > 0
    for labels in seen:
        for stratum in range(6):
            inside = overlap.strata == stratum
            assert sorted(labels[inside]) == sorted(label[inside])


def test_numbers_are_scored_by_r2_inside_strata():
    rng = np.random.default_rng(0)
    count, beyond = rng.normal(size=(2, 600))
    y = 0.5 * count + beyond + 0.1 * rng.normal(size=600)
    overlap = find_overlap(y, of(count), np.arange(600))
    both = answers(overlap, 0.5 * count + beyond, np.arange(600) % 10, metric="r2")
    found = conditional_permutation(overlap, both, n_permutations=99)
    assert found.observed == pytest.approx(r2_score(y, 0.5 * count + beyond), abs=0.002)
    assert found.p == 0.01 and found.interval[0] > 0
    alone = answers(overlap, 0.5 * count, np.arange(600) % 10, metric="r2")
    assert abs(conditional_permutation(overlap, alone, n_permutations=99).value) < 0.02


def test_the_order_of_rows_does_not_matter():
    count, beyond, label, plate = screen(300)
    guess = np.where(beyond > 0, "hit", "no")
    names = np.array([f"well {i}" for i in range(300)])
    order = np.random.default_rng(1).permutation(300)

    def run(rows):
        overlap = find_overlap(label[rows], of(count[rows]), names[rows])
        score = answers(overlap, guess[rows], plate[rows])
        return conditional_permutation(overlap, score, n_permutations=49)

    one, other = run(np.arange(300)), run(order)
    assert (one.p, one.n_retained) == (other.p, other.n_retained)
    assert one.per_unit == pytest.approx(other.per_unit, abs=1e-12)


# Added value


def test_an_encoder_that_is_only_the_confound_adds_nothing():
    count, _, label, plate = screen()
    curves = np.column_stack([count, np.abs(count), np.sin(3 * count), count**2, np.tanh(count)])
    noise = np.random.default_rng(1).normal(size=(len(count), 20))
    encoder = np.hstack([curves, noise])
    overlap = find_overlap(label, of(count), np.arange(len(label)))
    found = added_value(overlap, count[:, None], encoder, folds_of(plate), plate)
    best = balanced_accuracy_score(label, guess_by(count))
    assert found.floor > best - 0.01  # the floor alone bends as far as it has to
    assert abs(found.value) < 0.02
    assert found.interval[0] <= 0 <= found.interval[1] and (found.p is None or found.p > 0.025)
    assert found.value == pytest.approx(found.joint - found.floor)
    assert found.n_retained == 1_600 and found.says == "beyond count"


def test_an_encoder_with_signal_beyond_the_confound_adds_it():
    count, beyond, label, plate = screen()
    rng = np.random.default_rng(1)
    encoder = np.column_stack([beyond, rng.normal(size=(len(count), 30))])
    overlap = find_overlap(label, of(count), np.arange(len(label)))
    found = added_value(overlap, count[:, None], encoder, folds_of(plate), plate)
    assert found.interval[0] > 0 and found.p < 0.025 and len(found.per_unit) == 16
    assert all(fold["weight"] > 0 for fold in found.folds)
    # Near to what the truth adds.
    best, alone = guess_by(count, beyond), guess_by(count)
    gain = balanced_accuracy_score(label, best) - balanced_accuracy_score(label, alone)
    assert found.value == pytest.approx(gain, abs=0.04)


def test_the_floors_are_used_and_numbers_can_be_predicted():
    rng = np.random.default_rng(0)
    count, beyond = rng.normal(size=(2, 800))
    y = np.abs(count) + 0.5 * beyond + 0.2 * rng.normal(size=800)
    plate = np.arange(800) % 8
    overlap = find_overlap(y, of(count), np.arange(800))
    found = added_value(
        overlap, count[:, None], beyond[:, None], folds_of(plate), plate, metric="r2"
    )
    known = np.var(np.abs(count)) / np.var(y)
    assert found.floor == pytest.approx(known, abs=0.06)
    assert found.joint == pytest.approx(1 - 0.04 / np.var(y), abs=0.06)
    assert found.p < 0.025


# Residuals


def test_residuals_are_those_of_a_line_fitted_on_training_rows():
    rng = np.random.default_rng(0)
    confound = rng.normal(size=(90, 2)) + 5
    features = (confound @ rng.normal(size=(2, 7)) + rng.normal(size=(90, 7))).astype(np.float32)
    train = np.arange(60)
    found = residualised(features, np.column_stack([confound, np.ones(90)]), train)
    fit = LinearRegression().fit(confound[train], features[train].astype(np.float64))
    np.testing.assert_allclose(found.features, features - fit.predict(confound), atol=1e-9)
    r2 = r2_score(features[train], fit.predict(confound[train]), multioutput="variance_weighted")
    assert found.removed == pytest.approx(r2) and found.note == DESCRIPTIVE


def test_neighbours_find_a_count_after_linear_residualisation_and_conditional_scores_do_not():
    """The warning of the residualised score: features that hold nothing but the count."""
    rng = np.random.default_rng(0)
    count = rng.normal(size=1_200)
    features = np.column_stack([count, count**2, np.abs(count), np.cos(2 * count)])
    features += 0.05 * rng.normal(size=features.shape)
    label = np.where(rng.random(1_200) < np.where(np.abs(count) > 0.7, 0.9, 0.1), "hit", "no")
    plate, train = np.arange(1_200) % 12, np.arange(600)
    left = residualised(features, count[:, None], train)
    assert np.abs(np.corrcoef(left.features[train].T, count[train])[-1, :-1]).max() < 1e-9
    guess = KNeighborsClassifier(20).fit(left.features[train], label[train]).predict(left.features)
    test = np.arange(600, 1_200)
    assert balanced_accuracy_score(label[test], guess[test]) > 0.76
    overlap = find_overlap(label[test], of(count[test]), test)
    found = conditional_permutation(overlap, answers(overlap, guess[test], plate[test]))
    assert found.interval[0] < 0 < found.interval[1] and abs(found.value) < 0.03


def test_tokens_are_never_copied_as_float64():
    """A layer of tokens is what fills the memory; four copies of it in float32 are there at most,
    besides blocks of 32 MiB."""
    rng = np.random.default_rng(0)
    n, width = 240, 60_000
    tokens = rng.standard_normal((n, width), np.float32)
    count, label, group = rng.normal(size=(n, 1)), np.arange(n) % 2, np.arange(n) // 2 % 12
    tokens[:, :30_000] += (2 * label + count[:, 0])[:, None].astype(np.float32)
    overlap = find_overlap(label, of(count[:, 0]), np.arange(n))
    folds = folds_of(group, 3)[:1]

    def peak(run):
        tracemalloc.start()
        try:
            return run(), tracemalloc.get_traced_memory()[1] / tokens.nbytes
        finally:
            tracemalloc.stop()

    left, copies = peak(lambda: residualised(tokens, count, folds[0].train))
    assert copies < 3.5 and left.features.dtype == np.float32
    fit = LinearRegression().fit(count[folds[0].train], tokens[folds[0].train, ::5_999])
    expected = tokens[:, ::5_999] - fit.predict(count)
    np.testing.assert_allclose(left.features[:, ::5_999], expected, atol=1e-5)
    added, copies = peak(lambda: added_value(overlap, count, tokens, folds, group))
    assert copies < 5 and added.joint > 0.9


# What is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confound": of([1, 2])}, "4 labels, 2 rows of 1 confounds and 4 blocks"),
        ({"confound": pd.DataFrame(index=range(4))}, "4 rows of 0 confounds"),
        ({"blocks": [1, 2, 3]}, "and 3 blocks"),
        ({"blocks": ["a", None, "b", "c"]}, "row 1 has no block"),
        ({"bins": 1}, "1 quantile bins, expected 2 or more"),
        ({"confound": of([0.5, np.inf, 1, 2])}, "'count' of row 1 is not finite"),
        ({"labels": np.array([0.5, 1, -np.inf, 2])}, "'label' of row 2 is not finite"),
        ({"blocks": list("ppqr")}, "row 1 has the label '1', and another row of its block '0'"),
        ({"labels": [0, 0, 1, 1], "blocks": list("qqpp"), "confound": of(list("xyxx"))},
         "row 1 has the count 'y', and another row of its block 'x'"),
        ({"labels": [0, 0, 0, 0]}, "beyond count: labels do not overlap between its 2 strata"),
        ({"labels": [None] * 4}, "beyond count: 0 of 4 rows have it and a label"),
        ({"confound": pd.DataFrame([[1, 2]] * 4, columns=["a", "a"])}, "two confounds of one name"),
    ],
)  # fmt: skip
def test_rows_that_are_wrong_are_named(changes, message):
    given = {"labels": [0, 1, 0, 1], "confound": of(list("xxyy")), "blocks": np.arange(4)}
    with pytest.raises(InputError, match=message):
        find_overlap(**{**given, **changes})


def test_answers_that_are_wrong_are_named():
    overlap = find_overlap([0, 1, 0, 1], of(list("xxyy")), np.arange(4))
    with pytest.raises(InputError, match="3 predictions for 4 labels"):
        answers(overlap, np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="2 units for 4 labels"):
        answers(overlap, np.zeros(4), np.zeros(2))
    with pytest.raises(InputError, match="metric 'r2' for labels that are classes, expected balan"):
        answers(overlap, np.zeros(4), np.zeros(4), metric="r2")
    with pytest.raises(InputError, match="0 draws, expected 1 or more"):
        conditional_permutation(overlap, lambda labels: {"u": 0.0}, n_permutations=0)
    with pytest.raises(InputError, match="unit 'u' has the score nan"):
        conditional_permutation(overlap, lambda labels: {"u": math.nan}, n_permutations=1)
    with pytest.raises(InputError, match="no prediction is a label; row 0 has"):
        answers(overlap, np.zeros(4), np.zeros(4))
    numbers = find_overlap([0.5, 1.0, 0.1, 3.0], of(list("xxyy")), np.arange(4))
    with pytest.raises(
        InputError, match="metric 'accuracy' for labels that are numbers, expected r2"
    ):
        answers(numbers, np.zeros(4), np.zeros(4), metric="accuracy")
    with pytest.raises(InputError, match="prediction 1 is not finite"):
        answers(numbers, np.array([0, np.nan, 0, 0]), np.zeros(4), metric="r2")


def test_an_answer_that_is_no_label_is_wrong():
    overlap = find_overlap([0, 1, 0, 1], of(list("xxyy")), np.arange(4))
    score = answers(overlap, np.array(["0", "1", "7", "?"]), np.zeros(4), metric="accuracy")
    assert score(overlap.labels) == {"0.0": 0.5}


def test_folds_and_features_that_are_wrong_are_named():
    rng = np.random.default_rng(0)
    label, week, group = np.arange(80) % 2, np.arange(80) // 2 % 4, np.arange(80) // 4
    overlap = find_overlap(label, of(week, "week"), np.arange(80))
    x = rng.normal(size=(80, 3))
    with pytest.raises(InputError, match=r"floor \(80,\), expected \[80, columns\]"):
        added_value(overlap, x[:, 0], x, folds_of(group), group)
    with pytest.raises(InputError, match=r"encoder \(79, 3\)"):
        added_value(overlap, x, x[1:], folds_of(group), group)
    with pytest.raises(InputError, match="79 units for 80 labels"):
        added_value(overlap, x, x, folds_of(group), group[1:])
    with pytest.raises(InputError, match="metric 'r2' for labels that are classes"):
        added_value(overlap, x, x, folds_of(group), group, metric="r2")
    bad = x.copy()
    bad[5, 1] = np.nan
    with pytest.raises(InputError, match="feature 1 of encoder row 5 is not finite"):
        added_value(overlap, x, bad, folds_of(group), group)
    by_class = folds_of(np.where(label == 1, 0, 1 + group % 3))
    with pytest.raises(
        InputError, match="class '1' has no training row in fold 'fold=0' beyond week"
    ):
        added_value(overlap, x, x, by_class, group)
    strata = np.where(group % 4 == 0, "alone", np.char.add("s", week.astype(str)))
    labels = np.where(group % 4 == 0, "only", label.astype(str))
    partly = find_overlap(labels, of(strata, "week"), np.arange(80))
    with pytest.raises(InputError, match="fold 'fold=0' has no row left in its part 'test' beyond"):
        added_value(partly, x, x, folds_of(group), group)


def test_residuals_say_what_they_lack():
    x = np.zeros((10, 2))
    with pytest.raises(InputError, match=r"confound \(9, 1\), expected \[n, d\] and \[n, p\]"):
        residualised(x, np.zeros((9, 1)), np.arange(5))
    with pytest.raises(
        InputError, match="3 training rows for 2 columns of the confound, expected 4"
    ):
        residualised(x, x, np.arange(3))
    bad = x.copy()
    bad[3, 1] = np.inf
    with pytest.raises(InputError, match="confound 1 of row 3 is not finite"):
        residualised(x, bad, np.arange(5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_feature_that_is_the_confound_leaves_nothing(dtype: type) -> None:
    """Rounding would be left, which tells the confound as well as the feature did."""
    rng = np.random.default_rng(0)
    z = np.round(rng.normal(50, 8, (300, 1)))
    features = np.hstack([3 * z + 7, -0.1 * z + 1e3, rng.normal(size=(300, 1))]).astype(dtype)
    left = residualised(features, z, np.arange(200))
    assert (left.features[:, :2] == 0).all() and left.features[:, 2].std() > 0.9

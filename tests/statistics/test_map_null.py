"""p-values of mAP: against listed drawings and rankings, and on screens without any effect."""

import itertools

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.probes.average_precision import AveragePrecision, average_precision
from bioimg_jax.probes.pairs import PairRules
from bioimg_jax.statistics import map_null
from bioimg_jax.statistics.map_null import permutation_p, ranking_p


def screen(groups=6, plates=3, controls=5, d=4, effect=0.0, seed=0):
    """One well of each group and some controls a plate; plates and controls have their own mean."""
    rng = np.random.default_rng(seed)
    treated = pd.DataFrame(
        itertools.product([f"t{g:02d}" for g in range(groups)], range(plates)),
        columns=["treatment", "plate"],
    )
    control = pd.DataFrame({"treatment": "DMSO", "plate": np.repeat(np.arange(plates), controls)})
    metadata = pd.concat([treated, control], ignore_index=True)
    is_control = (metadata["treatment"] == "DMSO").to_numpy()
    features = rng.normal(size=(len(metadata), d))
    features += rng.normal(size=(plates, d))[metadata["plate"]]
    means = rng.normal(size=(groups, d))[np.repeat(np.arange(groups), plates)]
    features[~is_control] += effect * means
    return features, metadata, is_control


def mean_aps(features, metadata, is_control, **rules):
    """mAP of every group, by the engine of average precisions; None where there is no pair."""
    table = metadata.assign(control=is_control)
    pos = ["treatment", *rules.get("pos_sameby", ())], rules.get("pos_diffby", ())
    neg = rules.get("neg_sameby", ()), ["treatment", "control", *rules.get("neg_diffby", ())]
    found = average_precision(features, table, PairRules(*pos, *neg), queries=~is_control)
    return pd.Series(found.values).groupby(table["treatment"].to_numpy()[found.queries]).mean()


EXTRA = [
    {},
    {"pos_diffby": ["plate"], "neg_sameby": ["plate"]},
    {"neg_diffby": ["plate"]},
]


@pytest.mark.parametrize("rules", EXTRA, ids=["plain", "same plate", "other plates"])
@pytest.mark.parametrize("rounded", [False, True], ids=["plain", "ties"])
def test_what_is_tested_is_the_mean_of_the_average_precisions(rules, rounded):
    features, metadata, is_control = screen()
    features = np.round(features) if rounded else features
    test = permutation_p(
        features, metadata, "treatment", controls=is_control, permutations=20, **rules
    )
    expected = mean_aps(features, metadata, is_control, **rules)
    assert test.groups.tolist() == expected.index.tolist()
    np.testing.assert_allclose(test.values, expected, atol=1e-6)
    assert (test.queries == 3).all()


def test_without_controls_all_other_wells_are_negatives():
    features, metadata, is_control = screen(effect=0.5)
    features, metadata = features[~is_control], metadata[~is_control]
    test = permutation_p(features, metadata, "treatment", controls=None, permutations=20)
    found = average_precision(features, metadata, PairRules(["treatment"], [], [], ["treatment"]))
    np.testing.assert_allclose(test.values, found.values.reshape(6, 3).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rules", EXTRA[:2], ids=["plain", "same plate"])
@pytest.mark.parametrize("rounded", [False, True], ids=["plain", "ties"])
def test_p_is_the_share_of_all_drawings(rules, rounded):
    """Labels moved by hand in the table: all 4³ choices of a well a plate."""
    features, metadata, is_control = screen(groups=2, controls=3, effect=0.4)
    features = np.round(features) if rounded else features
    n = 20_000
    test = permutation_p(
        features, metadata, "treatment", controls=is_control, within=["plate"], permutations=n,
        **rules,
    )  # fmt: skip
    for g, name in enumerate(test.groups):
        own = (metadata["treatment"] == name).to_numpy()
        pool = own | is_control
        wells = [np.flatnonzero(pool & (metadata["plate"] == plate)) for plate in range(3)]
        values = []
        for chosen in itertools.product(*wells):
            moved = metadata.assign(treatment="DMSO")
            moved.loc[list(chosen), "treatment"] = name
            control = (moved["treatment"] == "DMSO").to_numpy()
            values.append(mean_aps(features[pool], moved[pool], control[pool], **rules)[name])
        assert len(values) == 4**3
        share = np.mean(np.array(values) >= test.values[g] - 1e-6)
        assert test.p[g] == pytest.approx(share, abs=1 / n + 4 * np.sqrt(share / n))


def test_p_is_the_share_of_all_drawings_of_several_wells_a_plate():
    """Two wells of one group among six, of any plate: all 15 choices."""
    features, metadata, is_control = screen(groups=2, plates=2, controls=2, effect=0.5, seed=2)
    n = 20_000
    test = permutation_p(features, metadata, "treatment", controls=is_control, permutations=n)
    for g, name in enumerate(test.groups):
        pool = np.flatnonzero((metadata["treatment"] == name) | is_control)
        values = []
        for chosen in itertools.combinations(pool, 2):
            moved = metadata.assign(treatment="DMSO")
            moved.loc[list(chosen), "treatment"] = name
            control = (moved["treatment"] == "DMSO").to_numpy()
            values.append(mean_aps(features[pool], moved.iloc[pool], control[pool])[name])
        share = np.mean(np.array(values) >= test.values[g] - 1e-6)
        assert test.p[g] == pytest.approx(share, abs=1 / n + 4 * np.sqrt(share / n))


@pytest.mark.parametrize("rounded", [False, True], ids=["plain", "ties"])
def test_p_of_several_labels_is_the_share_of_all_shuffles(rounded):
    """Lists of labels moved by hand inside two batches: all 4! · 4! orders."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(8, 3))
    features = np.round(features) if rounded else features
    cells = [["p"], ["q"], ["p", "r"], ["s"], ["p", "q"], ["r"], ["q"], ["t"]]
    metadata = pd.DataFrame({"target": cells, "batch": [0] * 4 + [1] * 4})
    rules = PairRules(["target"], [], [], ["target"], multilabel="target")

    def maps(order):
        moved = metadata.assign(target=[cells[i] for i in order])
        found = average_precision(features, moved, rules)
        return pd.Series(found.values).groupby(found.labels).mean()

    n = 20_000
    test = permutation_p(
        features, metadata, "target", controls=None, within=["batch"], multilabel=True,
        permutations=n,
    )  # fmt: skip
    assert test.groups.tolist() == ["p", "q", "r"] and test.excluded["single replicate"] == 2
    np.testing.assert_allclose(test.values, maps(range(8)), atol=1e-6)
    orders = itertools.product(*(itertools.permutations(half) for half in (range(4), range(4, 8))))
    every = np.array([maps([*first, *second]) for first, second in orders])
    share = np.mean(every >= test.values - 1e-6, axis=0)
    assert (np.abs(test.p - share) <= 1 / n + 4 * np.sqrt(share / n)).all()


def test_every_choice_of_a_plate_is_as_likely():
    rng = np.random.default_rng(0)
    place, size = np.array([0, 1, 2, 0]), np.array([5, 5, 5, 3])
    drawn = map_null._first_of_shuffles(rng, place, size, 60_000)
    assert all(len(set(row)) == 3 for row in drawn[:1000, :3].tolist())
    counts = np.unique(drawn @ [75, 15, 3, 1], return_counts=True)[1]
    assert len(counts) == 5 * 4 * 3 * 3
    assert np.sum((counts - 60_000 / 180) ** 2 / (60_000 / 180)) < 179 + 4 * np.sqrt(2 * 179)


@pytest.mark.parametrize("others", [0.0, 3.0], ids=["nothing works", "some treatments work"])
def test_p_is_super_uniform_on_null_screens(others):
    """Of groups without an effect, whatever the others do; standard errors over screens."""
    shares = []
    for seed in range(40):
        features, metadata, is_control = screen(groups=16, plates=4, controls=8, d=6, seed=seed)
        rng = np.random.default_rng((9, seed))
        active = np.isin(metadata["treatment"], [f"t{g:02d}" for g in range(8)])
        effect = others * rng.normal(size=(8, 6))
        features[active] += np.repeat(effect, 4, axis=0)
        test = permutation_p(
            features, metadata, "treatment", controls=is_control, within=["plate"],
            permutations=199, seed=seed,
        )  # fmt: skip
        null = test.p[8:] if others else test.p
        shares.append([np.mean(null <= level) for level in (0.01, 0.05, 0.5)])
        assert not others or np.median(test.p[:8]) < 0.02
    mean, error = np.mean(shares, axis=0), np.std(shares, axis=0, ddof=1) / np.sqrt(40)
    assert (mean <= np.array([0.01, 0.05, 0.5]) + 3 * error).all(), (mean, error)
    assert mean[2] > 0.35  # and not for saying no to everything


def test_strong_effects_are_found():
    features, metadata, is_control = screen(groups=8, plates=4, controls=8, d=16, effect=3.0)
    test = permutation_p(
        features, metadata, "treatment", controls=is_control, within=["plate"], permutations=999
    )
    assert test.fraction_active() > 0.8 and test.p.min() == 1 / 1000
    assert (test.q >= test.p).all()


def test_order_and_index_of_rows_change_no_bit():
    features, metadata, is_control = screen(effect=0.3)
    order = np.random.default_rng(1).permutation(len(metadata))
    first, second = (
        permutation_p(x, m, "treatment", controls=c, within=["plate"], permutations=300, seed=5)
        for x, m, c in (
            (features, metadata, is_control),
            (features[order], metadata.iloc[order].set_axis(order % 3), is_control[order]),
        )
    )
    np.testing.assert_array_equal(first.p, second.p)
    np.testing.assert_array_equal(first.values, second.values)


def test_groups_in_small_portions_give_the_same(monkeypatch):
    features, metadata, is_control = screen(effect=0.3)

    def p():
        return permutation_p(
            features, metadata, "treatment", controls=is_control, within=["plate"], permutations=99
        ).p

    whole = p()
    monkeypatch.setattr(map_null, "WELLS", 4)
    monkeypatch.setattr(map_null, "NUMBERS", 90)
    np.testing.assert_array_equal(p(), whole)


def test_groups_that_cannot_be_tested_are_counted_by_reason():
    metadata = pd.DataFrame(
        {
            "treatment": ["a", "a", "b", "c", "c", "d", "d", "e", None, *["DMSO"] * 4],
            "plate": [0, 1, 0, 2, 2, 0, 0, np.nan, 0, 0, 0, 1, 1],
        }
    )
    features = np.random.default_rng(0).normal(size=(13, 3))
    controls = (metadata["treatment"] == "DMSO").to_numpy()
    test = permutation_p(
        features, metadata, "treatment", controls=controls, within=["plate"],
        pos_diffby=["plate"], permutations=19,
    )  # fmt: skip
    assert test.groups.tolist() == ["a"]
    assert test.excluded == {
        "no well": 1,  # e, whose plate is not known
        "single replicate": 1,
        "no other well on its plates": 1,  # c
        "no pair": 1,  # d, on one plate
        "rows without a plate": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "dose"}, "'dose' is not in the metadata"),
        ({"within": ["batch"]}, "'batch' is not in the metadata"),
        ({"controls": np.zeros(33, bool)}, "no row is a control"),
        ({"controls": np.zeros(3, bool)}, "controls must be true or false for each of the 33 rows"),
        ({"controls": np.ones(33)}, "controls must be true or false"),
        ({"controls": np.ones(33, bool)}, "no well has a group in column 'treatment'"),
        ({"multilabel": True}, "multilabel column are permuted without controls"),
        (
            {"multilabel": True, "controls": None},
            "'treatment', row 0: a list of labels was expected",
        ),
        ({"permutations": 0}, "permutations must be at least 1, not 0"),
        ({"pos_sameby": ["treatment"]}, "pos_sameby and pos_diffby name 'treatment'"),
        ({"neg_sameby": ["plate"], "neg_diffby": ["plate"]}, "name 'treatment' or a column twice"),
        ({"features": np.full((33, 4), np.inf)}, "feature 0 of row 0 is not finite"),
        ({"features": np.ones((32, 4))}, r"features \(32, 4\) for 33 rows"),
    ],
)
def test_bad_input_is_refused(change, message):
    features, metadata, is_control = screen()
    given = {"features": features, "group": "treatment", "controls": is_control, **change}
    with pytest.raises(InputError, match=message):
        permutation_p(given.pop("features"), metadata, given.pop("group"), **given)


def scores(values, positives, negatives):
    values, positives, negatives = map(np.array, (values, positives, negatives))
    return AveragePrecision(np.arange(len(values)), None, values, positives, negatives, {})


def rankings(positives, total):
    """Average precisions of all rankings."""
    return [
        np.mean([(i + 1) / (place + 1) for i, place in enumerate(places)])
        for places in itertools.combinations(range(total), positives)
    ]


def test_random_rankings_are_those_that_can_be_listed():
    every = np.array(rankings(3, 9))
    for value in np.unique(every.round(12))[[0, 5, 20, -1]]:
        found = scores([value, value], [3, 3], [6, 6])
        p = {r: ranking_p(found, np.zeros(2), rule=r).p[0] for r in ("above", "at least", "exact")}
        at_least, above = np.mean(every >= value - 1e-9), np.mean(every > value + 1e-9)
        assert p["exact"] == at_least
        assert p["at least"] == pytest.approx(at_least, abs=0.02)
        assert p["above"] == pytest.approx(above, abs=0.02) and p["above"] >= 1 / 10_001


@pytest.mark.parametrize(("positives", "total"), [(2, 30), (6, 12), (7, 1_000)])
def test_random_rankings_are_at_chance(positives, total):
    random = map_null._random_aps(np.random.default_rng(0), positives, total, 20_000)
    chance = scores([0.0], [positives], [total - positives]).chance[0]
    assert random.mean() == pytest.approx(chance, abs=4 * random.std() / np.sqrt(20_000))


def test_a_group_of_queries_of_two_kinds_takes_the_mean_of_both():
    mixed = scores([1.0, 0.5], [1, 1], [1, 3])
    # Random: 1 or 1/2, and 1, 1/2, 1/3 or 1/4; their mean reaches 3/4 in 3 of 8 pairs.
    p = ranking_p(mixed, np.array(["a", "a"]), rule="exact", rankings=40_000).p[0]
    assert p == pytest.approx(3 / 8, abs=0.02)


def test_missing_groups_are_left_out_and_tests_are_adjusted_together():
    found = scores([1.0, 1.0, 0.1, 0.5], [2] * 4, [50] * 4)
    test = ranking_p(found, np.array(["a", "a", "b", None], object))
    assert test.groups.tolist() == ["a", "b"] and test.queries.tolist() == [2, 1]
    assert test.q[0] == pytest.approx(2 * test.p[0]) and test.q[1] == pytest.approx(test.p[1])
    assert test.fraction_active() == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "below"}, "rule must be 'above', 'at least' or 'exact', not 'below'"),
        ({"groups": np.zeros(3)}, "3 groups for 2 queries"),
        ({"rankings": 0}, "rankings must be at least 1"),
        ({"groups": np.full(2, np.nan)}, "no query is in a group"),
    ],
)
def test_bad_rankings_are_refused(change, message):
    found = scores([1.0, 0.5], [2, 2], [5, 5])
    given = {"groups": np.zeros(2), **change}
    with pytest.raises(InputError, match=message):
        ranking_p(found, given.pop("groups"), **given)

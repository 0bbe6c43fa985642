"""Nearest neighbours of other compounds, against cases by hand and another way to compute them."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.moa import (
    DEEPPROFILER,
    NSC,
    RULES,
    UNIDINO,
    Moa,
    Treatments,
    match,
)
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.features.imported import Join, import_table
from bioimg_jax.features.table import read_table
from bioimg_jax.statistics.resampling import centred_pseudo_values
from tests.benchmarks.plates import table

MOA = Target("moa", "moa", ("compound",), "leave_one_out", metric="accuracy")
ABOUT = {"representation": "r", "kind": "imported", "seed": 0, "exposure": "none"}


def wells(*treatments):
    """Wells of ("a1", "M", "W1", degrees): compound a at dose 1, its class, batch, and direction.

    Two directions in "W1 W2" are two wells in two batches.
    """
    rows, features = [], []
    for name, moa, weeks, degrees in treatments:
        for week in weeks.split():
            rows.append({"compound": name[0], "dose": int(name[1]), "moa": moa, "week": week})
            features.append([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    return pd.DataFrame(rows), np.array(features)


def treatments_of(obs, rows=None):
    rows = np.arange(len(obs)) if rows is None else rows
    return Treatments.of(
        obs, rows, treatment=("compound", "dose"), compound=("compound",), label="moa",
        batch=("week",),
    )  # fmt: skip


def matched(rule, *treatments):
    obs, features = wells(*treatments)
    found = treatments_of(obs)
    return match(found.profiles(features, "mean"), found, rule)


def hits(matches):
    return dict(zip(matches.treatments.names, matches.hits.tolist(), strict=True))


def random_screen(seed, *, n=24, compounds=8, classes=3, weeks=4, ties=True):
    """Treatments of compounds that have one class each, anywhere in the weeks."""
    rng = np.random.default_rng(seed)
    class_of = rng.permutation(np.arange(compounds) % classes)
    compound = rng.permutation(np.arange(n) % compounds)
    obs = pd.DataFrame(
        {
            "compound": [f"c{c}" for c in compound],
            "dose": np.arange(n) / 10,
            "moa": [f"m{class_of[c]}" for c in compound],
            "week": [f"w{w}" for w in rng.integers(weeks, size=n)],
        }
    )
    values = rng.integers(0, 2, size=(n, 3)) if ties else rng.normal(size=(n, 6))
    return obs, values.astype(np.float64)


def test_neighbours_of_the_same_compound_do_not_count():
    found = matched(
        NSC,
        ("a1", "M", "W1", 0),
        ("a2", "M", "W1", 1),  # the nearest of a1, and of its own compound
        ("b1", "M", "W1", 10),
        ("c1", "N", "W1", 13),
        ("d1", "N", "W1", 60),
    )
    assert hits(found) == {"a/1": 1, "a/2": 1, "b/1": 0, "c/1": 0, "d/1": 1}
    assert found.value == 3 / 5
    assert found.per_class == {"M": 2 / 3, "N": 1 / 2}
    np.testing.assert_array_equal(found.confusion, [[2, 1], [1, 1]])
    # a: of b, c, d; b: of a1, a2, c, d; c, d: of four others.
    np.testing.assert_allclose(found.chance, [1 / 3, 1 / 3, 2 / 4, 1 / 4, 1 / 4])
    # Without a only d is right; without b only d; without c all but d; without d a alone.
    np.testing.assert_allclose(found.without, [1 / 3, 1 / 4, 3 / 4, 2 / 4])
    assert found.counts.tolist() == [2, 1, 1, 1]


def test_both_rules_of_the_batch():
    screen = (
        ("a1", "M", "W1", 0),
        ("b1", "M", "W1", 1),  # nearest to a, same class, same batch: neither rule allows it
        ("c1", "N", "W1", 3),  # other class, same batch: uniDINO's allows it
        ("d1", "M", "W2", 30),
        ("e1", "N", "W2", 40),
        ("f1", "K", "W3", 2),  # a class in one batch, which nothing may be matched with
        ("g1", "K", "W3", 4),
    )
    found = matched(DEEPPROFILER, *screen)
    assert found.takes_part.tolist() == [True] * 5 + [False] * 2
    # The neighbours are d of a, b and c; c of d, and of e.
    assert hits(found) == {"a/1": 1, "b/1": 1, "c/1": 0, "d/1": 0, "e/1": 1, "f/1": 0, "g/1": 0}
    assert found.value == 3 / 5 and found.per_class == {"M": 2 / 3, "N": 1 / 2}
    assert [found.treatments.compound_names[u] for u in found.units] == list("abcde")

    found = matched(UNIDINO, *screen)
    assert found.takes_part.tolist() == [True] * 5 + [False] * 2
    # c of a, of b; b of c; e of d; d of e.
    assert hits(found) == dict.fromkeys(hits(found), 0)
    np.testing.assert_allclose(found.chance[:5], [1 / 3, 1 / 3, 1 / 4, 2 / 4, 1 / 4])

    assert hits(matched(NSC, *screen))["f/1"] == 0 and matched(NSC, *screen).takes_part.all()


def test_a_treatment_in_several_batches_is_in_another_one_than_either():
    screen = (
        ("a1", "M", "W1", 0),
        ("b1", "M", "W2 W1", 2),
        ("c1", "M", "W1 W2", 3),
        ("d1", "N", "W1", 20),
        ("e1", "N", "W2", 50),
    )
    found = matched(DEEPPROFILER, *screen)
    assert found.treatments.batch_names == ["W1", "W1+W2", "W2"]
    assert found.treatments.batches.tolist() == [0, 1, 1, 0, 2]
    # a has b; b may not have c, and has a; c has a; d has c, not a; e has d.
    assert hits(found) == {"a/1": 1, "b/1": 1, "c/1": 1, "d/1": 0, "e/1": 1}


def test_a_class_in_one_joined_batch_leaves_too():
    found = matched(
        DEEPPROFILER,
        ("a1", "M", "W1 W2", 0),
        ("b1", "M", "W1 W2", 1),
        ("c1", "N", "W1", 5),
        ("d1", "N", "W2", 9),
        ("e1", "K", "W1", 50),
        ("f1", "K", "W2", 60),
    )
    assert found.takes_part.tolist() == [False, False, True, True, True, True]


def test_a_query_that_is_left_without_neighbours_is_wrong():
    found = matched(NSC, ("a1", "M", "W1", 0), ("a2", "M", "W1", 1), ("b1", "N", "W1", 2))
    assert found.without.tolist() == [0, 0] and not found.chance.any()


def test_a_compound_without_which_nothing_is_left_is_an_error():
    with pytest.raises(InputError, match="no treatment takes part without those of 'a'"):
        matched(
            UNIDINO,
            ("a1", "M", "W1", 0),
            ("a2", "M", "W2", 1),
            ("a3", "N", "W1", 2),
            ("a4", "N", "W2", 3),
            ("b1", "N", "W2", 4),
        )


@pytest.mark.parametrize("rule", RULES)
def test_ties_are_their_expectation_over_all_orders(rule):
    obs = pd.DataFrame(
        {
            "compound": list("abcdbd"),
            "dose": range(6),
            "moa": ["m0", "m0", "m1", "m1", "m0", "m1"],
            "week": ["w0", "w1", "w0", "w1", "w2", "w0"],
        }
    )
    features = np.array([[1, 0], [1, 1], [2, 2], [0, 1], [1, 1], [3, 0]], np.float64)
    found = treatments_of(obs)
    matches = match(found.profiles(features, "mean"), found, rule)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    compound, week, moa = (obs[c].to_numpy() for c in ("compound", "week", "moa"))
    refused = np.equal.outer(compound, compound)
    if rule != NSC:
        same_week, same_class = np.equal.outer(week, week), np.equal.outer(moa, moa)
        refused |= same_week if rule == DEEPPROFILER else same_week & same_class
    similarity = np.where(refused, -np.inf, np.round(rows @ rows.T, 9))
    shares = []
    for order in itertools.permutations(range(6)):
        first = [max(order, key=lambda j, i=i: similarity[i, j]) for i in range(6)]  # of equals
        shares.append(moa[first] == moa)
    expected = np.mean(shares, axis=0)
    assert ((expected > 0) & (expected < 1)).any()
    doses = [int(name[-1]) for name in found.names]
    np.testing.assert_allclose(matches.hits, expected[doses], atol=1e-12)


def test_near_ties_are_ties_and_a_profile_of_zeros_is_like_none():
    small = np.degrees(5e-5)  # 1 - cos of it is 1e-9
    found = matched(NSC, ("a1", "M", "W1", 0), ("b1", "M", "W1", small), ("c1", "N", "W1", -small),
                    ("d1", "N", "W1", 90))  # fmt: skip
    assert hits(found)["a/1"] == 0.5
    obs, features = wells(("a1", "M", "W1", 0), ("b1", "M", "W1", 60), ("c1", "N", "W1", 120))
    features[0] = 0
    zero = match(features, treatments_of(obs), NSC)
    assert zero.hits.tolist() == [0.5, 0, 0]  # b and c are nearer to each other


@pytest.mark.parametrize("average", ["mean", "median"])
@pytest.mark.parametrize("rule", RULES)
def test_order_changes_no_bit(rule, average):
    obs, _ = random_screen(0, n=12)
    obs = pd.concat([obs] * 5, ignore_index=True)
    rng = np.random.default_rng(1)
    obs["week"] = [f"w{w}" for w in rng.integers(3, size=len(obs))]
    features = rng.normal(size=(len(obs), 7)) * 10.0 ** rng.integers(-3, 4, size=(len(obs), 1))
    found = treatments_of(obs)
    first = match(found.profiles(features, average), found, rule)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(obs))
        found = treatments_of(obs.iloc[order].reset_index(drop=True))
        again = match(found.profiles(features[order], average), found, rule)
        assert again.treatments.names == first.treatments.names
        for name in ("votes", "chance", "value", "without", "takes_part"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_without_a_compound_is_the_score_of_a_screen_without_it(rule, ties):
    for seed in range(8):
        obs, features = random_screen(seed, ties=ties)
        found = treatments_of(obs)
        matches = match(found.profiles(features, "mean"), found, rule)
        without, queries = [], []
        for unit in matches.units:
            other = (obs["compound"] != found.compound_names[unit]).to_numpy()
            left = treatments_of(obs, np.flatnonzero(other))
            without.append(match(left.profiles(features, "mean"), left, rule).value)
            mine = matches.takes_part & (found.compounds != unit)
            queries.append(matches.hits[mine].mean())
        np.testing.assert_allclose(matches.without, without, atol=1e-12)
        np.testing.assert_allclose(matches.without_queries, queries, atol=1e-12)


def test_pseudo_values_have_the_mean_of_the_score_and_the_spread_of_the_jackknife():
    x = np.random.default_rng(0).normal(size=9)
    without = (x.sum() - x) / 8
    np.testing.assert_allclose(centred_pseudo_values(x.mean(), without), x)  # of a mean, the values
    moved = centred_pseudo_values(0.7, without - 0.1)  # each unit less costs 0.1
    assert moved.mean() == pytest.approx(0.7)
    np.testing.assert_allclose(moved - moved.mean(), x - x.mean())


@pytest.mark.parametrize("rule", RULES)
def test_noise_scores_chance(rule):
    values, chances = [], []
    for seed in range(150):
        obs, features = random_screen(seed, n=30, compounds=10, ties=False)
        found = treatments_of(obs)
        matches = match(found.profiles(features, "mean"), found, rule)
        values.append(matches.value)
        chances.append(matches.chance[matches.takes_part].mean())
    gap = np.subtract(values, chances)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def folds(rows):
    return [Fold("all", np.arange(0), np.arange(0), rows, MOA.unit)]


def scores(folder, obs, layers, benchmark, rows=None):
    rows = np.arange(len(obs)) if rows is None else rows
    opened = table(folder / "t.h5ad", obs, layers)
    return benchmark.scores(opened, folds(rows), MOA, **ABOUT)


def test_a_score_keeps_the_contract(tmp_path):
    obs, features = random_screen(1, ties=False)
    wide = np.random.default_rng(0).normal(size=(len(obs), 20))
    benchmark = Moa(DEEPPROFILER, "mean", batch=("week",))
    first, second = scores(tmp_path, obs, {"a/mean": features, "b/cls": wide}, benchmark)
    assert (first.block, first.pooling, second.block, second.pooling) == ("a", "mean", "b", "cls")
    assert (first.benchmark, first.metric, first.unit) == (
        "nscb_deepprofiler", "accuracy", ("compound",)
    )  # fmt: skip
    assert first.settings["constant_column"] and not second.settings["constant_column"]
    found = treatments_of(obs)
    profiles = found.profiles(np.float32(wide), "mean")
    matches = match(profiles, found, DEEPPROFILER)
    assert second.value == matches.value == pytest.approx(np.mean([*second.per_unit.values()]))
    assert second.interval[0] < second.value < second.interval[1]
    assert second.n_units == len(second.per_unit) == len(second.unit_rows)
    assert sum(second.unit_rows.values()) == second.settings["n_treatments"]
    assert second.chance == pytest.approx(matches.chance[matches.takes_part].mean())
    assert second.ceiling == (matches.chance[matches.takes_part] > 0).mean()
    assert second.settings["per_class"] == matches.per_class
    assert np.sum(second.settings["confusion"]) == pytest.approx(matches.takes_part.sum())
    assert second.other_metrics["balanced_accuracy"] == np.mean([*matches.per_class.values()])
    row = json.loads(json.dumps(first.to_row()))
    assert Score.from_row(row) == first
    assert benchmark.identity != dataclasses.replace(benchmark, average="median").identity


def test_only_the_wells_that_folds_test_take_part(tmp_path):
    obs, features = random_screen(2, ties=False)
    controls = obs.head(5).assign(compound="DMSO", moa=None)
    both = pd.concat([controls, obs], ignore_index=True)
    values = np.concatenate([np.ones((5, 6)), features])
    rows = np.arange(5, len(both))
    (ours,) = scores(tmp_path, both, {"x": values}, Moa(), rows=rows)
    (alone,) = scores(tmp_path, obs, {"x": features}, Moa())
    assert ours == alone


def test_one_column_is_read_by_its_value_in_any_unit(tmp_path):
    rng = np.random.default_rng(0)
    obs, _ = random_screen(0, n=60, compounds=20, classes=3)
    level = obs["moa"].str[1].astype(int).to_numpy()
    counts = (100 + 50 * level + rng.normal(size=60))[:, None]
    values = [scores(tmp_path, obs, {"x": c}, Moa())[0].value for c in (counts, 1e-3 * counts)]
    assert values == [1.0, 1.0]


def test_equal_rows_of_a_narrow_table_stay_the_only_nearest(tmp_path):
    obs, _ = random_screen(0, n=60, compounds=20, classes=3, weeks=5)
    week = pd.get_dummies(obs["week"]).to_numpy(np.float64)
    found = treatments_of(obs)
    expected = match(found.profiles(week, "mean"), found, NSC)
    (ours,) = scores(tmp_path, obs, {"x": week}, Moa(average="mean"))
    assert ours.settings["constant_column"] and ours.value == pytest.approx(expected.value)


def test_permuted_labels_move_with_their_compounds_to_chance(tmp_path):
    obs, _ = random_screen(0, n=60, compounds=20, classes=4)
    perfect = pd.get_dummies(obs["moa"]).to_numpy(np.float64) @ np.eye(4, 20)
    perfect = perfect + 0.1 * np.random.default_rng(0).normal(size=perfect.shape)
    (named,) = scores(tmp_path, obs, {"x": perfect}, Moa())
    opened, (fold,) = read_table(tmp_path / "t.h5ad"), folds(np.arange(len(obs)))
    permuted = [
        Moa().scores(opened, [fold], MOA, permute_labels_seed=seed, **ABOUT)[0]
        for seed in range(40)
    ]
    gap = np.mean([score.value for score in permuted]) - np.mean([s.chance for s in permuted])
    assert named.value > 0.9 and abs(gap) < 0.05
    assert len({score.value for score in permuted}) > 5


def missing(obs, column, row):
    return obs.assign(**{column: obs[column].astype(object).where(obs.index != row)})


WRONG = {
    "no column": (lambda o: o.drop(columns="dose"), {}, r"column 'dose' .* does not exist"),
    "no dose": (lambda o: missing(o, "dose", 3), {}, r"row 3 has no 'dose'"),
    "no batch": (
        lambda o: missing(o, "week", 4),
        {"rule": UNIDINO, "batch": ("week",)},
        r"row 4 has no 'week'",
    ),
    "two classes": (
        lambda o: o.assign(dose=1), {"treatment": ("dose",)}, r"treatment '1' has the compound 'c"
    ),
    "one class": (lambda o: o.assign(moa="m"), {}, r"nsc: 1 of 1 classes take part, expected two"),
    "one batch": (
        lambda o: o.assign(week="w"),
        {"rule": DEEPPROFILER, "batch": ("week",)},
        r"nscb_deepprofiler: 0 of 3 classes .* several batches",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case, tmp_path):
    change, options, message = WRONG[case]
    obs, features = random_screen(0)
    with pytest.raises(InputError, match=message):
        scores(tmp_path, change(obs), {"x": features}, Moa(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "nscw"}, "rule 'nscw' is none of nsc, deepprofiler, unidino"),
        ({"average": "mode"}, "average 'mode' is none of mean, median"),
        ({"treatment": ()}, "no column of a treatment"),
        ({"rule": DEEPPROFILER}, "needs a column of the batch"),
    ],
)
def test_settings_that_are_none(options, message):
    with pytest.raises(InputError, match=message):
        Moa(**options)


def test_targets_that_it_cannot_score():
    with pytest.raises(InputError, match="'balanced_accuracy'; nsc is accuracy"):
        Moa().check(dataclasses.replace(MOA, metric="balanced_accuracy"))
    with pytest.raises(InputError, match="aggregates over compound/dose; nsc takes the wells"):
        Moa().check(dataclasses.replace(MOA, aggregate=("compound", "dose")))
    Moa().check(MOA)


# BBBC021, and the same read and scored without anything of the package.


@pytest.fixture(scope="module")
def bbbc021(data_dir, tmp_path_factory):
    folder = data_dir / "bbbc021_profiles"
    image = {"plate": "Image_Metadata_Plate_DAPI", "well": "Image_Metadata_Well_DAPI"}
    drug = {"compound": "Image_Metadata_Compound", "dose": "Image_Metadata_Concentration"}
    return import_table(
        folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz",
        tmp_path_factory.mktemp("bbbc021") / "wells.h5ad",
        metadata={"Image_Metadata_Plate": "plate", "Image_Metadata_Well": "well"},
        extract={"week": ("plate", r"^(Week\d+)_")},
        joins=[
            Join(folder / "BBBC021_v1_image.csv.gz", image, drug),
            Join(
                folder / "BBBC021_v1_moa.csv",
                {"compound": "compound", "dose": "concentration"},
                {"moa": "moa"},
            ),
        ],
        unique=("plate", "well"),
    )


@pytest.fixture(scope="module")
def plain(data_dir):
    """Wells with compound, dose, moa, week and features, by pandas alone."""
    folder = data_dir / "bbbc021_profiles"
    frame = pd.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz")
    key = ["Image_Metadata_Plate", "Image_Metadata_Well"]
    features = frame.columns.drop(key)
    images = pd.read_csv(folder / "BBBC021_v1_image.csv.gz").rename(
        columns={
            "Image_Metadata_Plate_DAPI": key[0],
            "Image_Metadata_Well_DAPI": key[1],
            "Image_Metadata_Compound": "compound",
            "Image_Metadata_Concentration": "concentration",
        }
    )
    images = images[[*key, "compound", "concentration"]].drop_duplicates()
    moa = pd.read_csv(folder / "BBBC021_v1_moa.csv")
    frame = frame.merge(images, how="left", on=key, validate="1:1")
    frame = frame.merge(moa, how="left", on=["compound", "concentration"], validate="m:1")
    frame["week"] = frame[key[0]].str.split("_").str[0]
    return frame, features


def normalised(frame, features, how):
    values = frame[features].astype(np.float32).astype(np.float64)
    if how == "raw":
        return values
    if how == "standardised":
        return (values - values.mean()) / values.std(ddof=0)
    parts = []  # centred and scaled on the controls of every plate
    for _, wells in frame.groupby("Image_Metadata_Plate"):
        control = values.loc[wells.index[wells["compound"] == "DMSO"]]
        spread = control.std(ddof=0)
        parts.append((values.loc[wells.index] - control.mean()) / spread.where(spread > 0, 1.0))
    return pd.concat(parts).loc[frame.index]


def plain_answers(frame, values, average, rule):
    """Treatment -> expected right answers, one query after the other."""
    keep = frame["compound"] != "DMSO"
    groups = values[keep].groupby([frame.loc[keep, c] for c in ("compound", "concentration")])
    profile = groups.mean() if average == "mean" else groups.median()
    about = frame[keep].groupby(["compound", "concentration"])
    moa = about["moa"].first()
    week = about["week"].agg(lambda weeks: "_".join(sorted(weeks.unique())))
    compound = pd.Series(profile.index.get_level_values(0), index=profile.index)
    if rule != NSC:
        several = week.groupby(moa).nunique() > 1
        chosen = moa.map(several)
        profile, moa, week, compound = (x[chosen] for x in (profile, moa, week, compound))
    answers = {}
    for query in profile.index:
        refused = compound == compound[query]
        if rule == DEEPPROFILER:
            refused |= week == week[query]
        if rule == UNIDINO:
            refused |= (week == week[query]) & (moa == moa[query])
        gallery = profile[~refused]
        cosine = (gallery @ profile.loc[query]) / (
            np.sqrt((gallery**2).sum(axis=1)) * np.sqrt((profile.loc[query] ** 2).sum())
        )
        nearest = cosine.index[cosine > cosine.max() - 1e-6]
        answers["/".join(map(str, query))] = (moa[nearest] == moa[query]).mean()
    return answers


def treated(obs):
    return np.flatnonzero((obs["compound"] != "DMSO").to_numpy())


@pytest.mark.data
def test_bbbc021_is_read_as_it_was_published(bbbc021):
    assert len(bbbc021.obs) == 632 and bbbc021.widths == {"features": 516}
    found = treatments_of(bbbc021.obs, treated(bbbc021.obs))
    assert (len(found.names), len(found.compound_names), len(found.classes)) == (103, 38, 12)
    for rule in (DEEPPROFILER, UNIDINO):
        left = found.taking_part(rule)
        assert left.sum() == 92
        assert {found.classes[k] for k in np.unique(found.labels[~left])} == {
            "Cholesterol-lowering", "Kinase inhibitors"
        }  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("how", ["raw", "standardised", "controls"])
@pytest.mark.parametrize("average", ["mean", "median"])
def test_bbbc021_agrees_with_plain_pandas_to_the_last_treatment(how, average, bbbc021, plain):
    frame, features = plain
    np.testing.assert_array_equal(frame[features].to_numpy(np.float32), bbbc021.layer("features"))
    values = normalised(frame, features, how)
    found = treatments_of(bbbc021.obs, treated(bbbc021.obs))
    for rule in RULES:
        matches = match(found.profiles(values.to_numpy(), average), found, rule)
        names = np.array(found.names)[matches.takes_part]
        ours = dict(zip(names, matches.hits[matches.takes_part], strict=True))
        assert ours == pytest.approx(plain_answers(frame, values, average, rule), abs=1e-12)


@pytest.mark.data
def test_the_week_alone_scores_its_expectation_over_ties(bbbc021, tmp_path):
    obs = bbbc021.obs
    week = pd.get_dummies(obs["week"].astype(str)).to_numpy(np.float64)
    (found,) = scores(tmp_path, obs, {"week": week}, Moa(), rows=treated(obs))
    assert found.value == pytest.approx(0.1333, abs=5e-5)


@pytest.mark.data
def test_centred_and_scaled_on_controls_it_scores_what_was_published(bbbc021, plain, tmp_path):
    frame, features = plain
    values = normalised(frame, features, "controls").to_numpy()
    (found,) = scores(
        tmp_path, bbbc021.obs, {"x": values}, Moa(average="mean"), rows=treated(bbbc021.obs)
    )
    assert found.value == pytest.approx(85 / 103)  # 0.82 in the vignette of cytominergallery
    assert found.n_units == 38 and found.ceiling == 1.0

"""What nuisance probes read of features that know one thing."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeClassifier, RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler

from bioimg_jax.benchmarks import batch
from bioimg_jax.benchmarks.batch import nuisance_scores
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError


def plates(n_plates=6, sites=2, seed=0):
    """Six plates in two batches, 24 wells of two sites each."""
    rng = np.random.default_rng(seed)
    rows = itertools.product(range(n_plates), "ABCD", range(1, 7), range(sites))
    obs = pd.DataFrame(
        [
            {"plate": f"P{p}", "batch": f"B{p % 2}", "well": f"{r}{c:02d}", "site": s + 1}
            for p, r, c, s in rows
        ]
    )
    return obs.assign(
        count=rng.poisson(80, len(obs)).astype(float), intensity=rng.normal(9, 1, len(obs))
    )


def noise(obs, seed=1):
    return np.random.default_rng(seed).normal(size=(len(obs), 8))


def read(features, obs, **options):
    scores, skipped = nuisance_scores(features, obs, **options)
    return {score.column: score for score in scores}, skipped


def only(*columns):
    return {"held_out": {column: batch.HELD_OUT[column] for column in columns}}


@pytest.mark.parametrize("column", ["plate", "batch", "well_row", "well_column", "site"])
def test_a_column_that_is_in_the_features_is_read(column):
    obs = plates()
    parts = obs.assign(well_row=obs["well"].str[0], well_column=obs["well"].str[1:])
    codes = pd.factorize(parts[column])[0]
    features = noise(obs) + 6 * np.random.default_rng(2).normal(size=(9, 8))[codes]
    found, skipped = read(features, obs, **only(column))
    score = found[column]
    assert score.value > 0.9 and score.metric == "balanced_accuracy" and not skipped
    assert score.chance == pytest.approx(1 / len(set(codes))) and score.n_classes == len(set(codes))
    assert score.higher_is_better is None and score.interval[0] > score.chance
    assert score.unit == batch.HELD_OUT[column] and score.n == 288 and score.n_missing == 0


def test_noise_reads_nothing_and_every_column_is_there():
    obs = plates()
    found, skipped = read(noise(obs), obs)
    assert list(found) == list(batch.HELD_OUT) and skipped == {}
    for score in found.values():
        assert score.interval[0] - 0.03 < score.chance < score.interval[1] + 0.03
        assert score.value == pytest.approx(np.mean(list(score.per_unit.values())))
    assert found["well_row"].split == "held-out plate, 5 folds"
    assert len(found["plate"].per_unit) == 144 and len(found["count"].per_unit) == 6


def test_a_number_agrees_with_ridge_regression_of_another_library():
    obs = plates()
    features = noise(obs)
    features[:, 0] += 0.2 * obs["count"]
    found, _ = read(features, obs, **only("count"))
    score = found["count"]
    assert score.metric == "r2" and score.chance == 0.0 and score.n_classes is None
    count, answer, constant = obs["count"].to_numpy(), np.empty(288), np.empty(288)
    for plate in obs["plate"].unique():  # not the same folds
        test = (obs["plate"] == plate).to_numpy()
        model = RidgeCV([0.01, 1, 100]).fit(features[~test], count[~test])
        answer[test], constant[test] = model.predict(features[test]), count[~test].mean()
    known = 1 - np.square(count - answer).sum() / np.square(count - constant).sum()
    assert score.value == pytest.approx(known, abs=0.03)
    assert known == pytest.approx(r2_score(count, answer), abs=0.01)


def test_a_plate_is_read_in_wells_that_were_held_out():
    # Each well of each plate has a look of its own: nothing that another well could know.
    obs = plates(sites=8)
    well = obs.groupby(["plate", "well"]).ngroup().to_numpy()
    features = 0.1 * noise(obs) + np.random.default_rng(2).normal(size=(144, 8))[well]
    found, _ = read(features, obs, **only("plate"))
    assert found["plate"].value < 1 / 6 + 0.1


@pytest.mark.parametrize("column", ["batch", "well_column"])
def test_names_are_read_as_by_the_ridge_classifier_of_another_library(column):
    obs = plates()
    names = obs["batch"] if column == "batch" else obs["well"].str[1:]
    features = noise(obs)
    codes = pd.factorize(names)[0]
    features += 0.7 * np.random.default_rng(4).normal(size=(9, 8))[codes]  # read in part
    score = read(features, obs, **only(column))[0][column]
    target = Target(column, column, ("plate",), split="k_fold", n_folds=5, nuisance=True)
    folds = make_folds(obs.assign(**{column: names}), target)
    answer = np.empty(len(obs), object)
    for fold, about in zip(folds, score.folds, strict=True):
        assert about["fold"] == fold.name
        scaler = StandardScaler().fit(features[fold.train])
        model = RidgeClassifier(about["alpha"])
        model.fit(scaler.transform(features[fold.train]), names.to_numpy(object)[fold.train])
        answer[fold.test] = model.predict(scaler.transform(features[fold.test]))
    plate = obs["plate"].to_numpy()

    def right(of):
        return balanced_accuracy_score(names[of], answer[of])

    expected = {}
    for p in np.unique(plate):
        if column == "well_column":  # every plate has every column
            expected[p] = right(plate == p)
        else:  # a plate is of one batch: pseudo-values of all wells
            expected[p] = 6 * right(plate != "") - 5 * right(plate != p)
    assert score.per_unit == pytest.approx(expected)
    assert score.chance + 0.1 < score.value < 0.95


def test_many_names_are_read_in_closed_form():
    rng = np.random.default_rng(0)
    plate, well = np.divmod(np.arange(720), 24)
    obs = pd.DataFrame({"plate": plate, "well": [f"A{w + 1:02d}" for w in well]}).astype(str)
    own = rng.normal(size=(30, 24))[plate]
    held_out = {"plate": ("plate", "well")}
    x = own + rng.normal(0, 0.3, own.shape)
    scores, _ = nuisance_scores(x, obs, held_out=held_out)
    assert scores[0].n_classes == 30 and scores[0].value > 0.95
    assert "alpha" in scores[0].folds[0]
    noise, _ = nuisance_scores(
        rng.normal(size=own.shape), obs, held_out={"plate": ("plate", "well")}
    )
    assert abs(noise[0].value - 1 / 30) < 0.04


def test_what_a_column_lacks_is_said():
    obs = plates()
    features = noise(obs)
    found, skipped = read(features, obs.drop(columns=["batch", "intensity", "well"]))
    assert skipped == {
        "plate": "the metadata have no column 'well'",
        "batch": "the metadata have no column 'batch'",
        "well_row": "the metadata have no column 'well_row'",
        "well_column": "the metadata have no column 'well_column'",
        "site": "the metadata have no column 'well'",
        "intensity": "the metadata have no column 'intensity'",
    }
    assert set(found) == {"count"}
    strange = obs.assign(well=obs["well"].replace("A01", "W7"))
    strange.loc[strange["plate"] == "P0", "well"] = "well 1"
    _, skipped = read(features, strange, **only("well_row", "well_column"))
    line = "column 'well' of row 0 is 'well 1', expected a row and a column like 'B07'"
    assert skipped == {"well_row": line, "well_column": line}
    two = obs["plate"].isin(["P0", "P1"])
    _, skipped = read(features[two], obs[two], **only("batch", "count"))
    assert all("needs at least 3 groups of plate" in why for why in skipped.values())
    _, skipped = read(features, obs.assign(site=1, count=7), **only("site", "count"))
    assert "has a single class, '1'" in skipped["site"]
    assert skipped["count"] == "column 'count' has a single value, 7"
    own = obs.assign(batch=obs["plate"])
    _, skipped = read(features, own, **only("batch"))
    assert "has no training example in fold" in skipped["batch"]
    lost = obs.assign(plate=obs["plate"].where(obs.index != 5))
    _, skipped = read(features, lost, **only("count"))
    assert skipped["count"].startswith("column 'plate' has no value in row 5")


def test_rows_without_a_value_are_left_out_and_counted():
    obs = plates()
    obs.loc[:9, "count"] = np.nan
    obs["site"] = obs["site"].astype(object).where(obs.index >= 20, None)
    found, _ = read(noise(obs), obs, **only("count", "site"))
    assert (found["count"].n, found["count"].n_missing) == (278, 10)
    assert (found["site"].n, found["site"].n_missing) == (268, 20)


def test_wells_are_read_whatever_their_zeros():
    names = pd.Series(["A1", "b07", "AF48", None])
    read_ = batch._with_well_parts(pd.DataFrame({"well": names}))
    assert read_["well_row"].tolist() == ["A", "B", "AF", None]
    assert read_["well_column"].tolist() == ["1", "7", "48", None]
    given = pd.DataFrame({"well": ["?"], "well_row": ["x"], "well_column": [3]})
    assert batch._with_well_parts(given) is given


def test_the_order_of_rows_does_not_matter():
    obs = plates()
    features = noise(obs)
    features[:, 0] += 0.1 * obs["count"]
    order = np.random.default_rng(0).permutation(len(obs))
    one, _ = read(features, obs, **only("count", "well_row"))
    other, _ = read(features[order], obs.iloc[order], **only("count", "well_row"))
    for column, score in one.items():
        assert score.per_unit == pytest.approx(other[column].per_unit, abs=1e-9)


def test_input_that_is_wrong_is_named():
    obs = plates()
    features = noise(obs)
    with pytest.raises(InputError, match=r"features \(287, 8\) for 288 rows of metadata"):
        nuisance_scores(features[1:], obs)
    with pytest.raises(InputError, match="2 folds, expected 3 or more"):
        nuisance_scores(features, obs, n_folds=2)
    with pytest.raises(InputError, match="column 'count' of row 3 is 'many', expected a number"):
        many = obs["count"].astype(object)
        many[3] = "many"
        nuisance_scores(features, obs.assign(count=many))
    with pytest.raises(InputError, match="column 'intensity' of row 0 is 'inf', expected a number"):
        nuisance_scores(features, obs.assign(intensity=np.inf))
    features[4, 2] = np.nan
    with pytest.raises(InputError, match="feature 2 of row 4 is not finite"):
        nuisance_scores(features, obs)

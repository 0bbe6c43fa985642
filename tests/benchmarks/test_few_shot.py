"""Which shots a few-shot score comes from."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from bioimg_jax.benchmarks.few_shot import FewShot
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from tests.benchmarks.plates import COMPOUND, PLATE, features, metadata, table

ABOUT = {"representation": "r", "kind": "pixels", "seed": 0, "exposure": "none"}


def found(path, target, benchmark=FewShot(), signal=0.8, **sizes):  # noqa: B008
    obs = metadata(**sizes)
    layers = {"a": features(obs, signal=signal)["block02/mean"]}
    (score,) = benchmark.scores(table(path, obs, layers), make_folds(obs, target), target, **ABOUT)
    return score


def test_the_value_has_the_most_shots_that_every_fold_fills(tmp_path):
    # Twelve wells of a plate in four folds, two of them for training: six wells a class.
    score = found(tmp_path / "t.h5ad", PLATE, wells=12, cells=4)
    assert score.settings["shots"] == 4 and score.settings["unfilled_shots"] == [8, 16]
    assert {fold["shots"] for fold in score.settings["folds"]} == {4}
    shots = {k: v for k, v in score.other_metrics.items() if k.startswith("shots_")}
    assert list(shots) == ["shots_1", "shots_2", "shots_4"] and shots["shots_4"] == score.value
    assert score.search_budget == 1 and score.other_metrics["auroc"] is None


def test_more_shots_are_better(tmp_path):
    by_well = Target("compound", "treatment", ("plate", "well"), "k_fold", n_folds=4)
    score = found(tmp_path / "t.h5ad", by_well, plates=10, wells=12, cells=2, signal=0.5)
    values = [score.other_metrics[f"shots_{k}"] for k in (1, 2, 4, 8, 16)]
    assert values == sorted(values) and values[-1] > values[0] + 0.1
    assert score.settings["unfilled_shots"] == []


def test_every_unit_is_the_nearest_centroid_where_a_draw_holds_them_all(tmp_path):
    obs = metadata()
    values = features(obs, signal=0.8)["block02/mean"].astype(np.float32)
    labels, folds = obs["treatment"].to_numpy(str), make_folds(obs, COMPOUND)
    opened = table(tmp_path / "t.h5ad", obs, {"a": values})
    (score,) = FewShot(shots=(3,), draws=2).scores(opened, folds, COMPOUND, **ABOUT)
    for fold in folds:  # three training plates of equal size: the mean of units is that of rows
        rows = StandardScaler().fit(values[fold.train]).transform(values)
        model = NearestCentroid().fit(rows[fold.train], labels[fold.train])
        expected = balanced_accuracy_score(labels[fold.test], model.predict(rows[fold.test]))
        assert score.per_unit[obs["plate"].iloc[fold.test[0]]] == pytest.approx(expected)


def test_one_short_fold_limits_all(tmp_path):
    obs = metadata(plates=6)
    folds = make_folds(obs, COMPOUND)
    first_plates = obs["plate"].iloc[folds[0].train].unique()[:1]
    short = folds[0].train[obs["plate"].iloc[folds[0].train].isin(first_plates)]
    folds = [dataclasses.replace(folds[0], train=short), *folds[1:]]
    opened = table(tmp_path / "t.h5ad", obs, {"a": features(obs)["block02/mean"]})
    (score,) = FewShot().scores(opened, folds, COMPOUND, **ABOUT)
    assert score.settings["shots"] == 1 and score.settings["unfilled_shots"] == [2, 4, 8, 16]
    with pytest.raises(InputError, match="2 labelled plate a class, but a class has 1"):
        FewShot(shots=(2,)).scores(opened, folds, COMPOUND, **ABOUT)


def test_draws_of_the_same_seed_are_the_same(tmp_path):
    first, again, other = (
        found(tmp_path / f"{i}.h5ad", COMPOUND, FewShot(shots=(1,), draws=3, seed=seed))
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == again and first.per_unit != other.per_unit

"""The nearest neighbours that a score comes from."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from bioimg_jax.benchmarks.knn import Knn
from bioimg_jax.data.splits import make_folds
from tests.benchmarks.plates import COMPOUND, features, metadata, table

ABOUT = {"representation": "r", "kind": "pixels", "seed": 0, "exposure": "none"}


@pytest.mark.parametrize("width", [4, 20])
def test_agrees_with_scikit_learn_at_the_k_that_it_would_choose(width, tmp_path):
    obs = metadata()
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, width)) * np.exp(rng.normal(size=width))
    values = (features(obs, signal=0.8)["block02/mean"] @ mixing + 9).astype(np.float32)
    labels, folds = obs["treatment"].to_numpy(str), make_folds(obs, COMPOUND)
    (found,) = Knn().scores(
        table(tmp_path / "t.h5ad", obs, {"a": values}), folds, COMPOUND, **ABOUT
    )
    for fold, settings in zip(folds, found.settings["folds"], strict=True):
        scaler = StandardScaler().fit(values[fold.train].astype(np.float64))
        ones = np.ones((len(values), 1 if width < 16 else 0))
        rows = np.concatenate([scaler.transform(values.astype(np.float64)), ones], axis=1)
        ks = (144, 100, 20, 10, 5, 1)  # 200 is more than the 144 training rows
        models = [
            KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp(-d / 0.07)).fit(
                rows[fold.train], labels[fold.train]
            )
            for k in ks
        ]
        on_validation = [
            balanced_accuracy_score(labels[fold.validation], model.predict(rows[fold.validation]))
            for model in models
        ]
        best = int(np.argmax(on_validation))
        assert (settings["k"], settings["constant_column"]) == (ks[best], width < 16)
        assert settings["validation"] == pytest.approx(on_validation[best])
        unit = obs["plate"].iloc[fold.test[0]]
        expected = balanced_accuracy_score(labels[fold.test], models[best].predict(rows[fold.test]))
        assert found.per_unit[unit] == pytest.approx(expected)
    assert found.search_budget == 6


def test_one_column_is_read_by_its_value_and_not_by_its_sign(tmp_path):
    obs = metadata(cells=16)
    rng = np.random.default_rng(0)
    count = rng.normal(100, 10, size=len(obs))
    obs["treatment"] = np.where(count > 110, "many", "few")  # a threshold one sd above the mean
    opened = table(tmp_path / "t.h5ad", obs, {"count": count[:, None].astype(np.float32)})
    (found,) = Knn().scores(opened, make_folds(obs, COMPOUND), COMPOUND, **ABOUT)
    assert found.value > 0.93
    assert all(fold["constant_column"] for fold in found.settings["folds"])


def test_equal_rows_of_two_classes_split_their_votes(tmp_path):
    obs = metadata(treatments=2)
    side = obs["well"].isin(["W0", "W1"]).to_numpy(np.float32)  # a well of either class on each
    opened = table(tmp_path / "t.h5ad", obs, {"side": side[:, None]})
    (found,) = Knn(ks=(1,)).scores(opened, make_folds(obs, COMPOUND), COMPOUND, **ABOUT)
    assert list(found.per_unit.values()) == pytest.approx([0.5] * 5)

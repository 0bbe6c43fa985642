"""The ridge regression that a score comes from."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.data.splits import make_folds
from tests.benchmarks.plates import COMPOUND, features, metadata, table

ALPHAS = (1e1, 1e4, 1e3, 1e-1)
ABOUT = {"representation": "r", "kind": "pixels", "seed": 0, "exposure": "none"}


def test_agrees_with_scikit_learn_at_the_alpha_that_it_would_choose(tmp_path):
    obs = metadata()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(obs), 60))
    values = np.concatenate([features(obs, signal=0.8)["block02/mean"], noise], axis=1)
    values = (values * np.exp(rng.normal(size=66)) + 3).astype(np.float32)
    labels, folds = obs["treatment"].to_numpy(str), make_folds(obs, COMPOUND)
    opened = table(tmp_path / "t.h5ad", obs, {"a": values})
    (found,) = Ridge(ALPHAS).scores(opened, folds, COMPOUND, **ABOUT)
    for fold, settings in zip(folds, found.settings["folds"], strict=True):
        rows = StandardScaler().fit(values[fold.train]).transform(values)
        alphas = sorted(ALPHAS, reverse=True)
        # Three classes: -1 and 1 in place of 0 and 1 is the same problem, doubled and shifted.
        models = [RidgeClassifier(a).fit(rows[fold.train], labels[fold.train]) for a in alphas]
        on_validation = [
            balanced_accuracy_score(labels[fold.validation], model.predict(rows[fold.validation]))
            for model in models
        ]
        best = int(np.argmax(on_validation))
        assert settings["alpha"] == alphas[best]
        assert settings["validation"] == pytest.approx(on_validation[best])
        unit = obs["plate"].iloc[fold.test[0]]
        expected = balanced_accuracy_score(labels[fold.test], models[best].predict(rows[fold.test]))
        assert found.per_unit[unit] == pytest.approx(expected)
    assert found.search_budget == len(ALPHAS)

"""What is left of expression beyond total counts and position: where it is all, and where not."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from bioimg_jax.benchmarks.beyond_expression import beyond_expression, spot_confounds
from bioimg_jax.benchmarks.confound import ADDED, PERMUTATION, RESIDUALISED
from bioimg_jax.benchmarks.expression import (
    OFFICIAL,
    Experiment,
    audit_features,
    joint_predictions,
    make_experiment,
    official_predictions,
    score_expression,
)
from bioimg_jax.data.splits import Fold

PATIENTS, SPOTS, GENES = 6, 64, 6


class Tissue:
    """Spots on a grid whose genes follow a latent factor, their depth, and a gradient in x."""

    def __init__(self, seed: int = 0, *, gradient: float = 0.0, patients: int = PATIENTS) -> None:
        rng = np.random.default_rng(seed)
        n = patients * SPOTS
        self.unit = np.array([f"P{p}" for p in range(patients)]).repeat(SPOTS)
        side = int(SPOTS**0.5)
        self.x = np.tile(np.arange(SPOTS) % side, patients).astype(float)
        self.y = np.tile(np.arange(SPOTS) // side, patients).astype(float)
        self.depth = rng.lognormal(0, 0.6, n)
        self.latent = rng.normal(size=n)
        effects = rng.choice([-1.0, 1.0], GENES) * rng.uniform(0.4, 0.8, GENES)
        slope = gradient * (self.x - self.x.mean())[:, None] * np.linspace(-1, 1, GENES)
        rate = self.depth[:, None] * np.exp(1.5 + self.latent[:, None] * effects + slope)
        self.counts = rng.poisson(rate)
        self.noise = rng.normal(size=(n, 3))

    @property
    def totals(self) -> np.ndarray:
        return self.counts.sum(axis=1)

    @property
    def experiment(self) -> Experiment:
        names = sorted(set(self.unit))
        folds = []
        for k in range(3):
            test = np.flatnonzero(np.isin(self.unit, names[k::3]))
            train = np.setdiff1d(np.arange(len(self.unit)), test)
            folds.append(Fold(str(k), train, np.array([], int), test, ("patient",)))
        genes = [f"G{j}" for j in range(GENES)]
        return make_experiment(
            self.counts, genes, genes, sections=self.unit, units=self.unit, folds=folds
        )

    def beyond(self, features: np.ndarray, name: str) -> dict[str, dict[str, Any]]:
        audit = audit_features(self.x, self.y, self.totals, self.unit)
        confound = spot_confounds(self.x, self.y, self.totals, audit)[name]
        rows = beyond_expression(features, self.experiment, confound, permutations=39, seed=0)
        return {row["method"]: row for row in rows}


def test_features_of_the_depth_say_nothing_beyond_total_counts() -> None:
    tissue = Tissue()
    features = np.hstack([np.log(tissue.totals + 1.0)[:, None], 0.1 * tissue.noise])
    whole = score_expression(features, tissue.experiment)[OFFICIAL].value
    found = tissue.beyond(features, "total_counts")
    assert whole > 0.4
    assert abs(found[PERMUTATION]["value"]) < 0.06 and found[PERMUTATION]["alone"] > 0.35
    assert abs(found[ADDED]["value"]) < 0.03
    assert abs(found[RESIDUALISED]["value"]) < 0.1


def test_features_of_the_latent_factor_say_it_beyond_total_counts() -> None:
    tissue = Tissue()
    features = np.hstack([tissue.latent[:, None], 0.1 * tissue.noise]) + 3
    found = tissue.beyond(features, "total_counts")
    assert found[PERMUTATION]["value"] > 0.3 and found[ADDED]["value"] > 0.15
    assert found[RESIDUALISED]["value"] > 0.3
    assert found[ADDED]["p"] < 0.01 and found[PERMUTATION]["p"] is None
    for row in found.values():
        assert not row["refused"] and row["n"] == PATIENTS * SPOTS
        assert row["n_retained"] > 0.9 * row["n"] and row["lower"] < row["value"] < row["upper"]


def test_features_that_only_cost_are_refused_by_the_joint_fit() -> None:
    tissue = Tissue(1)
    noise = np.random.default_rng(5).normal(size=(len(tissue.unit), 100))
    for fold in range(3):
        audit = audit_features(tissue.x, tissue.y, tissue.totals, tissue.unit)
        columns = spot_confounds(tissue.x, tissue.y, tissue.totals, audit)["total_counts"].columns
        taken = joint_predictions(noise, columns, tissue.experiment, fold)
        alone = official_predictions(columns, tissue.experiment, fold)
        np.testing.assert_array_equal(taken, alone)
    added = tissue.beyond(noise, "total_counts")[ADDED]
    assert added["value"] == 0.0 and added["p"] is None
    # With one section to train on nothing can be chosen by, and noise costs.
    single = Tissue(1, patients=2)
    experiment = make_experiment(
        single.counts, [f"G{j}" for j in range(GENES)], [f"G{j}" for j in range(GENES)],
        sections=single.unit, units=single.unit,
        folds=[Fold("0", np.arange(SPOTS), np.array([], int), np.arange(SPOTS, 2 * SPOTS), ())],
    )  # fmt: skip
    columns = np.log1p(single.totals)[:, None]
    taken = joint_predictions(noise[: 2 * SPOTS], columns, experiment, 0)
    assert np.abs(taken - official_predictions(columns, experiment, 0)).max() > 0.1


def test_features_of_the_place_say_nothing_beyond_position() -> None:
    tissue = Tissue(gradient=0.4)
    features = np.hstack([tissue.x[:, None], 0.2 * tissue.noise])
    assert score_expression(features, tissue.experiment)[OFFICIAL].value > 0.3
    found = tissue.beyond(features, "position")
    # The bins are four spots wide: inside them something of the gradient is left.
    assert found[PERMUTATION]["value"] < 0.5 * found[PERMUTATION]["observed"]
    assert abs(found[ADDED]["value"]) < 0.03
    own = tissue.beyond(np.hstack([tissue.latent[:, None], 0.1 * tissue.noise]), "position")
    assert own[ADDED]["value"] > 0.1 and own[PERMUTATION]["value"] > 0.3


def test_on_all_spots_the_observed_score_is_the_protocols() -> None:
    tissue = Tissue(3)
    features = np.hstack([tissue.latent[:, None], tissue.noise])
    found = tissue.beyond(features, "total_counts")[PERMUTATION]
    assert found["n_retained"] == found["n"]
    whole = score_expression(features, tissue.experiment)[OFFICIAL]
    assert found["observed"] == pytest.approx(whole.value, abs=1e-9)


def test_a_value_is_the_difference_of_two_scores_with_several_units_a_fold() -> None:
    tissue = Tissue(3)
    features = np.hstack([tissue.latent[:, None], tissue.noise])
    assert all(len(set(tissue.unit[fold.test])) == 2 for fold in tissue.experiment.folds)
    found = tissue.beyond(features, "total_counts")
    for method in (PERMUTATION, ADDED):
        row = found[method]
        assert row["value"] == pytest.approx(row["observed"] - row["alone"], abs=1e-12)
        assert (row["lower"] + row["upper"]) / 2 == pytest.approx(row["value"], abs=1e-12)


def test_residuals_are_those_of_scikit_learn_on_the_training_spots_of_one_fold() -> None:
    tissue = Tissue(5, patients=3)  # all spots are retained
    experiment = tissue.experiment
    features = np.hstack([tissue.latent[:, None], np.log(tissue.totals + 1.0)[:, None]])
    features += 0.3 * tissue.noise[:, :2]
    audit = audit_features(tissue.x, tissue.y, tissue.totals, tissue.unit)
    confound = spot_confounds(tissue.x, tissue.y, tissue.totals, audit)["total_counts"]
    values = []
    for fold in experiment.folds:
        train = fold.train
        fit = LinearRegression().fit(confound.columns[train], features[train])
        left = features - fit.predict(confound.columns)
        one = make_experiment(
            tissue.counts, experiment.names, experiment.names, sections=tissue.unit,
            units=tissue.unit, folds=[fold],
        )  # fmt: skip
        values.append(score_expression(left, one)[OFFICIAL].value)
    found = tissue.beyond(features, "total_counts")[RESIDUALISED]
    assert found["value"] == pytest.approx(np.mean(values), abs=1e-9)


def test_a_confound_without_spots_to_change_places_has_a_reason() -> None:
    tissue = Tissue(0, patients=3)
    audit = audit_features(tissue.x, tissue.y, tissue.totals, tissue.unit)
    held = spot_confounds(tissue.x, tissue.y, tissue.totals, audit)["total_counts"]
    held = dataclasses.replace(held, columns=held.columns * np.nan)
    rows = beyond_expression(tissue.noise, tissue.experiment, held, permutations=3, seed=0)
    assert len(rows) == 3
    for row in rows:
        assert row["value"] is None
        assert row["refused"] == "total_counts 0 of spot 0 is not finite"


def _with(features: np.ndarray, at: Any, value: float) -> np.ndarray:
    changed = features.copy()
    changed[at] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": lambda x: _with(x, (7, 1), np.nan)},
            "feature 1 of spot 7 is not finite",
        ),
        (
            {"features": lambda x: _with(x, (8, 0), -np.inf)},
            "feature 0 of spot 8 is not finite",
        ),
        (
            {"features": lambda x: np.full_like(x, 3.0)},
            "every feature is constant among the 128 training spots of fold '0', expected one",
        ),
        ({"features": lambda x: x[1:]}, r"feature \(191, 3\), expected \[192, d\]: a row a spot"),
        ({"features": lambda x: x[:, :0]}, r"feature \(192, 0\), expected \[192, d\]"),
        (
            {"columns": lambda z: np.ones_like(z)},
            "every total_counts is constant among the 128 training spots of fold '0'",
        ),
        (
            {"columns": lambda z: _with(z, (3, 0), np.inf)},
            "total_counts 0 of spot 3 is not finite",
        ),
        (
            {"strata": lambda z: z * np.nan},
            "nothing can be said beyond total_counts: 0 of 192 rows have it",
        ),
        (
            {"strata": lambda z: _with(z, slice(0, SPOTS - 1), np.nan)},
            "fold '0': 0 of 64 test spots are left beyond total_counts, expected 2 or more",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_is_a_row_with_one_line(change: dict[str, Any], message: str) -> None:
    tissue = Tissue(0, patients=3)
    audit = audit_features(tissue.x, tissue.y, tissue.totals, tissue.unit)
    held = spot_confounds(tissue.x, tissue.y, tissue.totals, audit)["total_counts"]
    features = tissue.noise
    for what, of in change.items():
        if what == "features":
            features = of(features)
        else:
            held = dataclasses.replace(held, **{what: of(getattr(held, what))})
    rows = beyond_expression(features, tissue.experiment, held, permutations=3, seed=0)
    assert [row["method"] for row in rows] == [PERMUTATION, ADDED, RESIDUALISED]
    for row in rows:
        assert row["value"] is None and "\n" not in row["refused"]
        assert re.search(message, row["refused"]), row["refused"]

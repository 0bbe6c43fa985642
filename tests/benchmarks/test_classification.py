import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from bioimg_jax.benchmarks.classification import _auroc, permute_labels
from bioimg_jax.benchmarks.ladder import cases
from bioimg_jax.benchmarks.linear import Linear
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.intervals import train_overlap
from bioimg_jax.statistics.verdict import judge
from tests.benchmarks.plates import COMPOUND, PLATE, features, metadata, table

STRENGTHS = (1e1, 1e-1, 1e-3)


def scores(table, folds, target, strengths=STRENGTHS, **changes):
    arguments = {
        "representation": "encoder",
        "kind": "trained",
        "seed": 0,
        "exposure": "images",
        **changes,
    }
    return Linear(strengths).scores(table, folds, target, **arguments)


def test_rows_say_what_was_done(tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    found = scores(table(tmp_path / "t.h5ad", obs, features(obs)), folds, COMPOUND)
    assert [(s.block, s.pooling) for s in found] == [
        ("block02", "mean"),
        ("final", "cls"),
        ("selected", "selected"),
    ]
    signal, noise, selected = found
    assert signal.value > 0.85 and noise.value < 0.5
    assert signal.split == "leave one plate out, 5 folds"
    assert signal.chance == pytest.approx(1 / 3) and signal.ceiling == 1.0
    assert selected.unit == ("plate",)
    assert set(signal.per_unit) == {f"P{i}" for i in range(5)} and signal.n_units == 5
    assert signal.value == pytest.approx(np.mean(list(signal.per_unit.values())))
    assert signal.interval[0] < signal.value < signal.interval[1]
    assert (signal.search_budget, selected.search_budget) == (3, 6)
    assert {fold["layer"] for fold in selected.settings["folds"]} == {"block02/mean"}
    assert selected.per_unit == signal.per_unit
    assert all(fold["converged"] for fold in signal.settings["folds"])
    assert set(signal.other_metrics) == {"accuracy", "balanced_accuracy", "macro_f1", "auroc"}
    assert signal.other_metrics["auroc"] > 0.9
    assert json.loads(json.dumps(signal.to_row()))["interval"] == list(signal.interval)


def test_permuted_labels_are_at_chance(tmp_path):
    obs = metadata(cells=16)
    folds = make_folds(obs, COMPOUND)
    opened = table(tmp_path / "t.h5ad", obs, {"final/mean": features(obs)["block02/mean"]})
    values = [scores(opened, folds, COMPOUND, permute_labels_seed=s)[0].value for s in range(8)]
    assert abs(np.mean(values) - 1 / 3) < 0.03
    assert scores(opened, folds, COMPOUND)[0].value > 0.85


def test_permuted_units_of_one_class_are_at_chance(tmp_path):
    obs = metadata(wells=12, cells=4)
    folds = make_folds(obs, PLATE)
    opened = table(tmp_path / "t.h5ad", obs, {"final/mean": 3 * features(obs)["final/cls"]})
    values = [scores(opened, folds, PLATE, permute_labels_seed=s)[0].value for s in range(8)]
    assert abs(np.mean(values) - 1 / 5) < 0.06
    real = scores(opened, folds, PLATE)[0]
    assert real.value > 0.35
    assert real.split == "held-out plate/well, 4 folds" and real.n_units == 60
    assert real.chance == pytest.approx(1 / 5)


def test_classes_absent_from_a_unit_do_not_count(tmp_path):
    obs = metadata()
    keep = ~((obs["plate"] == "P2") & (obs["treatment"] == "drug 1"))
    obs = obs[keep].reset_index(drop=True)
    layers = {"final/mean": features(obs, signal=20.0)["block02/mean"]}
    found = scores(table(tmp_path / "t.h5ad", obs, layers), make_folds(obs, COMPOUND), COMPOUND)
    assert found[0].per_unit["P2"] == 1.0
    assert len(found) == 1  # one layer: nothing to select


def test_overlapping_training_sets_widen_the_interval(tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    found = scores(table(tmp_path / "t.h5ad", obs, features(obs)), folds, COMPOUND)[0]
    values = np.array(list(found.per_unit.values()))
    half = 2.776445 * np.sqrt(values.var(ddof=1) / 5 * (1 + 5 * 1 / 3))
    assert found.interval[1] - found.value == pytest.approx(half)


def test_three_units_have_no_interval(tmp_path):
    obs = metadata(plates=3)
    folds = make_folds(obs, COMPOUND)
    found = scores(table(tmp_path / "t.h5ad", obs, features(obs)), folds, COMPOUND)
    assert all(score.interval is None and score.n_units == 3 for score in found)


def test_order_of_rows_does_not_matter(tmp_path):
    obs = metadata()
    layers = features(obs)
    order = np.random.default_rng(0).permutation(len(obs))
    straight = table(tmp_path / "a.h5ad", obs, layers)
    shuffled_obs = obs.iloc[order].reset_index(drop=True)
    shuffled = table(tmp_path / "b.h5ad", shuffled_obs, {k: v[order] for k, v in layers.items()})
    one = scores(straight, make_folds(obs, COMPOUND), COMPOUND)
    other = scores(shuffled, make_folds(shuffled_obs, COMPOUND), COMPOUND)
    for a, b in zip(one, other, strict=True):
        assert a.per_unit == pytest.approx(b.per_unit, abs=1e-9)


def test_test_rows_take_no_part_in_any_choice(tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)[:1]
    layers = features(obs)
    spoilt = {name: values.copy() for name, values in layers.items()}
    rng = np.random.default_rng(1)
    for values in spoilt.values():
        values[folds[0].test] = rng.normal(size=values[folds[0].test].shape)
    clean = scores(table(tmp_path / "a.h5ad", obs, layers), folds, COMPOUND)
    changed = scores(table(tmp_path / "b.h5ad", obs, spoilt), folds, COMPOUND)
    for a, b in zip(clean, changed, strict=True):
        assert a.settings == b.settings
    assert clean[0].value != changed[0].value


def test_ties_go_to_the_stronger_regularisation(tmp_path):
    obs = metadata()
    layers = {"a/mean": features(obs, signal=50.0)["block02/mean"]}
    layers["b/mean"] = layers["a/mean"]
    found = scores(
        table(tmp_path / "t.h5ad", obs, layers), make_folds(obs, COMPOUND), COMPOUND,
        strengths=(1e-3, 1e-1, 1e-2),
    )  # fmt: skip
    for score in found:
        assert score.value == 1.0
        assert {fold["strength"] for fold in score.settings["folds"]} == {1e-1}
    assert {fold["layer"] for fold in found[-1].settings["folds"]} == {"a/mean"}


def test_balanced_accuracy_agrees_with_scikit_learn(tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)[:1]
    found = scores(table(tmp_path / "t.h5ad", obs, features(obs, signal=0.7)), folds, COMPOUND)[0]
    assert found.value == pytest.approx(found.other_metrics["balanced_accuracy"])
    constant = balanced_accuracy_score([0, 1, 2], [0, 0, 0])
    assert found.chance == pytest.approx(constant)


def test_class_without_training_example_is_named(tmp_path):
    obs = metadata()
    fold = make_folds(obs, COMPOUND)[0]
    treatment = obs["treatment"].to_numpy()
    train = fold.train[treatment[fold.train] != "drug 2"]
    without = dataclasses.replace(fold, train=train)
    opened = table(tmp_path / "t.h5ad", obs, features(obs))
    with pytest.raises(InputError, match="class 'drug 2' has no training example in fold"):
        scores(opened, [without], COMPOUND)


def test_single_class_and_unknown_metric_are_refused(tmp_path):
    obs = metadata(treatments=1)
    folds = make_folds(obs, COMPOUND)
    opened = table(tmp_path / "t.h5ad", obs, features(obs))
    with pytest.raises(InputError, match="single class, 'drug 0'"):
        scores(opened, folds, COMPOUND)
    with pytest.raises(InputError, match="metric 'f1'"):
        scores(opened, folds, dataclasses.replace(COMPOUND, metric="f1"))


def test_permutation_keeps_the_classes_of_each_unit():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(4), 30)
    labels = rng.integers(0, 3, 120)
    permuted = permute_labels(labels, units, rng)
    assert (permuted != labels).any()
    for unit in range(4):
        inside = units == unit
        np.testing.assert_array_equal(np.bincount(permuted[inside]), np.bincount(labels[inside]))
    whole = permute_labels(units % 2, units, rng)
    assert len(np.unique(whole + 2 * units)) == 4  # still one class a unit
    labels[units == 0] = 1
    mixed = permute_labels(labels, units, rng)
    assert len(np.unique(mixed[units == 0])) > 1


def one_class_units(per_class=(30, 12, 6), rows=3):
    """Wells of one treatment each, some treatments rarer than others."""
    return pd.DataFrame(
        [
            {"plate": "P", "well": f"W{k}{w:02d}", "treatment": f"drug {k}"}
            for k, wells in enumerate(per_class)
            for w in range(wells)
            for _ in range(rows)
        ]
    )


ONE_CLASS = Target("compound", "treatment", ("well",), "k_fold", n_folds=3)


def test_an_encoder_that_is_always_right_is_judged_where_units_hold_one_class(tmp_path):
    obs = one_class_units()
    folds = make_folds(obs, ONE_CLASS)
    truth = np.eye(3)[obs["treatment"].astype("category").cat.codes]
    rng = np.random.default_rng(0)
    found = []
    for name, kind, x in (
        ("encoder", "imported", 5 * truth), ("pixels", "pixels", rng.normal(size=(len(obs), 3))),
    ):  # fmt: skip
        opened = table(tmp_path / f"{name}.h5ad", obs, {"final/mean": x})
        found += scores(opened, folds, ONE_CLASS, representation=name, kind=kind)
    assert found[0].value == 1.0 and found[0].settings["per_unit"] == "pseudo-values"
    assert sum(found[0].unit_rows.values()) == 3 * 6 * 3  # as many of each class as of the rarest
    audit = {"verdict": "", "reason": "", "rivals": {}}
    target = {"name": "compound", "nuisance": False, "audit": audit}
    (case,) = cases(found, [target], ["chance", "pixels"], delta=0.03, overlap={"compound": 0.0})
    (judged,) = judge([dataclasses.replace(case, ceiling=None)])
    assert judged.word == "above"


def test_answers_thinned_to_the_rarest_class_bound_the_mean_recall():
    # All right in the sample: the mean recall may be below the limit in 0.025 of samples at most.
    counts = np.array([90, 36, 18])
    low = stats.beta.ppf(0.025, 3 * counts.min(), 1)
    rng = np.random.default_rng(0)
    for recalls in rng.uniform(0.85, 1.0, (2_000, 3)):
        if recalls.mean() < low:
            assert np.prod(recalls**counts) <= 0.025


def test_permuted_labels_give_no_above_beyond_nominal(tmp_path):
    # The whole way from features to the verdict, labels permuted anew each time.
    obs = metadata(plates=8, wells=6, cells=3)
    folds = make_folds(obs, COMPOUND)
    layers = {"encoder": features(obs)["block02/mean"], "pixels": features(obs, 1)["final/cls"]}
    tables = {
        name: table(tmp_path / f"{name}.h5ad", obs, {"final/mean": x}) for name, x in layers.items()
    }
    audit = {"verdict": "", "reason": "", "rivals": {}}
    target = {"name": "compound", "nuisance": False, "audit": audit}
    overlap = train_overlap(folds)

    def word(seed):
        found = []
        for name, kind in (("encoder", "trained"), ("pixels", "pixels")):
            found += Ridge().scores(
                tables[name], folds, COMPOUND, representation=name, kind=kind, seed=0,
                exposure="none", permute_labels_seed=seed,
            )  # fmt: skip
        given = cases(found, [target], ["chance", "pixels"], delta=0.03,
                      overlap={"compound": overlap})  # fmt: skip
        return judge(given)[0].word

    assert word(None) == "above"
    words = [word(seed) for seed in range(100)]
    assert words.count("above") <= stats.binom.ppf(0.999, 100, 0.025)


@pytest.mark.parametrize("classes", [2, 5])
def test_auroc_is_scikit_learns_ties_and_absent_classes_included(classes):
    rng = np.random.default_rng(classes)
    labels = rng.choice([0, 2, 3, 4, 5][:classes], 200)
    ranking = np.round(rng.normal(size=(200, 6)), 1) + (labels[:, None] == np.arange(6))
    present = np.unique(labels)
    expected = [roc_auc_score(labels == k, ranking[:, k]) for k in present]
    assert _auroc(labels, ranking) == pytest.approx(np.mean(expected), abs=1e-12)
    assert _auroc(np.zeros(5, int), np.zeros((5, 6))) is None

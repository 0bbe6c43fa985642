"""What every benchmark that a config can name keeps, end to end on a synthetic screen."""

import dataclasses
import json

import numpy as np
import pytest

from bioimg_jax.benchmarks.ladder import cases
from bioimg_jax.benchmarks.registry import find_benchmarks
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from tests.benchmarks.plates import COMPOUND, PLATE, features, metadata, table

NAMES = ("linear", "knn", "few_shot", "ridge", "attentive")
OTHERS = NAMES[
    1:4
]  # attentive shares its code with linear; what test_classification.py says of the linear probe
OPTIONS = {"strengths": (1e-1,)}


def scores(name, opened, folds, target=COMPOUND, **changes):
    (benchmark,) = find_benchmarks(name, OPTIONS)
    benchmark.check(target)
    about = {
        "representation": "encoder",
        "kind": "trained",
        "seed": 0,
        "exposure": "images",
        "settings": {},
        "permute_labels_seed": None,
        **changes,
    }
    return benchmark.scores(opened, folds, target, **about)


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_that_knows_is_found_and_chosen(name, tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    found = scores(name, table(tmp_path / "t.h5ad", obs, features(obs)), folds)
    signal, noise, selected = found
    assert signal.value > 0.8 and noise.value < 0.55
    assert selected.block == "selected" and selected.per_unit == signal.per_unit
    assert selected.other_metrics == pytest.approx(signal.other_metrics)
    assert {fold["layer"] for fold in selected.settings["folds"]} == {"block02/mean"}
    assert selected.search_budget == signal.search_budget + noise.search_budget
    assert signal.chance == pytest.approx(1 / 3) and signal.n_units == 5
    assert {s.benchmark for s in found} == {s.settings["probe"] for s in found} == {name}
    for score in found:
        assert Score.from_row(json.loads(json.dumps(score.to_row()))) == score


@pytest.mark.parametrize("name", OTHERS)
def test_permuted_labels_are_at_chance(name, tmp_path):
    obs = metadata(cells=16)
    layers = {"final/mean": features(obs)["block02/mean"]}
    opened, folds = table(tmp_path / "t.h5ad", obs, layers), make_folds(obs, COMPOUND)
    values = [scores(name, opened, folds, permute_labels_seed=s)[0].value for s in range(8)]
    assert abs(np.mean(values) - 1 / 3) < 0.03
    obs = metadata(wells=12, cells=4)  # units of one class swap their labels whole
    layers = {"final/mean": 3 * features(obs)["final/cls"]}
    opened, folds = table(tmp_path / "u.h5ad", obs, layers), make_folds(obs, PLATE)
    values = [scores(name, opened, folds, PLATE, permute_labels_seed=s)[0].value for s in range(8)]
    assert abs(np.mean(values) - 1 / 5) < 0.06
    assert scores(name, opened, folds, PLATE)[0].value > 0.35


@pytest.mark.parametrize("name", NAMES)
def test_other_labels_of_the_test_rows_change_nothing_but_the_score(name, tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)[:1]
    other = obs.copy()
    tested = other["treatment"].to_numpy(object, copy=True)
    tested[folds[0].test] = np.random.default_rng(0).permutation(tested[folds[0].test])
    other["treatment"] = tested
    layers = features(obs)
    clean = scores(name, table(tmp_path / "a.h5ad", obs, layers), folds)
    changed = scores(name, table(tmp_path / "b.h5ad", other, layers), folds)

    def without_score(score):
        return dataclasses.replace(score, value=0.0, per_unit={}, other_metrics={})

    assert clean[0].value > changed[0].value + 0.2
    assert [without_score(s) for s in clean] == [without_score(s) for s in changed]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("target", [COMPOUND, PLATE], ids=lambda target: target.name)
def test_order_of_rows_does_not_matter(name, target, tmp_path):
    obs = metadata(cells=4)
    layers = {key: np.round(values, 1) for key, values in features(obs, signal=0.7).items()}
    order = np.random.default_rng(0).permutation(len(obs))
    shuffled = obs.iloc[order].reset_index(drop=True)
    one = scores(name, table(tmp_path / "a.h5ad", obs, layers), make_folds(obs, target), target)
    opened = table(tmp_path / "b.h5ad", shuffled, {k: v[order] for k, v in layers.items()})
    other = scores(name, opened, make_folds(shuffled, target), target)
    for a, b in zip(one, other, strict=True):
        assert a.per_unit == pytest.approx(b.per_unit, abs=1e-9)
        assert a.other_metrics == pytest.approx(b.other_metrics, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_training_seeds_are_one_case_and_their_twins_are_averaged(name, tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    found = {}
    for seed, kind in ((1, "trained"), (2, "trained"), (1, "untrained"), (2, "untrained")):
        trained = kind == "trained"
        key = f"mae_{seed}" + ("" if trained else "_step0")
        layers = features(obs, seed=seed, signal=1.5 if trained else 0.5)
        opened = table(tmp_path / f"{key}.h5ad", obs, layers)
        about = {"settings": {"group": "mae" if trained else "mae_step0"}}
        found[key] = scores(name, opened, folds, representation=key, kind=kind, seed=seed, **about)
    audit = {"verdict": "", "reason": "", "rivals": {}}
    (case,) = cases(
        [score for of in found.values() for score in of],
        [{"name": "compound", "nuisance": False, "audit": audit}],
        ("chance", "twin"), delta=0.05, overlap={"compound": 1.0},
    )  # fmt: skip
    assert (case.benchmark, case.encoder) == (name, "mae")
    assert case.values == [found["mae_1"][-1].per_unit, found["mae_2"][-1].per_unit]
    twins = [found[f"mae_{seed}_step0"][-1].per_unit for seed in (1, 2)]
    assert case.floors["twin"] == {u: (twins[0][u] + twins[1][u]) / 2 for u in twins[0]}


@pytest.mark.parametrize("name", OTHERS)
def test_constant_features_are_at_chance(name, tmp_path):
    obs = metadata()
    opened = table(tmp_path / "t.h5ad", obs, {"a": np.full((len(obs), 2), 3.0, np.float32)})
    (found,) = scores(name, opened, make_folds(obs, COMPOUND))
    assert list(found.per_unit.values()) == pytest.approx([1 / 3] * 5)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_training_example_and_an_unknown_metric_are_named(name, tmp_path):
    obs = metadata()
    fold = make_folds(obs, COMPOUND)[0]
    train = fold.train[obs["treatment"].to_numpy()[fold.train] != "drug 2"]
    opened = table(tmp_path / "t.h5ad", obs, features(obs))
    with pytest.raises(InputError, match="class 'drug 2' has no training example in fold"):
        scores(name, opened, [dataclasses.replace(fold, train=train)])
    strange = Target("compound", "treatment", ("plate",), "leave_one_out", metric="f1")
    with pytest.raises(InputError, match="metric 'f1'"):
        scores(name, opened, [fold], strange)


def test_benchmarks_keep_the_order_of_the_config_and_tell_apart_what_they_score():
    found = find_benchmarks("ridge, linear,few_shot,knn", OPTIONS)
    assert [benchmark.name for benchmark in found] == ["ridge", "linear", "few_shot", "knn"]
    assert len({json.dumps(benchmark.identity, sort_keys=True) for benchmark in found}) == 4
    fold = make_folds(metadata(), COMPOUND)[0]
    for benchmark in found:
        assert benchmark.fits >= 1
        assert 0 < benchmark.operations(fold, 8, 3) < benchmark.operations(fold, 16, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected some of linear, knn, few_shot, ridge"),
        (
            "knn,kNN",
            "'kNN', expected some of linear, knn, few_shot, ridge, attentive or a Python file",
        ),
        ("knn,ridge,knn", "names 'knn' twice"),
        ("absent.py", "absent.py"),
    ],
)
def test_a_wrong_list_is_one_line(text, message):
    with pytest.raises(InputError, match=message) as raised:
        find_benchmarks(text, OPTIONS)
    assert "evaluate.benchmarks" in str(raised.value) and "\n" not in str(raised.value)


OWN = """
from bioimg_jax.benchmarks.ridge import Ridge


def build():
    return Ridge((1e3,), name={name!r})
"""


def own(path, text):
    path.write_text(text)
    return find_benchmarks(f"knn,{path}", OPTIONS)[1]


def test_a_file_of_ones_own_scores_as_what_it_builds(tmp_path):
    benchmark = own(tmp_path / "mine.py", OWN.format(name="mine"))
    assert (benchmark.name, benchmark.fits) == ("mine", 1)
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    opened = table(tmp_path / "t.h5ad", obs, features(obs))
    benchmark.check(COMPOUND)
    assert benchmark.operations(folds[0], 8, 3) > 0
    about = {"representation": "r", "kind": "pixels", "seed": 0, "exposure": "none"}
    found = benchmark.scores(opened, folds, COMPOUND, **about)
    assert found == Ridge((1e3,), name="mine").scores(opened, folds, COMPOUND, **about)


def test_scores_of_a_file_of_ones_own_do_not_outlive_an_edit(tmp_path):
    before = own(tmp_path / "mine.py", OWN.format(name="mine"))
    again = own(tmp_path / "mine.py", OWN.format(name="mine"))
    edited = own(tmp_path / "mine.py", OWN.format(name="mine") + "# another text\n")
    assert before.identity == again.identity != edited.identity
    assert json.loads(json.dumps(edited.identity)) == edited.identity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.format(name="knn"), "is called 'knn', a name that is taken"),
        (OWN.format(name="few_shot"), "is called 'few_shot', a name that is taken"),
        (OWN.format(name="../up"), "is called '../up'; expected letters"),
        ("def build():\n    return object()\n", "what build.. returns has no 'name'"),
        ("x = 1\n", "defines no function 'build'"),
    ],
)
def test_a_wrong_file_of_ones_own_is_one_line(text, message, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
        own(tmp_path / "mine.py", text)
    assert str(raised.value).startswith(f"evaluate.benchmarks: {tmp_path / 'mine.py'}")
    assert "\n" not in str(raised.value)

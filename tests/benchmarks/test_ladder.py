"""Which scores are the floors of an encoder."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from bioimg_jax.benchmarks.ladder import (
    cases,
    floor_ids,
    selected_members,
    untrained_distribution,
    with_ceilings,
)
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.unit_metric import unit_metric
from bioimg_jax.statistics.verdict import Case

UNITS = ("P1", "P2", "P3", "P4")


def fold_settings(*validation: float, **more: Any) -> dict[str, Any]:
    """P1 and P2 are tested in the first fold, P3 and P4 in the second; one fold tests all."""
    folds = [
        {"fold": f"fold {i}", "validation": value, "units": list(UNITS[2 * i : 2 * i + 2])}
        for i, value in enumerate(validation)
    ]
    if len(folds) == 1:
        del folds[0]["units"]
    return {"folds": folds, **more}


def score(name: str, value: float, **changes: Any) -> Score:
    usual: dict[str, Any] = {
        "benchmark": "classification",
        "target": "compound",
        "split": "leave one plate out",
        "metric": "balanced_accuracy",
        "higher_is_better": True,
        "chance": 0.25,
        "ceiling": 1.0,
        "representation": name,
        "kind": "untrained",
        "block": "selected",
        "pooling": "selected",
        "seed": 0,
        "value": value,
        "per_unit": dict.fromkeys(UNITS, value),
        "interval": None,
        "n_units": 4,
        "unit": ("plate",),
        "exposure": "none",
        "search_budget": 8,
        "settings": fold_settings(0.4, 0.5),
    }
    return Score(**{**usual, **changes})


SCORES = [
    score("mae_vit", 0.5, kind="trained", block="block02", pooling="mean"),
    score("mae_vit", 0.6, kind="trained"),
    score("mae_vit_step0", 0.52, settings=fold_settings(0.9, 0.9)),
    score("vit_random_1", 0.55, seed=1, settings=fold_settings(0.5, 0.6)),
    score("vit_random_2", 0.58, seed=2, settings=fold_settings(0.55, 0.4)),
    score("vit_random", 0.565, seed=None),
    score("pixels", 0.54, kind="pixels", block="pixels", pooling=""),
    score("mae_vit_inductive", 0.6, kind="trained", per_unit={"P1": 0.6},
          settings=fold_settings(0.5, held_out="plate=P1")),
]  # fmt: skip
AUDIT: dict[str, Any] = {"verdict": "", "reason": "metadata do not settle it", "rivals": {}}
TARGET = {"name": "compound", "nuisance": False, "audit": AUDIT}


def made(scores: list[Score] = SCORES, target: dict[str, Any] = TARGET, ids: str = "") -> Case:
    floors = floor_ids(ids or "chance,pixels,twin,selected")
    (case,) = cases(scores, [target], floors, delta=0.05, overlap={"compound": 1.25})
    return case


def test_floors_are_found_and_the_family_member_is_chosen_on_validation_fold_by_fold() -> None:
    case = made()
    assert case.encoder == "mae_vit" and case.values == [dict.fromkeys(UNITS, 0.6)]
    assert {name: values and values["P1"] for name, values in case.floors.items()} == {
        "chance": 0.25, "pixels": 0.54, "twin": 0.52, "selected": 0.58,
    }  # fmt: skip
    # What validation says of the second fold must not choose for the first: its units are tested
    # there.
    assert case.floors["selected"] == {"P1": 0.58, "P2": 0.58, "P3": 0.55, "P4": 0.55}
    selected = selected_members(SCORES, "classification", "compound", "mae_vit")
    assert selected is not None
    assert selected.members == {"fold 0": "vit_random_2", "fold 1": "vit_random_1"}
    assert (selected.n_members, selected.search_budget) == (2, 16)
    assert (case.delta, case.overlap, case.ceiling) == (0.05, 1.25, 1.0)


def test_order_of_the_scores_changes_nothing() -> None:
    layers_in_order = sorted(SCORES, key=lambda s: s.representation)
    assert made(layers_in_order) == made()


def test_a_floor_that_has_not_been_run_is_none() -> None:
    case = made([s for s in SCORES if s.kind in ("trained", "pixels")], ids="pixels,twin,count")
    assert case.floors["pixels"] is not None
    assert case.floors["twin"] is None and case.floors["count"] is None


def test_what_the_audit_says_goes_along() -> None:
    audit = {"verdict": "confounded", "reason": "well determines compound",
             "rivals": {"well": dict.fromkeys(UNITS, 0.9)}}  # fmt: skip
    case = made(target={**TARGET, "audit": audit})
    assert case.confounded == "well determines compound"
    assert case.metadata == {"well": dict.fromkeys(UNITS, 0.9)}
    assert made(target={**TARGET, "nuisance": True}).nuisance


def test_the_truth_of_a_target_is_the_ceiling_of_its_benchmark_and_of_no_other() -> None:
    measured = dict(zip(UNITS, (0.9, 0.8, 0.95, 0.85), strict=True))
    truth = score("truth_compound", 0.875, kind="truth", block="truth", per_unit=measured)
    layer = score("truth_compound", 0.7, kind="truth", block="other", per_unit={})
    chosen = dataclasses.replace(truth, block="selected")
    case = made([*SCORES, truth])
    assert case.ceiling == measured and case.encoder == "mae_vit"
    assert made([*SCORES, layer, chosen]).ceiling == measured  # of layers the selected one
    assert "truth_compound" not in case.floors
    elsewhere = [
        dataclasses.replace(truth, target="position"),
        dataclasses.replace(truth, benchmark="knn"),
        dataclasses.replace(truth, representation="truth_position"),
        dataclasses.replace(truth, kind="pixels"),
    ]
    for other in elsewhere:
        found = cases([*SCORES, other], [TARGET], ["pixels"], delta=0.05, overlap={"compound": 0.0})
        assert [case.ceiling for case in found] == [1.0]
    rows = with_ceilings([*SCORES, truth, dataclasses.replace(SCORES[0], benchmark="knn")])
    assert [row.ceiling for row in rows] == [0.875] * (len(SCORES) + 1) + [1.0]
    assert with_ceilings(SCORES) == SCORES


def test_an_imported_encoder_has_no_floor_of_its_own_and_the_verdict_says_so() -> None:
    imported = [dataclasses.replace(SCORES[1], kind="imported", representation="theirs")]
    case = made([*imported, *SCORES[2:]], ids="chance,twin,layout_trained,selected")
    assert set(case.floors) == {"chance", "selected"}
    assert set(case.omitted) == {"twin", "layout_trained"}
    assert "imported" in case.omitted["twin"]


def test_the_encoder_on_the_layout_is_a_floor_of_its_own() -> None:
    shown = score("mae_vit_on_layout", 0.4, kind="layout")
    case = made([*SCORES, shown], ids="layout_trained,twin")
    assert case.floors["layout_trained"] == dict.fromkeys(UNITS, 0.4)
    assert made(ids="layout_trained").floors["layout_trained"] is None


@pytest.mark.parametrize("text", ["", "pixels,pixels", " , "])
def test_an_empty_or_double_list_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected different floors"):
        floor_ids(text)


def family(name: str, values: list[float], **changes: Any) -> list[Score]:
    return [
        score(f"{name}_{i}", value, seed=i, settings=fold_settings(0.5, group=name), **changes)
        for i, value in enumerate(values)
    ]


def test_the_untrained_distribution_is_of_seeds_of_a_family_without_twins_and_averages() -> None:
    values = np.random.default_rng(0).uniform(0.4, 0.8, 20).tolist()
    scores = [
        *family("vit_random", values),
        score("vit_random", float(np.mean(values)), seed=None, settings={"group": "vit_random"}),
        score("vit_random_0", 0.99, block="block02", pooling="mean"),  # not the chosen layer
        *family("resnet_random", [0.3, 0.5], target="position"),
        score("lonely", 0.45),
        score("mae_1_step0", 0.95, seed=1),
        score("mae_1", 0.6, kind="trained", seed=1, settings={"group": "mae"}),
        score("mae_2", 0.7, kind="trained", seed=2, settings={"group": "mae"}),
        score("held", 0.1, kind="trained", settings={"held_out": "plate=P1"}),
    ]
    rows = untrained_distribution(scores)
    assert [(r["benchmark"], r["target"], r["family"], r["n"]) for r in rows] == [
        ("classification", "compound", "vit_random", 20),
        ("classification", "compound", "lonely", 1),
        ("classification", "compound", "all", 21),
        ("classification", "position", "resnet_random", 2),
    ]
    ranked = sorted(values)
    assert rows[0]["median"] == pytest.approx((ranked[9] + ranked[10]) / 2)
    assert rows[0]["p95"] == pytest.approx(0.95 * ranked[18] + 0.05 * ranked[19])
    assert rows[0]["max"] == ranked[-1]
    assert rows[0]["share_beaten"] == {"mae": sum(v < 0.65 for v in values) / 20}
    assert rows[1]["share_beaten"] == {"mae": 1.0} and rows[3]["share_beaten"] == {}
    assert rows[2]["max"] == rows[0]["max"]
    backwards = untrained_distribution(scores[::-1])
    assert sorted(backwards, key=str) == sorted(rows, key=str)


def test_the_untrained_distribution_knows_which_side_is_better() -> None:
    trained = score("mae", 0.2, kind="trained", higher_is_better=False)
    (row,) = untrained_distribution(
        [trained, *family("f", [0.1, 0.2, 0.3, 0.4], higher_is_better=False)]
    )
    assert (row["max"], row["share_beaten"]) == (0.1, {"mae": 0.5})  # a tie is not beaten
    assert row["p95"] == pytest.approx(0.115)
    (row,) = untrained_distribution([trained, *family("f", [0.1, 0.2], higher_is_better=None)])
    assert row["share_beaten"] == {} and row["max"] == 0.2


def test_who_is_selected_does_not_depend_on_the_other_encoders_of_the_run() -> None:
    others = [
        score("other", 0.7, kind="trained"),
        score("other_step0", 0.9, settings=fold_settings(0.9, 0.9)),
    ]
    cased = {
        c.encoder: c.floors
        for c in cases(
            [*SCORES, *others], [TARGET], ["selected"], delta=0.05, overlap={"compound": 0.0}
        )
    }
    assert cased["mae_vit"] == cased["other"] == made(ids="selected").floors


def test_pseudo_values_of_the_selected_are_of_all_folds_answers_together() -> None:
    # Four units of one class each, two to a fold; the folds choose different members.
    answers = {"P1": {"a": [8.0, 10.0]}, "P2": {"b": [1.0, 2.0]}}, {
        "P3": {"a": [3.0, 4.0]}, "P4": {"b": [0.0, 5.0]},
    }  # fmt: skip

    def member(name: str, *validation: float) -> Score:
        settings = fold_settings(*validation)
        for fold, of in zip(settings["folds"], answers, strict=True):
            fold["answers"] = of
        return score(name, 0.5, settings=settings)

    found = selected_members(
        [SCORES[1], member("first", 0.9, 0.1), member("second", 0.1, 0.9)],
        "classification", "compound", "mae_vit",
    )  # fmt: skip
    assert found is not None and found.members == {"fold 0": "first", "fold 1": "second"}
    labels = np.repeat([0, 1, 0, 1], [10, 2, 4, 5])
    right = np.r_[np.arange(10) < 8, np.arange(2) < 1, np.arange(4) < 3, np.zeros(5, bool)]
    expected = unit_metric(
        labels, np.where(right, labels, 1 - labels), np.repeat(np.arange(4), [10, 2, 4, 5]),
        "balanced_accuracy",
    )  # fmt: skip
    assert list(found.per_unit) == list(UNITS)
    np.testing.assert_allclose(list(found.per_unit.values()), list(expected.values()))

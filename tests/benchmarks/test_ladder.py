"""Which scores are the floors of an encoder."""

from typing import Any

import pytest

from bioimg_jax.benchmarks.ladder import cases, floor_ids
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.verdict import Case

UNITS = ("P1", "P2", "P3", "P4")


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
        "exposure": "none",
        "search_budget": 8,
        "settings": {"folds": [{"validation": 0.4}, {"validation": 0.5}]},
    }
    return Score(**{**usual, **changes})


def fold_settings(*validation: float, **more: Any) -> dict[str, Any]:
    return {"folds": [{"validation": value} for value in validation], **more}


SCORES = [
    score("mae_vit", 0.5, kind="trained", block="block02", pooling="mean"),
    score("mae_vit", 0.6, kind="trained"),
    score("mae_vit_step0", 0.52, settings=fold_settings(0.9, 0.9)),
    score("vit_random_1", 0.55, seed=1, settings=fold_settings(0.5, 0.6)),
    score("vit_random_2", 0.58, seed=2, settings=fold_settings(0.5, 0.4)),  # best on test only
    score("vit_random", 0.565, seed=None),
    score("pixels", 0.54, kind="pixels", block="pixels", pooling=""),
    score("mae_vit_inductive", 0.6, kind="trained", per_unit={"P1": 0.6},
          settings=fold_settings(0.5, held_out="plate=P1")),
]  # fmt: skip
AUDIT = {"verdict": "", "reason": "metadata do not settle it", "per_unit": {}}
TARGET = {"name": "compound", "nuisance": False, "audit": AUDIT}


def made(scores: list[Score] = SCORES, target: dict[str, Any] = TARGET, ids: str = "") -> Case:
    floors = floor_ids(ids or "chance,pixels,twin,selected")
    (case,) = cases(scores, [target], floors, delta=0.05, overlap={"compound": 1.25})
    return case


def test_floors_are_found_and_the_family_member_is_chosen_on_validation() -> None:
    case = made()
    assert case.encoder == "mae_vit" and case.values == [dict.fromkeys(UNITS, 0.6)]
    assert {name: values and values["P1"] for name, values in case.floors.items()} == {
        "chance": 0.25, "pixels": 0.54, "twin": 0.52, "selected": 0.55,
    }  # fmt: skip
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
             "per_unit": dict.fromkeys(UNITS, 0.9)}  # fmt: skip
    case = made(target={**TARGET, "audit": audit})
    assert case.confounded == "well determines compound"
    assert case.metadata == dict.fromkeys(UNITS, 0.9)
    assert made(target={**TARGET, "nuisance": True}).nuisance


@pytest.mark.parametrize("text", ["", "pixels,pixels", " , "])
def test_an_empty_or_double_list_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected different floors"):
        floor_ids(text)

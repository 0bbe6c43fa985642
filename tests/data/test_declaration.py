import json

import pytest

from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError


def declaration(*targets: Target, **changes: object) -> Declaration:
    fields = {
        "name": "x",
        "channels": ("DNA", "ER"),
        "pixel_um": 0.3,
        "targets": targets,
        "nuisance": ("plate",),
        "symmetries": ("flip",),
        "pretraining": "all",
    }
    return Declaration(**{**fields, **changes})  # type: ignore[arg-type]


def test_json_round_trip_keeps_everything() -> None:
    target = Target(
        "position_control",
        "well",
        ("plate", "site"),
        "leave_one_out",
        where=(("compound", ("DMSO",)), ("well", ("A01", "J18"))),
        audit=("row", "column"),
        truth=("density", "rising"),
        aggregate=("plate", "well"),
    )
    nuisance = Target("plate", "plate", ("field",), "k_fold", n_folds=3, nuisance=True)
    original = declaration(target, nuisance)
    assert Declaration.from_json(original.to_json()) == original


def test_a_declaration_of_before_truth_and_aggregation_is_read() -> None:
    original = declaration(Target("compound", "compound", ("plate",), "leave_one_out"))
    fields = json.loads(original.to_json())
    del fields["targets"][0]["truth"], fields["targets"][0]["aggregate"]
    assert Declaration.from_json(json.dumps(fields)) == original


def test_unknown_target_names_the_ones_there_are() -> None:
    one = declaration(Target("compound", "compound", ("plate",), "leave_one_out"))
    assert one.target("compound").column == "compound"
    with pytest.raises(InputError, match=r"no target 'compond'; it has: compound"):
        one.target("compond")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "random"}, "split 'random' is none of"),
        ({"unit": ()}, "no unit of independence"),
        ({"split": "k_fold"}, "n_folds >= 2"),
        ({"split": "fixed"}, "needs a split_column"),
    ],
)
def test_impossible_target_is_refused(changes: dict, message: str) -> None:
    fields = {"name": "t", "column": "c", "unit": ("plate",), "split": "leave_one_out"}
    with pytest.raises(InputError, match=message):
        Target(**{**fields, **changes})


@pytest.mark.parametrize(
    "changes", [{"symmetries": ("mirror",)}, {"pretraining": "some"}, {"pretraining": "train"}]
)
def test_impossible_declaration_is_refused(changes: dict) -> None:
    with pytest.raises(InputError):
        declaration(**changes)

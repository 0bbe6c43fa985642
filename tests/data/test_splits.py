import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.data.splits import (
    class_labels,
    labelled_indices,
    make_folds,
    pretraining_indices,
    read_folds,
    unit_names,
    write_folds,
)
from bioimg_jax.errors import InputError


@pytest.fixture
def screen() -> pd.DataFrame:
    """4 plates x 3 wells x 4 sites x 5 cells; well A01 and B02 hold the control."""
    compounds = {"A01": "DMSO", "B02": "DMSO", "C03": "drug"}
    rows = [
        {"plate": plate, "well": well, "site": site, "compound": compounds[well]}
        for plate, well, site, _ in itertools.product(
            ("P1", "P2", "P3", "P4"), compounds, range(4), range(5)
        )
    ]
    frame = pd.DataFrame(rows)
    frame["field"] = unit_names(frame, ("plate", "well", "site"))
    return frame


def test_leave_one_out_rotates_whole_units(screen: pd.DataFrame) -> None:
    folds = make_folds(screen, Target("compound", "compound", ("plate",), "leave_one_out"))
    assert [fold.name for fold in folds] == [f"plate=P{i}" for i in (1, 2, 3, 4)]
    for i, fold in enumerate(folds):
        assert set(screen.plate[fold.test]) == {f"P{i + 1}"}
        assert set(screen.plate[fold.validation]) == {f"P{(i + 1) % 4 + 1}"}
        parts = np.concatenate([fold.train, fold.validation, fold.test])
        assert sorted(parts) == list(range(len(screen)))


def test_k_fold_keeps_fields_whole_and_every_class_everywhere(screen: pd.DataFrame) -> None:
    folds = make_folds(screen, Target("plate", "plate", ("field",), "k_fold", n_folds=3))
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(len(screen)))
    for fold in folds:
        sides = [set(screen.field[part]) for part in (fold.train, fold.validation, fold.test)]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
        for part in (fold.train, fold.validation, fold.test):
            assert set(screen.plate[part]) == {"P1", "P2", "P3", "P4"}


def test_k_fold_does_not_depend_on_row_order(screen: pd.DataFrame) -> None:
    target = Target("plate", "plate", ("field",), "k_fold", n_folds=3)
    shuffled = screen.sample(frac=1, random_state=0).reset_index(drop=True)
    for a, b in zip(make_folds(screen, target), make_folds(shuffled, target), strict=True):
        assert set(screen.field[a.test]) == set(shuffled.field[b.test])


def test_filter_and_empty_labels_leave_rows_out(screen: pd.DataFrame) -> None:
    target = Target(
        "position", "well", ("plate",), "leave_one_out", where=(("compound", ("DMSO",)),)
    )
    for fold in make_folds(screen, target):
        for part in (fold.train, fold.validation, fold.test):
            assert set(screen.well[part]) == {"A01", "B02"}
    screen.loc[screen.well == "B02", "compound"] = ""
    fold = make_folds(screen, Target("compound", "compound", ("plate",), "leave_one_out"))[0]
    assert set(screen.well[fold.train]) == {"A01", "C03"}


def test_fixed_split_follows_its_column(screen: pd.DataFrame) -> None:
    screen["split"] = screen.plate.map(
        {"P1": "train", "P2": "train", "P3": "validation", "P4": "test"}
    )
    target = Target("compound", "compound", ("plate",), "fixed", split_column="split")
    (fold,) = make_folds(screen, target)
    assert set(screen.plate[fold.train]) == {"P1", "P2"}
    assert set(screen.plate[fold.test]) == {"P4"}
    declaration = Declaration("x", ("a",), None, (target,), (), (), "train")
    assert set(screen.plate[pretraining_indices(screen, declaration)]) == {"P1", "P2"}
    screen["seen"] = np.where(screen.plate == "P3", "train", "test")  # no target's own split
    declaration = dataclasses.replace(declaration, pretraining_column="seen")
    assert set(screen.plate[pretraining_indices(screen, declaration)]) == {"P3"}
    with pytest.raises(InputError, match="split column 'seen' of data set 'x' does not exist"):
        pretraining_indices(screen.drop(columns="seen"), declaration)

    screen.loc[0, "split"] = "holdout"
    with pytest.raises(InputError, match="holds 'holdout'"):
        make_folds(screen, target)
    with pytest.raises(
        InputError, match="split column 'split' of target 'compound' does not exist"
    ):
        make_folds(screen.drop(columns="split"), target)


def test_fixed_split_keeps_units_whole(screen: pd.DataFrame) -> None:
    screen["split"] = screen.plate.map(
        {"P1": "train", "P2": "train", "P3": "validation", "P4": "test"}
    )
    screen.loc[0, "split"] = "test"
    target = Target("compound", "compound", ("plate",), "fixed", split_column="split")
    with pytest.raises(InputError, match="puts plate 'P1' into test and train"):
        make_folds(screen, target)


def test_class_without_training_example_is_named(screen: pd.DataFrame) -> None:
    screen.loc[(screen.plate == "P2") & (screen.well == "C03"), "compound"] = "rare"
    message = "class 'rare' of target 'compound' has no training example in fold 'plate=P1'"
    with pytest.raises(InputError, match=message):
        make_folds(screen, Target("compound", "compound", ("plate",), "leave_one_out"))


def test_missing_columns_and_too_few_units_are_refused(screen: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="column 'donor' of target 'compound' does not exist"):
        make_folds(screen, Target("compound", "compound", ("donor",), "leave_one_out"))
    two = screen[screen.plate.isin(["P1", "P2"])].reset_index(drop=True)
    with pytest.raises(InputError, match="at least 3 groups of plate"):
        make_folds(two, Target("compound", "compound", ("plate",), "leave_one_out"))
    with pytest.raises(InputError, match="has no example"):
        make_folds(
            screen,
            Target("t", "well", ("plate",), "leave_one_out", where=(("compound", ("none",)),)),
        )


def test_inductive_pretraining_loses_the_whole_tested_unit(screen: pd.DataFrame) -> None:
    """The fold tests control wells only, but nothing of their plate may be seen."""
    target = Target(
        "position", "well", ("plate",), "leave_one_out", where=(("compound", ("DMSO",)),)
    )
    declaration = Declaration("x", ("a",), None, (target,), (), (), "all")
    assert len(pretraining_indices(screen, declaration)) == len(screen)
    fold = make_folds(screen, target)[2]
    assert set(screen.plate[pretraining_indices(screen, declaration, fold)]) == {"P1", "P2", "P4"}


def test_stored_folds_come_back(screen: pd.DataFrame, tmp_path: Path) -> None:
    targets = [
        Target("compound", "compound", ("plate",), "leave_one_out"),
        Target("plate", "plate", ("plate", "well", "site"), "k_fold", n_folds=3),
    ]
    folds = {target.name: make_folds(screen, target) for target in targets}
    write_folds(tmp_path / "splits.npz", folds)
    for name, expected in folds.items():
        for a, b in zip(read_folds(tmp_path / "splits.npz", name), expected, strict=True):
            assert (a.name, a.unit) == (b.name, b.unit)
            for part in ("train", "validation", "test"):
                np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
                assert getattr(a, part).dtype == np.int64


def declared(*targets: Target, pretraining: str = "all") -> Declaration:
    return Declaration("screen", ("DNA",), None, targets, (), (), pretraining)


def test_labels_are_numbered_by_name_and_absent_where_the_target_is(screen: pd.DataFrame) -> None:
    target = Target(
        "compound", "compound", ("plate",), "leave_one_out", where=(("site", ("0", "1")),)
    )
    screen.loc[3, "compound"] = None
    labels, classes = class_labels(screen, target)
    assert classes == ("DMSO", "drug") and labels.dtype == np.int32
    left_out = (screen.site > 1).to_numpy()
    left_out[3] = True
    assert (labels[left_out] == -1).all()
    np.testing.assert_array_equal(labels[~left_out], screen.compound[~left_out] == "drug")


def test_labels_of_a_fixed_split_are_learned_on_its_train_part_alone(screen: pd.DataFrame) -> None:
    screen["part"] = screen.plate.map(
        {"P1": "train", "P2": "train", "P3": "validation", "P4": "test"}
    )
    target = Target("compound", "compound", ("plate",), "fixed", split_column="part")
    folds = make_folds(screen, target)
    for pretraining in ("all", "train"):
        declaration = declared(target, pretraining=pretraining)
        found = labelled_indices(screen, declaration, target, folds)
        np.testing.assert_array_equal(found, folds[0].train)
    other = Target("well", "well", ("plate",), "leave_one_out")
    held_out = make_folds(screen, other)[0]  # P1
    left = labelled_indices(screen, declared(target), target, folds, held_out)
    assert set(screen.plate[left]) == {"P2"}


def test_labels_of_a_cross_validated_target_need_a_fold_held_out(screen: pd.DataFrame) -> None:
    plates = Target("compound", "compound", ("plate",), "leave_one_out")
    fields = Target("place", "well", ("field",), "k_fold", n_folds=3)
    declaration = declared(plates, fields)
    folds = make_folds(screen, plates)
    found = labelled_indices(screen, declaration, plates, folds, folds[2])
    np.testing.assert_array_equal(found, folds[2].train)  # nor what validates
    for target, kind in ((plates, "leave_one_out"), (fields, "k_fold")):
        of_target = make_folds(screen, target)
        refusal = rf"target '{target.name}' is cross-validated \({kind}\)"
        with pytest.raises(InputError, match=refusal):
            labelled_indices(screen, declaration, target, of_target)
    with pytest.raises(InputError, match="holds out one of this target's folds"):
        labelled_indices(screen, declaration, fields, make_folds(screen, fields), folds[0])

"""Retrieval by pair rules of a config: the scores of plain loops, p-values, units, mistakes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.beyond import beyond
from bioimg_jax.benchmarks.confound import Confound
from bioimg_jax.benchmarks.protocols import ProfileProtocol, find_protocols
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import AlignedTable
from tests.benchmarks import screens
from tests.benchmarks.test_retrieval import normalised_ap

RULES = {
    "pos_sameby": "compound", "pos_diffby": "plate", "neg_sameby": "plate",
    "neg_diffby": "compound", "multilabel": "", "null": "permuted", "within": "plate",
    "unit": "compound",
}  # fmt: skip


def protocol(obs: pd.DataFrame, permutations: int = 0, **changes: str) -> ProfileProtocol:
    options = {"average": "mean", "permutations": permutations, "pair_lists": "",
               "activities": "", "retrieval": {"own": RULES | changes}}  # fmt: skip
    (found,), missing = find_protocols("retrieval", list(obs.columns), options, seed=0)
    assert not missing and found.name == "retrieval_own"
    return found


def score(asked: ProfileProtocol, table: AlignedTable) -> Score:
    return asked.score(table, representation="x", kind="imported", seed=0)


def screen(own: float, seed: int = 0, **about: Any) -> AlignedTable:
    obs = screens.wells(**({"compounds": 12, "plates": 3, "controls": 6, "seed": seed} | about))
    rng = np.random.default_rng(seed)
    number = pd.factorize(obs["compound"])[0]
    centres = rng.normal(size=(number.max() + 1, 16))
    plates = rng.normal(size=(about.get("plates", 3), 16))[pd.factorize(obs["plate"])[0]]
    return screens.table(own * centres[number] + plates + rng.normal(size=(len(obs), 16)), obs)


def test_all_four_rules_are_those_of_plain_loops() -> None:
    table = screen(1.0)
    obs, x = table.obs, table.features
    treated = ~obs["control"].to_numpy()
    compound, plate = (obs[column].to_numpy(object) for column in ("compound", "plate"))

    def value(rows: np.ndarray) -> float:
        found = []
        for row in rows:
            positives = rows[(compound[rows] == compound[row]) & (plate[rows] != plate[row])]
            negatives = rows[(compound[rows] != compound[row]) & (plate[rows] == plate[row])]
            found.append(normalised_ap(x[row], x[positives], x[negatives]))
        return float(np.mean(found))

    got = score(protocol(obs), table)
    rows = np.flatnonzero(treated)
    assert got.value == pytest.approx(value(rows), abs=1e-6)
    names = sorted(set(compound[rows]))
    without = np.array([value(rows[compound[rows] != name]) for name in names])
    pseudo = got.value + (len(names) - 1) * (without.mean() - without)
    assert list(got.per_unit) == names
    assert list(got.per_unit.values()) == pytest.approx(pseudo.tolist(), abs=1e-4)
    assert got.settings["n_queries"] == 36 and got.settings["pos_diffby"] == ["plate"]


def test_controls_are_the_negatives_where_the_rules_say_so() -> None:
    table = screen(1.0)
    obs, x = table.obs, table.features
    asked = protocol(obs, 99, pos_diffby="", neg_diffby="control")
    got = score(asked, table)
    control = obs["control"].to_numpy()
    found: dict[str, list[float]] = {}
    for row in np.flatnonzero(~control):
        same = (obs["compound"] == obs["compound"][row]).to_numpy()
        same[row] = False
        here = (obs["plate"] == obs["plate"][row]).to_numpy()
        value = normalised_ap(x[row], x[same], x[control & here])
        found.setdefault(obs["compound"][row], []).append(value)
    means = {name: np.mean(values) for name, values in found.items()}
    assert got.per_unit == pytest.approx(means, abs=1e-6)
    assert got.value == pytest.approx(np.mean(list(means.values())), abs=1e-6)
    assert got.settings["n_tested"] == 12 and 0 < got.other_metrics["fraction_active"] <= 1


def test_a_cell_of_several_labels_is_a_query_of_each() -> None:
    obs = screens.wells(compounds=12, plates=2, controls=0)
    rng = np.random.default_rng(0)
    number = pd.factorize(obs["compound"])[0]
    names = np.array([f"t{i % 3}|t{3 + i % 2}" if i % 4 else f" t{i % 3} " for i in range(12)])
    obs["targets"] = names[number]
    obs.loc[number == 11, "targets"] = ""  # no query
    which = np.stack([obs["targets"].str.contains(f"t{i}") for i in range(5)], axis=1)
    x = which @ rng.normal(size=(5, 16)) + rng.normal(0, 0.5, (len(obs), 16))
    table = screens.table(x, obs)
    changes = {"pos_sameby": "targets", "pos_diffby": "compound", "neg_sameby": "",
               "neg_diffby": "targets", "multilabel": "targets", "within": ""}  # fmt: skip
    got = score(protocol(obs, 99, **changes), table)
    found = []
    for row in np.flatnonzero(number != 11):
        none = ~(which & which[row]).any(axis=1) & (number != 11)
        for label in np.flatnonzero(which[row]):
            both = which[:, label] & (number != number[row])
            if both.any() and none.any():
                found.append(normalised_ap(table.features[row], x[both], x[none]))
    assert got.value == pytest.approx(np.mean(found), abs=1e-5)
    assert got.settings["n_queries"] == len(found) and got.settings["n_tested"] == 5
    copairs = score(protocol(obs, 99, null="copairs", **changes), table)
    assert copairs.settings["n_tested"] == 5
    assert {got.other_metrics["fraction_active"], copairs.other_metrics["fraction_active"]} != {0}


def test_p_values_hold_where_nothing_is_done_and_find_what_is() -> None:
    null = [
        score(protocol(table.obs, 99), table).other_metrics["fraction_p05"]
        for table in (screen(0.0, seed=seed) for seed in range(20))
    ]
    assert np.mean(null) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 240)
    table = screen(2.0)
    assert score(protocol(table.obs, 199), table).other_metrics["fraction_active"] > 0.9


def test_what_is_left_beyond_a_confound() -> None:
    table = screen(2.0, compounds=24)
    count = np.random.default_rng(1).normal(size=len(table.obs))
    confound = Confound.of_number("count", count, table.obs)
    for changes in ({}, {"neg_diffby": "control", "pos_diffby": ""}, {"pos_sameby": "moa",
                    "neg_diffby": "moa", "pos_diffby": "compound", "within": ""}):  # fmt: skip
        asked = protocol(table.obs, 99, **changes)
        rows = beyond(asked, table, confound, screens.table(count[:, None], table.obs),
                      permutations=19, seed=0)  # fmt: skip
        assert [row["refused"] for row in rows] == ["", "", ""], changes
        if "moa" not in changes.values():
            assert rows[0]["p"] == 0.05 and rows[0]["value"] > 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"null": "exact"}, "retrieval_own: null 'exact', expected permuted or copairs"),
        ({"pos_sameby": ""}, "retrieval_own: pos_sameby names no column"),
        ({"pos_sameby": "control"}, "'control' may stand in neg_diffby alone"),
        ({"neg_diffby": "plate", "neg_sameby": ""}, "add 'compound' to neg_diffby, or take the"),
        ({"pos_diffby": "compound"}, "'compound' is in pos_sameby and pos_diffby"),
        ({"multilabel": "moa"}, "the multilabel column 'moa' must be in pos_sameby and in neg"),
        ({"neg_sameby": "plate,plate"}, "neg_sameby names column 'plate' twice"),
    ],
)
def test_rules_that_cannot_be_asked_are_one_line(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        protocol(screens.wells(), **changes)


def test_a_missing_column_is_named_and_no_pairs_are_one_line() -> None:
    options = {"average": "mean", "permutations": 0, "pair_lists": "", "activities": "",
               "retrieval": {"own": RULES | {"within": "run"}, "b": RULES}}  # fmt: skip
    found, missing = find_protocols("retrieval", ["compound", "plate"], options, seed=0)
    assert [one.name for one in found] == ["retrieval_b"]
    assert missing == {"retrieval_own": "the metadata have no column run"}
    _, missing = find_protocols("retrieval", ["compound"], options | {"retrieval": {}}, seed=0)
    assert missing == {"retrieval": "evaluate.retrieval names no pair rules"}
    alone = screen(1.0, plates=1)
    with pytest.raises(InputError, match="no query has a positive and a negative pair"):
        score(protocol(alone.obs), alone)
    nobody = screen(1.0, controls=0)
    with pytest.raises(InputError, match="no well is a control"):
        score(protocol(nobody.obs, neg_diffby="control"), nobody)

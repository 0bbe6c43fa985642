"""The protocols on profiles, on a generated screen whose mechanisms are known.

`mixed_screen` says what every compound does: its dials are a representation of the truth, and its
number of cells a floor. What the protocols say of mechanisms, replicates and relationships between
compounds must follow.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.ladder import cases
from bioimg_jax.benchmarks.protocols import ProfileProtocol, find_protocols
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.features.aligned import AlignedTable
from bioimg_jax.statistics.verdict import ABOVE, CANNOT_TELL, judge
from tests.benchmarks import screens
from tests.datasets.test_synthetic_cells import drawn, planned

PLATES = 4
CLASS = {
    "pos_sameby": "moa", "pos_diffby": "compound", "neg_sameby": "", "neg_diffby": "moa",
    "multilabel": "", "null": "permuted", "within": "", "unit": "compound",
}  # fmt: skip
NAMES = "nsc,activity,consistency,relationships,retrieval"


@pytest.fixture(scope="module")
def screen() -> pd.DataFrame:
    """A row a well: what was done there, the dials it was drawn from, and its number of cells."""
    plan = planned("mixed_screen", images_per_site=1)
    found, _ = drawn(plan, slice(None, PLATES * len(plan.units) // 14))
    found = found.assign(
        control=found["is_control"], moa=found["mechanism"], dose=found["dose_um"],
        gene=found["compound"].where(~found["is_control"]),
    )  # fmt: skip
    found.loc[found["control"], "moa"] = None
    dials = [name for name in found if name.startswith("factor_")]
    keys = ["plate", "batch", "well", "compound", "dose", "moa", "gene", "control"]
    numbers = found.groupby(["plate", "well"])[[*dials, "n_cells"]].mean().reset_index()
    return found.drop_duplicates(["plate", "well"])[keys].merge(numbers, on=["plate", "well"])


@pytest.fixture(scope="module")
def protocols(
    screen: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> list[ProfileProtocol]:
    path: Path = tmp_path_factory.mktemp("pairs") / "same_mechanism.csv"
    of = screen.dropna(subset="gene").groupby("gene")["moa"].first()
    pairs = [f"{a},{b}" for a in of.index for b in of.index if a < b and of[a] == of[b]]
    path.write_text("\n".join(["gene1,gene2", *pairs]))
    options = {"average": "mean", "permutations": 199, "pair_lists": str(path), "activities": "",
               "retrieval": {"class": CLASS}}  # fmt: skip
    found, missing = find_protocols(NAMES, list(screen.columns), options, seed=0)
    assert not missing and len(found) == 5
    return found


def profiles(screen: pd.DataFrame, features: np.ndarray) -> AlignedTable:
    keys = ["plate", "batch", "well", "compound", "dose", "moa", "gene", "control"]
    return screens.table(features, screen[keys])


def score(protocol: ProfileProtocol, table: AlignedTable, name: str, kind: str) -> Score:
    return protocol.score(table, representation=name, kind=kind, seed=0)


def test_every_protocol_knows_the_truth_from_the_count_and_from_nothing(
    screen: pd.DataFrame, protocols: list[ProfileProtocol]
) -> None:
    dials = screen.filter(like="factor_").to_numpy()
    dials = (dials - dials.mean(axis=0)) / np.maximum(dials.std(axis=0), 1e-9)
    rng = np.random.default_rng(0)
    # Not so clear that every unit scores 1: differences without variance settle nothing.
    truth = profiles(screen, dials + rng.normal(size=dials.shape))
    count = profiles(screen, screen[["n_cells"]].to_numpy())
    nothing = profiles(screen, rng.normal(size=dials.shape))
    for protocol in protocols:
        known = score(protocol, truth, "dials", "imported")
        counted = score(protocol, count, "count", "count")
        drawn_at_random = score(protocol, nothing, "noise", "pixels")
        assert known.chance is not None
        room = 1.0 - known.chance
        assert known.value > known.chance + 0.25 * room, protocol.name
        assert known.value > counted.value + 0.1 * room, protocol.name
        assert abs(drawn_at_random.value - known.chance) < 0.12 * room, protocol.name
        target = {"name": protocol.name, "nuisance": False,
                  "audit": {"verdict": "", "reason": "", "rivals": {}}}  # fmt: skip
        (found,) = judge(
            cases([known, counted], [target], ["chance", "count"], delta=0.03,
                  overlap={protocol.name: 0.0})
        )  # fmt: skip
        if protocol.name == "recall_same_mechanism":
            # Of 18 compounds every one finds as much as the cuts at 5 % leave room for.
            assert found.word == CANNOT_TELL, found.why
        else:
            assert found.word == ABOVE, (protocol.name, found.why)

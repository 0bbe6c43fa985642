"""The outputs of a screen with known actives, doses, edges and a count that kills."""

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks import screening as module
from bioimg_jax.benchmarks.protocols import ProfileProtocol, find_protocols
from bioimg_jax.benchmarks.screening import POSITIVE, screening, summaries
from bioimg_jax.features.aligned import AlignedTable, align
from bioimg_jax.features.alignment import find_alignment
from tests.benchmarks import screens

ACTIVE = {f"c{i:02d}" for i in range(6)}
KILLS = {f"c{i:02d}" for i in range(3)}


def tables(seed: int = 0) -> dict[str, AlignedTable]:
    """Six of twelve compounds shift an encoder's features with dose; three of them, the count."""
    obs = screens.wells(compounds=12, doses=4, plates=5, controls=24, seed=seed)
    rng = np.random.default_rng(seed)
    place = obs.groupby("plate").cumcount()  # of the wells in the order they were laid
    number = pd.factorize(obs["compound"])[0]
    directions = rng.normal(size=(number.max() + 1, 10))
    strength = np.where(obs["compound"].isin(ACTIVE), np.log10(obs["dose"].clip(1e-2)) + 1.5, 0.0)
    encoder = 3.0 * strength[:, None] * directions[number] / np.sqrt(10)
    encoder = encoder + rng.normal(size=encoder.shape)
    killed = np.where(obs["compound"].isin(KILLS), strength, 0.0)
    count = -4.0 * killed + rng.normal(size=len(obs))
    obs[POSITIVE] = (obs["compound"] == "c00") & (obs["dose"] == obs["dose"].max())
    # A second positive well a plate, so that spreads exist.
    obs[POSITIVE] |= (obs["compound"] == "c00") & (obs["dose"] == 10.0)
    assert place.max() < 96
    return {"encoder": screens.table(encoder, obs), "count": screens.table(count[:, None], obs)}


def protocol(obs: pd.DataFrame) -> ProfileProtocol:
    options = screens.OPTIONS | {"permutations": 199}
    (activity,), _ = find_protocols("activity", list(obs.columns), options, seed=0)
    return activity


@pytest.fixture(scope="module")
def found():
    made = tables()
    obs = made["encoder"].obs
    activity = protocol(obs)
    return screening(made, ["encoder"], activity=activity, permutations=199, seed=0)


def test_strengths_are_computed_once_for_all_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = tables(), []

    def counted(table: AlignedTable) -> np.ndarray:
        asked.append(table)
        return strengths(table)

    strengths = module._strengths
    monkeypatch.setattr(module, "_strengths", counted)
    found = screening(made, ["encoder"], activity=None, permutations=9, seed=0)
    assert {"plate_quality", "plate_layout", "dose_response"} <= found.tables.keys()
    assert len(asked) == 2 and asked[0] is made["encoder"] and asked[1] is made["count"]


def of(found, name: str, representation: str) -> pd.DataFrame:
    rows = pd.DataFrame(found.tables[name])
    return rows[rows["representation"] == representation]


def test_hits_are_what_acts_and_the_count_has_those_that_kill(found) -> None:
    assert found.missing == {}
    for name, true in (("encoder", ACTIVE), ("count", KILLS)):
        rows = of(found, "hits", name)
        assert len(rows) == 48 and (rows["wells"] == 5).all()
        hits = set(rows["treatment"][rows["hit"]])
        strong = {f"{c}/{d}" for c in true for d in (10.0, 100.0)}
        assert strong <= hits
        false = {hit for hit in hits if hit.split("/")[0] not in true}
        assert len(false) <= 0.2 * len(hits)
    (row,) = found.tables["hit_overlap"]
    assert row["encoder"] == "encoder" and row["floor"] == "count"
    assert row["both"] >= 6 and row["encoder_alone"] >= 6 and row["fisher_p"] < 0.05
    assert row["both"] + row["encoder_alone"] + row["floor_alone"] + row["neither"] == 48


def test_doses_replicates_and_plates(found) -> None:
    rows = of(found, "dose_response", "encoder").set_index("compound")
    assert (rows["trend_p"][sorted(ACTIVE)] < 0.01).all()
    null = rows.drop(index=sorted(ACTIVE))
    assert (null["trend_p"] <= 0.05).mean() <= 0.35 and null["ec50"].notna().sum() <= 1
    alike = of(found, "replicate_consistency", "encoder").set_index("treatment")
    assert (alike["cosine_p"][[f"{c}/100.0" for c in ACTIVE]] < 0.05).all()
    assert (alike["replicates"] == 5).all()
    quality = of(found, "plate_quality", "encoder")
    assert list(quality["plate"]) == [f"P{i}" for i in range(5)] and (quality["ssmd"] > 1).all()
    curve = pd.DataFrame(found.tables["replicate_curve"])
    assert list(curve["replicates"]) == [2, 3, 4, 5] and set(curve["representation"]) == {"encoder"}
    assert (curve["treatments"] == 48).all() and curve["normalised_map"].iloc[-1] > 0.2
    (encoder, _) = found.tables["plate_layout"]
    assert encoder["p"] > 0.01 and encoder["plates"] == 5  # places were drawn by lot
    assert found.layouts["encoder"].map.shape == (8, 12)


def test_of_fewer_replicates_activity_has_the_chance_that_the_ladder_has() -> None:
    obs = screens.wells(plates=4, compounds=24, controls=8)  # and nothing that acts
    held = screens.table(np.random.default_rng(1).normal(size=(len(obs), 32)), obs)
    table = align(held, find_alignment("centerscale_on_controls"), batch="plate")
    activity = protocol(obs)
    ladder = activity.score(table, representation="", kind="", seed=0)
    assert ladder.other_metrics["normalised_map_by_rankings"] < -0.25  # another chance
    made = screening({"x": table}, ["x"], activity=activity, permutations=9, seed=0)
    curve = pd.DataFrame(made.tables["replicate_curve"])
    assert curve["replicates"].tolist() == [2, 3, 4]
    assert curve["normalised_map"].iloc[-1] == pytest.approx(ladder.value, abs=0.02)
    assert (curve["normalised_map"].abs() < 0.15).all()


def test_an_edge_that_is_brighter_is_seen() -> None:
    made = tables(1)
    obs = made["encoder"].obs
    edge = obs["well"].str[0].isin(["A", "F"]) | obs["well"].str[1:].isin(["01", "12"])
    shifted = made["encoder"].features + 6.0 * edge.to_numpy()[:, None] * np.ones(10)
    some = {"encoder": screens.table(shifted, obs.drop(columns=POSITIVE))}
    found = screening(some, ["encoder"], activity=None, permutations=9, seed=0)
    (row,) = found.tables["plate_layout"]
    assert row["p"] < 0.01
    assert found.missing == {
        "plate_quality": f"the metadata have no column {POSITIVE}",
        "replicate_curve": "the benchmark activity was not run",
    }


def test_summaries_have_a_row_a_representation(found) -> None:
    short = summaries(found.tables)
    assert set(short) == set(found.tables)
    for name in ("hits", "dose_response", "replicate_consistency", "plate_quality"):
        assert [row["representation"] for row in short[name]] == ["encoder", "count"]
    hits = of(found, "hits", "encoder")
    assert short["hits"][0]["hits"] == int(hits["hit"].sum())
    assert short["hits"][0]["tested"] + short["hits"][0]["not_tested"] == len(hits)
    assert short["plate_quality"][0]["plates"] == 5


def test_a_screen_in_which_nothing_can_be_a_hit_says_so() -> None:
    obs = screens.wells(plates=1, controls=8)  # a well a treatment: no p below 1/9
    features = np.random.default_rng(0).normal(size=(len(obs), 4))
    some = {"encoder": screens.table(features, obs), "count": screens.table(features[:, :1], obs)}
    found = screening(some, ["encoder"], activity=None, permutations=9, seed=0)
    assert found.missing["hit_overlap"] == "no treatment was tested in both hit lists"
    hits = of(found, "hits", "encoder")
    assert hits["q"].isna().all() and not hits["hit"].any()
    assert hits["why_not"].str.contains("allow no p-value below 0.111").all()
    assert summaries(found.tables)["hits"][0] == {
        "representation": "encoder", "tested": 0, "hits": 0, "not_tested": 24,
    }  # fmt: skip


def test_without_columns_nothing_is_run_and_each_says_why() -> None:
    made = tables()["encoder"]
    bare = screens.table(made.features, made.obs[["compound"]])
    found = screening({"encoder": bare}, ["encoder"], activity=None, permutations=9, seed=0)
    assert found.tables == {} and summaries(found.tables) == {}
    assert found.missing["hits"] == "the metadata have no column plate and no column control"
    assert set(found.missing) == {
        "plate_quality", "plate_layout", "hits", "dose_response", "replicate_consistency",
        "replicate_curve",
    }  # fmt: skip

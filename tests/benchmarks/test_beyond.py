"""What is left of a score beyond a confound: where it is all there is, and where it is not."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.beyond import beyond
from bioimg_jax.benchmarks.confound import ADDED, PERMUTATION, RESIDUALISED, Confound
from bioimg_jax.benchmarks.protocols import ProfileProtocol, find_protocols, of_metadata
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import AlignedTable, align
from bioimg_jax.features.alignment import find_alignment
from tests.benchmarks import screens


def protocol(name: str, obs: pd.DataFrame, **options: str) -> ProfileProtocol:
    found, missing = find_protocols(name, list(obs.columns), screens.OPTIONS | options, seed=0)
    assert not missing
    return found[0]


def of_count(count: np.ndarray, obs: pd.DataFrame) -> tuple[Confound, AlignedTable]:
    floor = screens.table(count[:, None], obs)
    return Confound.of_number("count", count, obs), floor


def of_column(table: AlignedTable, column: str) -> tuple[Confound, AlignedTable]:
    return Confound.of_column(table.obs, column), of_metadata(table, [column])


def by_method(rows: list[dict]) -> dict[str, dict]:
    return {row["method"]: row for row in rows}


def screen(
    seed: int, *, own: float, counted: float
) -> tuple[AlignedTable, tuple[Confound, AlignedTable]]:
    """Features of the compound's own place (own) and of its class's number of cells (counted)."""
    obs = screens.wells(compounds=48, plates=3, seed=seed)
    rng = np.random.default_rng(seed)
    number = pd.factorize(obs["compound"])[0]
    label = pd.factorize(obs["moa"])[0]  # -1 of controls
    # Classes have counts that overlap: strata of count hold several classes.
    of_compound = rng.normal(0, 1.0, number.max() + 1) + 0.7 * np.arange(number.max() + 1) % 3
    count = of_compound[number] + np.where(label >= 0, 1.2 * label, 0.0)
    centres = np.vstack([rng.normal(0, 1, (label.max() + 1, 6)), np.zeros((1, 6))])
    waves = np.stack([np.sin(count * f) for f in (0.4, 0.7, 1.1)], axis=1)
    features = np.hstack([own * centres[label], counted * waves])
    features = features + rng.normal(0, 0.05, features.shape)
    return screens.table(features, obs), of_count(count, obs)


def test_a_score_from_the_count_alone_is_none_beyond_it() -> None:
    p = []
    for seed in range(8):
        table, confound = screen(seed, own=0.0, counted=1.0)
        found = by_method(beyond(protocol("nsc", table.obs), table, *confound,
                                 permutations=99, seed=0))  # fmt: skip
        p.append(found[PERMUTATION]["p"])
        assert abs(found[PERMUTATION]["value"]) < 0.25
    assert np.mean(np.array(p) <= 0.05) <= 0.25  # of 8, one may well be


@pytest.mark.parametrize("name", ["nsc", "consistency"])
def test_a_score_of_its_own_is_all_there_beyond_it(name: str) -> None:
    table, confound = screen(1, own=1.0, counted=0.0)
    rows = beyond(protocol(name, table.obs), table, *confound, permutations=99, seed=0)
    found = by_method(rows)
    assert found[PERMUTATION]["p"] == 0.01 and found[PERMUTATION]["value"] > 0.3
    assert found[ADDED]["value"] > 0.3 and found[ADDED]["p"] < 0.01
    assert rows[2]["value"] > 0.9  # the residualised: nothing of it was the count
    for row in rows:
        assert row["n"] == 48 * 3 and 0 < row["n_retained"] <= row["n"]
        assert row["value"] is not None and row["lower"] <= row["value"] <= row["upper"]
    assert found[PERMUTATION]["value"] == pytest.approx(
        found[PERMUTATION]["observed"] - found[PERMUTATION]["alone"]
    )


def test_wells_that_differ_from_controls_in_number_alone_are_active_and_not_beyond_it() -> None:
    obs = screens.wells(compounds=30, plates=3, controls=30)
    rng = np.random.default_rng(0)
    number = pd.factorize(obs["compound"])[0]
    level = rng.permutation(np.linspace(-1, 1, number.max() + 1))[number]
    count = np.where(obs["control"], rng.uniform(-1, 1, len(obs)), level)
    angle = np.pi * count
    seen = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    seen = seen + rng.normal(0, 0.3, seen.shape)  # bins are not finer than that
    own = rng.normal(0, 1, (number.max() + 1, 8))[number]
    own[obs["control"]] = rng.normal(0, 1, (int(obs["control"].sum()), 8))
    activity = protocol("activity", obs)
    counted, alone = (
        by_method(beyond(activity, screens.table(x, obs), *of_count(count, obs),
                         permutations=39, seed=0))
        for x in (seen, np.hstack([0.1 * seen, own]))
    )  # fmt: skip
    assert counted[PERMUTATION]["observed"] > 0.25  # like replicates, by their number
    assert alone[PERMUTATION]["observed"] > 0.9
    assert alone[PERMUTATION]["value"] > 0.5
    assert counted[PERMUTATION]["value"] < 0.5 * alone[PERMUTATION]["value"]
    assert counted[ADDED]["value"] < 0.05  # it only bends the count


def test_pairs_of_genes_are_beyond_the_count_where_they_are(tmp_path) -> None:
    rng = np.random.default_rng(0)
    genes = np.array([f"g{i:02d}" for i in range(40)])
    obs = pd.DataFrame({"gene": np.repeat(genes, 2), "plate": ["P0", "P1"] * 40})
    count = np.repeat(rng.permutation(40), 2).astype(float)
    complexes = np.repeat(np.arange(10), 4)  # of four genes each, at any count
    features = np.repeat(rng.normal(size=(10, 12))[complexes], 2, axis=0)
    features = features + rng.normal(0, 0.2, features.shape)
    path = tmp_path / "pairs.csv"
    pairs = [(a, b) for i, a in enumerate(genes) for j, b in enumerate(genes[:i])
             if complexes[i] == complexes[j]]  # fmt: skip
    path.write_text("gene1,gene2\n" + "\n".join(f"{a},{b}" for a, b in pairs))
    of_pairs = protocol("relationships", obs, pair_lists=str(path))
    rows = by_method(beyond(of_pairs, screens.table(features, obs), *of_count(count, obs),
                            permutations=39, seed=0))  # fmt: skip
    assert rows[PERMUTATION]["observed"] > 0.6
    # Names change places with three others at most: some pairs stay where they are.
    assert 0.05 < rows[PERMUTATION]["alone"] < 0.3
    assert rows[PERMUTATION]["p"] == 1 / 40
    assert rows[PERMUTATION]["n_retained"] == 80


def test_compounds_lose_the_count_as_the_genes_do_that_they_are_compared_with(tmp_path) -> None:
    rng = np.random.default_rng(0)
    genes = [f"g{i:02d}" for i in range(60)]
    wells = [*genes, *genes, *(f"c{i:02d}" for i in range(24))]
    is_gene = np.array([name.startswith("g") for name in wells])
    obs = pd.DataFrame({
        "compound": np.where(is_gene, None, wells), "gene": np.where(is_gene, wells, None),
        "dose": np.where(is_gene, np.nan, 1.0), "plate": "P0",
    })  # fmt: skip
    own = rng.normal(size=(60, 16))
    place = np.array([int(name[1:]) for name in wells])
    count = rng.normal(2.0, 1.0, len(obs))
    features = own[place] + 60.0 * count[:, None] * rng.normal(size=16)
    path = tmp_path / "activities.csv"
    known = "\n".join(f"c{i:02d},g{i:02d},0.1" for i in range(24))
    others = "\n".join(f"c00,{gene},100" for gene in genes[24:])
    path.write_text(f"compound,gene,concentration_um\n{known}\n{others}\n")
    asked = protocol("compound_gene", obs, activities=str(path))
    confound, floor = of_count(count, obs)
    lacking = dataclasses.replace(confound, values=confound.values.where(obs.index != 130))
    for given in (confound, lacking):
        rows = beyond(asked, screens.table(features, obs), given, floor, permutations=9, seed=0)
        assert by_method(rows)[RESIDUALISED]["value"] > 0.8


def test_what_does_not_overlap_is_refused() -> None:
    table, _ = screen(0, own=1.0, counted=0.0)
    obs = table.obs.assign(week=table.obs["moa"].fillna("m0"))
    held = screens.table(table.features, obs)
    confound = of_column(held, "week")
    with pytest.raises(InputError, match="nothing can be said beyond week: labels do not overlap"):
        beyond(protocol("nsc", obs), held, *confound, permutations=9, seed=0)
    several = of_column(held, "plate")
    with pytest.raises(InputError, match="expected one a block"):
        beyond(protocol("nsc", obs), held, *several, permutations=9, seed=0)


def test_a_confound_is_a_column_or_a_floor_of_one_feature() -> None:
    table, counted = screen(0, own=1.0, counted=0.0)
    found, _ = of_column(table, "batch")
    assert not found.is_number and found.columns.shape == (len(table.obs), 2)
    assert counted[0].is_number and counted[0].columns.shape == (len(table.obs), 1)


def test_controls_without_a_dose_are_controls_all_the_same() -> None:
    obs = screens.wells(compounds=20, plates=3, controls=20)
    rng = np.random.default_rng(0)
    number = pd.factorize(obs["compound"])[0]
    own = rng.normal(0, 1, (number.max() + 1, 20))[number]
    own[obs["control"]] = rng.normal(0, 1, (int(obs["control"].sum()), 20))
    count = rng.normal(size=len(obs))
    found = []
    for dose in (0.0, np.nan):
        held = obs.assign(dose=obs["dose"].where(~obs["control"], dose))
        rows = beyond(protocol("activity", held), screens.table(own, held),
                      *of_count(count, held), permutations=19, seed=0)  # fmt: skip
        found.append(by_method(rows)[PERMUTATION])
    assert found[0]["value"] > 0.5 and found[0]["p"] == 0.05
    assert found[1] == pytest.approx(found[0])


def test_bins_are_made_inside_a_plate() -> None:
    obs = screens.wells(compounds=32, plates=12, controls=16)
    count = np.random.default_rng(0).normal(size=len(obs))
    table = screens.table(np.eye(20)[np.arange(len(obs)) % 20], obs)
    activity = protocol("activity", obs)
    rows = beyond(activity, table, *of_count(count, obs), permutations=2, seed=0)
    assert rows[0]["n_retained"] > 0.95 * rows[0]["n"]


def test_one_method_that_cannot_be_is_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    table, (confound, floor) = screen(1, own=1.0, counted=0.0)
    values = confound.values.copy()
    values.iloc[5] = np.nan  # that row is left out, of all three
    lacking = dataclasses.replace(confound, values=values)
    nsc = protocol("nsc", table.obs)
    rows = beyond(nsc, table, lacking, floor, permutations=9, seed=0)
    assert [row["refused"] for row in rows] == ["", "", ""]
    assert all(row["n_retained"] < row["n"] for row in rows)

    def refuse(*arguments: object) -> None:
        raise InputError("too many columns")

    monkeypatch.setattr("bioimg_jax.benchmarks.beyond.residualised", refuse)
    rows = beyond(nsc, table, lacking, floor, permutations=9, seed=0)
    assert [row["refused"] for row in rows] == ["", "", "too many columns"]
    assert rows[2]["value"] is None and rows[0]["value"] is not None


def test_activity_beyond_a_confound_is_of_the_metric_that_the_ladder_has() -> None:
    obs = screens.wells(plates=4, compounds=24, controls=8)  # and nothing that acts
    rng = np.random.default_rng(1)
    held = screens.table(rng.normal(size=(len(obs), 32)), obs)
    table = align(held, find_alignment("centerscale_on_controls"), batch="plate")
    count = rng.normal(size=len(obs))
    activity = protocol("activity", obs).with_settings(permutations=199)
    rows = by_method(beyond(activity, table, *of_count(count, obs), permutations=9, seed=0))
    by_rankings = activity.with_settings(permutations=0).score(
        table, representation="", kind="", seed=0
    )
    assert by_rankings.value < -0.25  # by which "observed" was told before
    assert abs(rows[PERMUTATION]["observed"]) < 0.15 and abs(rows[PERMUTATION]["alone"]) < 0.15
    assert abs(rows[RESIDUALISED]["value"]) < 0.15

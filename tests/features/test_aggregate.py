"""Profiles: what is averaged, what is refused, and what averaging alone gives away."""

import dataclasses
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.registry import find_benchmarks
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.features import aggregate as module
from bioimg_jax.features import table as tables
from bioimg_jax.features.aggregate import SPREAD, aggregate, examples_of
from bioimg_jax.features.table import read_table, write_table
from bioimg_jax.representations.aggregation_noise import AggregationNoiseRepresentation

WELLS = Target("dose", "dose", ("plate",), "leave_one_out", aggregate=("plate", "well"))
LAYERS = {"block/mean": 5, "final/mean": 3}


def cells(few=3, many=3, plates=5, wells=4, seed=0):
    """Metadata of cells in an order that mixes the wells; some belong to no target."""
    rows = [
        {"plate": f"P{p}", "well": f"W{w}", "dose": dose, "site": s}
        for p in range(plates)
        for w in range(wells)
        for dose, n in ((("low", few), ("high", many))[w % 2],)
        for s in range(n)
    ]
    rows += [{"plate": "P0", "well": "empty", "dose": "", "site": 0}] * 4
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


def write(path, obs, layers=LAYERS, seed=0):
    rng = np.random.default_rng(seed)
    values = {k: rng.normal(size=(len(obs), w)).astype(np.float32) for k, w in layers.items()}
    write_table(path, obs, layers, list(layers)[-1], [(np.arange(len(obs)), values)], {"key": "k"},
                dtype="float32")  # fmt: skip
    return read_table(path), values


def test_profiles_are_means_of_the_rows_of_a_well(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 100)  # 5 rows of the wide layer, 8 of the other
    obs = cells(few=2, many=5)
    folds = make_folds(obs, WELLS)
    table, values = write(tmp_path / "t.h5ad", obs)
    profiles, regrouped = aggregate(table, folds, WELLS)
    used = obs[obs["dose"] != ""]
    groups = used.groupby(["plate", "well"], sort=False)
    assert len(profiles.obs) == 20 and profiles.widths == LAYERS
    names = list(zip(profiles.obs["plate"], profiles.obs["well"], strict=True))
    assert names == list(dict.fromkeys(zip(used["plate"], used["well"], strict=True)))
    assert profiles.obs["n_aggregated"].tolist() == [groups.size()[name] for name in names]
    assert profiles.obs["site"].tolist() == [groups["site"].first()[name] for name in names]
    assert profiles.provenance == {"key": "k", "aggregate": ["plate", "well"]}
    for layer, rows in values.items():
        expected = [rows[groups.groups[name]].mean(axis=0, dtype=np.float64) for name in names]
        read = profiles.layer(layer)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, np.stack(expected), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(profiles.layer(layer), read)
    for fold, whole in zip(regrouped, folds, strict=True):
        assert (fold.name, fold.unit) == (whole.name, whole.unit)
        for part in ("train", "validation", "test"):
            wells, rows = getattr(fold, part), getattr(whole, part)
            assert (np.diff(wells) > 0).all()
            expected_wells = set(zip(obs["plate"].iloc[rows], obs["well"].iloc[rows], strict=True))
            assert {names[i] for i in wells} == expected_wells
    assert list(profiles.only(["final/mean"]).widths) == ["final/mean"]
    whole_table = profiles.to_anndata()
    assert whole_table.shape == (20, 3) and whole_table.obsm["block.mean"].shape == (20, 5)
    with pytest.raises(InputError, match="no layer 'x'; it has block/mean, final/mean"):
        profiles.layer("x")


def test_a_column_of_profiles_is_the_mean_of_numbers_or_the_one_name(tmp_path):
    obs = cells(few=2, many=5)
    rng = np.random.default_rng(0)
    obs["count"], obs["drug"] = rng.normal(size=len(obs)), obs["dose"].replace("", None)
    obs.loc[obs["plate"] == "P1", "drug"] = ""
    table, _ = write(tmp_path / "t.h5ad", obs)
    profiles, _ = aggregate(table, make_folds(obs, WELLS), WELLS)
    used = obs[obs["dose"] != ""].groupby(["plate", "well"], sort=False)
    assert np.allclose(profiles.column_of(obs, "count"), used["count"].mean())
    drug, nobody = profiles.column_of(obs, "drug"), profiles.obs["plate"] == "P1"
    assert drug[~nobody].tolist() == profiles.obs["dose"][~nobody].tolist()
    assert drug[nobody].isna().all() and nobody.sum() == 4
    with pytest.raises(InputError, match=r"site: the rows of profile . have . and .; expected one"):
        profiles.column_of(obs, "site")
    obs.loc[obs.index[obs["dose"] == "low"][0], "count"] = np.nan
    assert profiles.column_of(obs, "count").isna().sum() == 1


def test_without_a_declaration_nothing_changes(tmp_path):
    obs = cells()
    target = dataclasses.replace(WELLS, aggregate=())
    folds = make_folds(obs, target)
    table, _ = write(tmp_path / "t.h5ad", obs)
    same, parts = aggregate(table, folds, target)
    assert same is table and parts == folds
    examples = examples_of(obs, folds, target)
    assert examples.obs is obs and examples.folds == folds


def test_a_column_of_categories_groups_like_one_of_text():
    obs = cells()
    folds = make_folds(obs, WELLS)
    typed = obs.assign(well=pd.Categorical(obs["well"], ["W3", "unused", "W1", "W0", "W2"]))
    one, other = (examples_of(of, folds, WELLS) for of in (obs, typed))
    np.testing.assert_array_equal(one.group_of, other.group_of)


def test_groups_that_are_no_example_are_named():
    obs = cells()
    folds = make_folds(obs, WELLS)

    def refused(metadata, target=WELLS, parts=folds):
        with pytest.raises(InputError) as error:
            examples_of(metadata, parts, target)
        return str(error.value)

    absent = dataclasses.replace(WELLS, aggregate=("plate", "field"))
    assert "column 'field', which does not exist; the metadata columns are: plate" in refused(
        obs, absent
    )
    row = int(folds[0].train[3])
    gap = obs.assign(well=obs["well"].where(np.arange(len(obs)) != row))
    assert refused(gap).endswith(f"column 'well', which has no value in row {row}")
    plates = dataclasses.replace(WELLS, aggregate=("plate",))
    said = refused(obs, plates)
    assert "aggregates over plate, but 'P" in said and "has the dose (the label) '" in said
    by_site = dataclasses.replace(WELLS, aggregate=("well",))
    assert "has the plate (the unit) 'P" in refused(obs, by_site)
    sites = dataclasses.replace(WELLS, unit=("plate", "site"), split="k_fold", n_folds=3)
    assert "has the plate/site (the unit)" in refused(obs, sites, make_folds(obs, sites))
    moved = [dataclasses.replace(folds[0], train=np.delete(folds[0].train, 3)), *folds[1:]]
    said = refused(obs, parts=moved)
    assert f"the part of '{folds[0].name}' 'none' and 'train'" in said or (
        f"the part of '{folds[0].name}' 'train' and 'none'" in said
    )


def test_one_block_of_rows_is_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1 << 16)
    obs = cells(few=400, many=400)
    table, values = write(tmp_path / "t.h5ad", obs, {"final/mean": 256})
    profiles, _ = aggregate(table, make_folds(obs, WELLS), WELLS)
    tracemalloc.start()
    profiles.layer("final/mean")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < values["final/mean"].nbytes / 4


def noise_scores(path, few, many, permute=None, width=64):
    """The linear probe on wells of noise: 120 wells of 5 plates, half of them of either number."""
    obs = cells(few, many, wells=24)
    floor = AggregationNoiseRepresentation(width)
    index = np.arange(len(obs))
    batch = {"image": None, "index": index, "mask": np.ones(len(obs), bool)}
    layers = {name: np.asarray(x) for name, x in floor.features(batch).items()}
    write_table(path, obs, floor.layers, "noise", [(index, layers)], {}, dtype=floor.dtype)
    folds = make_folds(obs, WELLS)
    table, parts = aggregate(read_table(path), folds, WELLS, spread_of="noise")
    assert table.widths == {"noise": width, SPREAD: 1}
    (benchmark,) = find_benchmarks("linear", {"strengths": (1e-1, 1e-3)})
    scores = benchmark.scores(
        table, parts, WELLS, representation="noise", kind="noise", seed=0, exposure="none",
        settings={}, permute_labels_seed=permute,
    )  # fmt: skip
    return {score.block: score for score in scores}


def test_the_number_of_cells_is_seen_in_the_spread_of_noise_and_not_in_its_means(tmp_path):
    scores = noise_scores(tmp_path / "t.h5ad", few=10, many=40)
    assert scores["selected"].value >= 0.95
    assert scores["noise"].value < 0.7  # chance, of 120 wells
    assert {fold["layer"] for fold in scores["selected"].settings["folds"]} == {SPREAD}
    assert set(scores["selected"].unit_rows.values()) == {24}  # wells, not cells
    assert [fold["n_test"] for fold in scores["noise"].settings["folds"]] == [24] * 5


def test_equal_numbers_of_cells_and_permuted_labels_are_at_chance(tmp_path):
    equal = noise_scores(tmp_path / "t.h5ad", few=20, many=20)
    assert abs(equal["selected"].value - 0.5) < 0.15  # its sd over 120 wells is 0.046
    permuted = noise_scores(tmp_path / "p.h5ad", few=10, many=40, permute=1)
    assert abs(permuted["selected"].value - 0.5) < 0.15


def test_the_spread_is_the_log_of_a_profiles_mean_square(tmp_path):
    obs = cells(few=2, many=8)
    table, _ = write(tmp_path / "t.h5ad", obs)
    profiles, _ = aggregate(table, make_folds(obs, WELLS), WELLS, spread_of="final/mean")
    means = profiles.layer("final/mean")
    expected = np.log(np.square(means).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(profiles.layer(SPREAD), expected, rtol=1e-5)
    assert profiles.only([SPREAD]).layer(SPREAD).shape == (20, 1)
    zeros = np.zeros((len(obs), 1), np.float32)
    write_table(tmp_path / "z.h5ad", obs, {"x": 1}, "x", [(np.arange(len(obs)), {"x": zeros})], {})
    nothing, _ = aggregate(
        read_table(tmp_path / "z.h5ad"), make_folds(obs, WELLS), WELLS, spread_of="x"
    )
    assert (nothing.layer(SPREAD) == np.float32(np.log(module.LEAST_SQUARE))).all()

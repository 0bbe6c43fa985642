"""Cells to sites to wells: against pandas, with equal numbers of cells, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.features.aggregate import N_AGGREGATED
from bioimg_jax.features.rollup import rolled_up
from tests.benchmarks import screens

WELLS = ["plate", "well"]
SITES = [*WELLS, "site"]


def cells(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Two plates of three wells of two sites, of 3 to 9 cells each."""
    rng = np.random.default_rng(seed)
    rows = [
        {"plate": plate, "well": well, "site": site, "cell": cell, "compound": f"c{well}"}
        for plate in ("P0", "P1")
        for well in ("A01", "A02", "B01")
        for site in (1, 2)
        for cell in range(rng.integers(3, 10))
    ]
    obs = pd.DataFrame(rows).assign(dose=0.1)
    return obs, rng.normal(size=(len(obs), 4))


@pytest.mark.parametrize("average", ["mean", "median"])
@pytest.mark.parametrize("levels", [[SITES, WELLS], [WELLS]])
def test_levels_are_pandas(levels: list[list[str]], average: str) -> None:
    obs, features = cells()
    found = rolled_up(screens.table(features, obs), levels, average)
    held = pd.DataFrame(features.astype(np.float32).astype(np.float64))
    held = pd.concat([obs[SITES], held], axis=1)
    for level in levels:
        held = held.drop(columns=[c for c in SITES if c not in level and c in held])
        held = held.groupby(level).agg(average).reset_index()
    np.testing.assert_allclose(found.layer("features"), held[list(range(4))], rtol=1e-6)
    assert found.obs[WELLS].to_numpy().tolist() == held[WELLS].to_numpy().tolist()
    assert set(found.obs.columns) == {*WELLS, "compound", "dose", N_AGGREGATED}
    sizes = obs.groupby(WELLS).size()
    assert found.obs[N_AGGREGATED].tolist() == sizes.tolist()
    assert found.provenance["levels"] == levels and found.provenance["average"] == average


def test_equal_cells_are_of_every_well_however_far_it_goes() -> None:
    obs, features = cells()
    levels = [WELLS, ["compound", "dose"]]
    found = rolled_up(screens.table(features, obs), levels, "mean", equal=5)
    wells = rolled_up(screens.table(features, obs), [WELLS], "mean", equal=5)
    assert (wells.obs[N_AGGREGATED] == 5).all() and len(wells.obs) > 3
    expected = pd.DataFrame(wells.layer("features").astype(float)).groupby(
        wells.obs["compound"].to_numpy()
    )
    np.testing.assert_allclose(found.layer("features"), expected.mean().to_numpy(), rtol=1e-5)
    assert found.obs[N_AGGREGATED].tolist() == (5 * expected.size()).tolist()


def test_a_consensus_is_one_row_a_treatment_and_order_leaves_no_trace() -> None:
    obs, features = cells()
    levels = [WELLS, ["compound", "dose"]]
    found = rolled_up(screens.table(features, obs), levels, "median")
    assert found.obs["compound"].tolist() == ["cA01", "cA02", "cB01"]
    assert "plate" not in found.obs and found.obs[N_AGGREGATED].sum() == len(obs)
    order = np.random.default_rng(1).permutation(len(obs))
    turned = screens.table(features[order], obs.iloc[order].reset_index(drop=True))
    again = rolled_up(turned, levels, "median")
    np.testing.assert_array_equal(again.layer("features"), found.layer("features"))
    pd.testing.assert_frame_equal(again.obs, found.obs)


def test_equal_numbers_of_cells_are_drawn_and_small_wells_leave_and_are_counted() -> None:
    obs, features = cells()
    sizes = obs.groupby(WELLS).size()
    equal = int(sizes.sort_values().iloc[1])
    found = rolled_up(screens.table(features, obs), [WELLS], "mean", equal=equal)
    assert (found.obs[N_AGGREGATED] == equal).all()
    assert found.provenance["too_few"] == int((sizes < equal).sum()) == 1
    assert len(found.obs) == 5
    whole = rolled_up(screens.table(features, obs), [WELLS], "mean")
    largest = sizes.idxmax()
    row = (found.obs[WELLS] == list(largest)).all(axis=1).to_numpy()
    other = (whole.obs[WELLS] == list(largest)).all(axis=1).to_numpy()
    assert not np.allclose(found.layer("features")[row], whole.layer("features")[other])
    same = rolled_up(screens.table(features, obs), [WELLS], "mean", equal=equal)
    np.testing.assert_array_equal(same.layer("features"), found.layer("features"))


def test_without_levels_it_is_the_table() -> None:
    obs, features = cells()
    table = screens.table(features, obs)
    assert rolled_up(table, [], "mean") is table


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ([WELLS], {"average": "mode"}, "average 'mode', expected mean or median"),
        ([["plate", "row"]], {}, "column 'row' does not exist"),
        ([["plate"], WELLS], {}, "column 'well' does not exist, or is not the same"),
        ([WELLS], {"equal": 99}, "no plate/well has 99 rows"),
        ([WELLS], {"equal": -1}, "equal rows of a group: -1"),
        ([["plate", "batch"]], {}, "row 3 has no 'batch'"),
    ],
)
def test_a_mistake_is_one_line(levels, options, message, tmp_path: Path) -> None:
    obs, features = cells()
    obs["batch"] = "b"
    obs.loc[3, "batch"] = None
    given = {"average": "mean"} | options
    with pytest.raises(InputError, match=message):
        rolled_up(screens.table(features, obs), levels, **given)

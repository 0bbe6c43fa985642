import numpy as np
import pytest

from bioimg_jax.benchmarks.plate_layout import median_polish, plate_layout, well_positions
from bioimg_jax.errors import InputError


def wells(n_plates=4, shape=(8, 12), edge=0.0, seed=0):
    rng = np.random.default_rng(seed)
    size = shape[0] * shape[1]
    plates = np.repeat([f"p{i}" for i in range(n_plates)], size)
    rows, columns = (np.tile(of.ravel(), n_plates) for of in np.indices(shape))
    outer = np.isin(rows, [0, shape[0] - 1]) | np.isin(columns, [0, shape[1] - 1])
    offset = np.repeat(10 * rng.normal(size=n_plates), size)
    values = rng.normal(size=len(rows)) + edge * outer + offset
    return {"values": values, "plates": plates, "rows": rows, "columns": columns}, outer


def test_wells_have_positions():
    rows, columns = well_positions(["A1", "b07", "H12", "P024", "AF48", " z3 "])
    assert rows.tolist() == [0, 1, 7, 15, 31, 25] and columns.tolist() == [0, 6, 11, 23, 47, 2]


@pytest.mark.parametrize("name", ["", "7", "B", "B0", "1B", "B49", "AG1", "BA1", "B-7", "B123"])
def test_a_name_that_is_no_well_is_refused(name):
    with pytest.raises(InputError, match=f"well '{name}' of row 1: expected a name from A01"):
        well_positions(["A01", name])


def slow_polish(table, sweeps=100):
    """As the book does it, cell by cell."""
    residual = [list(row) for row in table]
    n, m = len(table), len(table[0])
    overall, rows, columns = 0.0, [0.0] * n, [0.0] * m
    for _ in range(sweeps):
        for i in range(n):
            median = np.median([v for v in residual[i] if not np.isnan(v)])
            residual[i] = [v - median for v in residual[i]]
            rows[i] += median
        median = np.median(columns)
        columns, overall = [c - median for c in columns], overall + median
        for j in range(m):
            median = np.median([row[j] for row in residual if not np.isnan(row[j])])
            for row in residual:
                row[j] -= median
            columns[j] += median
        median = np.median(rows)
        rows, overall = [r - median for r in rows], overall + median
    return overall, rows, columns, residual


@pytest.mark.parametrize("holes", [0, 9])
def test_median_polish_agrees_with_a_plain_rendering(holes):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(6, 7))
    table.ravel()[rng.choice(42, holes, replace=False)] = np.nan
    for found, expected in zip(median_polish(table), slow_polish(table), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_median_polish_finds_an_additive_table_under_outliers():
    rows, columns = np.array([-2.0, 0, 1, 0, 5]), np.array([0.0, 3, -1, 0, 2, -4, 0])
    table = 10 + rows[:, None] + columns
    table[1, 2] = 99.0
    table[3, 5] = -99.0
    overall, row_effects, column_effects, residuals = median_polish(table)
    assert overall == pytest.approx(10)
    np.testing.assert_allclose(row_effects, rows, atol=1e-9)
    np.testing.assert_allclose(column_effects, columns, atol=1e-9)
    expected = np.zeros((5, 7))
    expected[1, 2], expected[3, 5] = 99 - 9, -99 - 6
    np.testing.assert_allclose(residuals, expected, atol=1e-9)


def test_empty_rows_and_columns_have_no_effect():
    table = np.full((4, 5), np.nan)
    table[1:3, 1:4] = [[1, 2, 3], [2, 3, 4]]
    overall, rows, columns, residuals = median_polish(table)
    np.testing.assert_allclose(rows, [np.nan, -0.5, 0.5, np.nan])
    np.testing.assert_allclose(columns, [np.nan, -1, 0, 1, np.nan], atol=1e-12)
    assert overall == pytest.approx(2.5) and np.isnan(residuals).sum() == 14
    assert median_polish(np.full((2, 2), np.nan))[0] == 0.0


def test_the_map_is_the_mean_over_plates_less_their_medians():
    given, _ = wells()
    found = plate_layout(**given)
    assert found.map.shape == (8, 12) and (found.n_plates == 4).all()
    by_plate = given["values"].reshape(4, 8, 12)
    expected = (by_plate - np.median(by_plate, axis=(1, 2), keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found.map, expected)
    for mine, polished in zip(
        (found.overall, found.row_effects, found.column_effects, found.residuals),
        median_polish(found.map),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, polished)
    assert found.one_sided is None


def test_an_edge_effect_is_measured_and_found():
    given, outer = wells(edge=1.0)
    found = plate_layout(**given)
    assert found.edge == pytest.approx(1.0, abs=0.3) and found.p == 1 / 10_000
    value, plate = given["values"], given["plates"]
    for name, edge in found.edge_by_plate.items():
        here = plate == name
        assert edge == pytest.approx(value[here & outer].mean() - value[here & ~outer].mean())
    # Plates are all complete, so that medians and offsets fall out.
    assert found.edge == pytest.approx(np.mean(list(found.edge_by_plate.values())))
    assert plate_layout(**{**given, "values": -value}).p == found.p  # two-sided


def test_without_an_edge_effect_p_is_super_uniform_even_where_plates_repeat_a_layout():
    p = []
    for seed in range(80):
        given, _ = wells(n_plates=3, shape=(4, 6), seed=seed)
        # The same treatments in the same wells of every plate.
        effects = np.random.default_rng(1_000 + seed).normal(size=24)
        given["values"] = given["values"] + 3 * np.tile(effects, 3)
        p.append(plate_layout(**given, draws=199, seed=seed).p)
    p = np.array(p)
    for a in (0.05, 0.2, 0.5):
        assert np.mean(p <= a) <= a + 3 * np.sqrt(a * (1 - a) / len(p))
    assert np.mean(p <= 0.5) > 0.35


def test_missing_wells_are_shuffled_among_positions_of_as_many_plates():
    given, _ = wells(edge=0.0, seed=3)
    kept = np.ones(len(given["values"]), bool)
    kept[(given["plates"] == "p0") & (given["rows"] < 4)] = False
    kept[(given["rows"] == 3) & (given["columns"] == 3)] = False
    found = plate_layout(**{k: v[kept] for k, v in given.items()})
    assert found.n_plates[3, 3] == 0 and np.isnan(found.map[3, 3])
    assert found.n_plates[0, 0] == 3 and found.n_plates[7, 0] == 4
    assert 0.001 < found.p <= 1


def test_where_nothing_can_be_shuffled_there_is_no_p_but_a_reason():
    given, outer = wells(n_plates=1)
    inner = plate_layout(**{k: v[~outer] for k, v in given.items()}, shape=(8, 12))
    assert (inner.edge, inner.p, inner.reason) == (None, None, "no well at the edge")
    rim = plate_layout(**{k: v[outer] for k, v in given.items()})
    assert (rim.edge, rim.p, rim.reason) == (None, None, "no well off the edge")
    given, outer = wells(n_plates=2)
    kept = ~outer | (given["plates"] == "p0")
    found = plate_layout(**{k: v[kept] for k, v in given.items()})
    assert found.p is None and found.reason.startswith("no position at the edge is on as many")
    assert found.edge is not None and list(found.edge_by_plate) == ["p0"]


def test_equal_values_have_p_one():
    given, _ = wells(n_plates=3)
    found = plate_layout(**{**given, "values": np.full(len(given["values"]), 0.1)})
    assert found.p == 1.0 and found.edge == 0.0


def test_the_share_of_treatments_that_only_one_side_has_is_told():
    given, outer = wells(n_plates=1)
    assert plate_layout(**given, treatments=np.where(outer, "DMSO", "drug")).one_sided == 1.0
    assert plate_layout(**given, treatments=["DMSO"] * 96).one_sided == 0.0
    names = np.where(outer, "DMSO", "drug").astype(object)
    names[np.flatnonzero(~outer)[:30]] = "DMSO"
    assert plate_layout(**given, treatments=names).one_sided == pytest.approx(30 / 96)


def test_no_order_of_rows_changes_a_bit():
    given, _ = wells(edge=0.3)
    order = np.random.default_rng(1).permutation(len(given["values"]))
    one = plate_layout(**given, draws=99)
    other = plate_layout(**{k: v[order] for k, v in given.items()}, draws=99)
    np.testing.assert_array_equal(one.map, other.map)
    assert (one.p, one.edge, one.edge_by_plate) == (other.p, other.edge, other.edge_by_plate)


def test_the_shape_is_the_smallest_usual_one():
    given, _ = wells(n_plates=1, shape=(16, 24))
    assert plate_layout(**given, draws=9).map.shape == (16, 24)
    inside = given["rows"] * 24 + given["columns"] == 7 * 24 + 9
    only = {k: v[inside] for k, v in given.items()}
    assert plate_layout(**only).map.shape == (8, 12)
    assert plate_layout(**only, shape=(9, 11)).map.shape == (9, 11)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": lambda v: np.where(np.arange(384) == 7, np.nan, v)}, "value of row 7 is nan"),
        ({"rows": lambda v: v - 1}, "plate row of row 0 is -1, expected 0, 1, 2"),
        ({"columns": lambda v: v + 0.5}, "plate column of row 0 is 0.5, expected 0, 1, 2"),
        ({"columns": lambda v: v + 40}, "wells reach plate row 7 and column 51 .* at most 32 x 48"),
        ({"shape": lambda v: (8, 11)}, "wells reach plate row 7 and column 11 .* at most 8 x 11"),
        (
            {"rows": lambda v: np.where(v == 1, 0, v)},
            "rows 0 and 12 are both at row 0, column 0 of",
        ),
        ({"plates": lambda v: [None, *v[1:]]}, "row 0 has no plate"),
        ({"treatments": lambda v: ["x"] * 383 + [None]}, "row 383 has no treatment"),
        ({"draws": lambda v: 0}, "draws of a permutation test: 0"),
    ],
)
def test_wrong_input_is_one_line(change, said):
    given, _ = wells()
    for key, new in change.items():
        given[key] = new(given.get(key))
    with pytest.raises(InputError, match=said):
        plate_layout(**given)


def test_no_wells_are_refused():
    with pytest.raises(InputError, match="no well given"):
        plate_layout([], [], [], [])

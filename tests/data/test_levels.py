import numpy as np
import pandas as pd
import pytest

from bioimg_jax.data.levels import MANY_LEVELS, QUANTILE_BINS, column_levels, is_numeric, readings


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float32])
def test_numbers_of_many_values_are_cut_at_quantiles_whole_or_not(dtype):
    order = pd.Series(np.random.default_rng(0).permutation(200), dtype=dtype)
    codes, names = column_levels(order)
    assert is_numeric(order) and names == [f"bin{i}" for i in range(QUANTILE_BINS)]
    np.testing.assert_array_equal(codes, order.to_numpy(int) // 10)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(np.arange(200) % MANY_LEVELS),  # columns of a plate of 1,536 wells
        pd.Series(np.arange(200) % 3 / 2),
        pd.Series([f"{i}" for i in range(200)]),
        pd.Series(np.arange(200) % 2 == 0),
    ],
)
def test_numbers_of_few_values_and_texts_are_names(column):
    codes, names = column_levels(column)
    assert not is_numeric(column) and len(names) == column.nunique()
    assert [names[code] for code in codes] == [str(value) for value in column]
    assert list(readings(column.rename("site"))) == ["site"]


def test_whole_numbers_of_many_values_may_be_names_too():
    wells = pd.Series(np.arange(400) % 200, name="well")
    found = readings(wells)
    assert {name: len(set(codes)) for name, codes in found.items()} == {
        "well": QUANTILE_BINS,
        "well (each value)": 200,
    }
    assert list(readings(pd.Series(np.linspace(0, 1, 200), name="focus"))) == ["focus"]


def test_codes_do_not_depend_on_the_order_of_rows_and_missing_is_a_level():
    column = pd.Series([*range(100), None], dtype="Int64")
    turned = column.iloc[np.random.default_rng(0).permutation(101)]
    codes, names = column_levels(column)
    assert names[-1] == "missing" and names[codes[-1]] == "missing"
    np.testing.assert_array_equal(column_levels(turned)[0], codes[turned.index])

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.columns import feature_rows, flags, names, numbers
from bioimg_jax.errors import InputError


def test_columns_of_any_kind_are_taken():
    assert names(pd.Series(["a", "b"], dtype="category"), 2, "plate").tolist() == ["a", "b"]
    assert names([1, "x"], 2, "plate").tolist() == ["1", "x"]
    some = names([None, "x"], 2, "treatment", rows=np.array([False, True]))
    assert some.tolist() == ["", "x"]
    assert flags(pd.Series([True, False]), 2, "control").tolist() == [True, False]
    assert flags(pd.array([True, False], dtype="boolean"), 2, "control").dtype == bool
    assert numbers(["1.5", 2], 2, "dose").tolist() == [1.5, 2.0]
    assert feature_rows(np.ones((2, 3), np.float16)).dtype == np.float64


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: names(["a", None], 2, "plate"), "row 1 has no plate"),
        (lambda: names(["a", np.nan], 2, "plate"), "row 1 has no plate"),
        (lambda: names(pd.Series([pd.NA, "a"]), 2, "plate"), "row 0 has no plate"),
        (lambda: names(["a"], 2, "plate"), r"plate: a column of shape \(1,\) for 2 rows"),
        (lambda: names(np.ones((2, 1)), 2, "plate"), r"plate: a column of shape \(2, 1\)"),
        (lambda: flags([True, 1], 2, "control"), "control of row 1 is 1, expected true or false"),
        (lambda: flags([True, None], 2, "control"), "control of row 1 is None"),
        (lambda: flags(["True", "no"], 2, "control"), "control of row 0 is 'True'"),
        (lambda: numbers([1.0, np.nan], 2, "dose"), "dose of row 1 is nan, expected a finite"),
        (lambda: numbers([1.0, np.inf], 2, "dose"), "dose of row 1 is inf"),
        (lambda: numbers([1.0, "high"], 2, "dose"), "dose of row 1 is 'high'"),
        (lambda: numbers([None, 1.0], 2, "dose"), "dose of row 0 is None"),
        (lambda: numbers(pd.Series([pd.NA, 1.0]), 2, "dose"), "dose of row 0 is <NA>"),
        (lambda: feature_rows(np.array([[0, 1], [2, np.nan]])), "feature 1 of row 1 is not finite"),
        (lambda: feature_rows(np.ones(3)), r"features of shape \(3,\), expected \[wells, feat"),
        (lambda: feature_rows(np.array([["a"]])), "features of type <U1, expected numbers"),
        (lambda: feature_rows(np.ones((0, 3))), r"features of shape \(0, 3\)"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_row(call, said):
    with pytest.raises(InputError, match=said):
        call()

import numpy as np
import pytest

from bioimg_jax.benchmarks import mean_profiles as module
from bioimg_jax.benchmarks.mean_profiles import check_rows, checked_names, mean_profiles
from bioimg_jax.errors import InputError


@pytest.mark.parametrize("rows", [4096, 7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_means_are_float64_and_of_no_order(rows, dtype, monkeypatch):
    monkeypatch.setattr(module, "ROWS", rows)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3)).astype(dtype)
    codes = rng.permutation(np.arange(60) % 11)
    found = mean_profiles(features, codes)
    assert found.dtype == np.float64
    for code in range(11):
        np.testing.assert_allclose(found[code], features[codes == code].mean(0, dtype=np.float64))
    order = rng.permutation(60)
    np.testing.assert_array_equal(mean_profiles(features[order], codes[order]), found)


def test_names_are_text_without_blanks_around():
    assert checked_names(np.array([" A", 7, "B "], object), "gene").tolist() == ["A", "7", "B"]
    some = np.array([2, 0])
    assert checked_names(np.array(["A", None, "B"], object), "gene", some).tolist() == ["B", "A"]


@pytest.mark.parametrize("blank", [None, np.nan, "", "  "])
def test_a_row_without_a_name_is_refused(blank):
    with pytest.raises(InputError, match="row 2 has no plate; expected a name"):
        checked_names(np.array(["A", "B", blank], object), "plate")
    with pytest.raises(InputError, match="row 2 has no plate"):
        checked_names(np.array(["A", "B", blank], object), "plate", np.array([1, 2]))


def test_columns_of_another_length_are_refused():
    with pytest.raises(InputError, match="3 values of plate for 4 rows of features"):
        check_rows(np.zeros((4, 2)), plate=np.zeros(3))
    with pytest.raises(InputError, match=r"features \(0, 2\), expected \[n, d\]"):
        check_rows(np.zeros((0, 2)))

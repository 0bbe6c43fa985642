import json
import math

import numpy as np
import pytest
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from bioimg_jax.errors import InputError
from bioimg_jax.statistics import similarity as module
from bioimg_jax.statistics.similarity import cka, mutual_knn, procrustes, rsa, similarity


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def orthogonal(d, seed=9):
    return np.linalg.qr(normal(d, d, seed=seed)).Q


def related(n=150, dx=12, dy=7):
    x = normal(n, dx) + 3.0
    return x, np.tanh(x @ normal(dx, dy, seed=1)) + 0.5 * normal(n, dy, seed=2)


def direct_cka(x, y, *, unbiased):
    """Song et al. (2012), with the n x n kernels written out."""
    n = len(x)

    def hsic(k, l):  # noqa: E741
        if not unbiased:
            centring = np.eye(n) - 1 / n
            return np.trace(k @ centring @ l @ centring)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize("unbiased", [False, True])
def test_streamed_cka_agrees_with_the_kernels(unbiased, monkeypatch):
    x, y = related()
    expected = direct_cka(x, y, unbiased=unbiased)
    assert cka(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(module, "BLOCK_ROWS", 17)
    assert cka(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_is_one_up_to_rotation_scale_and_shift(unbiased):
    x = normal(80, 20) * np.linspace(0.1, 2, 20)
    assert cka(x, x @ orthogonal(20), unbiased=unbiased) == pytest.approx(1.0)
    assert cka(x, 5 * x @ orthogonal(20) - 40, unbiased=unbiased) == pytest.approx(1.0)


def test_only_unbiased_cka_is_zero_for_independent_features():
    values = [
        (cka(x, y), cka(x, y, unbiased=True))
        for x, y in ((normal(100, 100, seed=i), normal(100, 100, seed=50 + i)) for i in range(20))
    ]
    biased, unbiased = np.transpose(values)
    assert biased.min() > 0.4
    assert abs(unbiased.mean()) < 3 * unbiased.std() / math.sqrt(20) < 0.02


def test_procrustes_is_zero_up_to_rotation_scale_and_shift():
    x = normal(60, 8) * np.linspace(0.5, 2, 8)
    assert procrustes(x, 3.0 * x @ orthogonal(8) + 10.0) == pytest.approx(0.0, abs=1e-12)
    padded = np.concatenate([x, np.zeros((60, 4))], axis=1) @ orthogonal(12)
    assert procrustes(x, padded) == pytest.approx(0.0, abs=1e-12)


def test_procrustes_agrees_with_scipy():
    x, y = related(dx=7)
    disparity = scipy_procrustes(x, y)[2]  # 1 − s², with the best scale s of one side
    assert procrustes(x, y) == pytest.approx(2 - 2 * math.sqrt(1 - disparity))


def test_mutual_knn_of_identical_and_of_independent_features():
    x = normal(500, 10)
    assert mutual_knn(x, 2.5 * x @ orthogonal(10)) == pytest.approx(1.0)
    values = [mutual_knn(x, normal(500, 30, seed=i)) for i in range(1, 9)]
    assert np.mean(values) == pytest.approx(10 / 499, rel=0.15)


def test_mutual_knn_with_ties_is_the_expectation_over_their_order():
    x = np.tile([[1.0, 0.0]], (40, 1))  # every other row is as near as any
    assert mutual_knn(x, normal(40, 3), k=5) == pytest.approx(5 / 39)


def test_rsa_agrees_with_scipy_and_ignores_an_isotropic_scale():
    x, y = related()
    assert rsa(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic)
    assert rsa(x, 7.0 * x) == pytest.approx(1.0)
    one_hot = np.eye(4)[np.arange(40) % 4]  # tied distances that a rotation must not untie
    assert rsa(one_hot, one_hot @ orthogonal(4)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "measure",
    [cka, lambda x, y: cka(x, y, unbiased=True), procrustes, mutual_knn, rsa],
    ids=["cka", "unbiased_cka", "procrustes", "mutual_knn", "rsa"],
)
def test_measures_are_symmetric_and_ignore_the_order_of_rows(measure):
    x, y = related()
    order = np.random.default_rng(0).permutation(len(x))
    assert measure(x[order], y[order]) == pytest.approx(measure(x, y))
    assert measure(y, x) == pytest.approx(measure(x, y))
    assert measure(x, y[order]) != pytest.approx(measure(x, y), rel=1e-3)


def test_similarity_states_its_rows_and_is_json():
    x, y = related(n=300)
    found = similarity(x.astype(np.float16), y.astype(np.float32), n=100, seed=1)
    assert found["rows"] == 300.0 and found["n"] == 100.0
    assert found["mutual_knn_chance"] == 10 / 99
    assert found["cka"] == pytest.approx(cka(x, y), abs=1e-3)
    assert found["rsa"] != similarity(x, y, n=100, seed=2)["rsa"]
    json.dumps(found, allow_nan=False)


def test_a_constant_side_is_like_nothing():
    found = similarity(np.full((60, 3), 0.1), normal(60, 4), n=50)
    assert found["cka"] is found["cka_unbiased"] is found["procrustes"] is found["rsa"] is None
    assert found["mutual_knn"] == pytest.approx(found["mutual_knn_chance"])


def test_bad_input_is_named():
    x = normal(50, 4)
    with pytest.raises(InputError, match="50 rows on one side, 49 on the other"):
        similarity(x, x[1:], n=20)
    with pytest.raises(InputError, match="n = 51 rows asked for 10 neighbours, there are 50"):
        similarity(x, x, n=51)
    with pytest.raises(InputError, match="n = 10 rows asked for 10 neighbours"):
        similarity(x, x, n=10)
    y = x.copy()
    y[3, 1] = np.nan
    with pytest.raises(InputError, match="row 3 of y is not finite"):
        similarity(x, y, n=20)

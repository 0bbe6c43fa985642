import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bioimg_jax.errors import InputError
from bioimg_jax.probes import ridge


def problem(n, d, m, *, decay=1.0, seed=0):
    """Correlated float32 features away from zero mean; targets that depend on them, with noise."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    features = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** (-decay / 2) @ basis
    features += 3 * rng.normal(size=d)
    targets = features @ rng.normal(size=(d, m)) + rng.normal(size=(n, m)) + 10 * rng.normal(size=m)
    return features.astype(np.float32), targets


def assert_agrees(probe, features, targets, new, intercept, rtol=1e-7):
    predicted = probe.predictions(new)
    for i, alpha in enumerate(probe.alphas):
        peer = Ridge(alpha=alpha, fit_intercept=intercept, solver="svd")
        peer.fit(features.astype(np.float64), targets)
        size = np.abs(peer.coef_).max()
        np.testing.assert_allclose(probe.weights[i], peer.coef_, rtol=rtol, atol=rtol * size)
        np.testing.assert_allclose(
            predicted[i], peer.predict(new.astype(np.float64)), rtol=rtol, atol=rtol
        )
        np.testing.assert_allclose(probe.predictions(new, i), predicted[i], rtol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "d"), [(300, 20), (40, 90), (50, 50), (51, 50), (1, 3)])
def test_agrees_with_scikit_learn(n, d, intercept, monkeypatch):
    monkeypatch.setattr(ridge, "ROWS", 64)  # several blocks
    features, targets = problem(n + 60, d, 7)
    probe = ridge.fit_ridge(features[:n], targets[:n], intercept=intercept)
    assert probe.alphas == ridge.ALPHAS
    assert probe.weights.shape == (9, 7, d) and probe.bias.shape == (9, 7)
    assert_agrees(probe, features[:n], targets[:n], features[n:], intercept)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("n", [200, 15])
def test_constant_and_collinear_features_are_harmless(n, intercept):
    features, targets = problem(n + 20, 10, 3)
    constant, zero = np.full((n + 20, 1), 123.0, np.float32), np.zeros((n + 20, 1), np.float32)
    wide = np.hstack([features, constant, features[:, :4], zero, 2 * features[:, 4:6]])
    alphas = (1e2, 1.0, 1e-3)
    probe = ridge.fit_ridge(wide[:n], targets[:n], alphas=alphas, intercept=intercept)
    assert_agrees(probe, wide[:n], targets[:n], wide[n:], intercept, rtol=1e-6)
    # alpha is 3e-10 of the largest eigenvalue where the constant is not centred: six digits.
    np.testing.assert_allclose(probe.weights[:, :, :4], probe.weights[:, :, 11:15], atol=2e-6)
    assert np.abs(probe.weights[:, :, 15]).max() < 1e-20
    if intercept:
        assert np.abs(probe.weights[:, :, 10]).max() < 1e-8


def test_small_alphas_need_float64():
    # Condition number of XᵀX 1e8: in float32 every digit of the weakest direction is lost.
    features, targets = problem(400, 30, 2, decay=5.4)
    probe = ridge.fit_ridge(features, targets, alphas=(1e-4,))
    assert_agrees(probe, features, targets, features, True, rtol=1e-5)


def test_one_column_by_hand():
    features, targets = np.array([[-1.0], [0.0], [1.0]]), np.array([[1.0], [2.0], [6.0]])
    probe = ridge.fit_ridge(features, targets, alphas=(3.0,))
    np.testing.assert_allclose(probe.weights, [[[5 / (2 + 3)]]])
    np.testing.assert_allclose(probe.bias, [[3.0]])
    np.testing.assert_allclose(probe.predictions(np.array([[2.0]])), [[[5.0]]])
    through_zero = ridge.fit_ridge(features, targets, alphas=(3.0,), intercept=False)
    assert (through_zero.bias == 0).all()


def test_primal_and_dual_meet():
    """One row more than features, and one less, of the same problem written with idle columns."""
    features, targets = problem(30, 29, 4)
    padded = np.hstack([features, np.zeros((30, 5), np.float32)])
    primal, dual = ridge.fit_ridge(features, targets), ridge.fit_ridge(padded, targets)
    np.testing.assert_allclose(dual.weights[:, :, :29], primal.weights, rtol=1e-8, atol=1e-10)
    assert np.abs(dual.weights[:, :, 29:]).max() < 1e-20


def test_alphas_come_strongest_first_and_other_alphas_do_not_matter():
    features, targets = problem(100, 10, 2)
    probe = ridge.fit_ridge(features, targets, alphas=(1e-1, 1e3, 1.0))
    assert probe.alphas == (1e3, 1.0, 1e-1)
    alone = ridge.fit_ridge(features, targets, alphas=(1.0,))
    np.testing.assert_allclose(probe.weights[1], alone.weights[0], rtol=1e-12)


def test_order_of_rows_leaves_no_trace():
    features, targets = problem(500, 20, 3)
    order = np.random.default_rng(1).permutation(500)
    probe = ridge.fit_ridge(features, targets)
    shuffled = ridge.fit_ridge(features[order], targets[order])
    np.testing.assert_allclose(probe.weights, shuffled.weights, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_takes_any_float(dtype):
    features, targets = problem(80, 10, 2)
    features = features.astype(dtype)
    probe = ridge.fit_ridge(features, targets.astype(dtype))
    wide = ridge.fit_ridge(features.astype(np.float64), targets.astype(dtype).astype(np.float64))
    np.testing.assert_array_equal(probe.weights, wide.weights)


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (-1.0,), (np.nan,), (np.inf,), ()])
def test_an_impossible_alpha_is_refused(alphas):
    features, targets = problem(20, 5, 2)
    with pytest.raises(InputError, match="alphas must be finite and above 0"):
        ridge.fit_ridge(features, targets, alphas=alphas)


def test_bad_rows_are_named():
    features, targets = problem(20, 5, 2)
    with pytest.raises(InputError, match=r"expected \[n, d\] and \[n, m\]"):
        ridge.fit_ridge(features, targets[:, 0])
    with pytest.raises(InputError, match="no training row"):
        ridge.fit_ridge(features[:0], targets[:0])
    probe = ridge.fit_ridge(features, targets)
    with pytest.raises(InputError, match="5 features"):
        probe.predictions(features[:, :3])
    targets[3, 1] = np.nan
    with pytest.raises(InputError, match="target 1 of training row 3"):
        ridge.fit_ridge(features, targets)
    features[7, 2] = np.inf
    with pytest.raises(InputError, match="feature 2 of training row 7"):
        ridge.fit_ridge(features, targets)
    with pytest.raises(InputError, match="feature 2 of row 7"):
        probe.predictions(features)

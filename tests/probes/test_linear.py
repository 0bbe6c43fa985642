import warnings

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bioimg_jax.errors import InputError
from bioimg_jax.probes import linear

WEAK_ENOUGH_TO_COMPARE = 1e-4


def problem(n, d, n_classes, *, decay, separation, seed=0):
    """Correlated features whose covariance spectrum falls as k^-decay, far from zero mean."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    labels = rng.integers(0, n_classes, n)
    labels[:n_classes] = np.arange(n_classes)
    centres = separation * rng.normal(size=(n_classes, d))
    latent = (rng.normal(size=(n, d)) + centres[labels]) * np.arange(1, d + 1) ** (-decay / 2)
    features = latent @ basis * rng.uniform(0.1, 10, d) + rng.normal(size=d) * 5
    return features.astype(np.float32), labels


def log_loss(logits, labels):
    logits = logits.astype(np.float64)
    log_sum = np.logaddexp.reduce(logits, axis=1)
    return float(np.mean(log_sum - logits[np.arange(len(labels)), labels]))


@pytest.mark.parametrize(
    ("n", "d", "n_classes", "decay", "separation"),
    [(900, 40, 3, 0.0, 0.2), (900, 60, 2, 2.0, 0.3), (700, 40, 12, 3.0, 0.5)],
    ids=["plain", "two classes, correlated", "twelve classes, ill-conditioned"],
)
def test_agrees_with_scikit_learn(n, d, n_classes, decay, separation):
    features, labels = problem(2 * n, d, n_classes, decay=decay, separation=separation)
    train, test = slice(None, n), slice(n, None)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        probe = linear.fit_linear(features[train], labels[train], n_classes)
    assert probe.strengths == linear.STRENGTHS
    assert probe.converged.all()
    standard = (features.astype(np.float64) - probe.mean) * probe.inverse_scale
    for i, strength in enumerate(probe.strengths):
        if strength < WEAK_ENOUGH_TO_COMPARE:
            continue
        peer = LogisticRegression(C=1 / (n * strength), tol=1e-8, max_iter=20_000)
        peer.fit(standard[train], labels[train])
        for part in (train, test):
            logits = probe.logits(features[part], i)
            expected = peer.decision_function(standard[part])
            if n_classes == 2:
                expected = np.stack([-expected / 2, expected / 2], axis=1)
            accuracy = np.mean(logits.argmax(axis=1) == labels[part])
            assert abs(accuracy - np.mean(expected.argmax(axis=1) == labels[part])) <= 0.002
            assert abs(log_loss(logits, labels[part]) - log_loss(expected, labels[part])) <= 1e-3


def test_gradient_vanishes_at_the_solution():
    features, labels = problem(500, 30, 4, decay=2.0, separation=0.3)
    probe = linear.fit_linear(features, labels, 4)
    x = (features.astype(np.float64) - probe.mean) * probe.inverse_scale
    y = np.eye(4)[labels]

    def gradient(weights, bias, strength):
        logits = x @ weights.T + bias
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        residual = (p - y) / len(x)
        return np.concatenate([(residual.T @ x + strength * weights).ravel(), residual.sum(axis=0)])

    start = np.linalg.norm(gradient(np.zeros((4, 30)), np.zeros(4), 0.0))
    for i, strength in enumerate(probe.strengths):
        left = np.linalg.norm(gradient(probe.weights[i], probe.bias[i], strength))
        assert left <= 2 * linear.TOLERANCE * start  # float32 weights evaluated in float64


def test_order_of_rows_does_not_matter():
    features, labels = problem(600, 30, 3, decay=2.0, separation=0.3)
    order = np.random.default_rng(1).permutation(600)
    probe = linear.fit_linear(features, labels, 3)
    shuffled = linear.fit_linear(features[order], labels[order], 3)
    some = features[:50]
    np.testing.assert_array_equal(probe.mean, shuffled.mean)
    np.testing.assert_allclose(probe.logits(some, 3), shuffled.logits(some, 3), atol=1e-4)
    assert (probe.logits(features).argmax(2) == shuffled.logits(features).argmax(2)).mean() > 0.999


def test_rows_of_weight_zero_are_absent():
    features, labels = problem(600, 30, 3, decay=1.0, separation=0.3)
    weights = np.ones(600)
    weights[450:] = 0.0
    features[450:] *= 100.0
    strengths = (1e-1, 1e-3)
    masked = linear.fit_linear(
        features, labels, 3, strengths=strengths, weights=weights, tolerance=1e-6
    )
    cut = linear.fit_linear(features[:450], labels[:450], 3, strengths=strengths, tolerance=1e-6)
    np.testing.assert_array_equal(masked.mean, cut.mean)
    np.testing.assert_allclose(masked.weights, cut.weights, atol=1e-4)


def test_integer_weights_are_repeated_rows():
    features, labels = problem(200, 10, 3, decay=1.0, separation=0.3)
    times = np.random.default_rng(0).integers(1, 4, 200)
    weighted = linear.fit_linear(features, labels, 3, strengths=(1e-2,), weights=times)
    repeated = linear.fit_linear(
        np.repeat(features, times, axis=0), np.repeat(labels, times), 3, strengths=(1e-2,)
    )
    np.testing.assert_allclose(weighted.weights, repeated.weights, atol=1e-4)


def test_nearby_sizes_share_one_compiled_program():
    strengths = (1e-1, 1e-2, 1e-3)
    features, labels = problem(520, 17, 3, decay=1.0, separation=0.3)
    assert linear.padded_rows(500) == linear.padded_rows(511) == 512
    linear.fit_linear(features[:500], labels[:500], 3, strengths=strengths)
    before = linear._solve_block._cache_size()
    linear.fit_linear(features[:511], labels[:511], 3, strengths=strengths)
    assert linear._solve_block._cache_size() == before


def test_targets_over_the_same_rows_are_what_single_fits_and_scikit_learn_say():
    n = 600
    features, labels = problem(n, 24, 4, decay=1.5, separation=0.4)
    rng = np.random.default_rng(5)
    columns = np.stack([labels, labels % 2, rng.permutation(labels)], axis=1)
    classes, strengths = [4, 2, 4], (1e-1, 1e-3, 1e-4)
    together = linear.fit_linear_targets(features, columns, classes, strengths=strengths)
    assert [probe.weights.shape for probe in together] == [(3, c, 24) for c in classes]
    for column, (probe, c) in enumerate(zip(together, classes, strict=True)):
        assert probe.converged.shape == probe.iterations.shape == (3,)
        assert probe.converged.all() and (probe.iterations > 0).all()
        alone = linear.fit_linear(features, columns[:, column], c, strengths=strengths)
        np.testing.assert_array_equal(probe.mean, alone.mean)
        standard = (features.astype(np.float64) - probe.mean) * probe.inverse_scale
        for i, strength in enumerate(strengths):
            loss = log_loss(probe.logits(features, i), columns[:, column])
            own = log_loss(alone.logits(features, i), columns[:, column])
            assert loss == pytest.approx(own, abs=1e-5)
            peer = LogisticRegression(C=1 / (n * strength), tol=1e-8, max_iter=20_000)
            p = peer.fit(standard, columns[:, column]).predict_proba(standard)
            assert loss == pytest.approx(
                -np.log(p[np.arange(n), columns[:, column]]).mean(), abs=1e-4
            )


def test_each_target_and_strength_has_a_convergence_of_its_own():
    features, labels = problem(400, 20, 4, decay=2.0, separation=0.3)
    # Of labels that the features say nothing about, the gradient at W = 0 is small, and so is what
    # 1e-5 of it asks for: they take more iterations or fewer, never the same.
    columns = np.stack([labels, np.random.default_rng(0).permutation(labels)], axis=1)
    probes = linear.fit_linear_targets(features, columns, 4)
    iterations = np.stack([probe.iterations for probe in probes])
    assert iterations.shape == (2, len(linear.STRENGTHS))
    assert (iterations[0] != iterations[1]).any() and len(set(iterations[0])) > 3
    few = linear.fit_linear_targets(features, columns, 4, max_iterations=5)
    assert not any(probe.converged.all() for probe in few)
    for probe in few:
        assert probe.converged[0] and (probe.iterations <= 5).all()
        assert ((probe.gradient <= linear.TOLERANCE) == probe.converged).all()


def test_more_targets_than_share_one_product_are_all_solved():
    features, labels = problem(300, 10, 3, decay=1.0, separation=0.4)
    many = linear.SHARED // 3 + 2
    rng = np.random.default_rng(2)
    columns = np.stack([labels, *(rng.permutation(labels) for _ in range(many - 1))], axis=1)
    probes = linear.fit_linear_targets(features, columns, 3, strengths=(1e-2,))
    assert len(probes) == many and all(probe.converged.all() for probe in probes)
    for column in (0, many - 1):
        alone = linear.fit_linear(features, columns[:, column], 3, strengths=(1e-2,))
        np.testing.assert_allclose(probes[column].weights, alone.weights, atol=2e-4)


@pytest.mark.parametrize("n", [1, 256, 257, 1_000, 4_097, 21_026, 200_000])
def test_padding_costs_at_most_a_quarter(n):
    rows = linear.padded_rows(n)
    assert n <= rows <= max(256, 1.25 * n + 64)


def test_constant_and_duplicated_features_are_harmless():
    features, labels = problem(400, 10, 3, decay=1.0, separation=0.5)
    constant = np.full((400, 1), 1234.5, np.float32)
    probe = linear.fit_linear(np.hstack([features, features, constant]), labels, 3)
    assert probe.converged.all()
    assert np.isfinite(probe.weights).all()
    assert (probe.inverse_scale[-1] == 0) and np.abs(probe.weights[:, :, -1]).max() < 1e-6
    np.testing.assert_allclose(probe.weights[3, :, :10], probe.weights[3, :, 10:20], atol=1e-4)


def test_more_features_than_rows():
    features, labels = problem(60, 100, 3, decay=1.0, separation=0.5)
    probe = linear.fit_linear(features, labels, 3)
    assert probe.converged.all()
    assert np.mean(probe.logits(features, len(probe.strengths) - 1).argmax(1) == labels) == 1.0


def test_a_column_that_runs_out_of_iterations_says_so():
    features, labels = problem(400, 20, 3, decay=2.0, separation=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = linear.fit_linear(features, labels, 3, max_iterations=6)
    assert probe.converged[0] and not probe.converged[-1]
    assert (probe.gradient[~probe.converged] > linear.TOLERANCE).all()


def test_logits_of_one_strength_are_those_of_all():
    features, labels = problem(300, 12, 4, decay=1.0, separation=0.5)
    probe = linear.fit_linear(features, labels, 4, strengths=(1e-3, 1e-1))
    assert probe.strengths == (1e-1, 1e-3)
    both = probe.logits(features)
    assert both.shape == (2, 300, 4)
    np.testing.assert_allclose(both[1], probe.logits(features, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 5}, "class 4 has no training example"),
        ({"n_classes": 1}, "at least 2 classes"),
        ({"strengths": (1.0, 0.0)}, "above 0"),
        ({"strengths": ()}, "above 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    features, labels = problem(100, 5, 4, decay=1.0, separation=0.5)
    arguments = {"n_classes": 4, **change}
    with pytest.raises(InputError, match=message):
        linear.fit_linear(features, labels, **arguments)


@pytest.mark.parametrize(
    ("columns", "n_classes", "message"),
    [
        (lambda y: y, 4, r"100 rows: expected \[n, t\], not \(100,\)"),
        (lambda y: np.stack([y, y], axis=1), [4], "1 numbers for 2 columns"),
        (lambda y: np.stack([y, y], axis=1), [4, 5], "target 1: class 4 has no training example"),
        (lambda y: np.stack([y, y], axis=1), [3, 4], "target 0: label 3 of training row"),
        (lambda y: np.stack([y, y], axis=1)[:50], 4, r"100 rows: expected \[n, t\], not \(50, 2\)"),
    ],
)
def test_bad_columns_of_labels_are_named(columns, n_classes, message):
    features, labels = problem(100, 5, 4, decay=1.0, separation=0.5)
    with pytest.raises(InputError, match=message):
        linear.fit_linear_targets(features, columns(labels), n_classes)


def test_a_feature_that_is_not_finite_is_named():
    features, labels = problem(100, 5, 4, decay=1.0, separation=0.5)
    features[7, 2] = np.nan
    with pytest.raises(InputError, match="feature 2 of training row 7"):
        linear.fit_linear(features, labels, 4)

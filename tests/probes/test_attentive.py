import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.probes import attentive
from bioimg_jax.probes.linear import fit_linear

STRENGTHS = (1e-1, 1e-2)
TRAIN, TEST = slice(None, 400), slice(400, None)


def marked_tokens(n, t=8, d=16, seed=0):
    """One marked token of each row holds the label; the others' codes add up to its opposite.

    The mean over tokens holds the mark and noise, and of the label nothing at all.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    rows, marked = np.arange(n), rng.integers(0, t, n)
    code = rng.normal(size=(n, t))
    code[rows, marked] = 0.0
    code -= code.sum(axis=1, keepdims=True) / (t - 1)
    code -= (2 * (2 * labels - 1) / (t - 1))[:, None]
    code[rows, marked] = 2 * (2 * labels - 1)
    latent = rng.normal(size=(n, t, d))
    latent[:, :, 0] = code
    latent[rows, marked, 1] += 4.0
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    tokens = latent @ basis * rng.uniform(0.1, 10, d) + rng.normal(size=d) * 5
    return tokens.astype(np.float32), labels


@pytest.fixture(scope="module")
def task():
    return marked_tokens(800)


@pytest.fixture(scope="module")
def probe(task):
    tokens, labels = task
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return attentive.fit_attentive(tokens[TRAIN], labels[TRAIN], 2, seed=0, strengths=STRENGTHS)


def test_sees_what_mean_pooling_cannot(task, probe):
    tokens, labels = task
    assert probe.converged.all()
    accuracy = (probe.logits(tokens[TEST]).argmax(axis=2) == labels[TEST]).mean(axis=1)
    assert (accuracy > 0.9).all()
    pooled = tokens.mean(axis=1)
    linear = fit_linear(pooled[TRAIN], labels[TRAIN], 2, strengths=STRENGTHS)
    accuracy = (linear.logits(pooled[TEST]).argmax(axis=2) == labels[TEST]).mean(axis=1)
    assert (np.abs(accuracy - 0.5) < 0.1).all()  # 4 standard errors


def test_is_at_chance_on_permuted_labels(task):
    tokens, labels = task
    permuted = np.random.default_rng(3).permutation(labels)
    fit = attentive.fit_attentive(
        tokens[TRAIN], permuted[TRAIN], 2, seed=0, strengths=STRENGTHS, max_iterations=60
    )
    accuracy = (fit.logits(tokens[TEST]).argmax(axis=2) == permuted[TEST]).mean(axis=1)
    assert (np.abs(accuracy - 0.5) < 0.1).all()  # 4 standard errors of 400 rows


def test_one_seed_gives_the_same_bits_and_any_seed_the_same_minimum(task, probe):
    tokens, labels = task
    again, other = (
        attentive.fit_attentive(tokens[TRAIN], labels[TRAIN], 2, seed=seed, strengths=STRENGTHS)
        for seed in (0, 1)
    )
    for field in dataclasses.fields(probe):
        np.testing.assert_array_equal(getattr(probe, field.name), getattr(again, field.name))
    assert (probe.query != other.query).any()
    np.testing.assert_allclose(probe.logits(tokens[:50]), other.logits(tokens[:50]), atol=1e-2)


def gradient_norm(params, tokens, labels, strength):
    """In float64, of the parts (query, weights, bias)."""
    with jax.enable_x64(True):
        params = attentive._Params(*(jnp.asarray(part, jnp.float64) for part in params))
        weights = jnp.full(len(labels), 1 / len(labels))
        gradient = jax.jit(jax.grad(attentive._loss))(params, tokens, labels, weights, strength)
        return float(
            np.linalg.norm(np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)]))
        )


def test_gradient_is_that_of_the_loss():
    """Against central differences, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        tokens, labels = jnp.asarray(rng.normal(size=(6, 5, 4))), jnp.asarray([0, 1, 2, 0, 1, 2])
        weights = jnp.asarray(rng.uniform(size=6))

        @jax.jit
        def loss(flat):
            params = attentive._Params(flat[:4], flat[4:16].reshape(3, 4), flat[16:])
            return attentive._loss(params, tokens, labels, weights, 0.3)

        where = rng.normal(size=19)
        numeric = [(loss(where + e) - loss(where - e)) / 2e-6 for e in 1e-6 * np.eye(19)]
        np.testing.assert_allclose(jax.grad(loss)(where), numeric, rtol=1e-6, atol=1e-9)


def test_gradient_reported_is_the_one_at_the_end(task, probe):
    tokens = (task[0][TRAIN].astype(np.float64) - probe.mean) * probe.inverse_scale
    start = (np.zeros(16), np.zeros((2, 16)), np.zeros(2))
    for i, strength in enumerate(probe.strengths):
        end = (probe.query[i], probe.weights[i], probe.bias[i])
        first, last = (
            gradient_norm(params, tokens, task[1][TRAIN], strength) for params in (start, end)
        )
        assert last <= 2 * attentive.TOLERANCE * first  # float32 parameters in float64


def test_with_one_token_it_is_the_linear_probe():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = (rng.normal(size=(300, 8)) + rng.normal(size=(3, 8))[labels]).astype(np.float32)
    fit = attentive.fit_attentive(features[:, None], labels, 3, seed=0, strengths=STRENGTHS)
    linear = fit_linear(features, labels, 3, strengths=STRENGTHS)
    assert fit.converged.all() and np.abs(fit.query).max() < 1e-3
    np.testing.assert_allclose(fit.logits(features[:, None]), linear.logits(features), atol=1e-3)


def test_a_strength_does_not_depend_on_the_others(task, probe):
    tokens, labels = task
    alone = attentive.fit_attentive(tokens[TRAIN], labels[TRAIN], 2, seed=0, strengths=(1e-2,))
    np.testing.assert_array_equal(alone.weights[0], probe.weights[1])
    both = probe.logits(tokens[TEST])
    assert both.shape == (2, 400, 2)
    np.testing.assert_array_equal(both[1], probe.logits(tokens[TEST], 1))


def test_running_out_of_iterations_is_said(task):
    tokens, labels = task
    fit = attentive.fit_attentive(
        tokens[TRAIN], labels[TRAIN], 2, seed=0, strengths=STRENGTHS, max_iterations=5
    )
    assert not fit.converged.any() and (fit.iterations == 5).all()
    assert (fit.gradient > attentive.TOLERANCE).all()


def test_constant_features_and_half_precision_are_harmless(task):
    tokens, labels = task
    wide = tokens[TRAIN].astype(np.float16)
    wide[:, :, -1] = 99.0
    fit = attentive.fit_attentive(
        wide, labels[TRAIN], 2, seed=0, strengths=(1e-1,), max_iterations=20
    )
    assert fit.inverse_scale[-1] == 0 and (fit.weights[:, :, -1] == 0).all()
    assert np.isfinite(fit.logits(wide)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_classes": 3}, "class 2 has no training example"),
        ({"n_classes": 1}, "at least 2 classes"),
        ({"labels": np.arange(20)}, "label 2 of training row 2"),
        ({"labels": np.arange(19) % 2}, r"expected \[n, t, d\]"),
        ({"strengths": (1.0, 0.0)}, "above 0"),
        ({"strengths": ()}, "above 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"labels": np.arange(20) % 2, "n_classes": 2, "seed": 0, **change}
    with pytest.raises(InputError, match=message):
        attentive.fit_attentive(marked_tokens(20)[0], **arguments)


def test_a_feature_that_is_not_finite_is_named(task, probe):
    tokens = task[0][:20].copy()
    tokens[7, 3, 2] = np.nan
    with pytest.raises(InputError, match="feature 2 of token 3 of training row 7"):
        attentive.fit_attentive(tokens, np.arange(20) % 2, 2, seed=0)
    with pytest.raises(InputError, match="feature 2 of token 3 of row 7"):
        probe.logits(tokens)
    with pytest.raises(InputError, match="16 features"):
        probe.logits(tokens[:, :, :5])

"""The products and the attention whose gradients are written out, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.models.transformer import attend, matmul


def normal(*shape: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def plain_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.einsum("bhqe,bhke->bhqk", q, k), axis=-1)
    return jnp.einsum("bhqk,bhke->bhqe", weights, v)


def test_matmul_and_its_gradients_are_those_of_jax() -> None:
    x, kernel, out = normal(6, 4, seed=0), normal(4, 3, seed=1), normal(6, 3, seed=2)
    with jax.numpy_dtype_promotion("strict"):
        ours, pull = jax.vjp(matmul, x, kernel)
    theirs, their_pull = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(ours, theirs)
    for one, other in zip(pull(out), their_pull(out), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: a softmax of nearly zeros and ones
def test_attention_and_its_gradients_are_those_of_jax(scale: float) -> None:
    q, k, v, out = (normal(2, 3, 7, 5, seed=i) for i in range(4))
    q = q * scale
    with jax.numpy_dtype_promotion("strict"):
        ours, pull = jax.vjp(attend, q, k, v)
        gradients = pull(out)
    theirs, their_pull = jax.vjp(plain_attention, q, k, v)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, their_pull(out), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * scale)


def test_attention_does_not_overflow() -> None:
    q, k = jnp.full((1, 1, 4, 2), 1e4), jnp.full((1, 1, 4, 2), 1e4)
    v = normal(1, 1, 4, 2, seed=0)
    np.testing.assert_allclose(attend(q, k, v), jnp.broadcast_to(v.mean(axis=2), (1, 1, 4, 2)),
                               rtol=1e-6)  # fmt: skip


def test_attention_in_bfloat16_keeps_the_type_and_sums_in_float32() -> None:
    q, k, v, out = (normal(2, 3, 70, 8, seed=i) for i in range(4))
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    with jax.numpy_dtype_promotion("strict"):
        ours, pull = jax.vjp(attend, *narrow)
        gradients = pull(out.astype(jnp.bfloat16))
    assert {x.dtype for x in (ours, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    expected = plain_attention(*(x.astype(jnp.float32) for x in narrow))
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=0.06)

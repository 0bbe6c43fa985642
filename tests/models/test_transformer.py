"""The operations whose gradients are written out, against JAX's own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.models.functional import Functional
from bioimg_jax.models.transformer import Blocks, attend, gelu, matmul, norm_beside


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


def test_gelu_and_its_gradient_are_those_of_jax() -> None:
    x, out = jnp.linspace(-8, 8, 1001), normal(1001, seed=0)
    ours, pull = jax.vjp(gelu, x)
    theirs, their_pull = jax.vjp(functools.partial(jax.nn.gelu, approximate=False), x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(out)[0], their_pull(out)[0], rtol=1e-5, atol=1e-6)


def test_norm_and_its_gradients_are_those_of_jax() -> None:
    def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        spread = jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
        return x, (x - x.mean(axis=-1, keepdims=True)) / spread * scale[None, :] + bias[None, :]

    # Far from zero, where the fast variance E[x^2] - E[x]^2 would have lost its digits.
    arrays = (30 + normal(7, 16, seed=0), normal(16, seed=1), normal(16, seed=2))
    gradients = (normal(7, 16, seed=3), normal(7, 16, seed=4))
    ours, pull = jax.vjp(norm_beside, *arrays)
    theirs, their_pull = jax.vjp(plain, *arrays)
    for one, other in zip(
        (*ours, *pull(gradients)), (*theirs, *their_pull(gradients)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_operations_in_bfloat16_keep_the_type_and_sum_in_float32() -> None:
    x = jnp.full((2, 4096), 1 / 64, jnp.bfloat16)
    kernel = jnp.ones((4096, 1), jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        product, pull = jax.vjp(matmul, x, kernel)
        gradients = pull(product)
        _, normed = norm_beside(x, jnp.ones(4096), jnp.zeros(4096))
        activated = gelu(x)
    arrays = (product, *gradients, normed, activated)
    assert {array.dtype for array in arrays} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(product.astype(jnp.float32), 64)  # bfloat16 sums stop at 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what XLA does on CPU")
def test_no_block_sums_the_gradients_of_all_blocks_behind_it() -> None:
    """XLA repeated the sum in every block: its fusions grew with the depth of the encoder."""

    def most_inputs_of_a_fusion(depth: int) -> int:
        blocks = Functional(
            lambda rngs: Blocks(depth, 64, 2, dtype=jnp.dtype("float32"), rngs=rngs)
        )
        variables = blocks.init(jax.random.key(0))

        def loss(params: Any, x: jax.Array) -> jax.Array:
            (last, _), _ = blocks.apply({"params": params, "stats": {}}, x)
            return jnp.sum(last**2)

        gradient = jax.jit(jax.grad(loss)).lower(variables["params"], jnp.ones((8, 20, 64)))
        text = gradient.compile().as_text()
        assert text is not None
        entry = text.split("ENTRY")[1]
        return max(line.count("%") for line in entry.splitlines() if " fusion(" in line)

    assert most_inputs_of_a_fusion(6) == most_inputs_of_a_fusion(3)

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


def test_operations_in_bfloat16_keep_the_type_and_compute_in_float32() -> None:
    x = jnp.linspace(-4, 4, 512).reshape(4, 128).astype(jnp.bfloat16)
    kernel, out = normal(128, 8, seed=0), normal(4, 128, seed=1)
    scale, bias = normal(128, seed=2), normal(128, seed=3)
    kernel, out = kernel.astype(jnp.bfloat16), out.astype(jnp.bfloat16)

    def outputs(kind: Any) -> list[jax.Array]:
        """Values and gradients of all three, computed in `kind`."""
        wide, g = x.astype(kind), out.astype(kind)
        product, of_product = jax.vjp(matmul, wide, kernel.astype(kind))
        normed, of_norm = jax.vjp(norm_beside, wide, scale, bias)
        activated, of_gelu = jax.vjp(gelu, wide)
        gradients = [*of_product(product), *of_norm((g, g)), *of_gelu(g)]
        return [product, *normed, activated, *gradients]

    with jax.numpy_dtype_promotion("strict"):
        narrow = outputs(jnp.bfloat16)
    kinds = {array.dtype for array in narrow if array.shape != (128,)}  # scale, bias: float32
    assert kinds == {jnp.dtype(jnp.bfloat16)}
    for one, other in zip(narrow, outputs(jnp.float32), strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other)
        # Three roundings to 8 bits at most; products of rounded products a little more.
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02 * np.abs(other).std())


def test_gelu_in_bfloat16_has_its_digits_where_x_is_far_below_zero() -> None:
    x = jnp.linspace(-4, -1, 301).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    np.testing.assert_allclose(gelu(x).astype(jnp.float32), exact, rtol=0.005, atol=1e-6)


def test_products_of_bfloat16_are_asked_to_sum_in_float32() -> None:
    x, kernel = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 2), jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda x, k: jax.vjp(matmul, x, k)[1](x @ k))(x, kernel))
    asked = [line for line in text.splitlines() if "preferred_element_type=float32" in line]
    assert len(asked) >= 2


def test_stochastic_depth_drops_whole_images() -> None:
    blocks = Functional(
        lambda rngs: Blocks(2, 16, 2, stochastic_depth=0.5, dtype=jnp.dtype("float32"), rngs=rngs)
    )
    variables = blocks.init(jax.random.key(0))
    x = normal(32, 5, 16, seed=0)
    (last, each), _ = blocks.apply(variables, x, jax.random.key(1))
    (_, whole), _ = blocks.apply(variables, x)
    np.testing.assert_allclose(each[0], whole[0], atol=1e-6)  # the first block's rate is zero
    unchanged = np.asarray(last == each[0]).mean(axis=(1, 2))  # both branches of the last dropped
    assert set(unchanged) <= {0.0, 1.0} and 0 < unchanged.sum() < 32


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

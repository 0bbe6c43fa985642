"""Pre-norm transformer blocks, stacked: what the ViT and the MAE decoder have in common."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# As in MAE and DINO code bases. Hugging Face's ViT has 1e-12 by default.
NORM_EPSILON = 1e-6


def layer_norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    return nnx.LayerNorm(
        width, epsilon=NORM_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[m, k] @ [k, n] -> [m, n], whose gradients are products of the arrays as they lie.

    JAX's own rule makes the gradient of `kernel` transposed. On CPU, XLA then writes a transposed
    copy of the residual stream's gradient for it, and computes that gradient anew for each copy,
    from the last block on: a third of the step of a ViT-S of 12 blocks.
    """
    return x @ kernel


def _matmul(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _matmul_back(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    return (
        jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ()))),  # [m, k]
        jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ()))),  # [k, n]
    )


matmul.defvjp(_matmul, _matmul_back)


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ) v for each head; all [b, heads, n, e], q scaled already.

    The rows are divided by their sums after the product with v, and the gradient of the softmax
    needs one pass over [n, n] (Dao et al., arXiv 2205.14135, appendix B): fewer passes over memory.
    """
    return _attend(q, k, v)[0]


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = jnp.einsum("bhqe,bhke->bhqk", q, k).astype(jnp.float32)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)  # [b, heads, n, 1]
    weights = weights.astype(v.dtype)
    mixed = jnp.einsum("bhqk,bhke->bhqe", weights, v).astype(jnp.float32) / total
    mixed = mixed.astype(v.dtype)
    return mixed, (q, k, v, weights, total, mixed)


def _attend_back(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, weights, total, mixed = kept
    share = jnp.sum((gradient * mixed).astype(jnp.float32), axis=-1, keepdims=True) / total
    gradient = (gradient.astype(jnp.float32) / total).astype(v.dtype)
    of_weights = jnp.einsum("bhqe,bhke->bhqk", gradient, v).astype(jnp.float32)
    of_scores = (weights.astype(jnp.float32) * (of_weights - share)).astype(v.dtype)
    return (
        jnp.einsum("bhqk,bhke->bhqe", of_scores, k),
        jnp.einsum("bhqk,bhqe->bhke", of_scores, q),
        jnp.einsum("bhqk,bhqe->bhke", weights, gradient),
    )


attend.defvjp(_attend, _attend_back)


class Linear(nnx.Module):
    """x W + b over the last axis of [..., inputs]."""

    def __init__(self, inputs: int, outputs: int, dtype: Any, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        init = nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        return (matmul(flat, kernel) + bias[None, :]).reshape(*x.shape[:-1], -1)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762), [b, n, d] -> [b, n, d]."""

    def __init__(self, width: int, heads: int, dtype: Any, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype, rngs)
        self.out = Linear(width, width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, d = x.shape
        head = d // self.heads
        # One transpose makes all three contiguous per head. Products straight from slices of the
        # projection are a third slower on CPU, where each consumer transposes again.
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, head).transpose(2, 0, 3, 1, 4)
        mixed = attend(qkv[0] * (1 / math.sqrt(head)), qkv[1], qkv[2])  # [b, heads, n, d / heads]
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(b, n, d))


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a skip connection."""

    def __init__(
        self, width: int, heads: int, layerscale: float | None, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = layer_norm(width, dtype, rngs)
        self.attention = Attention(width, heads, dtype, rngs)
        self.norm2 = layer_norm(width, dtype, rngs)
        self.up = Linear(width, 4 * width, dtype, rngs)
        self.down = Linear(4 * width, width, dtype, rngs)
        # LayerScale (Touvron et al., arXiv 2103.17239): a learned factor a feature and branch.
        self.scale1 = None if layerscale is None else nnx.Param(jnp.full((width,), layerscale))
        self.scale2 = None if layerscale is None else nnx.Param(jnp.full((width,), layerscale))

    def __call__(self, x: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """[b, n, d] -> [b, n, d]. `kept` [2, b] multiplies the branches (stochastic depth)."""
        x = x + self._branch(self.attention(self.norm1(x)), self.scale1, kept, 0)
        hidden = jax.nn.gelu(self.up(self.norm2(x)), approximate=False)
        return x + self._branch(self.down(hidden), self.scale2, kept, 1)

    def _branch(
        self, x: jax.Array, scale: nnx.Param | None, kept: jax.Array | None, branch: int
    ) -> jax.Array:
        if scale is not None:
            x = x * scale[...].astype(x.dtype)[None, None, :]
        if kept is not None:
            x = x * kept[branch].astype(x.dtype)[:, None, None]
        return x


class Blocks(nnx.Module):
    """`depth` blocks whose parameters are stacked: every leaf is [depth, ...].

    `stochastic_depth` is the rate of the last block; the rates rise linearly from zero (Huang et
    al., arXiv 1603.09382).
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        *,
        layerscale: float | None = None,
        stochastic_depth: float = 0.0,
        dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth = depth
        self.stochastic_depth = stochastic_depth

        @nnx.split_rngs(splits=depth)
        @functools.partial(nnx.vmap, in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, layerscale, dtype, rngs)

        self.stack = make(rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """[b, n, d] -> the last block's output [b, n, d] and every block's [depth, b, n, d].

        `key` switches stochastic depth on. What nobody uses of the second costs nothing: the scan
        is unrolled, and the compiler drops it.
        """
        graph, stack = nnx.split(self.stack)  # a block's graph, parameters [depth, ...]
        kept = None
        if key is not None and self.stochastic_depth:
            rates = jnp.linspace(0, self.stochastic_depth, self.depth)[:, None, None]
            draws = jax.random.uniform(key, (self.depth, 2, x.shape[0]))
            kept = (draws >= rates) / (1 - rates)

        def step(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
            params, kept = layer
            block: Any = nnx.merge(graph, params)
            x = block(x, kept)
            return x, x

        return jax.lax.scan(step, x, (stack, kept), unroll=True)


def sincos_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Fixed two-dimensional positions, float32 [rows * columns, width].

    He et al., arXiv 2111.06377: the first half of the features encodes the column, the second the
    row, each as sines, then cosines, of wavelengths 2 pi ... 2 pi * 10000.
    """
    quarter = width // 4
    frequencies = 1 / 10000 ** (np.arange(quarter) / quarter)
    grid_rows, grid_columns = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [grid.reshape(-1, 1) * frequencies for grid in (grid_columns, grid_rows)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1).astype(np.float32)

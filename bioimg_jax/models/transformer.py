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

# How kernels are drawn: Glorot's uniform distribution as in MAE and JAX's own ViT, or that of timm,
# DINOv2 and Hugging Face, whose `trunc_normal_` cuts at +-2: a hundred standard deviations away.
XAVIER, TRUNC_NORMAL = "xavier", "trunc_normal"
INITS = {
    XAVIER: nnx.initializers.xavier_uniform(),
    TRUNC_NORMAL: nnx.initializers.normal(0.02),
}


@jax.custom_vjp
def norm_beside(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [rows, d] as it is, for the skip connection, and its layer norm (arXiv 1607.06450).

    Both leave here together because their gradients come back together, as one sum of two arrays:
    g_skip + (g - mean g - x' mean(g x')) / s, with s the standard deviation and x' the standardised
    row. XLA on CPU repeats an operation on a single array in each of its readers, reshapes
    included; through one it summed the gradients of all the blocks behind anew in every block.
    """
    return _norm_beside(x, scale, bias)[0]


def _norm_beside(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[Any, Any]:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    spread = jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + NORM_EPSILON)  # [rows, 1]
    standard = centred / spread
    normed = standard * scale[None, :] + bias[None, :]
    return (x, normed.astype(x.dtype)), (standard.astype(x.dtype), spread, scale)


def _norm_beside_back(kept: Any, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    standard, spread, scale = kept
    dtype = standard.dtype
    skip, out, standard = (x.astype(jnp.float32) for x in (*gradients, standard))
    g = out * scale[None, :]
    mean = g.mean(axis=-1, keepdims=True)
    along = (g * standard).mean(axis=-1, keepdims=True)
    of_x = skip + (g - mean - standard * along) / spread
    return of_x.astype(dtype), (out * standard).sum(axis=0), out.sum(axis=0)


norm_beside.defvjp(_norm_beside, _norm_beside_back)


class Norm(nnx.Module):
    """Layer norm over the last axis of [..., d], whose statistics are float32."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (width,)))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.beside(x.reshape(-1, x.shape[-1]))[1].reshape(x.shape)

    def beside(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [rows, d] as it is, and its norm; see `norm_beside`."""
        return norm_beside(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[m, k] @ [k, n] -> [m, n], whose gradients are products of the arrays as they lie.

    JAX's own rule makes the gradient of `kernel` transposed. On CPU, XLA then writes a transposed
    copy of the residual stream's gradient for it. Sums are float32 whatever the arrays are, which
    a CPU needs to be told before it uses its bfloat16 units.
    """
    return _product(x, kernel, 1, 0)


def _product(x: jax.Array, y: jax.Array, of_x: int, of_y: int) -> jax.Array:
    """x y summed over axis `of_x` of x and `of_y` of y."""
    axes = (((of_x,), (of_y,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32).astype(x.dtype)


def _matmul(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_back(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    return _product(gradient, kernel, 1, 1), _product(x, gradient, 0, 0)


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


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf in float32 (Hendrycks and Gimpel, arXiv 1606.08415), as PyTorch has it.

    `jax.nn.gelu` takes erfc, which is right to the last digit for large negative x and costs an
    exponential, two polynomials and a division more. The gradient keeps nothing but x: reading
    erf(x) back takes longer than computing it again.
    """
    wide = x.astype(jnp.float32)  # 1 + erf(x) has no digits left in bfloat16 where x is -3
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_back(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    h = wide * -math.sqrt(0.5)  # of -x, lest XLA finds erf(x) again and keeps it all the same
    density = jnp.exp(-h * h) * (1 / math.sqrt(2 * math.pi))
    slope = 0.5 - 0.5 * jax.lax.erf(h) + wide * density
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu, _gelu_back)


class Linear(nnx.Module):
    """x W + b over the last axis of [..., inputs]."""

    def __init__(
        self, inputs: int, outputs: int, dtype: Any, rngs: nnx.Rngs, *, init: str = XAVIER
    ) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(INITS[init](rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        return (matmul(flat, kernel) + bias[None, :]).reshape(*x.shape[:-1], -1)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al., arXiv 1706.03762) of `images` images, [b n, d]."""

    def __init__(self, width: int, heads: int, dtype: Any, init: str, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype, rngs, init=init)
        self.out = Linear(width, width, dtype, rngs, init=init)

    def __call__(self, x: jax.Array, images: int) -> jax.Array:
        d = x.shape[-1]
        b, n, head = images, x.shape[0] // images, d // self.heads
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, head)
        q, k, v = (qkv[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        mixed = attend(q * (1 / math.sqrt(head)), k, v)  # [b, heads, n, d / heads]
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(-1, d))


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each behind a norm and beside a skip connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        layerscale: float | None,
        dtype: Any,
        init: str,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = Norm(width, rngs)
        self.attention = Attention(width, heads, dtype, init, rngs)
        self.norm2 = Norm(width, rngs)
        self.up = Linear(width, 4 * width, dtype, rngs, init=init)
        self.down = Linear(4 * width, width, dtype, rngs, init=init)
        # LayerScale (Touvron et al., arXiv 2103.17239): a learned factor a feature and branch.
        self.scale1 = None if layerscale is None else nnx.Param(jnp.full((width,), layerscale))
        self.scale2 = None if layerscale is None else nnx.Param(jnp.full((width,), layerscale))

    def __call__(self, x: jax.Array, images: int, kept: jax.Array | None = None) -> jax.Array:
        """[b n, d] -> [b n, d]. `kept` [2, b] multiplies the branches (stochastic depth)."""
        x, normed = self.norm1.beside(x)
        x = x + self._branch(self.attention(normed, images), self.scale1, kept, 0)
        x, normed = self.norm2.beside(x)
        hidden = gelu(self.up(normed))
        return x + self._branch(self.down(hidden), self.scale2, kept, 1)

    def _branch(
        self, x: jax.Array, scale: nnx.Param | None, kept: jax.Array | None, branch: int
    ) -> jax.Array:
        if scale is not None:
            x = x * scale[...].astype(x.dtype)[None, :]
        if kept is not None:
            factors = jnp.repeat(kept[branch], x.shape[0] // kept.shape[1])
            x = x * factors.astype(x.dtype)[:, None]
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
        init: str = XAVIER,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth = depth
        self.stochastic_depth = stochastic_depth

        @nnx.split_rngs(splits=depth)
        @functools.partial(nnx.vmap, in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, layerscale, dtype, init, rngs)

        self.stack = make(rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """[b, n, d] -> the last block's output [b, n, d] and every block's [depth, b, n, d].

        `key` switches stochastic depth on. What nobody uses of the second costs nothing: the scan
        is unrolled, and the compiler drops it.
        """
        b, n, d = x.shape
        graph, stack = nnx.split(self.stack)  # a block's graph, parameters [depth, ...]
        kept = None
        if key is not None and self.stochastic_depth:
            rates = jnp.linspace(0, self.stochastic_depth, self.depth)[:, None, None]
            draws = jax.random.uniform(key, (self.depth, 2, x.shape[0]))
            kept = (draws >= rates) / (1 - rates)

        def step(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
            params, kept = layer
            block: Any = nnx.merge(graph, params)
            x = block(x, b, kept)
            return x, x.reshape(b, n, d)

        x, blocks = jax.lax.scan(step, x.reshape(-1, d), (stack, kept), unroll=True)
        return x.reshape(b, n, d), blocks


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

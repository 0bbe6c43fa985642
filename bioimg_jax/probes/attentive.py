"""The attentive probe: one learned query looks at the tokens, a linear classifier at what it saw.

For standardised tokens X [n, t, d], over a query q [d], weights W [c, d] and a free bias b [c],

    a = softmax over tokens of (X q),   z = sum over tokens of a X,   logits = z Wᵀ + b

minimising mean cross-entropy + (lambda / 2) (‖W‖² + ‖q‖²). This is cross-attention with one head:
its key projection and 1/√d are absorbed in q and its value projection in W (the scores are
xᵀ W_kᵀ q / √d, and the pooled value is W_v z), so nothing is lost by leaving them out. At q = 0 it
is the linear probe of mean-pooled tokens, with the penalty of a softmax classifier (for two classes
the linear probe counts lambda twice, as scikit-learn does).

Tokens are standardised by the training rows, each feature over all rows and tokens. The solver is
optax's L-BFGS on all rows, one strength at a time, each from the same start, so that a strength's
result does not depend on the others asked for. There is no learning rate and no order of batches.

The loss is not convex in q. The start is W = b = 0 and a small random q: from there the seeds tried
reached one minimum (at weak strengths sometimes two, 6 % apart); from a q of length 1 each found
its own, better or worse (objective 0.31 to 0.62 on one problem, against 0.38). That is the trade:
repeatable, not the best there is.

The training tokens are held on the device: 4 n t d bytes.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_labels
from bioimg_jax.probes.linear import moments, padded_rows

STRENGTHS: tuple[float, ...] = (1e0, 1e-1, 1e-2, 1e-3, 1e-4)
TOLERANCE = 1e-5  # gradient norm relative to the one at the start
MAX_ITERATIONS = 200
MEMORY = 10  # pairs of steps and gradient changes that L-BFGS remembers
START = 0.02  # length of the first query
BLOCK = 256  # rows standardised or looked at together


@dataclasses.dataclass(frozen=True)
class AttentiveProbe:
    """Fitted probes, one for each strength, strongest first.

    mean, inverse_scale: float32 [d] of the training tokens; inverse_scale is 0 for constant
      features.
    query [s, d], weights [s, c, d], bias [s, c]: float32, for standardised tokens.
    converged bool [s]; iterations int [s]; gradient [s]: relative gradient norm at the end.
    """

    strengths: tuple[float, ...]
    mean: np.ndarray
    inverse_scale: np.ndarray
    query: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray
    gradient: np.ndarray

    def logits(self, tokens: np.ndarray, strength: int | None = None) -> np.ndarray:
        """Logits [s, n, c] of raw tokens [n, t, d], or [n, c] for the strength of that position.

        Raises:
          InputError: a feature that is not finite, or another number of features.
        """
        if tokens.ndim != 3 or tokens.shape[2] != len(self.mean):
            raise InputError(
                f"attentive probe was fitted to tokens of {len(self.mean)} features, "
                f"not {tokens.shape}"
            )
        _check_finite(tokens, "row")
        chosen = range(len(self.strengths)) if strength is None else (strength,)
        result = np.empty((len(chosen), len(tokens), self.bias.shape[1]), np.float32)
        for first in range(0, len(tokens), BLOCK):
            part = tokens[first : first + BLOCK]
            block = jnp.asarray(_standardised(part, self.mean, self.inverse_scale, BLOCK))
            for i, s in enumerate(chosen):
                params = _Params(self.query[s], self.weights[s], self.bias[s])
                with jax.default_matmul_precision("highest"):
                    result[i, first : first + BLOCK] = _jitted_logits(params, block)[: len(part)]
        return result if strength is None else result[0]


def fit_attentive(
    tokens: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    *,
    seed: int,
    strengths: Sequence[float] = STRENGTHS,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> AttentiveProbe:
    """Fit one probe for each strength on the training rows; the same seed gives the same bits.

    Args:
      tokens: [n, t, d], any float dtype, raw (standardised here).
      labels: int [n] in 0 ... n_classes - 1; each class needs a row.
      strengths: lambda > 0, in any order; the result has them strongest first.

    Raises:
      InputError: a class without a training row, a feature that is not finite, a strength ≤ 0.
    """
    labels = np.asarray(labels, np.int32)
    _check(tokens, labels, n_classes, strengths)
    strengths = tuple(sorted((float(s) for s in strengths), reverse=True))
    n, t, d = tokens.shape
    mean, inverse_scale = moments(tokens.reshape(n * t, d), np.ones(n * t))
    # Rows beyond n are padding of weight 0, so that nearby sizes share one compiled program.
    rows = padded_rows(n)
    standardised = jnp.asarray(_standardised(tokens, mean, inverse_scale, rows))
    row_labels, row_weights = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    row_labels[:n], row_weights[:n] = labels, 1.0 / n

    start = _Params(
        query=START / np.sqrt(d) * jax.random.normal(jax.random.key(seed), (d,), jnp.float32),
        weights=jnp.zeros((n_classes, d), jnp.float32),
        bias=jnp.zeros(n_classes, jnp.float32),
    )
    with jax.default_matmul_precision("highest"):  # TF32 would stop the gradient at 1e-3
        solutions = [
            jax.device_get(
                _solve(
                    start,
                    standardised,
                    row_labels,
                    row_weights,
                    np.float32(strength),
                    np.float32(tolerance),
                    np.int32(max_iterations),
                )
            )
            for strength in strengths
        ]
    params, gradient, iterations = (
        jax.tree.map(lambda *values: np.stack(values), *parts)
        for parts in zip(*solutions, strict=True)
    )
    return AttentiveProbe(
        strengths=strengths,
        mean=mean,
        inverse_scale=inverse_scale,
        query=params.query,
        weights=params.weights,
        bias=params.bias,
        converged=gradient <= tolerance,
        iterations=iterations,
        gradient=gradient,
    )


def _check(
    tokens: np.ndarray, labels: np.ndarray, n_classes: int, strengths: Sequence[float]
) -> None:
    if n_classes < 2:
        raise InputError(f"an attentive probe needs at least 2 classes, not {n_classes}")
    if tokens.ndim != 3 or len(tokens) != len(labels):
        raise InputError(
            f"attentive probe: tokens {tokens.shape} for {len(labels)} labels, expected [n, t, d]"
        )
    check_labels(labels, n_classes)
    if not len(strengths) or not all(0 < s < np.inf for s in strengths):
        raise InputError(f"probe strengths must be finite and above 0: {list(strengths)}")
    _check_finite(tokens, "training row")


def _check_finite(tokens: np.ndarray, rows: str) -> None:
    for row, values in enumerate(tokens):
        if not np.isfinite(values).all():
            token, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(f"feature {column} of token {token} of {rows} {row} is not finite")


def _standardised(
    tokens: np.ndarray, mean: np.ndarray, inverse_scale: np.ndarray, rows: int
) -> np.ndarray:
    """float32 [rows, t, d]; zeros after the rows there are."""
    result = np.zeros((rows, *tokens.shape[1:]), np.float32)
    for first in range(0, len(tokens), BLOCK):
        part = tokens[first : first + BLOCK].astype(np.float32)
        result[first : first + len(part)] = (part - mean) * inverse_scale
    return result


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Params:
    query: jax.Array  # [d]
    weights: jax.Array  # [c, d]
    bias: jax.Array  # [c]


def _logits(params: _Params, tokens: jax.Array) -> jax.Array:
    """[n, t, d] -> [n, c]."""
    attention = jax.nn.softmax(jnp.einsum("ntd,d->nt", tokens, params.query), axis=1)
    seen = jnp.einsum("nt,ntd->nd", attention, tokens)
    return seen @ params.weights.T + params.bias[None]


_jitted_logits = jax.jit(_logits)


def _loss(
    params: _Params,
    tokens: jax.Array,  # [n, t, d]
    labels: jax.Array,  # int32 [n]
    row_weights: jax.Array,  # [n], sum 1
    strength: jax.Array,
) -> jax.Array:
    logits = _logits(params, tokens)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    squares = jnp.sum(params.weights**2) + jnp.sum(params.query**2)
    return jnp.sum(row_weights * entropies) + strength / 2 * squares


@jax.jit
def _solve(
    start: _Params,
    tokens: jax.Array,
    labels: jax.Array,
    row_weights: jax.Array,
    strength: jax.Array,
    tolerance: jax.Array,
    max_iterations: jax.Array,
) -> tuple[_Params, jax.Array, jax.Array]:
    """Parameters, relative gradient norm and iterations done."""

    def loss(params: _Params) -> jax.Array:
        return _loss(params, tokens, labels, row_weights, strength)

    optimizer = optax.lbfgs(memory_size=MEMORY)
    value, gradient = jax.value_and_grad(loss)(start)
    initial = optax.tree.norm(gradient)
    initial = jnp.where(initial > 0.0, initial, 1.0)

    def iterate(carry: tuple) -> tuple:
        params, state, value, gradient, step = carry
        updates, state = optimizer.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        # The line search holds value and gradient of the point it accepted.
        value, gradient = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        return optax.apply_updates(params, updates), state, value, gradient, step + 1

    def unfinished(carry: tuple) -> jax.Array:
        _, _, _, gradient, step = carry
        return (step < max_iterations) & (optax.tree.norm(gradient) > tolerance * initial)

    carry = (start, optimizer.init(start), value, gradient, jnp.int32(0))
    params, _, _, gradient, step = jax.lax.while_loop(unfinished, iterate, carry)
    return params, optax.tree.norm(gradient) / initial, step

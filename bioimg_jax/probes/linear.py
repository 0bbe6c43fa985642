"""The linear probe: multinomial logistic regression over a grid of strengths, no learning rate.

For each strength lambda, over weights W [c, d] and a free bias b [c], minimise

    mean cross-entropy(X Wᵀ + b, y) + (lambda / 2) ‖W‖²

on features X [n, d] standardised by the training rows; scikit-learn's `LogisticRegression` with
C = 1 / (n lambda) has the same minimum. (Two classes: scikit-learn keeps one weight vector
w = W₁ − W₀, whose minimum is ours at 2 lambda, so that is what is solved.)

The solver is L-BFGS, written for this problem:

* X is rotated into the eigenbasis of its covariance. At W = 0 the Hessian is diagonal there,
  h e_i + lambda with h = (1 − 1/c)/c, and its inverse, scaled like the usual gamma, starts the
  two-loop recursion. On correlated features this saves 5 to 10 times the iterations.
* Strengths are solved together as extra columns of the same matrix products, in blocks of about
  `COLUMNS` columns from the strongest down. A block stops when its own strengths are done and the
  next one starts from its last solution, so that a weak strength costs nothing to a strong one.
* A step needs one product for the direction's logits and one for the gradient. The line search
  works on logits alone: along a ray the loss is convex, and a zero of its slope is bracketed for
  each strength on its own. It looks at slopes only, because in float32 the loss itself stops
  changing long before the gradient does.

Padded rows have weight 0, so problems of nearby sizes share one compiled program.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite

STRENGTHS: tuple[float, ...] = (1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TOLERANCE = 1e-5  # gradient norm relative to the one at W = 0
MAX_ITERATIONS = 1_000
COLUMNS = 32  # columns of a matrix product that one block of strengths should fill
MEMORY = 10  # pairs of steps and gradient changes that L-BFGS remembers
MAX_TRIALS = 20  # step lengths tried along one direction
SLOPE_SHARE = 0.5  # a step is taken when the slope has fallen to this share of the first one
ROUNDS = 4  # restarts from freshly computed logits, against the drift of their running sum


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Fitted probes, one for each strength, strongest first.

    mean, inverse_scale: float32 [d] of the training rows; inverse_scale is 0 for constant features.
    weights [s, c, d], bias [s, c]: for standardised features.
    converged bool [s]; iterations int [s]; gradient [s]: relative gradient norm at the end.
    """

    strengths: tuple[float, ...]
    mean: np.ndarray
    inverse_scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray
    gradient: np.ndarray

    def logits(self, features: np.ndarray, strength: int | None = None) -> np.ndarray:
        """Logits [s, n, c] of raw features [n, d], or [n, c] for the strength of that position."""
        standardised = standardise(features, self.mean, self.inverse_scale)
        if strength is not None:
            return standardised @ self.weights[strength].T + self.bias[strength]
        s, c, d = self.weights.shape
        flat = standardised @ self.weights.reshape(s * c, d).T  # [n, s c]
        return flat.reshape(-1, s, c).transpose(1, 0, 2) + self.bias[:, None, :]


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> LinearProbe:
    """Fit one probe for each strength on the training rows.

    Args:
      features: [n, d], any float dtype, raw (standardised here).
      labels: int [n] in 0 ... n_classes - 1; each class needs a row of positive weight.
      strengths: lambda > 0, in any order; the result has them strongest first.
      weights: float [n] ≥ 0, or None for ones. The objective is the weighted mean; a row of weight
        0 is as good as absent.

    Raises:
      InputError: a class without a training row, a feature that is not finite, a strength ≤ 0.
    """
    labels = np.asarray(labels, np.int32)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    _check(features, labels, weights, n_classes, strengths)
    strengths = tuple(sorted((float(s) for s in strengths), reverse=True))
    width = features.shape[1]

    # One more column of ones carries the bias; rows beyond n are padding of weight 0.
    mean, inverse_scale = moments(features, weights)
    rows = padded_rows(len(labels))
    padded = np.zeros((rows, width), np.float32)
    np.subtract(features, mean, out=padded[: len(labels)], casting="same_kind")
    padded *= inverse_scale
    padded[len(labels) :] = 0.0
    row_weights = np.zeros(rows, np.float32)
    row_weights[: len(labels)] = weights / weights.sum()
    row_labels = np.zeros(rows, np.int32)
    row_labels[: len(labels)] = labels

    block = min(len(strengths), max(1, COLUMNS // n_classes))
    penalties = np.asarray(strengths, np.float32) * (2.0 if n_classes == 2 else 1.0)
    # TF32 would stop the gradient at 1e-3. The eigenvectors come from OpenBLAS, whose threads spin
    # against XLA's: 0.8 s instead of 3 ms for d = 256 on two cores.
    one_thread = threadpoolctl.threadpool_limits(1, user_api="blas")
    with jax.default_matmul_precision("highest"), one_thread:
        problem = _rotate(padded, row_labels, row_weights)
        start = np.zeros((n_classes, width + 1), np.float32)
        solutions = []
        for first in range(0, len(penalties), block):
            group = penalties[first : first + block]
            group = np.concatenate([group, np.repeat(group[-1:], block - len(group))])
            solution = _solve_block(problem, group, start, tolerance, max_iterations)
            solutions.append(jax.device_get(solution))
            start = solutions[-1].weights[-1]
    solved, gradient, iterations = (
        np.concatenate(parts)[: len(penalties)] for parts in zip(*solutions, strict=True)
    )
    return LinearProbe(
        strengths=strengths,
        mean=mean,
        inverse_scale=inverse_scale,
        weights=solved[..., :-1] @ np.asarray(problem.basis).T,
        bias=solved[..., -1],
        converged=gradient <= tolerance,
        iterations=iterations,
        gradient=gradient,
    )


def padded_rows(n: int) -> int:
    """The next number of rows at or above n of the form (4, 5, 6 or 7) · 2^k, at least 256."""
    step = 64
    while step * 8 <= n:
        step *= 2
    return max(256, -(-n // step) * step)


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    n_classes: int,
    strengths: Sequence[float],
) -> None:
    if n_classes < 2:
        raise InputError(f"a linear probe needs at least 2 classes, not {n_classes}")
    missing = np.setdiff1d(np.arange(n_classes), labels[weights > 0])
    if len(missing):
        raise InputError(f"class {missing[0]} has no training example")
    if not all(s > 0 for s in strengths) or not len(strengths):
        raise InputError(f"probe strengths must be above 0: {list(strengths)}")
    check_finite(features, "training row")


def moments(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and 1/sd [d]; in float64, where the order of the rows leaves no trace."""
    share = weights / weights.sum()
    mean = np.zeros(features.shape[1])
    square = np.zeros(features.shape[1])
    for first in range(0, len(features), 4096):
        part = features[first : first + 4096].astype(np.float64)
        mean += share[first : first + 4096] @ part
    for first in range(0, len(features), 4096):
        part = features[first : first + 4096].astype(np.float64) - mean
        square += share[first : first + 4096] @ (part * part)
    sd = np.sqrt(square)
    constant = sd <= 1e-6 * np.abs(mean) + 1e-30
    inverse = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, sd))
    return mean.astype(np.float32), inverse.astype(np.float32)


def standardise(features: np.ndarray, mean: np.ndarray, inverse_scale: np.ndarray) -> np.ndarray:
    """Features [n, d] by the `moments` of the training rows, float32; constant ones are 0."""
    return (features.astype(np.float32) - mean) * inverse_scale


class _Problem(NamedTuple):
    features: jax.Array  # [n, d + 1] rotated, last column ones
    labels: jax.Array  # int32 [n]
    weights: jax.Array  # [n], sum 1
    eigenvalues: jax.Array  # [d] of the covariance
    basis: jax.Array  # [d, d] eigenvectors in columns


class _Solution(NamedTuple):
    weights: jax.Array  # [g, c, d + 1] in the eigenbasis
    gradient: jax.Array  # [g] norm relative to the one at W = 0
    iterations: jax.Array  # int32 [g]


@jax.jit
def _rotate(features: jax.Array, labels: jax.Array, weights: jax.Array) -> _Problem:
    covariance = (features * weights[:, None]).T @ features
    eigenvalues, basis = jnp.linalg.eigh(covariance)
    ones = jnp.ones((features.shape[0], 1), features.dtype)
    rotated = jnp.concatenate([features @ basis, ones], axis=1)
    return _Problem(rotated, labels, weights, jnp.maximum(eigenvalues, 0.0), basis)


class _State(NamedTuple):
    weights: jax.Array  # [g, c, d + 1]
    logits: jax.Array  # [g, c, n]
    gradient: jax.Array  # [g, c, d + 1]
    steps: jax.Array  # [m, g, c, d + 1], newest last
    changes: jax.Array  # [m, g, c, d + 1] of the gradient
    iterations: jax.Array  # int32 [g]
    stalled: jax.Array  # bool [g]: no step length improves on where it is
    step: jax.Array  # int32


@functools.partial(jax.jit, static_argnames=("max_iterations",))
def _solve_block(
    problem: _Problem,
    penalties: jax.Array,  # [g]
    start: jax.Array,  # [c, d + 1]
    tolerance: float,
    max_iterations: int,
) -> _Solution:
    features, labels, row_weights, eigenvalues, _ = problem
    n_strengths = penalties.shape[0]
    n_classes, width = start.shape
    one_hot = (labels[None, :] == jnp.arange(n_classes)[:, None]).astype(jnp.float32)  # [c, n]
    penalty = jnp.concatenate([jnp.ones(width - 1), jnp.zeros(1)]).astype(jnp.float32)
    penalty = penalties[:, None, None] * penalty[None, None, :]  # [g, 1, d + 1], 0 for the bias

    curvature = (1.0 - 1.0 / n_classes) / n_classes
    spectrum = jnp.concatenate([eigenvalues, jnp.ones(1, jnp.float32)])
    hessian = curvature * spectrum[None, None, :] + penalty
    # A direction without variance has no gradient; the floor only keeps 0/0 away.
    inverse_hessian = 1.0 / jnp.maximum(hessian, 1e-9)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=(1, 2))  # [g]

    def logits_of(weights: jax.Array) -> jax.Array:
        return jnp.einsum("gcd,nd->gcn", weights, features)

    def residual_of(logits: jax.Array) -> jax.Array:
        """Weighted probability minus label: the gradient of the loss in the logits [g, c, n]."""
        return (jax.nn.softmax(logits, axis=1) - one_hot[None]) * row_weights[None, None, :]

    def gradient_of(residual: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.einsum("gcn,nd->gcd", residual, features) + penalty * weights

    def direction_of(state: _State) -> jax.Array:
        """Two-loop recursion (Nocedal & Wright, algorithm 7.4), started at the inverse Hessian."""
        curvatures = jnp.sum(state.steps * state.changes, axis=(2, 3))  # [m, g]
        valid = curvatures > 0.0
        rho = jnp.where(valid, 1.0 / jnp.where(valid, curvatures, 1.0), 0.0)

        def back(q: jax.Array, pair: tuple) -> tuple[jax.Array, jax.Array]:
            step, change, rho = pair
            alpha = rho * dot(step, q)
            return q - alpha[:, None, None] * change, alpha

        def forth(q: jax.Array, pair: tuple) -> tuple[jax.Array, None]:
            step, change, rho, alpha = pair
            beta = rho * dot(change, q)
            return q + (alpha - beta)[:, None, None] * step, None

        history = (state.steps, state.changes, rho)
        q, alphas = jax.lax.scan(back, state.gradient, history, reverse=True)
        last = state.changes[-1]
        size = dot(last, inverse_hessian * last)
        gamma = jnp.where(valid[-1], curvatures[-1] / jnp.where(valid[-1], size, 1.0), 1.0)
        q = gamma[:, None, None] * inverse_hessian * q
        q, _ = jax.lax.scan(forth, q, (*history, alphas))
        downhill = dot(q, state.gradient) > 0.0
        return -jnp.where(downhill[:, None, None], q, inverse_hessian * state.gradient)

    def search(state: _State, direction: jax.Array, slope: jax.Array, active: jax.Array) -> tuple:
        """Step length [g], the residual there [g, c, n] and the logits of the direction."""
        rise = logits_of(direction)
        along = dot(penalty * state.weights, direction)
        across = dot(penalty * direction, direction)

        def slope_at(length: jax.Array) -> tuple[jax.Array, jax.Array]:
            residual = residual_of(state.logits + length[:, None, None] * rise)
            return dot(residual, rise) + along + length * across, residual

        def trial(carry: tuple) -> tuple:
            length, low, low_slope, high, high_slope, _, _, trials = carry
            now, residual = slope_at(length)
            found = ~active | (jnp.abs(now) <= SLOPE_SHARE * jnp.abs(slope))
            falls = now < 0.0
            low, low_slope = jnp.where(falls, length, low), jnp.where(falls, now, low_slope)
            high = jnp.where(falls, high, length)
            high_slope = jnp.where(falls, high_slope, now)
            bracketed = jnp.isfinite(high)
            span = jnp.where(bracketed, high - low, 0.0)
            secant = low_slope / jnp.where(bracketed, low_slope - high_slope, 1.0)
            inside = low + span * jnp.clip(secant, 0.1, 0.9)
            following = jnp.where(bracketed, inside, 3.0 * length)
            # Out of trials: back to the last point whose slope still fell. By convexity it is
            # lower than the start; it may be the start itself.
            trials = trials + 1
            following = jnp.where(trials == MAX_TRIALS - 1, low, following)
            keep = found | (trials == MAX_TRIALS)
            length = jnp.where(keep, length, following)
            return length, low, low_slope, high, high_slope, found, residual, trials

        def unfinished(carry: tuple) -> jax.Array:
            return (carry[-1] < MAX_TRIALS) & ~carry[5].all()

        zeros = jnp.zeros_like(slope)
        length = jnp.where(active, 1.0, 0.0)
        empty = jnp.zeros_like(state.logits)
        none = jnp.zeros_like(active)
        carry = (length, zeros, slope, zeros + jnp.inf, zeros, none, empty, jnp.int32(0))
        length, _, _, _, _, _, residual, _ = jax.lax.while_loop(unfinished, trial, carry)
        return length, residual, rise

    def norm(gradient: jax.Array) -> jax.Array:
        return jnp.sqrt(dot(gradient, gradient))

    nothing = jnp.zeros((n_strengths, n_classes, width), jnp.float32)
    # At W = 0 every class has probability 1/c (written out: XLA would fold a softmax of zeros).
    uniform = (1.0 / n_classes - one_hot) * row_weights[None, :]
    first = norm(jnp.einsum("cn,nd->cd", uniform, features)[None])  # [1]
    first = jnp.where(first > 0.0, first, 1.0)

    def active_of(state: _State) -> jax.Array:
        return (norm(state.gradient) > tolerance * first) & ~state.stalled

    def iterate(state: _State) -> _State:
        active = active_of(state)
        direction = direction_of(state)
        slope = dot(direction, state.gradient)
        length, residual, rise = search(state, direction, slope, active)
        step = length[:, None, None] * direction
        weights = state.weights + step
        moved = active & (length > 0.0)
        gradient = jnp.where(
            moved[:, None, None], gradient_of(residual, weights), state.gradient
        )  # a finished strength keeps its gradient to the last bit
        return _State(
            weights=weights,
            logits=state.logits + length[:, None, None] * rise,
            gradient=gradient,
            steps=jnp.concatenate([state.steps[1:], step[None]]),
            changes=jnp.concatenate([state.changes[1:], (gradient - state.gradient)[None]]),
            iterations=state.iterations + active.astype(jnp.int32),
            stalled=state.stalled | (active & ~moved),
            step=state.step + 1,
        )

    def unfinished(state: _State) -> jax.Array:
        return (state.step < max_iterations) & active_of(state).any()

    def fresh(state: _State) -> _State:
        logits = logits_of(state.weights)
        gradient = gradient_of(residual_of(logits), state.weights)
        return state._replace(logits=logits, gradient=gradient)

    def polish(carry: tuple[_State, jax.Array, jax.Array]) -> tuple[_State, jax.Array, jax.Array]:
        state, _, rounds = carry
        after = jax.lax.while_loop(unfinished, iterate, fresh(state))
        return after, after.step > state.step, rounds + 1

    def moving(carry: tuple[_State, jax.Array, jax.Array]) -> jax.Array:
        return carry[1] & (carry[2] < ROUNDS)  # ends with a round that found nothing left to do

    weights = jnp.broadcast_to(start[None], nothing.shape)
    memory = jnp.zeros((MEMORY, *nothing.shape), jnp.float32)
    count = jnp.zeros(n_strengths, jnp.int32)
    still = jnp.zeros(n_strengths, bool)
    logits = jnp.zeros((n_strengths, n_classes, features.shape[0]), jnp.float32)
    state = _State(weights, logits, nothing, memory, memory, count, still, jnp.int32(0))
    state, _, _ = jax.lax.while_loop(moving, polish, (state, jnp.bool_(True), jnp.int32(0)))
    return _Solution(state.weights, norm(state.gradient) / first, state.iterations)

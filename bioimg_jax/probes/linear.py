"""The linear probe: multinomial logistic regression over a grid of strengths, no learning rate.

For each strength lambda, over weights W [c, d] and a free bias b [c], minimise

    mean cross-entropy(X Wᵀ + b, y) + (lambda / 2) ‖W‖²

on features X [n, d] standardised by the training rows; scikit-learn's `LogisticRegression` with
C = 1 / (n lambda) has the same minimum. (Two classes: scikit-learn keeps one weight vector
w = W₁ − W₀, whose minimum is ours at 2 lambda, so that is what is solved.)

Several targets over the same rows (other columns of labels, permuted or resampled ones) and all
strengths are extra columns of the same matrix products, each with a convergence of its own.

The solver is L-BFGS, written for this problem:

* X is rotated into the eigenbasis U of its covariance, with eigenvalues e. The Hessian is the mean
  over rows of (diag(p) - p pᵀ) ⊗ x xᵀ + lambda; with A = V a Vᵀ the mean of its first factor alone,
  (a_k e_i + lambda)⁻¹ in the bases V and U starts the two-loop recursion, scaled like the usual
  gamma. A is taken anew every `REFRESH` iterations, together with logits free of the drift of
  their running sum.
* Strengths are solved from the strongest down, each from the last solution *and* the last pairs of
  steps and gradient changes: the penalty is quadratic, so a pair (s, y) at lambda is the pair
  (s, y + (lambda' - lambda) s) at lambda'. Strengths share products up to `COLUMNS` columns,
  targets up to `SHARED`; a block stops when all of its own are done.
* A step needs one product for the direction's logits and one for the gradient. The line search
  works on logits alone: along a ray the loss is convex, and a zero of its slope is bracketed for
  each column on its own. It looks at slopes only, because in float32 the loss itself stops
  changing long before the gradient does.

Padded rows have weight 0, so problems of nearby sizes share one compiled program. The features are
standardised and rotated in blocks of rows, in one array: there is one copy of them beside the
caller's, and the logits.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite, check_labels

STRENGTHS: tuple[float, ...] = (1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TOLERANCE = 1e-5  # gradient norm relative to the one at W = 0
MAX_ITERATIONS = 1_000
COLUMNS = 32  # columns of a matrix product that strengths should fill
SHARED = 128  # columns up to which targets share one
MEMORY = (10, 100)  # least and most pairs of steps and gradient changes that L-BFGS remembers
PAIRS_BYTES = 2**24  # that they may take, or a quarter of the features if that is more
REFRESH = 30  # iterations between two looks at the Hessian
ROW_BLOCK = 4096  # rows standardised and rotated at a time
MOMENTS_BLOCK = 1024  # rows whose float64 copies are summed at a time
LANES = 16  # float32 of one vector register: products of whole ones are up to twice as fast
MAX_TRIALS = 20  # step lengths tried along one direction
SLOPE_SHARE = 0.5  # a step is taken when the slope has fallen to this share of the first one


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
        chosen = slice(None) if strength is None else slice(strength, strength + 1)
        weights, bias = self.weights[chosen], self.bias[chosen]
        s, c, d = weights.shape
        logits = np.empty((s, len(features), c), np.float32)
        for first in range(0, len(features), ROW_BLOCK):
            rows = slice(first, first + ROW_BLOCK)
            standardised = standardise(features[rows], self.mean, self.inverse_scale)
            flat = standardised @ weights.reshape(s * c, d).T  # [rows, s c]
            logits[:, rows] = flat.reshape(-1, s, c).transpose(1, 0, 2) + bias[:, None, :]
        return logits if strength is None else logits[0]


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
      InputError: a label out of range, a class without a training row, a feature that is not
        finite, a strength ≤ 0.
    """
    (probe,) = fit_linear_targets(
        features,
        np.asarray(labels)[:, None],
        n_classes,
        strengths=strengths,
        weights=weights,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return probe


def fit_linear_targets(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int | Sequence[int],
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> list[LinearProbe]:
    """Fit several targets on the same training rows: one `LinearProbe` a column of labels.

    The features are standardised and rotated once. Targets of equal numbers of classes share
    matrix products too; each (target, strength) has its own steps and its own convergence, and the
    result is that of one fit after another, to the tolerance.

    Args:
      features, strengths, weights: as for `fit_linear`.
      labels: int [n, t]: targets, or one target permuted or resampled.
      n_classes: of all targets, or one number for each.

    Raises:
      InputError: as `fit_linear`, with the target's column; labels that are not [n, t].
    """
    labels = np.asarray(labels, np.int32)
    if labels.ndim != 2 or len(labels) != len(features) or not labels.size:
        raise InputError(f"labels of {len(features)} rows: expected [n, t], not {labels.shape}")
    t = labels.shape[1]
    classes = [n_classes] * t if isinstance(n_classes, int) else list(n_classes)
    if len(classes) != t:
        raise InputError(f"n_classes has {len(classes)} numbers for {t} columns of labels")
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    _check(features, labels, weights, classes, strengths)
    strengths = tuple(sorted((float(s) for s in strengths), reverse=True))

    mean, inverse_scale = moments(features, weights)
    probes: dict[int, LinearProbe] = {}
    # TF32 would stop the gradient at 1e-3. The eigenvectors come from OpenBLAS, whose threads spin
    # against XLA's: 0.8 s instead of 3 ms for d = 256 on two cores.
    one_thread = threadpoolctl.threadpool_limits(1, user_api="blas")
    with jax.default_matmul_precision("highest"), one_thread:
        problem = _prepare(features, weights, mean, inverse_scale)
        basis = np.asarray(problem.basis)
        for c in sorted(set(classes)):
            same = [i for i in range(t) if classes[i] == c]
            at_once = max(1, SHARED // c)
            for first in range(0, len(same), at_once):
                chosen = same[first : first + at_once]
                solved = _solve_path(
                    problem, labels[:, chosen], c, strengths, tolerance, max_iterations
                )
                for position, column in enumerate(chosen):
                    solution, gradient, iterations = (part[:, position] for part in solved)
                    probes[column] = LinearProbe(
                        strengths=strengths,
                        mean=mean,
                        inverse_scale=inverse_scale,
                        weights=solution[..., :-1] @ basis.T,
                        bias=solution[..., -1],
                        converged=gradient <= tolerance,
                        iterations=iterations,
                        gradient=gradient,
                    )
    return [probes[column] for column in range(t)]


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
    classes: Sequence[int],
    strengths: Sequence[float],
) -> None:
    weighted = weights > 0
    any_row = int(np.argmax(weighted))  # stands for those of weight 0
    for column, n_classes in enumerate(classes):
        if n_classes < 2:
            raise InputError(f"a linear probe needs at least 2 classes, not {n_classes}")
        try:
            check_labels(np.where(weighted, labels[:, column], labels[any_row, column]), n_classes)
        except InputError as error:
            where = "" if len(classes) == 1 else f"target {column}: "
            raise InputError(f"{where}{error}") from None
    if not all(s > 0 for s in strengths) or not len(strengths):
        raise InputError(f"probe strengths must be above 0: {list(strengths)}")
    check_finite(features, "training row")


def moments(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and 1/sd [d]; in float64, where the order of the rows leaves no trace."""
    share = weights / weights.sum()
    mean = np.zeros(features.shape[1])
    square = np.zeros(features.shape[1])
    for first in range(0, len(features), MOMENTS_BLOCK):
        part = features[first : first + MOMENTS_BLOCK].astype(np.float64)
        mean += share[first : first + MOMENTS_BLOCK] @ part
    for first in range(0, len(features), MOMENTS_BLOCK):
        part = features[first : first + MOMENTS_BLOCK].astype(np.float64)
        part -= mean
        part *= part
        square += share[first : first + MOMENTS_BLOCK] @ part
    sd = np.sqrt(square)
    constant = sd <= 1e-6 * np.abs(mean) + 1e-30
    inverse = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, sd))
    return mean.astype(np.float32), inverse.astype(np.float32)


def standardise(features: np.ndarray, mean: np.ndarray, inverse_scale: np.ndarray) -> np.ndarray:
    """Features [n, d] by the `moments` of the training rows, float32; constant ones are 0."""
    return (features.astype(np.float32) - mean) * inverse_scale


class _Problem(NamedTuple):
    features: jax.Array  # [n, d] standardised and rotated, 0 in padded rows
    weights: jax.Array  # [n], sum 1
    eigenvalues: jax.Array  # [d] of the covariance
    basis: jax.Array  # [d, d] eigenvectors in columns


class _History(NamedTuple):
    """The last m pairs of L-BFGS, of step k in slot k modulo m."""

    steps: jax.Array  # [m, g, c, d + 1]
    changes: jax.Array  # [m, g, c, d + 1] of the gradient
    inverses: jax.Array  # [m, g] 1 / (step · change), 0 for a pair of no use
    written: jax.Array  # int32, pairs so far


class _Solution(NamedTuple):
    weights: jax.Array  # [g, c, d + 1] in the eigenbasis, the bias last
    gradient: jax.Array  # [g] norm relative to the one at W = 0
    iterations: jax.Array  # int32 [g]


def _prepare(
    features: np.ndarray, weights: np.ndarray, mean: np.ndarray, inverse_scale: np.ndarray
) -> _Problem:
    n, width = features.shape
    rows = padded_rows(n)
    size = math.gcd(rows, ROW_BLOCK)
    shares = np.zeros(rows, np.float32)
    shares[:n] = weights / weights.sum()
    array = jnp.zeros((rows, width), jnp.float32)
    covariance = jnp.zeros((width, width), jnp.float32)
    for first in range(0, n, size):
        part = features[first : first + size]
        block = np.zeros((size, width), np.float32)
        np.subtract(part, mean, out=block[: len(part)], casting="same_kind")
        block[: len(part)] *= inverse_scale
        array, covariance = _place(array, covariance, block, shares[first : first + size], first)
        covariance.block_until_ready()  # or blocks that wait for their turn are a second copy
    eigenvalues, basis = jnp.linalg.eigh(covariance)
    array = _rotate(array, basis, size)
    return _Problem(array, jnp.asarray(shares), jnp.maximum(eigenvalues, 0.0), basis)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _place(
    array: jax.Array, covariance: jax.Array, block: jax.Array, weights: jax.Array, first: int
) -> tuple[jax.Array, jax.Array]:
    array = jax.lax.dynamic_update_slice_in_dim(array, block, first, axis=0)
    return array, covariance + (block * weights[:, None]).T @ block


@functools.partial(jax.jit, donate_argnums=0, static_argnames="size")
def _rotate(array: jax.Array, basis: jax.Array, size: int) -> jax.Array:
    def rotate(i: jax.Array, array: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(array, i * size, size)
        return jax.lax.dynamic_update_slice_in_dim(array, block @ basis, i * size, axis=0)

    return jax.lax.fori_loop(0, array.shape[0] // size, rotate, array)


def _solve_path(
    problem: _Problem,
    labels: np.ndarray,  # int32 [n, t]
    n_classes: int,
    strengths: Sequence[float],  # strongest first
    tolerance: float,
    max_iterations: int,
) -> tuple[np.ndarray, ...]:
    """All strengths of targets that share products: a `_Solution` of [s, t, ...]."""
    rows, width = problem.features.shape
    targets = labels.shape[1]
    block = min(len(strengths), max(1, COLUMNS // (n_classes * targets)))
    padded = np.zeros((rows, block * targets), np.int32)  # group: strength, then target
    padded[: len(labels)] = np.tile(labels, block)
    penalties = np.asarray(strengths, np.float32) * (2.0 if n_classes == 2 else 1.0)
    penalties = np.pad(penalties, (0, -len(penalties) % block), mode="edge")

    shape = (block * targets, n_classes, width + 1)
    memory = max(PAIRS_BYTES, problem.features.nbytes // 4) // (2 * 4 * math.prod(shape))
    memory = min(max(memory, MEMORY[0]), MEMORY[1])
    pairs = jnp.zeros((memory, *shape), jnp.float32)
    history = _History(pairs, pairs.copy(), jnp.zeros((memory, shape[0])), jnp.int32(0))
    start = jnp.zeros(shape, jnp.float32)
    before = penalties[0]
    solutions = []
    for first in range(0, len(penalties), block):
        group = np.repeat(penalties[first : first + block], targets)
        rise = jnp.asarray(group - before)
        solution, history = _solve_block(
            problem, padded, group, rise, start, history, tolerance, max_iterations, targets
        )
        solutions.append(jax.device_get(solution))
        start, before = solution.weights, penalties[first + block - 1]
    return tuple(
        np.concatenate(parts).reshape(-1, targets, *parts[0].shape[1:])[: len(strengths)]
        for parts in zip(*solutions, strict=True)
    )


class _State(NamedTuple):
    weights: jax.Array  # [g, c, d + 1]
    logits: jax.Array  # [n, g c]
    gradient: jax.Array  # [g, c, d + 1]
    history: _History
    iterations: jax.Array  # int32 [g]
    stalled: jax.Array  # bool [g]: no step length improves on where it is
    step: jax.Array  # int32


class _Metric(NamedTuple):
    """An inverse Hessian: between V and Vᵀ over classes, a diagonal."""

    vectors: jax.Array  # V [g, c, c]
    inverse: jax.Array  # [g, c, d + 1]


@functools.partial(
    jax.jit, static_argnames=("max_iterations", "targets"), donate_argnames="history"
)
def _solve_block(
    problem: _Problem,
    labels: jax.Array,  # int32 [n, g]
    penalties: jax.Array,  # [g]
    rise_of_penalty: jax.Array,  # [g] since the strength that the history is of
    start: jax.Array,  # [g, c, d + 1], of the block before
    history: _History,  # of the block before
    tolerance: float,
    max_iterations: int,
    targets: int,
) -> tuple[_Solution, _History]:
    features, row_weights, eigenvalues, _ = problem
    n, d = features.shape
    g, c, _ = start.shape
    penalised = jnp.concatenate([jnp.ones(d), jnp.zeros(1)]).astype(jnp.float32)
    penalty = penalties[:, None, None] * penalised[None, None, :]  # [g, 1, d + 1], 0 for the bias
    spectrum = jnp.concatenate([eigenvalues, jnp.ones(1, jnp.float32)])

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=(-2, -1))  # [..., g]

    def per_column(groups: jax.Array) -> jax.Array:
        return jnp.repeat(groups, c)[None, :]  # [1, g c]

    def logits_of(weights: jax.Array) -> jax.Array:
        flat = weights.reshape(g * c, d + 1)
        kernel = jnp.pad(flat[:, :-1], ((0, -g * c % LANES), (0, 0)))
        return (features @ kernel.T)[:, : g * c] + flat[None, :, -1]

    def residual_of(logits: jax.Array) -> jax.Array:
        """Weighted probability minus label: the gradient of the loss in the logits [n, g c]."""
        p = jax.nn.softmax(logits.reshape(n, g, c), axis=2)
        truth = labels[:, :, None] == jnp.arange(c)[None, None, :]
        return ((p - truth.astype(jnp.float32)) * row_weights[:, None, None]).reshape(n, g * c)

    def data_gradient_of(residual: jax.Array) -> jax.Array:
        flat = jnp.concatenate([residual.T @ features, residual.sum(axis=0)[:, None]], axis=1)
        return flat.reshape(g, c, d + 1)

    def metric_of(logits: jax.Array) -> _Metric:
        p = jax.nn.softmax(logits.reshape(n, g, c), axis=2)
        weighted = p * row_weights[:, None, None]
        mean = weighted.sum(axis=0)  # [g, c]
        fisher = mean[:, :, None] * jnp.eye(c)[None] - jnp.einsum("ngc,nge->gce", weighted, p)
        values, vectors = jnp.linalg.eigh(fisher)
        # The constant direction has no curvature, and no gradient; it only must not blow up.
        values = jnp.maximum(values, 1e-3 * values[:, -1:])
        hessian = values[:, :, None] * spectrum[None, None, :] + penalty
        return _Metric(vectors, 1.0 / jnp.maximum(hessian, 1e-9))

    def apply(metric: _Metric, q: jax.Array) -> jax.Array:
        inside = jnp.einsum("gck,gcd->gkd", metric.vectors, q) * metric.inverse
        return jnp.einsum("gck,gkd->gcd", metric.vectors, inside)

    memory = history.steps.shape[0]

    def direction_of(state: _State, metric: _Metric) -> jax.Array:
        """Two-loop recursion (Nocedal & Wright, algorithm 7.4), started at the inverse Hessian."""
        steps, changes, inverses, written = state.history
        held = jnp.minimum(written, memory)

        def back(k: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
            q, alphas = carry
            slot = (written - 1 - k) % memory
            alpha = inverses[slot] * dot(steps[slot], q)
            return q - alpha[:, None, None] * changes[slot], alphas.at[slot].set(alpha)

        def forth(k: jax.Array, q: jax.Array) -> jax.Array:
            slot = (written - held + k) % memory
            beta = inverses[slot] * dot(changes[slot], q)
            return q + (alphas[slot] - beta)[:, None, None] * steps[slot]

        q, alphas = jax.lax.fori_loop(
            0, held, back, (state.gradient, jnp.zeros((memory, g), jnp.float32))
        )
        newest = (written - 1) % memory
        inverse, last = inverses[newest], changes[newest]
        size = inverse * dot(last, apply(metric, last))
        gamma = jnp.where(size > 0.0, 1.0 / jnp.where(size > 0.0, size, 1.0), 1.0)
        q = gamma[:, None, None] * apply(metric, q)
        q = jax.lax.fori_loop(0, held, forth, q)
        downhill = dot(q, state.gradient) > 0.0
        return -jnp.where(downhill[:, None, None], q, apply(metric, state.gradient))

    def search(state: _State, direction: jax.Array, slope: jax.Array, active: jax.Array) -> tuple:
        """Step length [g], the residual there [n, g c] and the logits of the direction."""
        rise = logits_of(direction)
        along = dot(penalty * state.weights, direction)
        across = dot(penalty * direction, direction)

        def slope_at(length: jax.Array) -> tuple[jax.Array, jax.Array]:
            residual = residual_of(state.logits + per_column(length) * rise)
            inner = jnp.sum((residual * rise).reshape(n, g, c), axis=(0, 2))
            return inner + along + length * across, residual

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

    def recorded(history: _History, step: jax.Array, change: jax.Array) -> _History:
        slot = history.written % memory
        return _History(
            history.steps.at[slot].set(step),
            history.changes.at[slot].set(change),
            history.inverses.at[slot].set(inverse_of(dot(step, change))),
            history.written + 1,
        )

    def inverse_of(curvature: jax.Array) -> jax.Array:
        useful = curvature > 0.0
        return jnp.where(useful, 1.0 / jnp.where(useful, curvature, 1.0), 0.0)

    # At W = 0 every class has probability 1/c (a traced 0: XLA would fold a softmax of zeros).
    zeros = jnp.zeros((n, g * c), jnp.float32) + 0.0 * tolerance
    first = norm(data_gradient_of(residual_of(zeros)))  # [g]
    first = jnp.where(first > 0.0, first, 1.0)

    def active_of(state: _State) -> jax.Array:
        return (norm(state.gradient) > tolerance * first) & ~state.stalled

    def unfinished(state: _State) -> jax.Array:
        return (state.step < max_iterations) & active_of(state).any()

    def iterate(state: _State, metric: _Metric) -> _State:
        active = active_of(state)
        direction = direction_of(state, metric)
        slope = dot(direction, state.gradient)
        length, residual, rise = search(state, direction, slope, active)
        step = length[:, None, None] * direction
        weights = state.weights + step
        moved = active & (length > 0.0)
        gradient = jnp.where(
            moved[:, None, None], data_gradient_of(residual) + penalty * weights, state.gradient
        )  # a finished column keeps its gradient to the last bit
        return _State(
            weights=weights,
            logits=state.logits + per_column(length) * rise,
            gradient=gradient,
            history=recorded(state.history, step, gradient - state.gradient),
            iterations=state.iterations + active.astype(jnp.int32),
            stalled=state.stalled | (active & ~moved),
            step=state.step + 1,
        )

    def spell(carry: tuple[_State, jax.Array]) -> tuple[_State, jax.Array]:
        """Some iterations from fresh logits and a fresh look at the Hessian."""
        state, _ = carry
        logits = logits_of(state.weights)
        gradient = data_gradient_of(residual_of(logits)) + penalty * state.weights
        state = state._replace(logits=logits, gradient=gradient)
        metric = metric_of(logits)
        end = state.step + jnp.clip(state.step, 4, REFRESH)
        after = jax.lax.while_loop(
            lambda state: unfinished(state) & (state.step < end),
            lambda state: iterate(state, metric),
            state,
        )
        return after, after.step > state.step  # ends with one that found nothing left to do

    # The weakest strength of the block before is where every one of this block starts.
    start = jnp.tile(start[-targets:], (g // targets, 1, 1))
    steps, changes = (
        jnp.tile(pairs[:, -targets:], (1, g // targets, 1, 1)) for pairs in history[:2]
    )
    rise = rise_of_penalty[None, :, None, None] * penalised[None, None, None, :]
    changes = changes + rise * steps
    history = _History(steps, changes, inverse_of(dot(steps, changes)), history.written)
    count = jnp.zeros(g, jnp.int32)
    still = jnp.zeros(g, bool)
    state = _State(
        start, jnp.zeros((n, g * c)), jnp.zeros_like(start), history, count, still, jnp.int32(0)
    )
    state, _ = jax.lax.while_loop(lambda carry: carry[1], spell, (state, jnp.bool_(True)))
    return _Solution(state.weights, norm(state.gradient) / first, state.iterations), state.history

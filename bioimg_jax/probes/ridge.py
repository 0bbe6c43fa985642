"""Ridge regression of many targets over a grid of alphas, in closed form from one decomposition.

For each alpha, over weights W [m, d] and (with an intercept) a free bias b [m], minimise

    ‖X Wᵀ + b − Y‖² + alpha ‖W‖²

for features X [n, d] and targets Y [n, m]: scikit-learn's `Ridge(alpha)`. The loss is a sum over
rows, so alpha is n times a strength on the mean. With an intercept X and Y are centred by their
training means; nothing else is done to them (standardising is the benchmark's business: the HEST
protocol has a PCA between it and the ridge).

* Rows at least as many as features: XᵀX = Q diag(e) Qᵀ, so Wᵀ = Q diag(1 / (e + alpha)) Qᵀ XᵀY.
* Fewer rows than features: X Xᵀ = V diag(e) Vᵀ, so Wᵀ = Xᵀ V diag(1 / (e + alpha)) Vᵀ Y; the same
  minimum by the push-through identity (Hastie et al., "The Elements of Statistical Learning",
  2nd ed., section 18.3.5).

Another alpha is a diagonal and a product with the targets.

All of it is float64 in NumPy, whatever the features are. XᵀX squares the condition number: in
float32 every eigenvalue is wrong by 1e-7 of the largest, which on a usual spectrum is more than the
smaller alphas; in float64 by 1e-16, so alpha = 1e-10 of the largest still has six digits. It is
cheap: a product n d² and one small decomposition, once. X is converted in blocks, of rows or, where
there are more features than rows, of features, so no second copy of it is made.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite

# Strengths on the mean loss from 1e-4 to 10 for 100 to 100,000 standardised rows.
ALPHAS: tuple[float, ...] = (1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)
ROWS = 4096  # rows converted to float64 at a time, fewer where they are long
BLOCK = 1 << 22  # numbers converted at a time, 32 MiB


@dataclasses.dataclass(frozen=True)
class RidgeProbe:
    """Fitted regressions, one for each alpha, strongest first.

    weights: float64 [a, m, d]; bias: float64 [a, m], zeros without an intercept; for raw features.
    """

    alphas: tuple[float, ...]
    weights: np.ndarray
    bias: np.ndarray

    def predictions(self, features: np.ndarray, alpha: int | None = None) -> np.ndarray:
        """Targets float64 [a, n, m] of raw features [n, d], or [n, m] for the alpha of a position.

        Raises:
          InputError: a feature that is not finite, or another number of features.
        """
        width = self.weights.shape[2]
        if features.ndim != 2 or features.shape[1] != width:
            raise InputError(f"ridge was fitted to rows of {width} features, not {features.shape}")
        check_finite(features, "row")
        chosen = slice(None) if alpha is None else slice(alpha, alpha + 1)
        weights, bias = self.weights[chosen], self.bias[chosen]
        a, m, _ = weights.shape
        flat = np.empty((len(features), a * m))
        for rows, part in _float64(features):
            flat[rows] = part @ weights.reshape(a * m, width).T
        result = flat.reshape(-1, a, m).transpose(1, 0, 2) + bias[:, None, :]
        return result if alpha is None else result[0]


def fit_ridge(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    alphas: Sequence[float] = ALPHAS,
    intercept: bool = True,
) -> RidgeProbe:
    """Fit every target at every alpha on the training rows.

    Args:
      features: [n, d], any float dtype, taken as they are.
      targets: [n, m].
      alphas: above 0, in any order; the result has them strongest first.
      intercept: a bias for each target, not penalised.

    Raises:
      InputError: a feature or target that is not finite, an alpha ≤ 0, no rows.
    """
    features, targets = np.asarray(features), np.asarray(targets, np.float64)
    _check(features, targets, alphas)
    alphas = tuple(sorted((float(a) for a in alphas), reverse=True))
    n, d = features.shape
    mean = np.zeros(d)
    offset = targets.mean(axis=0) if intercept else np.zeros(targets.shape[1])
    targets = targets - offset
    penalties = np.asarray(alphas)[:, None, None]

    if n >= d:
        if intercept:
            mean = sum((part.sum(axis=0) for _, part in _float64(features)), mean) / n
        gram, right = np.zeros((d, d)), np.zeros((d, targets.shape[1]))
        for rows, part in _float64(features, mean):
            gram += part.T @ part
            right += part.T @ targets[rows]
        eigenvalues, basis = _decompose(gram)
        rotated = basis.T @ right  # [d, m]
        weights = basis @ (rotated / (eigenvalues[:, None] + penalties))  # [a, d, m]
    else:
        gram = np.zeros((n, n))
        for columns, part in _columns_float64(features):
            if intercept:
                mean[columns] = part.mean(axis=0)
            part -= mean[columns]
            gram += part @ part.T
        eigenvalues, basis = _decompose(gram)
        rotated = basis.T @ targets  # [n, m]
        dual = basis @ (rotated / (eigenvalues[:, None] + penalties))  # [a, n, m]
        weights = np.empty((len(alphas), d, targets.shape[1]))
        for columns, part in _columns_float64(features):
            weights[:, columns] = (part - mean[columns]).T @ dual
    weights = weights.transpose(0, 2, 1)  # [a, m, d]
    return RidgeProbe(alphas, weights, offset - weights @ mean)


def _decompose(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, none below 0, and eigenvectors in columns."""
    eigenvalues, basis = np.linalg.eigh(gram)
    return np.maximum(eigenvalues, 0.0), basis  # rounding leaves -1e-16 where the rank ends


def _float64(
    features: np.ndarray, mean: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows as float64, less their mean."""
    step = min(ROWS, max(1, BLOCK // max(features.shape[1], 1)))
    for first in range(0, len(features), step):
        rows = slice(first, first + step)
        part = features[rows].astype(np.float64)
        yield rows, part if mean is None else part - mean


def _columns_float64(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of columns as float64."""
    step = max(1, BLOCK // len(features))
    for first in range(0, features.shape[1], step):
        columns = slice(first, first + step)
        yield columns, features[:, columns].astype(np.float64)


def _check(features: np.ndarray, targets: np.ndarray, alphas: Sequence[float]) -> None:
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
        raise InputError(
            f"ridge: features {features.shape} and targets {targets.shape}, "
            f"expected [n, d] and [n, m]"
        )
    if not len(features):
        raise InputError("ridge has no training row")
    if not len(alphas) or not all(0 < a < np.inf for a in alphas):
        raise InputError(f"ridge alphas must be finite and above 0: {list(alphas)}")
    check_finite(features, "training row")
    check_finite(targets, "training row", column="target")

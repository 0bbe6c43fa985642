"""k nearest neighbours by cosine, weighted by exp(similarity / 0.07), for every k at once.

The class scores of a row are its k nearest training rows' weights, summed by class and divided by
their total; weighting and temperature are those of Wu et al. (arXiv 1805.01978, section 3.4) and of
DINO's evaluation. Features are taken as they are: cosine is a property of where their zero is, so
whoever wants them standardised does that first. A single column has only a sign left.

* **Ties.** Similarities within `TIE` of each other are equal. With a training rows above the k-th
  similarity and m at it, each of the m counts (k − a)/m: the exact expectation of the scores over
  all orders of the tied rows, because the scores are linear in the rows taken and their total is
  the same in every order. `expected_votes` does the same for classes whose scores tie.
* **Order.** Training and test rows are sorted by their own bytes before any product, so the order
  they came in cannot change a bit of the result.
* **Zero vectors** have similarity 0 with everything, themselves included, as in scikit-learn. A
  test row of zeros ties with all training rows and scores their class shares.
* **Memory.** Blocks of `TEST_BLOCK` test rows meet blocks of `TRAIN_BLOCK` training rows and only
  the max(k) + 1 nearest are kept. Where the last one kept still ties, and only for those test rows,
  the training rows are passed once more to count who else does.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite, check_labels
from bioimg_jax.probes.linear import padded_rows

KS: tuple[int, ...] = (1, 5, 10, 20, 100, 200)
TEMPERATURE = 0.07
# Similarities that are equal on paper differ by about 1e-7 in float32; a weight by 1e-5 of itself.
TIE = 1e-6
TEST_BLOCK = 512
TRAIN_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class KnnProbe:
    """The training rows, ready to be searched.

    ks: as asked for; used_ks: those no larger than the training rows are many, min(k, n).
    rows: float32 [n, d] of length 1, or 0 where all features are 0; labels: int32 [n] of them.
    """

    ks: tuple[int, ...]
    used_ks: tuple[int, ...]
    temperature: float
    n_classes: int
    rows: np.ndarray
    labels: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Class scores float32 [k, n, c] of raw features [n, d]; each row sums to 1.

        Raises:
          InputError: a feature that is not finite, or another number of features.
        """
        width = self.rows.shape[1]
        if features.ndim != 2 or features.shape[1] != width:
            raise InputError(f"kNN was given rows of {width} features, now {features.shape}")
        check_finite(features, "row")
        rows = unit_length(features)
        order = by_bytes(rows)
        train, labels = self._blocks()
        n_train = np.int32(len(self.labels))
        # One more than the largest k shows whether the tie at it goes on.
        keep = min(max(self.used_ks) + 1, len(self.labels))
        size = min(TEST_BLOCK, padded_rows(len(rows)))
        scores = np.empty((len(self.ks), len(rows), self.n_classes), np.float32)
        with jax.default_matmul_precision("highest"):
            for first in range(0, len(rows), size):
                here = order[first : first + size]
                block = padded(rows[here], size)
                nearest, positions = jax.device_get(_nearest(train, n_train, block, keep))
                nearest = nearest[: len(here)].astype(np.float64)
                found = self.labels[positions[: len(here)]]  # [b, keep]
                thresholds = nearest[:, np.asarray(self.used_ks) - 1]  # [b, k]
                open_ties = (keep < n_train) & (nearest[:, -1:] >= thresholds - TIE)  # [b, k]
                again = np.flatnonzero(open_ties.any(axis=1))
                tied = np.zeros((len(here), len(self.ks), self.n_classes))
                if len(again):
                    tied[again] = self._tied(train, labels, block[again], thresholds[again])
                for i, k in enumerate(self.used_ks):
                    scores[i, here] = self._votes(nearest, found, k, open_ties[:, i], tied[:, i])
        return scores

    def _blocks(self) -> tuple[jax.Array, jax.Array]:
        """Training rows [g, t, d] and labels [g, t], padded to whole blocks."""
        size = min(TRAIN_BLOCK, padded_rows(len(self.labels)))
        total = -(-len(self.labels) // size) * size
        rows = padded(self.rows, total).reshape(-1, size, self.rows.shape[1])
        labels = padded(self.labels, total).reshape(-1, size)
        return jnp.asarray(rows), jnp.asarray(labels)

    def _tied(
        self, train: jax.Array, labels: jax.Array, rows: np.ndarray, thresholds: np.ndarray
    ) -> np.ndarray:
        """Training rows of each class at the thresholds [r, k], counts [r, k, c]."""
        size = max(32, 1 << (len(rows) - 1).bit_length())  # few sizes, few compiled programs
        counts = _count_tied(
            train,
            labels,
            np.int32(len(self.labels)),
            padded(rows, size),
            padded(thresholds.astype(np.float32), size),
            self.n_classes,
        )
        return np.asarray(counts)[: len(rows)]

    def _votes(
        self,
        nearest: np.ndarray,  # float64 [b, m] similarities, largest first
        found: np.ndarray,  # int [b, m] their classes
        k: int,
        open_tie: np.ndarray,  # bool [b]: the tie at k goes on beyond m
        tied: np.ndarray,  # [b, c] how many tie in each class, where it does
    ) -> np.ndarray:
        """Scores [b, c]; in float64, where a sum of 200 weights leaves no trace of its order."""
        n, c = len(nearest), self.n_classes
        threshold = nearest[:, k - 1 : k]
        above = nearest > threshold + TIE
        at = np.abs(nearest - threshold) <= TIE
        cell = np.arange(n)[:, None] * c + found

        def by_class(weights: np.ndarray) -> np.ndarray:
            return np.bincount(cell.ravel(), weights.ravel(), minlength=n * c).reshape(n, c)

        # Weights relative to the nearest row's: the total divides the factor away.
        weights = np.exp((nearest - nearest[:, :1]) / self.temperature)
        tied = np.where(open_tie[:, None], tied, by_class(at.astype(np.float64)))
        left = k - above.sum(axis=1, keepdims=True)
        shared = left * tied / tied.sum(axis=1, keepdims=True)
        votes = by_class(np.where(above, weights, 0.0)) + weights[:, k - 1 : k] * shared
        return votes / votes.sum(axis=1, keepdims=True)


def fit_knn(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> KnnProbe:
    """Keep the training rows for `KnnProbe.scores`.

    Args:
      features: [n, d], any float dtype, raw.
      labels: int [n] in 0 ... n_classes - 1; each class needs a row.
      ks: numbers of neighbours, in the order of the scores; one larger than n is n (`used_ks`).

    Raises:
      InputError: a class without a training row, a feature that is not finite, a k below 1.
    """
    labels = np.asarray(labels, np.int32)
    _check(features, labels, n_classes, ks, temperature)
    rows = unit_length(features)
    by_label = np.argsort(labels, kind="stable")  # equal rows are then sorted by class
    order = by_label[by_bytes(rows[by_label])]
    return KnnProbe(
        ks=tuple(int(k) for k in ks),
        used_ks=tuple(min(int(k), len(rows)) for k in ks),
        temperature=temperature,
        n_classes=n_classes,
        rows=rows[order],
        labels=labels[order],
    )


def expected_votes(scores: np.ndarray) -> np.ndarray:
    """1/m for each of the m classes that tie for the highest score, else 0; [..., c] like scores.

    The mean of votes[row, label[row]] is the expected accuracy when ties are drawn by lot. Scores
    tie within `TIE` of the largest in size.
    """
    best = scores.max(axis=-1, keepdims=True)
    size = np.abs(scores).max(axis=-1, keepdims=True)
    tied = scores >= best - TIE * size
    return (tied / tied.sum(axis=-1, keepdims=True)).astype(np.float32)


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> None:
    if features.ndim != 2 or len(features) != len(labels):
        raise InputError(
            f"kNN: features {features.shape} for {len(labels)} labels, expected [n, d]"
        )
    check_labels(labels, n_classes)
    if not len(ks) or not all(k >= 1 and k == int(k) for k in ks):
        raise InputError(f"numbers of neighbours must be whole and at least 1: {list(ks)}")
    if not temperature > 0:
        raise InputError(f"the temperature of kNN must be above 0, not {temperature}")
    check_finite(features, "training row")


def unit_length(features: np.ndarray) -> np.ndarray:
    """Rows divided by their length, float32 [n, d]; rows of zeros stay.

    In float64 and by the largest feature first: squares of float16 do not overflow, and multiples
    of one row end as the same float32 numbers.
    """
    rows = np.empty(features.shape, np.float32)
    for first in range(0, len(features), TRAIN_BLOCK):
        part = features[first : first + TRAIN_BLOCK].astype(np.float64)
        largest = np.abs(part).max(axis=1, keepdims=True)
        part /= np.where(largest > 0.0, largest, 1.0)
        length = np.sqrt(np.sum(part * part, axis=1, keepdims=True))
        rows[first : first + TRAIN_BLOCK] = part / np.where(length > 0.0, length, 1.0)
    return rows


def by_bytes(rows: np.ndarray) -> np.ndarray:
    """The order int [n] that sorts rows [n, d] by their bytes, a stable sort."""
    width = rows.dtype.itemsize * rows.shape[1]
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, width)))[:, 0]
    return np.argsort(keys, kind="stable")


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows [n, ...] followed by zeros up to [size, ...]."""
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


@functools.partial(jax.jit, static_argnames=("keep",))
def _nearest(
    train: jax.Array,  # [g, t, d]
    n_train: jax.Array,  # int32: rows after it are padding
    rows: jax.Array,  # [b, d]
    keep: int,
) -> tuple[jax.Array, jax.Array]:
    """Similarities [b, keep], largest first, and positions int32 [b, keep] in the training rows."""
    groups, size, _ = train.shape
    within = jnp.arange(size, dtype=jnp.int32)

    def merge(best: tuple, block: tuple) -> tuple[tuple, None]:
        similarity, position = best
        group, other = block
        here = group * size + within  # [t]
        new = jnp.where((here < n_train)[None, :], rows @ other.T, -jnp.inf)  # [b, t]
        both = jnp.concatenate([similarity, new], axis=1)
        where = jnp.concatenate([position, jnp.broadcast_to(here[None, :], new.shape)], axis=1)
        similarity, chosen = jax.lax.top_k(both, keep)
        return (similarity, jnp.take_along_axis(where, chosen, axis=1)), None

    nothing = jnp.full((rows.shape[0], keep), -jnp.inf, jnp.float32)
    nowhere = jnp.zeros((rows.shape[0], keep), jnp.int32)
    blocks = (jnp.arange(groups, dtype=jnp.int32), train)
    best, _ = jax.lax.scan(merge, (nothing, nowhere), blocks)
    return best


@functools.partial(jax.jit, static_argnames=("n_classes",))
def _count_tied(
    train: jax.Array,  # [g, t, d]
    labels: jax.Array,  # int32 [g, t]
    n_train: jax.Array,
    rows: jax.Array,  # [r, d]
    thresholds: jax.Array,  # [r, k]
    n_classes: int,
) -> jax.Array:
    """Training rows of each class whose similarity is the threshold, int32 [r, k, c]."""
    groups, size, _ = train.shape

    def count(total: jax.Array, block: tuple) -> tuple[jax.Array, None]:
        group, other, classes = block
        real = group * size + jnp.arange(size, dtype=jnp.int32) < n_train  # [t]
        distance = jnp.abs((other @ rows.T)[:, :, None] - thresholds[None])  # [t, r, k]
        tied = (distance <= TIE) & real[:, None, None]
        # Whole numbers, so that no order of summation shows.
        return total + jax.ops.segment_sum(tied.astype(jnp.int32), classes, n_classes), None

    start = jnp.zeros((n_classes, *thresholds.shape), jnp.int32)
    total, _ = jax.lax.scan(count, start, (jnp.arange(groups, dtype=jnp.int32), train, labels))
    return total.transpose(1, 2, 0)

"""Few-shot: the nearest class mean from 1, 2, 4, 8 or 16 labelled units a class, drawn many times.

* **Draws.** For each draw and class the units that hold the class are put in an order keyed by
  (seed, draw, class); k shots are its first k, so a draw's smaller sets lie inside its larger ones.
  The order starts from the sorted names of the units: rows may come in any order. A unit that holds
  several classes (a plate) lends a class only its rows of that class.
* **Means.** A class mean is the mean over its units of the unit's mean row, so that a unit counts
  once however many rows it has.
* **Standardising** is by all training rows, without their labels, as for the linear probe. By the
  labelled rows alone, one shot of two classes would turn each feature into +1 and −1 and lose what
  it was worth (two classes in 100 correlated features, one shot, simulated: 0.51 correct, and 0.57
  by all training rows).
* **Distance.** Euclidean unless asked: it works in one column, and the floors an encoder is held
  against are narrow (five classes in one column, four shots: 0.48 correct, by cosine 0.34, because
  cosine sees only the sign). With hundreds of columns and one or two shots cosine does better (two
  classes in 100 columns, one shot: 0.60 against 0.57). Fair is the better one on validation rows,
  chosen for each representation alike.
* **Too few units.** A shot count that some class cannot fill is left out for all classes and
  recorded with those classes; it is never filled with fewer.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite, check_labels
from bioimg_jax.probes.knn import expected_votes
from bioimg_jax.probes.linear import moments, padded_rows, standardise

SHOTS: tuple[int, ...] = (1, 2, 4, 8, 16)
DRAWS = 20
DISTANCES = ("euclidean", "cosine")
BLOCK = 1024  # rows whose scores are held at a time


@dataclasses.dataclass(frozen=True)
class FewShotProbe:
    """Class means for each shot count that every class can fill, and each draw.

    shots: ascending; unavailable: shot count -> the classes with too few units.
    drawn: int [r, c, max(shots)], positions in unit_names; k shots of draw r are drawn[r, :, :k].
    mean, inverse_scale: float32 [d] of the training rows; inverse_scale is 0 for constant features.
    class_means: float32 [s, r, c, d], of standardised features.
    """

    shots: tuple[int, ...]
    unavailable: dict[int, tuple[int, ...]]
    distance: str
    unit_names: np.ndarray
    drawn: np.ndarray
    mean: np.ndarray
    inverse_scale: np.ndarray
    class_means: np.ndarray

    def predictions(self, features: np.ndarray) -> np.ndarray:
        """Classes int32 [s, r, n] of raw features [n, d]; the lowest of classes that tie.

        Raises:
          InputError: a feature that is not finite, or another number of features.
        """
        s, r, _, _ = self.class_means.shape
        result = np.empty((s, r, len(features)), np.int32)
        for shot in range(s):
            for rows, scores in self._scores(features, shot):
                result[shot][:, rows] = scores.argmax(axis=2).T
        return result

    def votes(self, features: np.ndarray, shot: int) -> np.ndarray:
        """float32 [r, n, c] for the shot count of that position: 1/m for the m classes that tie.

        Elsewhere 0. The mean of votes[:, row, label[row]] is the expected accuracy of each draw.
        """
        _, r, c, _ = self.class_means.shape
        result = np.empty((r, len(features), c), np.float32)
        for rows, scores in self._scores(features, shot):
            result[:, rows] = expected_votes(scores).transpose(1, 0, 2)
        return result

    def _scores(self, features: np.ndarray, shot: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of rows with the scores [b, r, c] of their classes, the nearest highest."""
        _, r, c, width = self.class_means.shape
        if features.ndim != 2 or features.shape[1] != width:
            raise InputError(f"few-shot was fitted to {width} features, now {features.shape}")
        check_finite(features, "row")
        means = self.class_means[shot].reshape(r * c, width)
        lengths = np.sqrt(np.sum(means.astype(np.float64) ** 2, axis=1))
        if self.distance == "cosine":  # the row's own length divides all its scores alike
            means = (means / np.where(lengths > 0.0, lengths, 1.0)[:, None]).astype(np.float32)
            offsets = np.zeros(r * c, np.float32)
        else:  # -|x - m|^2 / 2 without the |x|^2 that all its classes share
            offsets = (lengths**2 / 2).astype(np.float32)
        size = min(BLOCK, padded_rows(len(features)))
        for first in range(0, len(features), size):
            rows = slice(first, min(first + size, len(features)))
            block = np.zeros((size, width), np.float32)
            block[: rows.stop - first] = standardise(features[rows], self.mean, self.inverse_scale)
            with jax.default_matmul_precision("highest"):
                scores = np.asarray(_products(block, means, offsets))
            yield rows, scores[: rows.stop - first].reshape(-1, r, c)


def fit_few_shot(
    features: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    n_classes: int,
    *,
    seed: int,
    shots: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    distance: str = "euclidean",
) -> FewShotProbe:
    """Draw labelled units and take their class means.

    Args:
      features: [n, d] of all training rows, any float dtype, raw (standardised here).
      labels: int [n] in 0 ... n_classes - 1; each class needs a row.
      units: [n], names or numbers of the units of independence; they sort, and their sorted order
        decides the draws.
      shots: labelled units a class, in any order; the result has them ascending.
      distance: "euclidean" or "cosine", both after standardising.

    Raises:
      InputError: a class without a training row, a feature that is not finite, a shot count or a
        number of draws below 1.
    """
    labels, units = np.asarray(labels, np.int32), np.asarray(units)
    _check(features, labels, units, n_classes, seed, shots, draws, distance)
    shots = sorted({int(k) for k in shots})
    mean, inverse_scale = moments(features, np.ones(len(labels)))
    unit_names, unit = np.unique(units, return_inverse=True)
    pair = labels.astype(np.int64) * len(unit_names) + unit  # one for each class and unit
    drawn, n_units = _draw(np.unique(pair), len(unit_names), n_classes, seed, draws, max(shots))
    unavailable = {
        k: tuple(np.flatnonzero(n_units < k).tolist()) for k in shots if (n_units < k).any()
    }
    available = [k for k in shots if k not in unavailable]

    # The mean row of each class and unit that is drawn at all.
    wanted = np.arange(n_classes)[None, :, None] * len(unit_names) + drawn  # [r, c, max shot]
    pairs = np.unique(wanted[drawn >= 0])
    rows = np.flatnonzero(np.isin(pair, pairs))
    position = np.searchsorted(pairs, pair[rows])
    sums = np.zeros((len(pairs), features.shape[1]))
    in_order = np.argsort(position, kind="stable")
    for first in range(0, len(rows), BLOCK):
        here = in_order[first : first + BLOCK]
        part = standardise(features[rows[here]], mean, inverse_scale).astype(np.float64)
        found, starts = np.unique(position[here], return_index=True)
        sums[found] += np.add.reduceat(part, starts, axis=0)
    unit_means = sums / np.bincount(position, minlength=len(pairs))[:, None]

    shape = (len(available), draws, n_classes, features.shape[1])
    class_means = np.empty(shape, np.float32)
    for draw in range(draws):
        for i, k in enumerate(available):
            chosen = np.searchsorted(pairs, wanted[draw, :, :k])  # [c, k]
            class_means[i, draw] = unit_means[chosen].mean(axis=1)
    return FewShotProbe(
        shots=tuple(available),
        unavailable=unavailable,
        distance=distance,
        unit_names=unit_names,
        drawn=drawn,
        mean=mean,
        inverse_scale=inverse_scale,
        class_means=class_means,
    )


def _draw(
    pairs: np.ndarray, n_units: int, n_classes: int, seed: int, draws: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Units in the order drawn, int [r, c, most], −1 where a class has no more; units a class [c].

    pairs: class · n_units + unit for each unit that holds the class, sorted.
    """
    drawn = np.full((draws, n_classes, most), -1)
    classes = pairs // n_units
    for label in range(n_classes):
        holders = pairs[classes == label] % n_units
        for draw in range(draws):
            order = np.random.default_rng((seed, draw, label)).permutation(holders)[:most]
            drawn[draw, label, : len(order)] = order
    return drawn, np.bincount(classes, minlength=n_classes)


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    units: np.ndarray,
    n_classes: int,
    seed: int,
    shots: Sequence[int],
    draws: int,
    distance: str,
) -> None:
    if features.ndim != 2 or not len(features) == len(labels) == len(units):
        raise InputError(
            f"few-shot: features {features.shape} for {len(labels)} labels and {len(units)} units, "
            f"expected [n, d]"
        )
    check_labels(labels, n_classes)
    if not len(shots) or not all(k >= 1 and k == int(k) for k in shots):
        raise InputError(f"shot counts must be whole and at least 1: {list(shots)}")
    if draws < 1 or seed < 0:
        raise InputError(f"few-shot needs a draw and a seed of 0 or more: {draws} draws, {seed=}")
    if distance not in DISTANCES:
        raise InputError(f"few-shot distance {distance!r} is none of {DISTANCES}")
    check_finite(features, "training row")


@jax.jit
def _products(rows: jax.Array, means: jax.Array, offsets: jax.Array) -> jax.Array:
    """[b, d], [m, d], [m] -> [b, m]."""
    return rows @ means.T - offsets[None]

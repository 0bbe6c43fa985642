"""The duplicate audit: are there test images that training has already seen, or nearly?

A copied field, an image exported twice or a mirrored one on both sides of a split rewards memory.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.comparisons import drawn_rows
from bioimg_jax.statistics.geometry import two_nn
from bioimg_jax.statistics.neighbours import nearest

FALSE_ALARMS = 0.05  # expected in a fold of images that are independent
NEIGHBOUR = 10  # up to nine copies of an image in training do not hide the tenth
DIMENSION_ROWS = 2_000
EXAMPLES = 10
EXACT = 1e-6  # in units of the root mean square length of a row: rounding of float32
GRID = 32  # cells a side of a fingerprint's thumbnail
MEAN_BLOCK = 4_096
MAX_PAIRS = 1_000_000_000  # of a test and a training row, over all targets and folds


def duplicate_audit(
    batches: Iterable[Mapping[str, Any]],
    folds_by_target: Mapping[str, Sequence[Fold]],
    ids: np.ndarray,
    *,
    max_pairs: int = MAX_PAIRS,
) -> dict[str, dict[str, Any]]:
    """`duplicates` of the images' fingerprints for every target; one pass over the images.

    Only the fingerprints stay in memory, 544 bytes an image and channel. Time grows with test times
    training rows: where a target has more pairs than its share of `max_pairs`, so many test rows of
    each fold, drawn at random by their ids, are searched, and the result says so. Copies whose
    fingerprints are the same to the last bit are counted among all test rows always.

    Args:
      batches: as `evaluation_batches` yields them: "image" [b, h, w, c] and, where there is
        padding, "mask" bool [b]. The real images, counted as they come, are the rows of the folds.
      folds_by_target: target name -> folds.
      ids: [n], of the images, all different: they alone decide which are searched.

    Returns:
      {target: what `duplicates` returns for the test rows that were searched, and "n_test" (all),
      "n_searched", "n_identical" (of all test rows: bit for bit in training)}.

    Raises:
      InputError: no image, or as `duplicates`.
    """
    parts = []
    for batch in batches:
        images = np.asarray(batch["image"])
        mask = np.asarray(batch.get("mask", np.ones(len(images), bool)), bool)
        parts.append(fingerprints(images[mask]))
    if not sum(map(len, parts)):
        raise InputError("duplicates: no image given")
    marks = np.concatenate(parts)
    del parts
    as_bytes = marks.view(np.dtype((np.void, marks.shape[1] * marks.itemsize)))[:, 0]
    content = np.unique(as_bytes, return_inverse=True)[1]  # int [n], the same for identical ones
    share = max_pairs / max(len(folds_by_target), 1)
    return {
        target: _searched(marks, content, ids, folds, share)
        for target, folds in folds_by_target.items()
    }


def _searched(
    marks: np.ndarray,
    content: np.ndarray,
    ids: np.ndarray,
    folds: Sequence[Fold],
    max_pairs: float,
) -> dict[str, Any]:
    """The audit of one target on as many test rows as `max_pairs` allows."""
    pairs = sum(len(fold.train) * len(fold.test) for fold in folds)
    part = min(1.0, max_pairs / max(pairs, 1))

    def some(test: np.ndarray) -> np.ndarray:
        return np.sort(test[drawn_rows(ids[test], math.ceil(part * len(test)))])

    chosen = folds
    if part < 1.0:
        chosen = [dataclasses.replace(fold, test=some(fold.test)) for fold in folds]
    result = duplicates(marks, chosen)
    searched = result["n_test"]
    result["n_test"] = sum(len(fold.test) for fold in folds)
    result["n_searched"] = searched
    result["n_identical"] = sum(
        int(np.isin(content[fold.test], content[fold.train]).sum()) for fold in folds
    )
    if searched < result["n_test"]:
        result["reason"] += (
            f"; of {result['n_test']:,} test rows {searched:,}, drawn at random, were searched and "
            f"all for identical images: {result['n_identical']:,}"
        )
    return result


def duplicates(
    features: np.ndarray, folds: Sequence[Fold], *, false_alarms: float = FALSE_ALARMS
) -> dict[str, Any]:
    """Test rows that have a near-duplicate among the training rows of their fold.

    A test row i, whose nearest training row j is at distance r, is a duplicate when r is zero to
    rounding (*exact*), or when r < ρ s. s is the distance to the tenth-nearest training row, of i
    or of j, whichever is less: a local scale, so that an image type of which all examples look
    alike raises no alarm by that alone. ρ comes from the data: where i is one more independent draw
    from the cloud around j, uniform there in D dimensions, r^D is exponential and s^D, of j, a sum
    of k = 10 such variables, so that
        P(r < ρ s) ≤ 1 - (1 + ρ^D)^-k.
    ρ makes the right side `false_alarms` / (number of test rows). D is the intrinsic dimension of
    the training rows (`two_nn`, on at most 2,000 of them). In few dimensions rows come close by
    chance and ρ is tiny: a cell count shows exact duplicates and no others. Simulated, 1,000
    training and 500 test rows in 2 to 40 dimensions: 5 false alarms asked for gave 2.4 to 5.3; 0.05
    gave at most 0.15 in uniform and normal clouds and 0.35 in heavy-tailed ones.

    What it does not find: a duplicate in a series of more than nine near-copies in training, which
    is dense there by itself (time-lapse frames: hold out the whole series by its unit); near-copies
    where nearly every training row has one, which shrinks D to nothing; and whatever the features
    are not alike for (`fingerprints` says which). A pair near its limit may be chance: look at it.

    Args:
      features: [n, d], fingerprints or an encoder's features; the rows that the folds index.
      folds: index lists; validation rows are not looked at.
      false_alarms: expected number of independent test rows flagged in one fold.

    Returns:
      {"reason": one sentence, "n_test", "n_duplicates" (exact ones included), "n_exact",
      "per_fold": {fold: {"n_test", "n_duplicates", "n_exact", "dimension", "ratio" (ρ)}}, "pairs":
      the closest ten, {"fold", "test", "train" (rows), "distance", "limit" (ρ s), "exact"}}.
      "dimension" and "ratio" are None where D cannot be measured; then exact ones alone count.

    Raises:
      InputError: a fold without training or test rows, an index outside the features, or features
        that are not finite.
    """
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(f"duplicates: row {np.argmin(finite)} of the features is not finite")
    per_fold: dict[str, dict[str, Any]] = {}
    pairs: list[dict[str, Any]] = []
    for fold in folds:
        for part, rows in (("training", fold.train), ("test", fold.test)):
            if not len(rows) or rows.min() < 0 or rows.max() >= len(features):
                raise InputError(
                    f"duplicates: fold {fold.name!r} needs {part} rows within the {len(features)} "
                    "rows of the features"
                )
        per_fold[fold.name], found = _in_fold(features, fold, false_alarms)
        pairs += found
    pairs.sort(key=lambda pair: (pair["distance"], pair["test"]))
    counts = {
        name: sum(fold[name] for fold in per_fold.values())
        for name in ("n_test", "n_duplicates", "n_exact")
    }
    if counts["n_duplicates"]:
        reason = (
            f"{counts['n_duplicates']:,} of {counts['n_test']:,} test rows have a near-duplicate "
            f"in training, {counts['n_exact']:,} of them exact"
        )
    else:
        reason = f"none of {counts['n_test']:,} test rows has a near-duplicate in training"
    return {"reason": reason, **counts, "per_fold": per_fold, "pairs": pairs[:EXAMPLES]}


def fingerprints(images: np.ndarray) -> np.ndarray:
    """Images [b, h, w, c] of any dtype -> float32 [b, 136 c], alike for images that look alike.

    Each channel is averaged down to 32 x 32 cells, then over the 8 orientations of the square, and
    brought to zero mean and unit length; c channels together have unit length too. Half the squared
    distance of two fingerprints is one minus the mean over channels of their correlation.

    Mirrored and turned images have the same fingerprint, whatever noise they carry. (A canonical
    orientation would jump when noise changes the choice; trying all 8 would make every search 8
    times longer. The price is the part of the image that the average loses, 7/8 of it: what is left
    are 136 numbers a channel.) Brightness and contrast of a channel do not matter, nor does a shift
    well below a cell (1/32 of the side). Crops that overlap but are shifted by more than a few
    cells are other images, and so are copies turned by other angles: an encoder's features may show
    those. A channel without any contrast is zero: empty images are all alike.
    """
    b, h, w, c = images.shape
    down, across = _area_average(h), _area_average(w)
    cells = np.empty((b, GRID, GRID, c))
    for i, image in enumerate(images):
        rows = np.tensordot(down, image.astype(np.float64), axes=1)  # [GRID, w, c]
        cells[i] = across @ rows  # [GRID, GRID, c]
    # What is below it is rounding of a constant channel, not contrast.
    floor = 1e-9 * np.abs(cells).max(axis=(1, 2))[:, None, :]  # [b, 1, c]
    cells = cells + cells[:, ::-1]
    cells = cells + cells[:, :, ::-1]
    cells = (cells + cells.transpose(0, 2, 1, 3)) / 8
    # The average repeats itself: a triangle of one quadrant holds every orbit of cells once.
    row, column = np.triu_indices(GRID // 2)
    size = np.where(row == column, 4.0, 8.0)[None, :, None]  # cells in the orbit
    x = cells[:, row, column]  # [b, 136, c]
    x = x - (x * size).sum(axis=1, keepdims=True) / GRID**2
    x = x * np.sqrt(size)
    length = np.linalg.norm(x, axis=1, keepdims=True)  # [b, 1, c]
    x = np.divide(x, length, out=np.zeros_like(x), where=length > GRID * floor)
    flat = (x / math.sqrt(c)).reshape(b, len(row) * c)
    return np.ascontiguousarray(flat, np.float32)  # of one channel it lies the other way


def _in_fold(
    features: np.ndarray, fold: Fold, false_alarms: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Counts of one fold and its closest pairs."""
    train, test = features[fold.train], features[fold.test]
    k = min(NEIGHBOUR, len(train) - 1)
    distances, matches = nearest(test, train, max(k, 1))
    distance, match = distances[:, 0], matches[:, 0]
    exact = distance <= EXACT * math.sqrt(_mean_square(train))

    sample = np.random.default_rng(0).permutation(len(train))[:DIMENSION_ROWS]
    dimension = two_nn(train[sample]) if k else math.nan
    limit, ratio = np.zeros(len(test)), None
    if math.isfinite(dimension):
        chance = min(false_alarms / len(test), 0.5)
        ratio = math.expm1(-math.log1p(-chance) / k) ** (1.0 / dimension)
        matched, inverse = np.unique(match, return_inverse=True)
        scale = nearest(train[matched], train, k, itself=matched)[0][:, -1]  # of j
        limit = ratio * np.minimum(scale[inverse], distances[:, -1])
    flagged = exact | (distance < limit)
    counts = {
        "n_test": len(test),
        "n_duplicates": int(flagged.sum()),
        "n_exact": int(exact.sum()),
        "dimension": dimension if math.isfinite(dimension) else None,
        "ratio": ratio,
    }
    closest = np.flatnonzero(flagged)
    closest = closest[np.argsort(distance[closest], kind="stable")][:EXAMPLES]
    pairs = [
        {
            "fold": fold.name,
            "test": int(fold.test[i]),
            "train": int(fold.train[match[i]]),
            "distance": float(distance[i]),
            "limit": float(limit[i]),
            "exact": bool(exact[i]),
        }
        for i in closest
    ]
    return counts, pairs


def _mean_square(x: np.ndarray) -> float:
    """Mean squared distance of rows [n, d] from their mean, without a second copy of them all."""
    mean, total = x.mean(axis=0, dtype=np.float64), 0.0
    for start in range(0, len(x), MEAN_BLOCK):
        total += float(np.square(x[start : start + MEAN_BLOCK] - mean).sum())
    return total / len(x)


def _area_average(size: int) -> np.ndarray:
    """Weights [GRID, size]: the share of each pixel in each cell; rows sum to 1.

    Pixels that straddle two cells are split, so any size mirrors exactly.
    """
    edges = np.arange(GRID + 1) * (size / GRID)
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel[None, :] + 1) - np.maximum(
        edges[:-1, None], pixel[None, :]
    )
    return np.maximum(overlap, 0.0) * (GRID / size)

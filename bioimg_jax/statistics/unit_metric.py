"""A metric of predictions, and the values of the units of independence that stand for it.

Where every unit holds every class a metric is the mean of what it is inside each unit. Where units
hold some classes only, as a tile of one tissue does, balanced accuracy is no mean over units: it is
computed over all rows, and the units' values are its jackknife pseudo-values. Verdicts compare
units in pairs, and pseudo-values of a difference are the differences of pseudo-values.
"""

import numpy as np

METRICS = ("balanced_accuracy", "accuracy")


def unit_metric(
    labels: np.ndarray,
    predictions: np.ndarray,
    units: np.ndarray,
    metric: str,
    weights: np.ndarray | None = None,
    *,
    pseudo: bool | None = None,
) -> dict[int, float]:
    """The value of each unit, {unit: value} with units ascending, whose mean is the metric's.

    "accuracy" is the share of right answers of the unit; "balanced_accuracy" the mean recall over
    its classes or, where some unit lacks one of the classes, the unit's pseudo-value
    g θ - (g - 1) θ₋ᵤ (Efron & Tibshirani 1993, section 11.5) of the mean recall θ over all rows.

    weights: float [n] > 0 of the answers, None for ones; a row that splits its vote is there once
    for each class it votes for.
    pseudo: whether balanced accuracy is by pseudo-values, as other labels of the same rows have it;
    None where these labels settle it.
    """
    names, counts, hits = counted_answers(labels, predictions, units, weights)
    values = unit_values(hits, counts, metric, pseudo=pseudo)
    return dict(zip(names.tolist(), values.tolist(), strict=True))


def unit_values(
    hits: np.ndarray, counts: np.ndarray, metric: str, *, pseudo: bool | None = None
) -> np.ndarray:
    """`unit_metric` [u] of the weights of right answers and of rows, by unit and class [u, c]."""
    if metric == "accuracy":
        return np.asarray(hits.sum(axis=1) / counts.sum(axis=1))
    g = len(counts)
    pseudo = not _complete(counts) if pseudo is None else pseudo
    if g == 1 or not pseudo:
        return _mean_recall(hits, counts)
    whole = _mean_recall(hits.sum(axis=0), counts.sum(axis=0))
    without = _mean_recall(hits.sum(axis=0) - hits, counts.sum(axis=0) - counts)
    return np.asarray(g * whole - (g - 1) * without)


def unit_r2(
    values: np.ndarray, predictions: np.ndarray, constant: np.ndarray, units: np.ndarray
) -> dict[int, float]:
    """R² of predicted numbers [n]: the pseudo-value of each unit, {unit: value}, units ascending.

    R² = 1 - Σ(value - prediction)² / Σ(value - constant)² over all rows, where `constant` [n] is
    what a probe without features would say, the mean of its training rows: so 0 is chance and less
    than 0 is worse. Where the values do not differ from it, the prediction is as good: 0.
    """
    names, position = np.unique(units, return_inverse=True)
    order = np.lexsort((predictions, values, position))  # the order of rows leaves no trace
    position = position[order]
    missed = np.bincount(position, np.square(values - predictions)[order])
    spread = np.bincount(position, np.square(values - constant)[order])

    def r2(missed: np.ndarray, spread: np.ndarray) -> np.ndarray:
        there = spread > 0
        return np.where(there, 1.0 - missed / np.where(there, spread, 1.0), 0.0)

    g, whole = len(names), r2(missed.sum(), spread.sum())
    if g > 1:
        whole = g * whole - (g - 1) * r2(missed.sum() - missed, spread.sum() - spread)
    return dict(zip(names.tolist(), np.atleast_1d(whole).tolist(), strict=True))


def metric_value(
    labels: np.ndarray,
    predictions: np.ndarray,
    units: np.ndarray,
    metric: str,
    weights: np.ndarray | None = None,
) -> float:
    """The metric itself, as a choice on validation rows needs it; arguments as `unit_metric`."""
    _, counts, hits = counted_answers(labels, predictions, units, weights)
    if metric == "accuracy":
        return float(np.mean(hits.sum(axis=1) / counts.sum(axis=1)))
    if _complete(counts):
        return float(np.mean(_mean_recall(hits, counts)))
    return float(_mean_recall(hits.sum(axis=0), counts.sum(axis=0)))


def by_pseudo_values(labels: np.ndarray, units: np.ndarray, metric: str) -> bool:
    """Whether `unit_metric` gives pseudo-values for these rows."""
    names, counts, _ = counted_answers(labels, labels, units, None)
    return metric != "accuracy" and len(names) > 1 and not _complete(counts)


def counted_answers(
    labels: np.ndarray, predictions: np.ndarray, units: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units [u] ascending, and weight of the rows and of the right answers by class [u, c]."""
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    names, position = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    hits = np.zeros_like(counts)
    np.add.at(counts, (position, labels), weights)
    np.add.at(hits, (position, labels), weights * (predictions == labels))
    return names, counts, hits


def _complete(counts: np.ndarray) -> bool:
    """Whether every unit holds every class that some unit holds."""
    return bool((counts[:, counts.sum(axis=0) > 0] > 0).all())


def _mean_recall(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Over the classes there are: [..., c] -> [...]."""
    held = counts > 1e-9
    recalls = np.divide(hits, counts, out=np.zeros_like(hits), where=held)
    return np.where(held, recalls, 0.0).sum(axis=-1) / held.sum(axis=-1)

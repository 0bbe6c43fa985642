"""A classification metric inside each unit of independence."""

import numpy as np

METRICS = ("balanced_accuracy", "accuracy")


def unit_metric(
    labels: np.ndarray,
    predictions: np.ndarray,
    units: np.ndarray,
    metric: str,
    weights: np.ndarray | None = None,
) -> dict[int, float]:
    """The metric inside each unit: {unit: value}, units ascending.

    "balanced_accuracy" is the mean recall over the classes that the unit holds; "accuracy" the
    share of right answers. weights: float [n] > 0 of the answers, None for ones; a row that splits
    its vote is there once for each class it votes for.
    """
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    names, position = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    hits = np.zeros_like(counts)
    np.add.at(counts, (position, labels), weights)
    np.add.at(hits, (position, labels), weights * (predictions == labels))
    if metric == "accuracy":
        values = hits.sum(axis=1) / counts.sum(axis=1)
    else:
        recalls = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
        values = recalls.sum(axis=1) / (counts > 0).sum(axis=1)
    return dict(zip(names.tolist(), values.tolist(), strict=True))

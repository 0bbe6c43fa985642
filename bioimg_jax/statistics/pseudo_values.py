"""Jackknife pseudo-values: what each unit adds to a score that is no mean over units."""

import numpy as np


def pseudo_values(value: float, without: np.ndarray) -> np.ndarray:
    """Of a score and what it is without each of g units, float [g].

    g θ - (g - 1) θ₋ᵤ (Efron & Tibshirani 1993, section 11.5), moved so that their mean is θ. Their
    own mean is θ and (g - 1) times what a unit less costs: the score of endlessly many units, if
    each were worth as much as the last one. On BBBC021 that is above 1.
    """
    return np.asarray(value + (len(without) - 1) * (without.mean() - without))

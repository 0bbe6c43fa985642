"""Random subsets, many at once."""

import numpy as np


def drawn_subsets(rng: np.random.Generator, n: int, m: int, draws: int) -> np.ndarray:
    """Subsets of m of 0 ... n - 1, each equally likely, int [draws, m]; Floyd's algorithm.

    (Bentley & Floyd, Communications of the ACM 30, 1987.) The order within a subset is not random.
    """
    drawn = np.empty((draws, m), np.int64)
    for position in range(m):
        last = n - m + position
        candidate = rng.integers(0, last + 1, draws)
        taken = (drawn[:, :position] == candidate[:, None]).any(axis=1)
        drawn[:, position] = np.where(taken, last, candidate)
    return drawn

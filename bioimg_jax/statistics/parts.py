"""One p-value of the parts in which controls were held out."""

from typing import TypeVar

import numpy as np
import pandas as pd

Ps = TypeVar("Ps", float, np.ndarray, pd.Series)


def p_of_parts(mean: Ps, n_parts: int) -> Ps:
    """Twice the mean of the p-values of several parts, at most 1; of a single part its own.

    Valid however the parts depend on each other, as those do that share treated wells (Vovk & Wang,
    "Combining p-values via averaging", Biometrika 107, 2020).

    Args:
      mean: over the parts, one p-value or many; nan stays.
    """
    if n_parts < 1:
        raise ValueError(f"{n_parts} parts of a p-value")
    return mean if n_parts == 1 else np.minimum(1.0, 2.0 * mean)

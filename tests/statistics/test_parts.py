"""One p-value of several parts: valid whatever they have in common."""

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.statistics.parts import p_of_parts


def test_one_part_is_itself_and_of_several_twice_the_mean_at_most_one() -> None:
    assert p_of_parts(0.3, 1) == 0.3
    assert p_of_parts(0.3, 2) == 0.6 and p_of_parts(0.7, 2) == 1.0
    found = p_of_parts(pd.Series([0.01, 0.8, np.nan], index=list("abc")), 2)
    assert found["a"] == 0.02 and found["b"] == 1.0 and np.isnan(found["c"])
    with pytest.raises(ValueError, match="0 parts"):
        p_of_parts(0.3, 0)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0, -1.0])
def test_it_is_super_uniform_however_the_parts_depend(shared: float) -> None:
    rng = np.random.default_rng(0)
    one = rng.random(20_000)
    other = np.where(rng.random(20_000) < abs(shared), one if shared >= 0 else 1 - one,
                     rng.random(20_000))  # fmt: skip
    combined = p_of_parts((one + other) / 2, 2)
    for level in (0.01, 0.05, 0.2):
        error = 3 * np.sqrt(level * (1 - level) / 20_000)
        assert np.mean(combined <= level) <= level + error

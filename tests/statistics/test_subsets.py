from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from bioimg_jax.statistics.subsets import drawn_subsets


@pytest.mark.parametrize(("n", "m"), [(5, 2), (6, 3), (4, 1), (5, 4)])
def test_every_subset_is_equally_likely(n, m):
    drawn = np.sort(drawn_subsets(np.random.default_rng(0), n, m, 20_000), axis=1)
    found = dict.fromkeys(combinations(range(n), m), 0)
    for subset in drawn.tolist():
        found[tuple(subset)] += 1
    assert stats.chisquare(list(found.values())).pvalue > 1e-3


def test_all_or_nothing():
    rng = np.random.default_rng(0)
    assert (np.sort(drawn_subsets(rng, 7, 7, 9), axis=1) == np.arange(7)).all()
    assert drawn_subsets(rng, 7, 0, 9).shape == (9, 0)

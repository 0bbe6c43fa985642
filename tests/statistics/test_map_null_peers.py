"""p-values by random rankings against copairs, within the error of both drawings."""

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.probes.average_precision import average_precision
from bioimg_jax.probes.pairs import PairRules
from bioimg_jax.statistics.map_null import ranking_p


@pytest.mark.peers
def test_p_values_are_those_of_copairs(tmp_path):
    import copairs.map

    rng = np.random.default_rng(0)
    compound = np.array([f"c{i:02d}" for i in rng.integers(0, 24, 150)] + ["DMSO"] * 60)
    plate = rng.integers(0, 3, 210)  # queries of one compound have unlike numbers of negatives
    control = np.where(compound == "DMSO", np.arange(210), -1)
    metadata = pd.DataFrame({"compound": compound, "plate": plate, "control": control})
    means = 0.35 * rng.normal(size=(25, 8))
    features = rng.normal(size=(210, 8)) + means[pd.factorize(compound)[0]]
    rules = (["compound", "control"], [], ["plate"], ["compound", "control"])
    found = average_precision(features, metadata, PairRules(*rules))
    n = 20_000
    ours = ranking_p(found, compound[found.queries], rankings=n)

    peer = copairs.map.average_precision(metadata, features, *rules, progress_bar=False)
    peer = peer[peer["n_total_pairs"] > peer["n_pos_pairs"]]
    peer = copairs.map.mean_average_precision(
        peer, ["compound"], null_size=n, threshold=0.05, seed=0, progress_bar=False,
        cache_dir=tmp_path,
    )  # fmt: skip
    assert ours.groups.tolist() == peer["compound"].tolist()
    np.testing.assert_allclose(ours.values, peer["mean_average_precision"], atol=1e-6)
    p = peer["p_value"].to_numpy()
    assert p.min() < 0.01 and p.max() > 0.5
    error = np.sqrt(2 * p * (1 - p) / n)
    assert (np.abs(ours.p - p) <= 4.5 * error + 2 / n).all()
    falling = np.argsort(peer["corrected_p_value"], kind="stable")
    np.testing.assert_allclose(ours.q[falling], peer["corrected_p_value"][falling], atol=0.03)

"""Recall against efaar_benchmarking, with its own pair lists, where no two cosines are equal."""

import numpy as np
import pandas as pd
import pytest
from sklearn.utils import Bunch

from bioimg_jax.benchmarks.relationships import SOURCES, installed_pairs, known_relationships


@pytest.mark.peers
def test_recall_is_efaars():
    from efaar_benchmarking.benchmarking import known_relationship_benchmark

    listed = [installed_pairs(source) for source in SOURCES]
    named = pd.Series(np.concatenate([pairs.names.ravel() for pairs in listed])).value_counts()
    genes = np.sort(named.index[:400].to_numpy(object))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6)) + 0.5
    thresholds = [(0.05, 0.95), (0.1, 0.9)]
    peer = known_relationship_benchmark(
        Bunch(features=pd.DataFrame(features), metadata=pd.DataFrame({"gene": genes})),
        pert_col="gene",
        recall_thr_pairs=thresholds,
    ).set_index("source")
    for pair in thresholds:
        for found in known_relationships(features, genes, listed, percentiles=pair, permutations=0):
            theirs = peer.loc[found.source]
            assert found.recall == pytest.approx(theirs[f"recall_{pair[0]}_{pair[1]}"], abs=1e-12)
            assert found.pairs == theirs["query_distribution_size"] and found.tied == 0

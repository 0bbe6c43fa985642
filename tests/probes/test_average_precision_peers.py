"""Average precisions against copairs, on tables in which no two similarities are close."""

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.probes.average_precision import average_precision
from bioimg_jax.probes.pairs import PairRules

RULES = {
    "all others": PairRules(["compound"], [], [], ["compound"]),
    "across plates": PairRules(["compound"], ["plate"], ["plate"], ["compound"]),
    "two columns": PairRules(["compound", "batch"], ["plate"], ["plate"], ["batch", "compound"]),
    "against controls": PairRules(["compound", "control"], [], [], ["compound", "control"]),
}
LABELS = {
    "plain": PairRules(["target"], [], [], ["target"], multilabel="target"),
    "across plates": PairRules(["target"], ["plate"], ["batch"], ["target"], multilabel="target"),
}


def table(n=80, d=8):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(n, d))
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        if np.diff(np.sort(unit @ unit.T, axis=1), axis=1).min() > 3e-6:
            break
    compound = np.array([f"c{i}" for i in rng.integers(0, 8, n)])
    metadata = pd.DataFrame(
        {
            "compound": compound,
            "plate": rng.integers(0, 3, n),
            "batch": rng.choice(["x", "y"], n),
            "control": np.where(compound == "c0", np.arange(n), -1),
            "target": [list(rng.choice(list("pqrst"), k, False)) for k in rng.integers(1, 3, n)],
        }
    )
    return features, metadata


def rules_of(rules):
    return rules.pos_sameby, list(rules.pos_diffby), list(rules.neg_sameby), list(rules.neg_diffby)


@pytest.mark.peers
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_average_precisions_are_those_of_copairs(rules):
    import copairs.map

    features, metadata = table()
    found = average_precision(features, metadata, rules)
    peer = copairs.map.average_precision(metadata, features, *rules_of(rules), progress_bar=False)
    negatives = peer["n_total_pairs"] - peer["n_pos_pairs"]
    peer = peer[(peer["n_pos_pairs"] > 0) & (negatives > 0)]
    assert found.queries.tolist() == peer.index.tolist()
    np.testing.assert_allclose(found.values, peer["average_precision"], atol=1e-6)
    np.testing.assert_allclose(found.normalised, peer["normalized_average_precision"], atol=1e-6)
    np.testing.assert_array_equal(found.positives, peer["n_pos_pairs"])
    np.testing.assert_array_equal(found.positives + found.negatives, peer["n_total_pairs"])


@pytest.mark.peers
@pytest.mark.parametrize("rules", LABELS.values(), ids=LABELS)
def test_average_precisions_of_labels_are_those_of_copairs(rules):
    from copairs.map import multilabel

    features, metadata = table()
    metadata["row"] = np.arange(len(metadata))
    found = average_precision(features, metadata, rules)
    peer = multilabel.average_precision(
        metadata, features, *rules_of(rules), multilabel_col="target", progress_bar=False
    ).sort_values(["row", "target"])
    assert found.queries.tolist() == peer["row"].tolist()
    assert found.labels.tolist() == peer["target"].tolist()
    np.testing.assert_allclose(found.values, peer["average_precision"], atol=1e-6)
    np.testing.assert_allclose(found.normalised, peer["normalized_average_precision"], atol=1e-6)
    np.testing.assert_array_equal(found.positives + found.negatives, peer["n_total_pairs"])

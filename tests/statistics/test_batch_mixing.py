"""iLISI, kBET, silhouette and PCR: cases whose answer is known."""

import json
import sys

import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.batch_mixing import batch_mixing


def mixed(features, batch, **changes):
    rows = batch_mixing(features, batch, np.arange(len(features)), **changes)
    return {row["metric"]: row["value"] for row in rows}


def cloud(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8))


def own_ilisi(features, batch, k):
    """Korsunsky et al. (2019): effective number of batches under a Gaussian kernel of given
    perplexity around each row."""
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    values = []
    for i, row in enumerate(distances):
        near = np.argsort(row, kind="stable")
        near = near[near != i][: k - 1]
        low, high = 1e-9, 1e9
        for _ in range(200):
            beta = np.sqrt(low * high)
            p = np.exp(-beta * (row[near] - row[near].min()))
            p /= p.sum()
            entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)))
            low, high = (beta, high) if entropy > np.log(k // 3) else (low, beta)
        shares = np.bincount(batch[near], p, minlength=batch.max() + 1)
        values.append(1 / np.sum(shares**2))
    return (np.median(values) - 1) / batch.max()


@pytest.mark.peers
def test_batches_drawn_from_one_cloud_are_mixed_and_distant_ones_are_not():
    features, batch = cloud(1_000), np.repeat([0, 1], 500)
    together = mixed(features, batch, k=300)
    # Two batches at random among m neighbours of equal weight: E[Σp²] = 1/2 + 1/(2 m), m = 100.
    assert together["ilisi"] == pytest.approx(1.0, abs=0.06)
    assert together["kbet"] > 0.9 and together["silhouette_batch"] > 0.97
    assert together["pcr"] == pytest.approx(0.0, abs=0.01)
    apart = mixed(features + 100.0 * batch[:, None], batch)
    assert apart["ilisi"] == pytest.approx(0.0, abs=1e-5) and apart["kbet"] == 0.0
    assert apart["pcr"] > 0.99 and apart["silhouette_batch"] < 0.1


@pytest.mark.peers
def test_ilisi_agrees_with_its_definition():
    features = cloud(300)
    batch = (np.random.default_rng(1).random(300) < 0.5).astype(int)
    features[batch == 1] += 0.7
    assert mixed(features, batch, k=60)["ilisi"] == pytest.approx(
        own_ilisi(features, batch, 60), abs=0.01
    )


@pytest.mark.peers
def test_rows_say_that_no_direction_is_better_and_their_order_does_not_matter():
    features, batch = cloud(400), np.array(["a", "b", "c"])[np.arange(400) % 3]
    ids, order = np.arange(400), np.random.default_rng(0).permutation(400)
    labels = np.arange(400) % 2
    rows = batch_mixing(features, batch, ids, n=300, k=60, labels=labels)
    assert [row["metric"] for row in rows] == ["ilisi", "kbet", "silhouette_batch", "pcr"]
    for row in rows:
        assert row["higher_is_better"] is None and row["n"] == 300 and row["n_batches"] == 3
    json.dumps(rows, allow_nan=False)
    shuffled = batch_mixing(
        features[order], batch[order], ids[order], n=300, k=60, labels=labels[order]
    )
    assert shuffled == rows


@pytest.mark.peers
def test_a_silhouette_that_does_not_exist_is_none():
    batch = np.arange(300) % 2
    assert mixed(cloud(300), batch, k=60, labels=batch)["silhouette_batch"] is None


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(
        InputError, match=r"needs scib-metrics .* pip install 'bioimg_jax\[batch\]'"
    ):
        mixed(cloud(30), np.arange(30) % 2)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="29 batch for 30 rows"):
        batch_mixing(cloud(30), np.arange(29), np.arange(30))
    with pytest.raises(InputError, match="1 batch in 30 rows, expected 2 or more"):
        mixed(cloud(30), np.zeros(30))
    with pytest.raises(InputError, match="row 4 has no batch"):
        mixed(cloud(30), np.where(np.arange(30) == 4, None, "a"))
    x = cloud(30)
    x[7, 2] = np.inf
    with pytest.raises(InputError, match="row 7 of the features is not finite"):
        mixed(x, np.arange(30) % 2)

"""iLISI, kBET, silhouettes and PCR: cases whose answer is known."""

import itertools
import json
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_score

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.batch_mixing import batch_mixing, explained_variance


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
    assert [row["metric"] for row in rows] == [
        "ilisi", "kbet", "silhouette_batch", "silhouette_label", "pcr",
    ]  # fmt: skip
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


@pytest.mark.peers
def test_silhouettes_of_labels_and_explained_variance_agree_with_other_libraries():
    import scib_metrics

    features, batch, labels = cloud(300), np.arange(300) % 3, np.arange(300) // 150
    features[:, 0] += batch + 2 * labels
    found = mixed(features, batch, k=60, labels=labels)
    known = (1 + silhouette_score(features, labels)) / 2
    assert found["silhouette_label"] == pytest.approx(known, abs=1e-4)
    with jax.numpy_rank_promotion("allow"):
        regression = scib_metrics.utils.principal_component_regression
        category = regression(features, batch, categorical=True)
        number = regression(features, batch.astype(float))
    assert found["pcr"] == pytest.approx(category, abs=1e-4)
    assert explained_variance(features, pd.Series(batch)).share == pytest.approx(number, abs=1e-4)
    assert "silhouette_label" not in mixed(features, batch, k=60)


@pytest.mark.parametrize("numeric", [True, False])
def test_explained_variance_is_principal_component_regression(numeric):
    x = cloud(120) @ np.random.default_rng(1).normal(size=(8, 8)) + 50
    rng = np.random.default_rng(2)
    z = rng.normal(size=120) if numeric else rng.integers(0, 5, 120).astype(str)
    if numeric:
        x[:, 0] += 2 * z
    pca = PCA().fit(x)
    design = z[:, None] if numeric else (z[:, None] == np.unique(z)).astype(float)
    scores = pca.transform(x)
    r2 = [LinearRegression().fit(design, s).score(design, s) for s in scores.T]
    known = np.average(r2, weights=pca.explained_variance_)
    found = explained_variance(x.astype(np.float64), pd.Series(z))
    assert found.share == pytest.approx(known)
    assert found.chance == pytest.approx((1 if numeric else 4) / 119)
    assert found.levels == (None if numeric else 5) and found.higher_is_better is None


@pytest.mark.parametrize("column", [[1.0, 2.0, 5.0, 0.0, 1.0], list("aabbc")])
def test_chance_of_explained_variance_is_that_of_all_permutations(column):
    x = np.random.default_rng(0).normal(size=(5, 3))
    found = [
        explained_variance(x, pd.Series([column[i] for i in order])).share
        for order in itertools.permutations(range(5))
    ]
    assert np.mean(found) == pytest.approx(explained_variance(x, pd.Series(column)).chance)


def test_what_explained_variance_cannot_take_is_named_or_counted():
    x = cloud(6)
    found = explained_variance(x, pd.Series(["a", "b", None, "a", "b", "a"]))
    assert (found.n, found.n_missing, found.levels) == (5, 1, 2)
    same = explained_variance(x[[0, 1, 3, 4, 5]], pd.Series(list("ababa")))
    assert found.share == pytest.approx(same.share)
    for column, message in (
        (list("abc"), "3 values for 6 rows"),
        (list("aaaaaa"), "'plate': 1 values in 6 rows, expected 2 or more"),
        (list("abcdef"), "6 values in 6 rows"),
        ([1.0, 2.0, np.inf, 3.0, 4.0, 5.0], "value 0 of row 2 is not finite"),
    ):
        with pytest.raises(InputError, match=message):
            explained_variance(x, pd.Series(column, name="plate"))
    with pytest.raises(InputError, match="all rows of the features are equal"):
        explained_variance(np.ones((6, 2)), pd.Series(list("aabbab")))
    x[2, 1] = np.nan
    with pytest.raises(InputError, match="feature 1 of row 2 is not finite"):
        explained_variance(x, pd.Series(list("aabbab")))


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

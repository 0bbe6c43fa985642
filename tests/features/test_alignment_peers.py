"""Alignments against the libraries that profile cells with them."""

import anndata
import numpy as np
import pandas as pd
import pytest

from bioimg_jax.features.alignment import find_alignment

pytestmark = pytest.mark.peers


def screen(n=60, d=20, batches=3, seed=0):
    rng = np.random.default_rng(seed)
    parts = [
        rng.normal(size=(n, d)) @ (np.eye(d) + rng.normal(size=(d, d)) / d) * rng.uniform(0.5, 2)
        + rng.normal(size=d)
        for _ in range(batches)
    ]
    return np.concatenate(parts), np.repeat([f"P{b}" for b in range(batches)], n)


def test_combat_agrees_with_scanpy():
    scanpy = pytest.importorskip("scanpy")
    features, batch = screen(d=400)
    everyone = np.full(len(features), True)
    found = find_alignment("combat").fit(features, batch, everyone).transform(features, batch)
    obs = pd.DataFrame({"batch": pd.Categorical(batch)}).rename(index=str)
    table = anndata.AnnData(features.copy(), obs)
    expected = scanpy.pp.combat(table, key="batch", inplace=False)
    # Its priors divide by the number of features, the paper's by one less, and it iterates to 1e-4.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - features).max() > 0.5


def test_sphering_agrees_with_pycytominer():
    transform = pytest.importorskip("pycytominer.operations.transform")
    features, batch = screen()
    features += 30.0
    controls = np.arange(len(features)) % 2 == 0
    found = find_alignment("sphering").fit(features, batch, controls).transform(features, batch)
    peer = transform.Spherize(method="ZCA-cor", epsilon=0.0, return_numpy=True)
    peer.fit(pd.DataFrame(features[controls]))
    np.testing.assert_allclose(found, peer.transform(pd.DataFrame(features)), rtol=1e-8, atol=1e-8)


def test_mad_robustise_agrees_with_pycytominer():
    transform = pytest.importorskip("pycytominer.operations.transform")
    features, batch = screen()
    controls = np.arange(len(features)) % 2 == 0
    fitted = find_alignment("mad_robustise").fit(features, batch, controls)
    found = fitted.transform(features, batch)
    for name in np.unique(batch):
        here = batch == name
        peer = transform.RobustMAD().fit(pd.DataFrame(features[here & controls]))
        expected = peer.transform(pd.DataFrame(features[here])).to_numpy()
        np.testing.assert_allclose(found[here], expected, rtol=1e-9, atol=1e-9)

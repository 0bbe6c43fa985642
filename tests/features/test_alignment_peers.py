"""Alignments against the libraries that profile cells with them."""

import sys
import types

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

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


@pytest.fixture
def efaar(monkeypatch: pytest.MonkeyPatch):
    """`efaar_benchmarking.efaar`, without the library of the one method that is not called."""
    model = types.ModuleType("scvi.model")
    model.SCVI = None
    monkeypatch.setitem(sys.modules, "scvi", types.ModuleType("scvi"))
    monkeypatch.setitem(sys.modules, "scvi.model", model)
    from efaar_benchmarking import efaar

    return efaar


def up_to_signs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """found with each column's sign turned to the expected one's."""
    return found * np.sign((found * expected).sum(axis=0))


def test_centring_pca_cs_and_tvn_are_efaars(efaar):
    features, batch = screen(n=120, d=12)
    rng = np.random.default_rng(1)
    controls = rng.permutation(len(features)) < 200
    names = pd.DataFrame({"gene": np.where(controls, "none", "some"), "plate": batch})
    given = (names, "gene", "none", "plate")

    def ours(name: str) -> np.ndarray:
        return find_alignment(name).fit(features, batch, controls).transform(features, batch)

    np.testing.assert_allclose(
        ours("centerscale_on_controls"), efaar.centerscale_on_controls(features, *given), atol=1e-8
    )
    components = PCA().fit(features[controls]).transform(features)
    expected = efaar.centerscale_on_controls(components, *given)
    np.testing.assert_allclose(up_to_signs(ours("pca_cs"), expected), expected, atol=1e-4)
    # Its last step mixes components by a matrix whose signs turn with them: compare what does not.
    found, expected = ours("tvn"), efaar.tvn_on_controls(features, *given)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    np.testing.assert_allclose(up_to_signs(found, expected), expected, atol=1e-4)


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

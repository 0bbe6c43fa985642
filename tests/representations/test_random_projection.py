import jax
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from bioimg_jax.data.transforms import standardise
from bioimg_jax.representations.random_projection import RandomProjectionRepresentation, _signs
from bioimg_jax.representations.representation import KINDS


def images(b=12, h=16, w=24, c=3, seed=0):
    # Of two kinds, so that distances differ.
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(2, h, w, c))
    values = base[np.arange(b) % 2] * np.arange(1, b + 1)[:, None, None, None]
    values += 4 * rng.normal(size=values.shape)
    return (2000 + 20 * values).astype(np.uint16)


def project(batch, width, **options):
    floor = RandomProjectionRepresentation(width, **options)
    batch = {"image": batch, "index": np.arange(len(batch)), "mask": np.ones(len(batch), bool)}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        values = np.asarray(floor.features(batch)["projection"])
    assert values.shape == (len(batch["image"]), floor.layers["projection"])
    return values


def test_distances_survive():
    batch = images()
    pixels = np.asarray(standardise(batch)).reshape(len(batch), -1)
    distances = pdist(pixels)
    assert distances.max() > 1.3 * distances.min()
    errors = {w: pdist(project(batch, w)) / distances - 1 for w in (256, 4096)}
    # sd of the factor: sqrt(1 / (2 width)), so 0.044 and 0.011; four of them bound 66 pairs.
    assert np.abs(errors[256]).max() < 4 * np.sqrt(1 / 512)
    assert np.abs(errors[4096]).max() < 4 * np.sqrt(1 / 8192)


def test_is_the_product_with_a_sign_matrix():
    batch = images(b=2)
    floor = RandomProjectionRepresentation(50, seed=3)
    signs = np.asarray(_signs(floor._key, np.arange(16 * 24 * 3, dtype=np.int32), 50))
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    # No column, and no row, is like another: correlations of independent signs.
    np.testing.assert_allclose(signs.T @ signs / len(signs), np.eye(50), atol=5 / np.sqrt(1152))
    gram = signs @ signs.T / 50
    assert np.abs(gram - np.eye(1152)).max() < 1 - 1e-6
    expected = np.asarray(standardise(batch)).reshape(2, -1) @ signs / np.sqrt(50)
    np.testing.assert_allclose(project(batch, 50, seed=3), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 100, 1152, 5000])
def test_the_block_only_changes_the_rounding(block):
    batch = images(b=3, h=8)
    expected = project(batch, 40, block=64)
    np.testing.assert_allclose(project(batch, 40, block=block), expected, rtol=1e-4, atol=1e-4)


def test_a_seed_is_a_matrix():
    batch = images(b=3)
    first = project(batch, 40, seed=1)
    np.testing.assert_array_equal(project(batch, 40, seed=1), first)
    assert np.abs(project(batch, 40, seed=2) - first).min(axis=1).max() > 0
    assert abs(np.corrcoef(project(batch, 40, seed=2)[0], first[0])[0, 1]) < 0.6


def test_empty_images_are_zero_and_kind_is_known():
    assert (project(np.zeros((2, 8, 8, 2), np.uint8), 33) == 0).all()
    floor = RandomProjectionRepresentation(8)
    assert (floor.name, floor.kind) == ("random_projection", "texture") and floor.kind in KINDS

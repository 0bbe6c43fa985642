import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.data.transforms import (
    augment_crops,
    augment_intensity,
    centre_crop,
    flip,
    rot90,
    standardise,
)
from bioimg_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 2**16, (9, 7, 3), dtype=np.uint16)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rot90_turns_as_numpy_does(turns: int) -> None:
    np.testing.assert_array_equal(rot90(IMAGE, turns), np.rot90(IMAGE, turns))


def test_centre_crop_and_flip() -> None:
    np.testing.assert_array_equal(centre_crop(IMAGE, 3), IMAGE[3:6, 2:5])
    np.testing.assert_array_equal(flip(IMAGE), IMAGE[:, ::-1])
    with pytest.raises(InputError, match="9 x 7 px has no crop of 8 px"):
        centre_crop(IMAGE, 8)


def test_crops_reach_every_corner_and_every_orientation() -> None:
    image = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
    draws = RNG.random((4000, 4))
    crops = augment_crops([image] * 4000, 4, draws, flips=True, rotations=True)
    assert crops.dtype == np.uint8
    kinds, counts = np.unique(crops.reshape(4000, -1), axis=0, return_counts=True)
    assert len(kinds) == 4 * 8  # 4 corners x the 8 symmetries of a square
    assert counts.min() > 70  # expected 125


def test_draws_are_ignored_where_an_augmentation_is_off() -> None:
    crops = augment_crops([IMAGE], 7, np.zeros((1, 4)), flips=False, rotations=False)
    np.testing.assert_array_equal(crops[0], IMAGE[:7, :7])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_standardise_gives_zero_mean_and_unit_variance(dtype: type) -> None:
    images = RNG.integers(0, 200, (2, 32, 32, 3)).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        x = np.asarray(jax.jit(standardise)(images))
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("value", [0, 3, 40001, 65535])
def test_empty_channel_stays_exactly_zero(value: int) -> None:
    images = RNG.integers(0, 2**16, (2, 31, 33, 2), dtype=np.uint16)
    images[1, ..., 1] = value
    x = jax.jit(standardise)(images)
    assert (np.asarray(x[1, ..., 1]) == 0).all()
    assert (np.asarray(augment_intensity(x, jax.random.key(0)))[1, ..., 1] == 0).all()


def test_intensity_augmentation_does_what_it_says() -> None:
    x = standardise(jnp.asarray(RNG.normal(size=(64, 16, 16, 2)), jnp.float32))
    with jax.numpy_dtype_promotion("strict"):
        same = augment_intensity(x, jax.random.key(1), shift=0, gamma=(1, 1), noise=0)
        shifted = augment_intensity(x, jax.random.key(1), shift=0.1, gamma=(1, 1), noise=0) - x
        noisy = augment_intensity(x, jax.random.key(1), shift=0, gamma=(1, 1), noise=0.05) - x
        bent = augment_intensity(x, jax.random.key(1), shift=0, gamma=(0.5, 0.5), noise=0)
    np.testing.assert_allclose(same, x, atol=1e-5)
    offsets = np.asarray(shifted)
    assert np.ptp(offsets, axis=(1, 2)).max() < 1e-5  # one constant an image and channel
    assert 0.08 < abs(offsets).max() <= 0.1001
    assert len(np.unique(offsets[:, 0, 0].round(5))) > 100
    assert abs(np.asarray(noisy).std() - 0.05) < 0.002
    np.testing.assert_allclose(bent.max((1, 2)), x.max((1, 2)), rtol=1e-5)
    assert (np.asarray(bent) >= np.asarray(x) - 1e-5).all()  # a root lifts values between 0 and 1

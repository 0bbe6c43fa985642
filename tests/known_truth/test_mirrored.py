"""Flipped images are those of the data set turned round, by a coin that an example keeps."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax.known_truth.mirrored import Flipped


class LeftHalf:
    """Mean of the left half less that of the right one: it changes sign under a flip."""

    name, kind, dtype = "left_half", "trained", "float32"

    @property
    def layers(self) -> dict[str, int]:
        return {"halves": 1}

    def features(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        images = jnp.asarray(batch["image"], jnp.float32)
        half = images.shape[2] // 2
        left, right = images[:, :, :half], images[:, :, half:]
        return {"halves": (left.mean((1, 2)) - right.mean((1, 2)))[:, :1]}


def batch(n: int, first: int = 0) -> dict[str, np.ndarray]:
    images = np.zeros((n, 4, 4, 1), np.uint16)
    images[:, :, :2] = 100
    return {"image": images, "index": np.arange(first, first + n), "mask": np.ones(n, bool)}


def test_a_mirror_turns_every_image_and_leaves_the_batch_alone() -> None:
    given = batch(5)
    kept = given["image"].copy()
    found = Flipped(LeftHalf(), "mirrored", always=True).features(given)["halves"]
    np.testing.assert_array_equal(np.asarray(found), -100.0)
    np.testing.assert_array_equal(given["image"], kept)


def test_a_coin_turns_half_of_them_and_the_same_ones_in_any_batch() -> None:
    flipped = Flipped(LeftHalf(), "flipped", always=False)
    whole = np.asarray(flipped.features(batch(400))["halves"])[:, 0]
    assert set(whole) == {100.0, -100.0}
    assert abs(np.mean(whole < 0) - 0.5) < 0.1  # 4 standard errors
    part = np.asarray(flipped.features(batch(50, first=120))["halves"])[:, 0]
    np.testing.assert_array_equal(part, whole[120:170])
    padded = {**batch(3), "index": np.array([0, 1, -1])}
    assert np.asarray(flipped.features(padded)["halves"]).shape == (3, 1)

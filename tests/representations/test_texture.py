import math

import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bioimg_jax.representations.representation import KINDS
from bioimg_jax.representations.texture import (
    FREQUENCIES,
    ORIENTATIONS,
    TextureBankRepresentation,
    texture_statistics,
)


def by_name(images, channels=("DNA",), mirrored=False):
    bank = TextureBankRepresentation(channels, mirrored=mirrored)
    batch = {"image": images, "index": np.arange(len(images)), "mask": np.ones(len(images), bool)}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        values = np.asarray(bank.features(batch)["texture"])
    assert values.shape == (len(images), bank.layers["texture"])
    assert np.isfinite(values).all()
    assert len(set(bank.feature_names)) == len(bank.feature_names)
    return dict(zip(bank.feature_names, values.T, strict=True))


def noise(b=2, size=64, c=1, seed=0):
    return np.random.default_rng(seed).normal(size=(b, size, size, c)).astype(np.float32)


def responses(found, statistic="mean"):
    """[scales, orientations] of the first image."""
    return np.array(
        [
            [
                found[f"DNA:{statistic}:1/{round(1 / f)}:{180 * o // ORIENTATIONS}"][0]
                for o in range(ORIENTATIONS)
            ]
            for f in FREQUENCIES
        ]
    )


@pytest.mark.parametrize("scale", range(len(FREQUENCIES)))
@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_a_wave_answers_in_its_own_filter(scale, orientation):
    y, x = np.mgrid[:64, :64]
    angle = math.pi * orientation / ORIENTATIONS
    phase = 2 * np.pi * FREQUENCIES[scale] * (x * math.cos(angle) + y * math.sin(angle))
    image = (7 + 3 * np.cos(phase + 0.4)).astype(np.float32)[None, :, :, None]
    found = by_name(image)
    mean = responses(found)
    assert np.unravel_index(mean.argmax(), mean.shape) == (scale, orientation)
    assert found[f"DNA:anisotropy:1/{round(1 / FREQUENCIES[scale])}"][0] > 0.6
    if orientation in (0, ORIENTATIONS // 2):  # whole waves fit in: the amplitude of unit variance
        assert mean[scale, orientation] == pytest.approx(math.sqrt(2), rel=1e-4)
        assert responses(found, "sd")[scale, orientation] < 1e-4


def test_images_without_texture_are_zero():
    for value in (0, 255):
        found = by_name(np.full((1, 64, 64, 2), value, np.uint8), ("DNA", "RNA"))
        assert all((values == 0).all() for values in found.values())


def test_shifts_leave_the_features():
    images = noise()
    still = by_name(images)
    for shift in ((1, 0), (3, 5), (20, 33)):
        moved = by_name(np.roll(images, shift, (1, 2)))
        for name, values in still.items():
            np.testing.assert_allclose(moved[name], values, atol=0.005, err_msg=name)


def test_a_quarter_turn_permutes_orientations_and_nothing_else():
    images = ndimage.gaussian_filter(noise(c=2), (0, 3, 1, 0))
    upright = by_name(images, ("DNA", "RNA"))
    turned = by_name(np.rot90(images, 1, (1, 2)).copy(), ("DNA", "RNA"))
    for name, values in upright.items():
        *start, angle = name.split(":")
        if "mean" in name or "sd" in name:
            name = ":".join([*start, str((int(angle) + 90) % 180)])
        np.testing.assert_allclose(turned[name], values, atol=0.005, err_msg=name)
    assert upright["DNA:mean:1/8:0"][0] > 1.5 * upright["DNA:mean:1/8:90"][0]


def test_correlation_says_where_two_channels_have_their_texture():
    here = np.zeros((1, 64, 64, 1), np.float32)
    here[:, :, :32] = 1
    one, other, third = noise(b=1, seed=1), noise(b=1, seed=2), noise(b=1, seed=3)
    images = np.concatenate([one * here, other * here, third * (1 - here)], axis=3)
    found = by_name(images, ("A", "B", "C"))
    assert found["A:B:correlation:1/4"] > 0.5  # no pixel correlates, but where they vary does
    assert found["A:C:correlation:1/4"] < -0.5


def accuracy(one, other):
    """Of a linear probe on half of the images, on the other half."""
    features = np.asarray(texture_statistics(np.concatenate([one, other])))
    labels = np.repeat([0, 1], len(one))
    train = np.arange(len(labels)) % 2 == 0
    probe = make_pipeline(StandardScaler(), LogisticRegression())
    probe.fit(features[train], labels[train])
    return probe.score(features[~train], labels[~train])


def test_tells_textures_of_equal_histogram_and_power_apart():
    """The second texture is the first with its axes swapped: equal in every pixel statistic."""
    images = ndimage.gaussian_filter(noise(b=64), (0, 1.5, 1, 0), mode="wrap")
    assert accuracy(images[:32], images[32:].transpose(0, 2, 1, 3)) > 0.98


def test_tells_granularity_apart():
    images = noise(b=64, seed=1)
    fine = ndimage.gaussian_filter(images[:32], (0, 1.5, 1.5, 0), mode="wrap")
    coarse = ndimage.gaussian_filter(images[32:], (0, 1.8, 1.8, 0), mode="wrap")
    # Equal histograms: the values of one image in the order of another.
    ranks = coarse.reshape(32, -1).argsort(axis=1)
    matched = np.empty_like(coarse).reshape(32, -1)
    np.put_along_axis(matched, ranks, np.sort(fine.reshape(32, -1), axis=1), axis=1)
    assert accuracy(fine, matched.reshape(coarse.shape)) > 0.98


def test_odd_and_tiny_images():
    for shape in ((2, 33, 47, 2), (2, 3, 5, 2)):
        by_name(np.random.default_rng(0).random(shape).astype(np.float32), ("DNA", "RNA"))


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])  # grids of even and of odd size
def test_a_mirrored_bank_is_blind_to_flips_and_the_other_one_is_not(size):
    y, x = np.mgrid[: size[0], : size[1]]
    slanted = np.sin((x + 0.6 * y) / 2)[None, :, :, None]
    images = np.random.default_rng(5).normal(size=(2, *size, 1)).astype(np.float32)
    images = ndimage.gaussian_filter(images, (0, 1, 1, 0)) + slanted.astype(np.float32)
    flips = [np.flip(images, axis).copy() for axis in (1, 2)]
    same = by_name(images, mirrored=True)
    assert len(same) == 4 * (2 * 4 + 1)
    for flipped in flips:
        again = by_name(flipped, mirrored=True)
        for name, values in same.items():
            # Rounding of images of unit variance: a small share of it has the error of 1.
            np.testing.assert_allclose(again[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    told = by_name(images)
    for flipped in flips:
        turned = by_name(flipped)
        assert np.abs(told["DNA:mean:1/8:30"] - turned["DNA:mean:1/8:30"]).max() > 0.1
        for name in ("DNA:mean:1/8:0", "DNA:mean:1/8:90", "DNA:anisotropy:1/8"):
            np.testing.assert_allclose(turned[name], told[name], atol=0.01)


def test_correlations_of_a_mirrored_bank_are_blind_to_flips_too():
    images = noise(c=2) + noise(seed=1)
    same, turned = (by_name(i, ("A", "B"), True) for i in (images, np.flip(images, 2).copy()))
    for name, values in same.items():
        np.testing.assert_allclose(turned[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_mirrored_bank_averages_an_orientation_and_its_mirror_image():
    images = noise()
    plain, mirrored = by_name(images), by_name(images, mirrored=True)
    for statistic in ("mean", "sd"):
        for angle in (0, 30, 60, 90):
            pair = [plain[f"DNA:{statistic}:1/8:{a % 180}"] for a in (angle, -angle)]
            found = mirrored[f"DNA:{statistic}:1/8:{angle}"]
            # Responses are looked at half a grid step beside the plain ones.
            np.testing.assert_allclose(found, np.mean(pair, axis=0), atol=0.01)


def test_is_a_texture_floor():
    bank = TextureBankRepresentation(("DNA",))
    assert (bank.name, bank.kind) == ("texture_bank", "texture") and bank.kind in KINDS
    mirrored = TextureBankRepresentation(("DNA",), mirrored=True)
    assert (mirrored.name, mirrored.kind) == ("texture_bank_mirrored", "texture")

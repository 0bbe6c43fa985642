import json

import numpy as np
import pytest
from scipy import ndimage

from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.duplicates import duplicate_audit, duplicates, fingerprints

N_TRAIN, N_TEST, PX = 160, 40, 96
IDS = np.arange(N_TRAIN + N_TEST)


def fields(n, *, seed, px=PX, channels=2, blobs=14):
    """Fields of round cells on a noisy background, uint16 [n, px, px, channels]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:px, :px]
    images = np.full((n, px, px, channels), 400.0)
    for i in range(n):
        for cy, cx in rng.uniform(0, px, (blobs, 2)):
            cell = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * rng.uniform(2, 5) ** 2))
            images[i] += 3_000 * cell[..., None] * rng.uniform(0.3, 1, channels)
    return (images + rng.normal(0, 40, images.shape)).clip(0, 65_535).astype(np.uint16)


def fold(n_train, n_test, name="f"):
    rows = np.arange(n_train + n_test)
    return Fold(name, rows[:n_train], rows[:0], rows[n_train:], ("plate",))


@pytest.fixture(scope="module")
def independent():
    return fields(N_TRAIN + N_TEST, seed=0)


def audited(images):
    return duplicates(fingerprints(images), [fold(N_TRAIN, N_TEST)])


def test_independent_images_are_not_duplicates(independent):
    result = audited(independent)
    assert result["n_test"] == N_TEST and result["n_duplicates"] == 0 and result["pairs"] == []
    assert result["reason"] == "none of 40 test rows has a near-duplicate in training"
    inside = result["per_fold"]["f"]
    assert inside["dimension"] > 5 and 0.1 < inside["ratio"] < 0.9


def test_planted_duplicates_are_found_and_named(independent):
    rng = np.random.default_rng(1)
    images = independent.copy()
    noise = rng.normal(0, 200, images[0].shape)
    planted = {
        160: (3, images[3]),
        165: (8, images[8][:, ::-1]),
        170: (21, np.rot90(images[21], 3)),
        175: (40, np.rot90(images[40], 1)[::-1]),
        180: (77, (images[77] + noise).clip(0, 65_535)),
        185: (90, np.rot90(images[90], 2) * 0.5 + 100),  # another exposure, upside down
        190: (5, np.roll(images[5], (1, -1), axis=(0, 1))),  # a pixel off: a third of a cell
    }
    for row, (_, image) in planted.items():
        images[row] = image
    result = audited(images)
    found = {pair["test"]: pair["train"] for pair in result["pairs"]}
    assert found == {row: source for row, (source, _) in planted.items()}
    assert result["n_duplicates"] == len(planted)
    exact = {pair["test"] for pair in result["pairs"] if pair["exact"]}
    assert {160, 165, 170, 175} <= exact and not exact & {180, 190}
    assert all(pair["exact"] or pair["distance"] < pair["limit"] for pair in result["pairs"])
    assert result["reason"].startswith("7 of 40 test rows have a near-duplicate in training")
    json.dumps(result, allow_nan=False)


def test_overlapping_crops_are_other_images(independent):
    images = independent.copy()
    large = fields(1, seed=5, px=2 * PX, blobs=56)[0]
    images[0], images[160] = large[:PX, :PX], large[PX // 4 : PX + PX // 4, :PX]
    assert audited(images)["n_duplicates"] == 0


def test_fingerprints_do_not_see_orientation_brightness_or_bit_depth(independent):
    image = independent[0]
    marks = fingerprints(independent[:2])
    assert marks.shape == (2, 2 * 136) and marks.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(marks, axis=1), 1.0, rtol=1e-6)
    for turns in range(4):
        for turned in (np.rot90(image, turns), np.rot90(image, turns)[::-1]):
            np.testing.assert_allclose(fingerprints(turned[None])[0], marks[0], atol=1e-6)
    brighter = image * np.array([0.01, 3.0]) + np.array([7.0, -50.0])
    np.testing.assert_allclose(fingerprints(brighter[None])[0], marks[0], atol=1e-6)
    assert marks[0] @ marks[1] < 0.8


def test_distance_of_fingerprints_is_one_minus_the_correlation_of_symmetrised_thumbnails():
    images = np.random.default_rng(2).uniform(size=(2, 64, 64, 1))
    cells = images[..., 0].reshape(2, 32, 2, 32, 2).mean(axis=(2, 4))
    orientations = [np.rot90(c, t, axes=(1, 2)) for c in (cells, cells[:, ::-1]) for t in range(4)]
    a, b = np.mean(orientations, axis=0).reshape(2, -1)
    marks = fingerprints(images).astype(np.float64)
    half = np.square(marks[0] - marks[1]).sum() / 2
    assert half == pytest.approx(1 - np.corrcoef(a, b)[0, 1], abs=1e-6)


@pytest.mark.parametrize("shape", [(96, 96), (70, 45), (20, 33)])
def test_any_size_of_image_has_a_fingerprint_that_mirrors(shape):
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 3)[
        None, ..., None
    ]
    marks = fingerprints(smooth)
    np.testing.assert_allclose(fingerprints(smooth[:, ::-1, ::-1]), marks, atol=1e-6)
    np.testing.assert_allclose(fingerprints(smooth.transpose(0, 2, 1, 3)), marks, atol=1e-6)


def test_empty_channels_are_zero_and_empty_images_alike():
    images = np.full((3, 50, 50, 2), 0.1)
    images[0, :, :, 1] = np.random.default_rng(4).normal(size=(50, 50))
    marks = fingerprints(images).reshape(3, 136, 2)
    assert not marks[..., 0].any() and not marks[1:].any()
    assert np.linalg.norm(marks[0]) == pytest.approx(np.sqrt(0.5))
    assert fingerprints(images[:0]).shape == (0, 2 * 136)


@pytest.mark.parametrize("d", [2, 8, 40])
def test_false_alarms_of_independent_rows_are_as_rare_as_asked(d):
    rng = np.random.default_rng(d)
    for cloud in (rng.uniform(size=(1_500, d)), rng.standard_t(3, size=(1_500, d))):
        assert duplicates(cloud, [fold(1_000, 500)])["n_duplicates"] <= 1
        # The model of the tail holds to a factor of two.
        assert duplicates(cloud, [fold(1_000, 500)], false_alarms=25)["n_duplicates"] < 50


def test_a_tight_class_is_not_a_class_of_duplicates():
    rng = np.random.default_rng(0)
    tight = rng.random(1_500) < 0.3
    cloud = rng.normal(size=(1_500, 10)) * np.where(tight, 0.01, 1.0)[:, None]
    cloud[:, 0] += 20.0 * tight
    assert duplicates(cloud, [fold(1_200, 300)])["n_duplicates"] == 0
    cloud[1_300] = cloud[7] + 1e-4  # beside its own class it is close all the same
    assert [p["test"] for p in duplicates(cloud, [fold(1_200, 300)])["pairs"]] == [1_300]


def test_several_copies_in_training_do_not_hide_a_duplicate():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(1_200, 12))
    cloud[100:109] = cloud[1_100] + 0.01 * rng.normal(size=(9, 12))
    result = duplicates(cloud, [fold(1_000, 200)])
    assert result["n_duplicates"] == 1 and result["n_exact"] == 0


def test_exact_duplicates_are_found_where_no_distance_can_be_judged():
    few = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    result = duplicates(few, [fold(2, 1)])
    assert result["per_fold"]["f"]["ratio"] is None
    assert result["n_exact"] == result["n_duplicates"] == 1
    assert duplicates(few, [fold(1, 2)])["n_exact"] == 1
    same = duplicates(np.full((30, 3), 0.1), [fold(20, 10)])
    assert same["n_exact"] == same["n_duplicates"] == 10 and len(same["pairs"]) == 10


def test_folds_are_counted_apart_and_together():
    cloud = np.random.default_rng(0).normal(size=(300, 6))
    cloud[250] = cloud[10]
    rows = np.arange(300)
    folds = [
        Fold("a", rows[:200], rows[:0], rows[200:], ("plate",)),
        Fold("b", rows[100:], rows[:0], rows[:100], ("plate",)),
        Fold(
            "c", rows[:100], rows[250:], rows[100:250], ("plate",)
        ),  # in validation: not looked at
    ]
    result = duplicates(cloud, folds)
    assert {name: f["n_duplicates"] for name, f in result["per_fold"].items()} == {
        "a": 1, "b": 1, "c": 0
    }  # fmt: skip
    assert result["n_test"] == 350 and result["n_duplicates"] == 2
    assert [(p["fold"], p["test"], p["train"]) for p in result["pairs"]] == [
        ("b", 10, 250),
        ("a", 250, 10),
    ]


def test_bad_input_is_named():
    cloud = np.random.default_rng(0).normal(size=(30, 3))
    with pytest.raises(InputError, match="fold 'f' needs test rows within the 30 rows"):
        duplicates(cloud, [fold(25, 6)])
    with pytest.raises(InputError, match="fold 'f' needs training rows"):
        duplicates(cloud, [fold(0, 6)])
    cloud[4] = np.nan
    with pytest.raises(InputError, match="row 4 of the features is not finite"):
        duplicates(cloud, [fold(20, 10)])


def in_batches(images, size=64):
    """As an evaluation streams them: the last batch is padded."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padding = np.zeros((size - len(part), *images.shape[1:]), images.dtype)
        mask = np.arange(size) < len(part)
        yield {"image": np.concatenate([part, padding]), "mask": mask}


@pytest.mark.parametrize("channels", [1, 2])
def test_images_are_audited_in_one_pass_for_every_target(independent, channels):
    images = independent[..., :channels].copy()
    images[170], images[185] = images[21], np.rot90(images[90], 2) // 2 + 100
    whole, part = fold(N_TRAIN, N_TEST), fold(50, N_TEST)
    part = Fold("g", part.train, part.validation, whole.test, ("plate",))
    result = duplicate_audit(in_batches(images), {"compound": [whole], "plate": [part]}, IDS)
    expected = duplicates(fingerprints(images), [whole])
    assert result["compound"] == {**expected, "n_searched": N_TEST, "n_identical": 1}
    assert [p["train"] for p in result["compound"]["pairs"]] == [21, 90]
    assert [p["train"] for p in result["plate"]["pairs"]] == [21]
    json.dumps(result, allow_nan=False)


def test_a_large_search_is_cut_short_and_says_so(independent):
    images = independent.copy()
    images[160:200] = images[:40]
    pairs = N_TRAIN * N_TEST
    targets = {"a": [fold(N_TRAIN, N_TEST)], "b": [fold(N_TRAIN, N_TEST)]}
    result = duplicate_audit(in_batches(images), targets, IDS, max_pairs=pairs // 2)["a"]
    assert result["n_test"] == 40 and result["n_searched"] == 10
    assert result["n_duplicates"] == result["n_exact"] == 10 and result["n_identical"] == 40
    assert result["reason"] == (
        "10 of 10 test rows have a near-duplicate in training, 10 of them exact; of 40 test rows "
        "10, drawn at random, were searched and all for identical images: 40"
    )


def test_which_images_are_searched_does_not_depend_on_the_order_of_rows(independent):
    images = independent.copy()
    images[160:180] = images[:20]  # half of the test images are copies: the draw decides how many
    order = np.r_[np.random.default_rng(0).permutation(160), 160 + np.arange(40)[::-1]]

    def found(order):
        folds = {"a": [fold(N_TRAIN, N_TEST)]}
        pairs = N_TRAIN * N_TEST
        batches = in_batches(images[order])
        result = duplicate_audit(batches, folds, IDS[order], max_pairs=pairs // 4)["a"]
        return {(order[pair["test"]], order[pair["train"]]) for pair in result["pairs"]}

    once = found(np.arange(200))
    assert 0 < len(once) < 10 and found(order) == once


def test_no_image_is_an_error():
    with pytest.raises(InputError, match="no image given"):
        duplicate_audit([], {"a": [fold(2, 1)]}, IDS)

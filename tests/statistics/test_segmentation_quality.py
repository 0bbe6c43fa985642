import json

import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.representations.nuclei import FEATURE_NAMES, NucleiRepresentation, Segmenter
from bioimg_jax.statistics.segmentation_quality import segmentation_quality

PX = 128


def discs(centres, *, radius=8, seed=0):
    y, x = np.mgrid[:PX, :PX]
    image = np.random.default_rng(seed).normal(100, 3, (PX, PX))
    for cy, cx in centres:
        image[np.hypot(y - cy, x - cx) < radius] = 200
    return image.astype(np.float32)


def test_quality_of_images_drawn_to_order():
    apart = [(30, 30), (30, 90), (90, 30), (90, 90)]
    images = np.stack(
        [
            discs(apart),
            discs([(64, 57), (64, 71), (100, 20)]),  # two that touch
            discs([(64, 0)]),  # one cut off by the border
            discs([], seed=1),
            discs([], seed=2),
        ]
    )[..., None]
    nuclei = NucleiRepresentation(Segmenter(("DNA",), workers=1))
    assert nuclei.feature_names == list(FEATURE_NAMES)
    features = np.asarray(nuclei.features({"image": images, "mask": np.ones(5, bool)})["nuclei"])
    found = segmentation_quality(features, FEATURE_NAMES)
    assert found["n_images"] == 5 and found["n_nuclei"] == 8 and found["median_count"] == 1.0
    assert found["empty_share"] == 0.4
    assert found["touching_share"] == pytest.approx(2 / 8)
    assert found["at_border_share"] == pytest.approx(1 / 8)
    assert found["median_separability"] > 0.8
    assert 20 < found["median_contrast"] < 100  # drawn at 33 sd of noise, which is smoothed
    assert found["reason"].startswith("median 1 nuclei an image, 40% of 5 images empty; 25% of")
    json.dumps(found, allow_nan=False)
    assert segmentation_quality(features[::-1], FEATURE_NAMES) == pytest.approx(found)


def test_images_without_nuclei_say_nothing_of_their_quality():
    found = segmentation_quality(np.zeros((3, len(FEATURE_NAMES))), FEATURE_NAMES)
    assert found["empty_share"] == 1.0 and found["touching_share"] is None
    assert found["median_separability"] is None
    assert found["reason"] == "no nucleus was found in any of 3 images"


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"features of shape \(3, 2\) for 39 names"):
        segmentation_quality(np.zeros((3, 2)), FEATURE_NAMES)
    with pytest.raises(InputError, match="no feature 'foreground' among count, other"):
        segmentation_quality(np.zeros((3, 2)), ["count", "other"])

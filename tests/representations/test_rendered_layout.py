"""What an encoder sees of the mask of the nuclei, and that it sees nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.data.transforms import standardise
from bioimg_jax.models import build_encoder
from bioimg_jax.representations.floors import Floors
from bioimg_jax.representations.layout import render_mask
from bioimg_jax.representations.nuclei import Segmenter, segment_nuclei
from bioimg_jax.representations.rendered_layout import RenderedLayoutRepresentation

CHANNELS = ("ER", "DNA")


def images(n=3, size=64, seed=0):
    """Two channels: noise, and bright discs on a dark ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    found = rng.normal(1000, 20, (n, size, size, 2))
    for image in found:
        for cy, cx in ((16, 16), (16, 46), (46, 20), (44, 48)):
            cy, cx = cy + rng.integers(-4, 4), cx + rng.integers(-4, 4)
            image[(y - cy) ** 2 + (x - cx) ** 2 < rng.integers(20, 60), 1] += 4000
    return found.astype(np.uint16)


def batch(pictures, padded=0):
    mask = np.r_[np.ones(len(pictures), bool), np.zeros(padded, bool)]
    pictures = np.concatenate([pictures, np.zeros((padded, *pictures.shape[1:]), np.uint16)])
    return {"image": jnp.asarray(pictures), "index": np.arange(len(pictures)), "mask": mask}


def test_it_is_the_encoder_on_the_mask_and_its_distances():
    segmenter = Segmenter(CHANNELS, workers=1)
    untrained = RenderedLayoutRepresentation.untrained(segmenter)
    pictures = images()
    found = untrained.features(batch(pictures, padded=1))
    encoder = build_encoder({"name": "resnet", "depth": 18, "channels": ["mask", "distance"]})
    rendered = np.stack([render_mask(segment_nuclei(p, dna_channel=1)) for p in pictures])
    variables = jax.jit(encoder.init)(jax.random.key(0))
    encoded, _ = encoder.apply(variables, standardise(jnp.asarray(rendered)), train=False)
    np.testing.assert_allclose(found["final/mean"][:3], encoded.pooled["mean"], atol=1e-5)
    assert {name: v.shape[1] for name, v in found.items()} == untrained.layers
    assert np.ptp(np.asarray(found["final/mean"])[:3], axis=0).max() > 1e-3


def test_the_trained_encoder_is_shown_the_layout_in_the_channel_of_the_stain():
    config = {"name": "vit", "width": 32, "depth": 2, "heads": 2, "patch_px": 16, "image_px": 64}
    encoder = build_encoder({**config, "channels": list(CHANNELS)})
    variables = jax.jit(encoder.init)(jax.random.key(1))
    floors = Floors(CHANNELS, 32, ["layout_trained"])
    assert floors.has_on_layout and floors.names == ()
    shown = floors.on_layout("mae_on_layout", encoder, lambda: variables, blocks=1)
    pictures = images()
    found = np.asarray(shown.features(batch(pictures))["final/mean"])
    painted = np.zeros((3, 64, 64, 2), np.float32)
    for image, picture in zip(painted, pictures, strict=True):
        image[..., 1] = render_mask(segment_nuclei(picture, dna_channel=1))[..., 1]
    encoded, _ = encoder.apply(variables, standardise(jnp.asarray(painted)), train=False)
    np.testing.assert_allclose(found, encoded.pooled["mean"], atol=1e-5)
    # Another stain, and nuclei twice as bright, are the same layout.
    other = pictures.copy()
    other[..., 0] = images(seed=1)[..., 0] // 2
    other[..., 1] *= 2
    np.testing.assert_array_equal(shown.features(batch(other))["final/mean"], found)


def test_nuclei_of_tissue_are_dark_in_every_channel_and_other_images_have_none():
    rgb = build_encoder({"name": "resnet", "depth": 18, "channels": ["R", "G", "B"]})
    shown = Floors(("R", "G", "B"), 8, ["layout_trained"]).on_layout("x", rgb, dict)
    np.testing.assert_array_equal(shown._paint, [[-1, -1, -1], [0, 0, 0]])
    floors = Floors(("grey",), 8, ["layout_trained", "layout_rendered"])
    assert not floors.has_on_layout
    assert set(floors.omitted) == {"layout_trained", "layout_rendered"}
    with pytest.raises(ValueError, match="paint"):
        RenderedLayoutRepresentation(
            "x", Segmenter(CHANNELS, workers=1), rgb, dict, np.eye(2, dtype=np.float32)
        )

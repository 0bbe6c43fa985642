import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.models import build_encoder
from bioimg_jax.representations.encoder import EncoderRepresentation, evenly_spaced
from bioimg_jax.representations.representation import stream_features

CHANNELS = ("DNA", "RNA")


@dataclasses.dataclass(frozen=True)
class Stand:
    """An encoder small enough to compute by hand: block k multiplies channel means by gain + k."""

    depth: int
    config: dict
    name: str = "stand"
    channels: tuple[str, ...] = CHANNELS
    pooled_keys: tuple[str, ...] = ("mean", "mean_std")
    calls: list = dataclasses.field(default_factory=list, compare=False)

    @property
    def block_widths(self):
        return (2,) * self.depth

    def apply(self, variables, images, *, train):
        self.calls.append(images.shape)  # once for each trace
        assert not train and images.dtype == jnp.float32
        squares = jnp.mean(images**2, axis=(1, 2))

        def pooled(factor):
            mean = squares * (variables["params"]["gain"] + factor)
            return {"mean": mean, "mean_std": jnp.concatenate([mean, -mean], axis=1)}

        blocks = tuple(pooled(float(k)) for k in range(self.depth))
        return types.SimpleNamespace(pooled=pooled(100.0), blocks=blocks), {}


def variables(gain):
    return {"params": {"gain": jnp.float32(gain)}, "stats": {}}


def batch(images, real=None):
    b = len(images)
    mask = np.arange(b) < (b if real is None else real)
    return {"image": images, "index": np.arange(b), "mask": mask}


def images(b=4, seed=0):
    return np.random.default_rng(seed).integers(0, 60_000, (b, 8, 8, 2)).astype(np.uint16)


def test_blocks_are_evenly_spaced_and_end_with_the_last():
    assert evenly_spaced(12, 4) == (2, 5, 8, 11)
    assert evenly_spaced(4, 4) == (0, 1, 2, 3)
    assert evenly_spaced(6, 4) == (1, 2, 4, 5)
    assert evenly_spaced(2, 4) == (0, 1)
    assert evenly_spaced(12, 1) == (11,)


def test_layers_name_block_and_pooling():
    encoder = Stand(12, {"variant": "names"})
    found = EncoderRepresentation("twin", "untrained", encoder, variables(1.0))
    assert found.layers == {
        f"{block}/{pooling}": width
        for block in ("block03", "block06", "block09", "final")
        for pooling, width in (("mean", 2), ("mean_std", 4))
    }
    only = EncoderRepresentation("a", "trained", encoder, variables(1.0), poolings=("mean",))
    assert list(only.layers) == ["block03/mean", "block06/mean", "block09/mean", "final/mean"]


def test_features_are_of_standardised_images_and_the_final_norm():
    encoder = Stand(4, {"variant": "values"})
    found = EncoderRepresentation("a", "trained", encoder, variables(2.0))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        features = found.features(batch(images()))
    assert {name: f.shape for name, f in features.items()} == {
        name: (4, width) for name, width in found.layers.items()
    }
    np.testing.assert_allclose(features["block02/mean"], np.full((4, 2), 3.0), rtol=1e-4)
    np.testing.assert_allclose(features["final/mean"], np.full((4, 2), 102.0), rtol=1e-4)
    np.testing.assert_allclose(features["final/mean_std"][:, 2:], -102.0, rtol=1e-4)


def test_seeds_of_one_architecture_share_a_compiled_program():
    encoder, again = Stand(4, {"variant": "shared"}), Stand(4, {"variant": "shared"})
    first = EncoderRepresentation("a", "trained", encoder, variables(1.0))
    second = EncoderRepresentation("b", "untrained", again, variables(5.0))
    one = first.features(batch(images()))["block01/mean"]
    other = second.features(batch(images()))["block01/mean"]
    np.testing.assert_allclose(other, 5 * np.asarray(one), rtol=1e-5)
    assert len(encoder.calls) + len(again.calls) == 1


def test_in_bfloat16_a_layer_does_not_depend_on_which_others_are_asked_for():
    encoder = build_encoder(
        {"name": "vit", "channels": CHANNELS, "width": 32, "depth": 6, "heads": 2, "patch_px": 4,
         "image_px": 8, "layerscale": 1e-2, "dtype": "bfloat16"}
    )  # fmt: skip
    weights = encoder.init(jax.random.key(0))
    last, every = (
        EncoderRepresentation("a", "untrained", encoder, weights, blocks=blocks).features(
            batch(images(16))
        )
        for blocks in (1, 0)
    )
    for name, values in last.items():
        np.testing.assert_array_equal(values, every[name])


@pytest.mark.parametrize("last", [1, 3, 4])
def test_stream_covers_every_real_row_once(last):
    encoder = Stand(4, {"variant": "stream"})
    found = EncoderRepresentation("a", "trained", encoder, variables(1.0), poolings=("mean",))
    batches = [batch(images(seed=0)), batch(images(seed=1)), batch(images(seed=2), real=last)]
    parts = list(stream_features(found, batches))
    positions = np.concatenate([rows for rows, _ in parts])
    np.testing.assert_array_equal(positions, np.arange(8 + last))
    for part, expected in zip(parts, batches, strict=True):
        whole = np.asarray(found.features(expected)["final/mean"])
        np.testing.assert_array_equal(part[1]["final/mean"], whole[expected["mask"]])

import jax
import numpy as np
import pytest

from bioimg_jax import mesh
from bioimg_jax.representations.aggregation_noise import AggregationNoiseRepresentation
from bioimg_jax.representations.combined import CombinedRepresentation
from bioimg_jax.representations.pixels import PixelRepresentation
from bioimg_jax.representations.random_projection import RandomProjectionRepresentation
from bioimg_jax.representations.representation import KINDS
from bioimg_jax.representations.texture import TextureBankRepresentation

BATCH = {
    "image": np.random.default_rng(0).integers(0, 255, (3, 16, 16, 2)).astype(np.uint8),
    "index": np.array([5, 6, -1]),
    "mask": np.array([True, True, False]),
}


class Counts:
    """A representation of two layers, in NumPy and in half precision."""

    name, kind, dtype = "count", "count", "float16"
    layers = {"area": 1, "all": 3}  # noqa: RUF012

    def features(self, batch):
        values = np.arange(3 * len(batch["image"]), dtype=np.float16).reshape(-1, 3)
        return {"area": values[:, :1], "all": values}


def test_parts_stand_side_by_side():
    parts = [PixelRepresentation(("DNA", "RNA")), Counts(), RandomProjectionRepresentation(5)]
    combined = CombinedRepresentation(parts)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        values = combined.features(BATCH)
    assert list(values) == ["combined"]
    values = np.asarray(values["combined"])
    assert values.shape == (3, combined.layers["combined"]) and values.dtype == np.float32
    assert list(combined.columns) == ["pixels", "count", "random_projection"]
    for part, default in zip(parts, ("pixels", "all", "projection"), strict=True):
        expected = np.asarray(part.features(BATCH)[default])
        np.testing.assert_array_equal(values[:, combined.columns[part.name]], expected)
    assert sum(s.stop - s.start for s in combined.columns.values()) == values.shape[1]


def test_precision_is_that_of_the_part_that_needs_most():
    noise = AggregationNoiseRepresentation(4)
    assert CombinedRepresentation([noise, Counts()]).dtype == "float16"
    assert CombinedRepresentation([noise, PixelRepresentation(("DNA",))]).dtype == "float32"


def test_is_combined_and_may_be_a_part_itself():
    inner = CombinedRepresentation([Counts()])
    assert (inner.name, inner.kind) == ("combined", "combined") and inner.kind in KINDS
    outer = CombinedRepresentation([AggregationNoiseRepresentation(4), inner])
    assert np.asarray(outer.features(BATCH)["combined"]).shape == (3, 7)


def test_refuses_nothing_and_the_same_twice():
    with pytest.raises(ValueError, match="one or more"):
        CombinedRepresentation([])
    with pytest.raises(ValueError, match="'count', 'count'"):
        CombinedRepresentation([Counts(), Counts()])


def test_images_spread_over_devices_have_the_same_features():
    images = np.random.default_rng(1).integers(0, 255, (8, 16, 16, 2)).astype(np.uint8)
    combined = CombinedRepresentation(
        [
            PixelRepresentation(("DNA", "RNA")),
            TextureBankRepresentation(("DNA", "RNA")),
            RandomProjectionRepresentation(5),
            AggregationNoiseRepresentation(4),
        ]
    )
    batch = {"image": images, "index": np.arange(8), "mask": np.ones(8, bool)}
    expected = combined.features(batch)["combined"]
    spread = {**batch, **mesh.to_global({"image": images}, mesh.make_mesh())}
    assert len(spread["image"].sharding.device_set) == 8
    found = combined.features(spread)["combined"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

import jax
import numpy as np
import pytest
from scipy import ndimage

from bioimg_jax.representations.pixels import QUANTILES, PixelRepresentation, pixel_statistics

CHANNELS = ("DNA", "RNA", "ER")


def images(b=2, h=40, w=48, c=3, dtype=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(b, h, w, c)), (0, 2, 2, 0))
    scaled = (smooth - smooth.min()) / np.ptp(smooth)
    return (scaled * np.iinfo(dtype).max * 0.9).astype(dtype)


def by_name(batch, channels=CHANNELS):
    pixels = PixelRepresentation(channels)
    batch = {"image": batch, "index": np.arange(len(batch)), "mask": np.ones(len(batch), bool)}
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        values = np.asarray(pixels.features(batch)["pixels"])
    assert values.shape == (len(batch["image"]), pixels.layers["pixels"])
    assert np.isfinite(values).all()
    return dict(zip(pixel_names(pixels), values.T, strict=True))


def pixel_names(pixels):
    assert len(set(pixels.feature_names)) == pixels.layers["pixels"]
    return pixels.feature_names


def test_agrees_with_numpy():
    batch = images()
    found = by_name(batch)
    x = batch / 65535 * 256
    for i, channel in enumerate(CHANNELS):
        np.testing.assert_allclose(found[f"{channel}:mean"], x[..., i].mean((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(found[f"{channel}:sd"], x[..., i].std((1, 2)), rtol=1e-4)
        median = np.quantile(x[..., i], 0.5, axis=(1, 2))
        np.testing.assert_allclose(found[f"{channel}:q50"], median, rtol=1e-3)
    expected = [np.corrcoef(x[b, ..., 0].ravel(), x[b, ..., 2].ravel())[0, 1] for b in range(2)]
    np.testing.assert_allclose(found["DNA:ER:correlation"], expected, atol=1e-4)


def test_quantiles_of_negative_values():
    batch = np.random.default_rng(0).normal(size=(2, 21, 21, 1)).astype(np.float32)
    found = by_name(batch, ("DNA",))
    for q in QUANTILES:
        expected = np.sort(batch.reshape(2, -1))[:, round(q * 440)]
        np.testing.assert_array_equal(found[f"DNA:q{round(100 * q):02d}"], expected)


def test_bit_depth_only_changes_the_rounding():
    deep = images(dtype=np.uint16)
    shallow = (deep / 65535 * 255).round().astype(np.uint8)
    as_float = (deep / 65535).astype(np.float32) * np.float32(256)
    deep, shallow, as_float = by_name(deep), by_name(shallow), by_name(as_float)
    for name in ("DNA:mean", "ER:sd", "RNA:q95", "DNA:background"):
        np.testing.assert_allclose(shallow[name], deep[name], rtol=0.01, atol=0.5)
        np.testing.assert_allclose(as_float[name], deep[name], rtol=1e-4)


def test_blur_makes_the_spectrum_steeper():
    rng = np.random.default_rng(0)
    sharp = rng.normal(size=(1, 64, 64, 1)).astype(np.float32) * 50
    slopes = [
        by_name(ndimage.gaussian_filter(sharp, (0, s, s, 0)), ("DNA",))["DNA:blur_slope"][0]
        for s in (0.0, 1.0, 2.0)
    ]
    assert abs(slopes[0]) < 0.2  # white noise is flat
    assert slopes[0] > slopes[1] + 0.5 > slopes[2] + 1.0


def test_saturation_and_background():
    batch = np.full((1, 32, 32, 1), 100, np.uint8)
    batch[0, :8] = 255
    batch[0, 16:24, :8] = 10
    found = by_name(batch, ("DNA",))
    assert found["DNA:saturated"] == 0.25
    assert found["DNA:background"] == pytest.approx(10 * 256 / 255)


def test_empty_channels_are_zero_and_finite():
    batch = images()
    batch[..., 1] = 0
    found = by_name(batch)
    assert (found["RNA:sd"] == 0).all() and (found["DNA:RNA:correlation"] == 0).all()
    assert (found["RNA:blur_slope"] == 0).all()


def test_one_channel_and_tiny_images():
    assert len(by_name(images(c=1, h=3, w=5), ("DNA",))) == 12


def test_an_image_does_not_depend_on_its_batch():
    batch = images(b=3)
    together = np.asarray(pixel_statistics(batch))
    alone = np.asarray(pixel_statistics(batch[1:2]))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)

import jax
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bioimg_jax.representations.pixels import (
    GRID,
    LOWEST_FREQUENCY,
    QUANTILES,
    RINGS,
    PixelRepresentation,
    downsampled_pixels,
    pixel_statistics,
)

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
    assert list(pixels.layers)[-1] == "pixels"  # the default
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


@pytest.mark.parametrize("value", [0, 12_345, 65_535])
def test_a_constant_channel_coheres_with_nothing(value):
    batch = images(h=64, w=64)
    batch[..., 1] = value
    found = by_name(batch)
    for r in range(RINGS):
        assert (found[f"DNA:RNA:coherence{r}"] == 0).all()
        np.testing.assert_allclose(found[f"RNA:power{r}"], np.log(1e-6), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (2, 2)])
def test_one_channel_and_tiny_images(shape):
    h, w = shape
    assert len(by_name(images(c=1, h=h, w=w), ("DNA",))) == 12 + RINGS
    assert len(by_name(images(c=3, h=h, w=w), ("R", "G", "B"))) == 36 + 3 + 6 * RINGS + 10
    assert downsampled_pixels(images(h=h, w=w)).shape == (2, 3 * GRID * GRID)


def test_an_image_does_not_depend_on_its_batch():
    batch = images(b=3)
    together = np.asarray(pixel_statistics(batch))
    alone = np.asarray(pixel_statistics(batch[1:2]))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


def white(b, c, h=64, w=64, seed=0):
    return np.random.default_rng(seed).normal(size=(b, h, w, c)).astype(np.float32)


def test_power_of_white_noise_is_flat_and_its_variance():
    found = by_name(5 * white(64, 1), ("DNA",))
    window = np.outer(np.hanning(66)[1:-1], np.hanning(66)[1:-1])
    expected = np.log(25 * np.mean(window**2))
    for r in range(1, RINGS):  # the lowest ring also loses the mean
        assert np.mean(found[f"DNA:power{r}"]) == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("shift", [1, 4, 9])
def test_coherence_of_a_shifted_channel_is_the_cosine_of_its_phase(shift):
    # Within what the window blurs.
    noise = white(64, 1)
    found = by_name(np.concatenate([noise, np.roll(noise, shift, axis=2)], axis=3), ("A", "B"))
    fy, fx = np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64), indexing="ij")
    radius = np.hypot(fy, fx)
    edges = [1e-6, *np.geomspace(LOWEST_FREQUENCY, 0.5, RINGS + 1)[1:]]
    for r in range(RINGS):
        ring = (radius > edges[r]) & (radius <= edges[r + 1] + 1e-9)
        expected = np.cos(2 * np.pi * fx[ring] * shift).mean()
        assert np.mean(found[f"A:B:coherence{r}"]) == pytest.approx(
            expected, abs=0.15
        )  # the window blurs


def test_coherence_is_one_for_equal_channels_whatever_their_gain():
    noise = white(2, 1)
    found = by_name(np.concatenate([noise, -1e-3 * noise + 7], axis=3), ("A", "B"))
    for r in range(RINGS):
        np.testing.assert_allclose(found[f"A:B:coherence{r}"], -1, atol=1e-3)


def test_spectra_do_not_change_when_the_image_is_mirrored_or_turned():
    batch = images(h=48, w=48)
    upright = by_name(batch)
    turned = [batch[:, ::-1], batch[:, :, ::-1]]
    turned += [np.rot90(batch, turns, (1, 2)) for turns in (1, 2, 3)]
    for other in turned:
        other = by_name(np.ascontiguousarray(other))
        for name in upright:
            if "power" in name or "coherence" in name:
                np.testing.assert_allclose(other[name], upright[name], atol=2e-3, err_msg=name)


def beside(distance, b=160, size=64, seed=0):
    """Dots of channel A, each with a dot of channel B at this distance in a random direction."""
    rng = np.random.default_rng(seed)
    dots = np.zeros((b, size, size, 2), np.float32)
    for image in dots:
        for y, x in rng.integers(0, size, (6, 2)):
            angle = rng.uniform(0, 2 * np.pi)
            image[y, x, 0] += 1000
            v, u = round(y + distance * np.sin(angle)), round(x + distance * np.cos(angle))
            image[v % size, u % size, 1] += 1000
    return ndimage.gaussian_filter(dots, (0, 1.5, 1.5, 0), mode="wrap")


def test_cross_spectrum_sees_a_distance_that_no_other_statistic_does():
    near, far = by_name(beside(9, seed=1), ("A", "B")), by_name(beside(16, seed=2), ("A", "B"))
    labels = np.repeat([0, 1], 160)
    train = np.arange(320) % 2 == 0

    def accuracy(names):
        features = np.stack([np.concatenate([near[n], far[n]]) for n in names], axis=1)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
        probe.fit(features[train], labels[train])
        return probe.score(features[~train], labels[~train])

    cross = [name for name in near if "coherence" in name]
    rest = [name for name in near if "coherence" not in name]
    assert "A:B:correlation" in rest and "B:power0" in rest
    assert accuracy(cross) > 0.9
    assert accuracy(rest) < 0.65


def test_downsampled_pixels_are_tile_means():
    batch = images(h=32, w=48)
    tiles = (batch / 65535 * 256).reshape(2, 8, 4, 8, 6, 3).mean(axis=(2, 4))
    found = np.asarray(downsampled_pixels(batch))
    np.testing.assert_allclose(found, tiles.reshape(2, -1), rtol=1e-5)
    # A size that is no multiple of the grid: every pixel still counts the same.
    odd = images(h=35, w=5)
    found = np.asarray(downsampled_pixels(odd)).reshape(2, 64, 3)
    np.testing.assert_allclose(found.mean(1), odd.mean((1, 2)) / 65535 * 256, rtol=1e-5)


def test_optical_density_of_a_stain():
    batch = np.full((2, 16, 16, 3), 255, np.uint8)
    batch[0, :4] = (102, 51, 153)  # a quarter of the field is stained
    found = by_name(batch, ("R", "G", "B"))
    np.testing.assert_allclose(found["tissue_fraction"], [0.25, 0.0])
    for channel, value in zip("RGB", (102, 51, 153), strict=True):
        expected = -np.log10((value * 256 / 255 + 1) / 257)
        np.testing.assert_allclose(found[f"{channel}:density"], [expected, 0], rtol=1e-5)
        np.testing.assert_allclose(found[f"{channel}:{channel}:density_covariance"], 0, atol=1e-9)
    batch[0, :2] = (51, 51, 153)
    density = -np.log10((np.array([51, 102]) * 256 / 255 + 1) / 257)
    found = by_name(batch, ("R", "G", "B"))
    expected = ((density[0] - density[1]) / 2) ** 2
    np.testing.assert_allclose(found["R:R:density_covariance"], [expected, 0], rtol=1e-4)
    np.testing.assert_allclose(found["R:G:density_covariance"], 0, atol=1e-6)


@pytest.mark.parametrize("channels", [("B", "G", "R"), ("red", "green", "blue"), ("DNA", "G", "B")])
def test_only_channels_named_r_g_b_have_optical_densities(channels):
    assert "tissue_fraction" not in PixelRepresentation(channels).feature_names

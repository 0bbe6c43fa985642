"""Synthetic cells: the same bytes everywhere, and every dial turns what it is named after."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

from bioimg_jax.data.builders import Plan, Unit, find_builder
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.prepare import prepare
from bioimg_jax.representations.layout import LayoutRepresentation
from bioimg_jax.representations.nuclei import Segmenter, segment_nuclei
from bioimg_jax.representations.pixels import PixelRepresentation, pixel_statistics
from bioimg_jax.representations.texture import TextureBankRepresentation
from bioimg_jax.statistics.audit import audit

BUILDER = find_builder("synthetic_cells")
HOME: Any = sys.modules[BUILDER.__module__]
RENDERING: Any = sys.modules[f"{BUILDER.__module__}.rendering"]
SCREEN: Any = sys.modules[f"{BUILDER.__module__}.screen"]
CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
PRESETS = [config.name for config in BUILDER.BUILDER_CONFIGS]
# Of `digest` of the images that the test below draws. Another value means another data set: raise
# the builder's version with it.
EXPECTED = "4f956dc50c8c6a76"


def planned(config: str = "", **options: Any) -> Plan:
    return BUILDER.plan_resolved("", config, options)


def well_of(plan: Plan, unit: Unit) -> Any:
    return BUILDER.well(unit, plan.shared)[2]


def drawn(plan: Plan, wells: slice) -> tuple[pd.DataFrame, np.ndarray]:
    """Metadata and images of some wells."""
    found = [e for unit in plan.units[wells] for e in BUILDER.examples(unit, plan.shared)]
    return pd.DataFrame([m for m, _ in found]), np.stack([image for _, image in found])


def treated(treatment: str, count: int = 3, **options: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """The first wells of a treatment on plate 1 of the default preset."""
    plan = planned(**options)
    units = [u for u in plan.units if well_of(plan, u).treatment.name == treatment][:count]
    return drawn(Plan(**{**vars(plan), "units": tuple(units)}), slice(None))


def digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()[:16]


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = (drawn(planned(seed=seed), slice(1))[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (28, 64, 64, 5) and first.dtype == np.uint16
    assert (first != other[: len(first)]).mean() > 0.5


def test_bytes_are_the_same_on_another_processor() -> None:
    """Without the vector instructions that NumPy picks for this one, and as they always were."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.datasets.test_synthetic_cells import digest, drawn, planned\n"
        "print(digest(drawn(planned(images_per_site=2), slice(4))[1]))"
    )
    with_all = digest(drawn(planned(images_per_site=2), slice(4))[1])
    old = {**os.environ, "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=old, capture_output=True, text=True
    )
    assert run.stdout.split() == [with_all], run.stderr
    assert with_all == EXPECTED


def test_a_well_does_not_depend_on_what_else_is_drawn() -> None:
    plan = planned()
    unit = plan.units[40]
    alone = list(BUILDER.examples(unit, plan.shared))
    for other in plan.units[:2]:
        list(BUILDER.examples(other, plan.shared))
    np.testing.assert_array_equal(alone[3][1], list(BUILDER.examples(unit, plan.shared))[3][1])


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    options = {"n_plates": 3, "wells_per_treatment": 2, "images_per_site": 2}
    found = []
    for workers in (1, 2):
        directory = prepare(
            name="synthetic_cells", config="handedness_only", out=tmp_path / str(workers),
            options=options, workers=workers,
        )  # fmt: skip
        found.append({p.name: p.read_bytes() for p in directory.iterdir()})
    assert found[0] == found[1]


@pytest.mark.parametrize("config", PRESETS)
def test_every_preset_draws_what_it_declares(config: str) -> None:
    plan = planned(config, images_per_site=2)
    table, images = drawn(plan, slice(2))
    assert list(plan.metadata) and set(table) == set(plan.metadata)
    preset = BUILDER.well(plan.units[0], plan.shared)[0]
    assert images.shape[1:] == (preset.image_px, preset.image_px, preset.n_channels)
    for target in plan.declaration.targets:
        columns = (target.column, *target.unit, *target.audit, *target.truth, *target.aggregate)
        assert set(columns) <= set(plan.metadata)
        assert target.nuisance or target.truth
    wells = BUILDER.layout(plan)
    assert wells.groupby("plate")["split"].nunique().max() == 1
    assert set(wells["split"]) == {"train", "validation", "test"}


# Dial -> what of images [n, h, w, c] goes up with it. Fields without noise.
def _nuclei(images: np.ndarray) -> list[np.ndarray]:
    return [segment_nuclei(image, dna_channel=0) for image in images]


def _count(images: np.ndarray) -> float:
    return float(np.mean([labels.max() for labels in _nuclei(images)]))


def _area(images: np.ndarray) -> float:
    areas = [np.bincount(labels.ravel())[1:] for labels in _nuclei(images)]
    return float(np.median(np.concatenate(areas)))


def _mean(channel: int) -> Any:
    return lambda images: float(images[..., channel].mean())


def _contrast(channel: int, sigma: float, *, inside_px: int = 0) -> Any:
    """Fine structure of a channel, relative to its own level where it is bright, edges left out."""

    def measured(images: np.ndarray) -> float:
        light = images[..., channel].astype(float) - 120
        level = ndimage.gaussian_filter(light, sigma, axes=(1, 2))
        bright = level > 0.4 * level.max()
        if inside_px:
            bright = ndimage.binary_erosion(bright, iterations=inside_px, axes=(1, 2))
        return float(((light - level)[bright] / level[bright]).std())

    return measured


def _eccentricity(images: np.ndarray) -> float:
    features = LayoutRepresentation(Segmenter(CHANNELS, dna_channel="DNA"))
    column = features.feature_names.index("eccentricity:mean")
    values = features.features({"image": images, "index": np.arange(len(images))})["layout"]
    return float(np.mean(np.asarray(values)[:, column]))


def _nearest(images: np.ndarray) -> float:
    """Clark and Evans, negative: it falls where cells lie together."""
    features = LayoutRepresentation(Segmenter(CHANNELS, dna_channel="DNA"))
    column = features.feature_names.index("clark_evans")
    values = features.features({"image": images, "index": np.arange(len(images))})["layout"]
    return -float(np.mean(np.asarray(values)[:, column]))


def _covered(images: np.ndarray) -> float:
    return float((images[..., 1] > 120 + 4 * 125).mean())


def _mean_frequency(images: np.ndarray) -> float:
    """Of the ER's texture where it is bright: rms slope over rms contrast."""
    light = images[..., 2].astype(float) - 120
    level = ndimage.gaussian_filter(light, 4.0, axes=(1, 2))
    bright = (level > 0.3 * level.max())[:, 1:, 1:]
    contrast = (light - level) / level
    slope = np.hypot(np.diff(contrast, axis=1)[:, :, 1:], np.diff(contrast, axis=2)[:, 1:])
    return float(slope[bright].std() / contrast[:, 1:, 1:][bright].std())


def _coarse_coherence(images: np.ndarray) -> float:
    names = PixelRepresentation(CHANNELS).feature_names
    values = np.asarray(pixel_statistics(images))
    coarse = values[:, names.index("ER:Mito:coherence3")]
    return float(np.mean(coarse - values[:, names.index("ER:Mito:coherence5")]))


def _apart(images: np.ndarray) -> float:
    """How little the light of Golgi and mitochondria goes together."""
    pairs = [(image[..., 3].ravel(), image[..., 4].ravel()) for image in images]
    return -float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))


def _corners(images: np.ndarray) -> float:
    """How much darker the corners are than the middle, in the empty background."""
    light = images[..., 3].astype(float) - 120
    low = np.quantile(light, 0.02, axis=0)
    return float(low[12:-12, 12:-12].mean() / low[:6, :6].mean())


def _bleeding(images: np.ndarray) -> float:
    """RNA light over nuclei, relative to the RNA light elsewhere in cells."""
    return float(np.mean([images[i, ..., 1][m > 0].mean() for i, m in enumerate(_nuclei(images))]))


MEASURED: dict[str, Any] = {
    "cell_density": _count,
    "clustering": _nearest,
    "nucleus_size": _area,
    "nucleus_eccentricity": _eccentricity,
    "dna_content": _mean(0),
    "chromatin_texture": _contrast(0, 1.5, inside_px=3),
    "cytoplasm_area": _covered,
    "intensity": _mean(2),
    **{f"intensity_{name}": _mean(i) for i, name in enumerate(CHANNELS)},
    "texture_frequency": _mean_frequency,
    "granularity": _contrast(4, 4.0),
    "colocalisation": _coarse_coherence,
    "polarity": _apart,
    "gain": _mean(3),
    "background": lambda images: float(np.quantile(images[..., 3], 0.02)),
    "defocus": lambda images: -_contrast(2, 1.5)(images),
    "vignetting": _corners,
    "bleed_through": _bleeding,
}
# What has no statistic in a single image that is blind to mirroring, and what noise is needed for.
ELSEWHERE = {"handedness", "agreement", "exposure", "cells_per_well"}


def swept(dial: str, n_values: int, n_images: int, *, noise: bool = False) -> np.ndarray:
    """uint16 [values, images, h, w, c]."""
    values = next(one for one in BUILDER.dials() if one.name == dial).values(n_values)
    fields = [
        BUILDER.sweep(dial, values, image_px=128, seed=seed, noise=noise)
        for seed in range(n_images)
    ]
    return np.stack(fields, axis=1)


@pytest.mark.parametrize("dial", MEASURED)
def test_a_dial_turns_what_it_is_named_after(dial: str) -> None:
    values = [MEASURED[dial](step) for step in swept(dial, 3, 6)]
    assert values[0] < values[1] < values[2]
    assert values[2] - values[0] > 0.01 * abs(values[1])


def test_every_dial_is_measured() -> None:
    extra = {f"intensity_{name}" for name in ("Actin", "Tubulin", "Lysosome")}
    assert {dial.name for dial in BUILDER.dials()} - extra == {*MEASURED, *ELSEWHERE}


@pytest.mark.parametrize("stain", ["Actin", "Tubulin", "Lysosome"])
def test_the_other_stains_have_a_dial_too(stain: str) -> None:
    images = swept(f"intensity_{stain}", 2, 2)
    channel = ("DNA", "RNA", "ER", "AGP", "Mito", "Actin", "Tubulin", "Lysosome").index(stain)
    means = images.astype(float).mean(axis=(1, 2, 3))  # [values, c]
    changed = means[1] / means[0] - 1
    assert changed[channel] > 0.5
    assert np.abs(np.delete(changed, [channel, (channel + 1) % 8])).max() < 0.02


def hands(n: int, n_there: int, **dials: float) -> np.ndarray:
    """[n, n_there + 2]: of cells that are there, then of two places that hold none."""
    there = np.arange(n_there + 2)[None, :] < np.full((n, 1), n_there)
    values = {"handedness": 0.0, "agreement": 0.5, **dials}
    columns = {name: np.full(n, value) for name, value in values.items()}
    return RENDERING._hands(np.random.default_rng(0), columns, there)[:, :n_there]


@pytest.mark.parametrize("n_there", [1, 2, 5])
def test_handedness_is_of_all_cells_and_agreement_of_the_rest(n_there: int) -> None:
    n = 4000
    for sign in (-1.0, 1.0):
        assert (hands(n, n_there, handedness=sign) == sign).all()
    error = 4 / np.sqrt(n)  # of a mean of one number an image
    half = hands(n, n_there, handedness=0.5)
    assert abs(half.mean() - 0.5) < error
    free, agreeing = hands(n, n_there), hands(n, n_there, agreement=1.0)
    assert abs(free.mean()) < error and abs(agreeing.mean()) < error
    assert (np.abs(agreeing.sum(axis=1)) == n_there).all()
    assert (np.abs(free.sum(axis=1)) == n_there % 2).all()  # just half of an even number


@pytest.mark.parametrize("tie", ["batch", "plate", "position"])
@pytest.mark.parametrize("label", ["intensity", "dna_content"])
def test_a_dial_can_be_tied_to_a_nuisance_and_to_the_label_too(tie: str, label: str) -> None:
    options = {"label": label, tie: "dna_content", "n_plates": 28}
    plan, free = planned("custom", **options), planned("custom", label=label, n_plates=28)

    def stained(of: Plan) -> pd.DataFrame:
        """Logarithm of the DNA stain in every well, in steps of the dial."""
        rows = []
        for unit in of.units:
            preset, seed, well = BUILDER.well(unit, of.shared)
            dials = SCREEN.draw_dials(
                np.random.default_rng(unit.data["number"]), preset, well, seed, 50
            )
            stain = np.log(dials["dna_content"]).mean() / np.log(HOME.DIALS["dna_content"].effect)
            rows.append((well.plate, well.batch, well.right, well.treatment.name, stain))
        return pd.DataFrame(rows, columns=["plate", "batch", "position", "treatment", "stain"])

    tied, untied = stained(plan), stained(free)
    moved = tied["stain"] - untied["stain"]  # the same wells, treatments and random numbers
    by_level = moved.groupby(tied[tie])
    assert by_level.std().max() < 1e-9  # the nuisance alone, whatever the treatment
    assert by_level.mean().std() > 0.4
    apart = tied.groupby("treatment")["stain"].mean()
    assert (apart.max() - apart.min() > 1.5) == (label == "dna_content")


def test_cells_of_a_well_can_be_tied_to_a_nuisance() -> None:
    plan = planned("custom", label="intensity", batch="cells_per_well", n_plates=14)
    wells = [well_of(plan, unit) for unit in plan.units]
    sizes = {w.batch: set() for w in wells}
    for unit, well in zip(plan.units, wells, strict=True):
        sizes[well.batch].add(len(list(BUILDER.examples(unit, plan.shared))))
    assert all(len(of_batch) == 1 for of_batch in sizes.values())
    assert len(set.union(*sizes.values())) > len(sizes) // 2


def test_a_well_of_more_cells_is_shown_as_more_crops() -> None:
    values = next(one for one in BUILDER.dials() if one.name == "cells_per_well").values(3)
    wells = BUILDER.sweep("cells_per_well", values, noise=False)
    assert wells.shape == (3, 256, 256, 5)  # 1, 4 and 16 crops of 64 px
    tiles = wells[..., 0].reshape(3, 4, 64, 4, 64).std(axis=(2, 4)) > 0
    assert tiles.sum(axis=(1, 2)).tolist() == [1, 4, 16]


def test_no_two_random_streams_are_the_same() -> None:
    """NumPy pads a key with zeros: [3, 0, 1] and [3, 0, 1, 0] are one generator to it."""
    keys = [(1,), (1, 0), (1, 0, 0), (0, 1)]
    drawn_first = {HOME.rng(0, stream, *key).random() for stream in range(6) for key in keys}
    assert len(drawn_first) == 6 * len(keys)


def test_normal_numbers_are_normal_and_of_one_size_each_way() -> None:
    drawn = RENDERING._normal(np.random.default_rng(0), (201, 1001))  # no multiple of four
    assert drawn.shape == (201, 1001) and drawn.dtype == np.float32
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 0.01
    quantiles = RENDERING._QUANTILES
    assert np.array_equal(quantiles, -quantiles[::-1])
    assert abs(quantiles.astype(np.float64).var() - 1) < 5e-5


def test_textures_are_of_unit_variance_and_of_their_own_frequency() -> None:
    side, frequency = 72, np.array([0.05, 0.05, 0.12, 0.22] * 25)
    pair = RENDERING._textures(np.random.default_rng(0), frequency, side)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    for texture in pair:
        assert texture.shape == (100, side, side) and texture.dtype == np.float32
        assert abs(np.square(texture).mean() - 1) < 0.05 and abs(texture.mean()) < 1e-6
        power = np.square(np.abs(np.fft.fft2(texture)))
        middle = (power * f).sum(axis=(1, 2)) / power.sum(axis=(1, 2))
        for wanted in np.unique(frequency):
            # The mean over a ring of width w in the plane lies above its centre by the share w^2.
            found = middle[frequency == wanted].mean()
            assert abs(found / (wanted * (1 + 0.25**2)) - 1) < 0.04, wanted
    assert abs((pair[0] * pair[1]).mean()) < 0.02


def test_more_photons_are_less_noise() -> None:
    low, high = swept("exposure", 2, 4, noise=True)
    clean = swept("exposure", 2, 4)[0].astype(float)
    assert (low - clean).std() > 3 * (high - clean).std()


@pytest.mark.parametrize("photons", [3, 12, 100])
def test_noise_is_poissons_and_that_of_reading(photons: int) -> None:
    rng, n = np.random.default_rng(0), 400_000
    light = np.full((1, 1, 400, n // 400), 12, np.float32)
    found = RENDERING.expose(rng, light, np.array([photons / 12])).ravel()
    wanted = (rng.poisson(photons, n) + rng.normal(0, RENDERING.READ_NOISE, n)) * 12 / photons
    wanted = np.rint(RENDERING.CAMERA_OFFSET + RENDERING.COUNTS_PER_PHOTON * wanted)
    # Chance gives 0.003; a Gaussian of the same mean and variance is 0.015 off at 12 photons.
    assert stats.ks_2samp(found, np.maximum(wanted, 0)).statistic < 0.006


def test_nuclei_grow_with_the_treatment_and_the_truth_is_of_every_image() -> None:
    def area(images: np.ndarray) -> np.ndarray:
        """Of the nucleus in the centre, px [n]; nan where there is none."""
        labels = np.stack([segment_nuclei(image, dna_channel=0) for image in images])
        centre = labels[:, 32, 32]
        return np.where(centre > 0, (labels == centre[:, None, None]).sum((1, 2)), np.nan)

    low, high = (np.nanmedian(area(treated(f"nucleus_size_{n}")[1])) for n in ("low", "high"))
    table, images = treated("control")
    assert low < np.nanmedian(area(images)) < high
    measured = area(images)
    found = np.isfinite(measured)
    assert found.mean() > 0.9
    truth = np.square(table["factor_nucleus_size"].to_numpy())
    assert np.corrcoef(truth[found], measured[found])[0, 1] > 0.3


@pytest.mark.parametrize("view", ["crop", "field"])
@pytest.mark.parametrize("dial", ["nucleus_size", "clustering"])
def test_how_many_cells_there_are_is_the_densitys_alone(view: str, dial: str) -> None:
    """At the density of every day: of cells that have no room left some are not there."""
    scene, n = RENDERING.Scene(64 if view == "crop" else 128, 5, view), 40
    turned, counts = HOME.DIALS[dial], []
    for steps in (-1, 0, 1):
        value = np.clip(turned.turned(steps), turned.low, turned.high)
        count = 0
        for seed in range(25):
            dials = {name: np.full(n, one.control) for name, one in HOME.DIALS.items()}
            dials[dial] = np.full(n, value)
            cells = RENDERING.place(np.random.default_rng(seed), dials, scene)
            middle = (scene.canvas_px - 1) / 2
            inside = np.maximum(np.abs(cells.x - middle), np.abs(cells.y - middle))
            count += np.count_nonzero(inside < scene.image_px / 2)
        counts.append(count / (25 * n))
    assert max(counts) < 1.02 * min(counts), counts


def test_counted_cells_are_the_cells_of_the_image() -> None:
    table, images = drawn(planned("density_only"), slice(12))
    counted = [segment_nuclei(image, dna_channel=0).max() for image in images]
    assert np.corrcoef(table["n_cells"], counted)[0, 1] > 0.95


def test_every_plate_has_every_treatment_in_other_wells() -> None:
    layouts: dict[int, dict[int, str]] = {}
    plan = planned()
    for well in (well_of(plan, unit) for unit in plan.units):
        layouts.setdefault(well.plate, {})[well.number] = well.treatment.name
    assert len(layouts) == 14
    for layout in layouts.values():
        assert len(layout) == 36
        assert len(set(layout.values())) == 9
    assert len({tuple(sorted(layout.items())) for layout in layouts.values()}) == 14


def mirror_pairs(config: str, **options: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows sorted so that 2 k and 2 k + 1 are a pair, the first class first."""
    plan = planned(config, images_per_site=12, noise=False, **options)
    table, images = drawn(plan, slice(2))
    label = plan.declaration.targets[0].column
    order = table.sort_values(["plate", "well", "pair", label]).index
    return table.loc[order], images[order.to_numpy()]


def test_a_mirror_pair_is_the_same_to_every_statistic_that_mirroring_leaves() -> None:
    table, images = mirror_pairs("handedness_only")
    left, right = images[::2], images[1::2]
    assert set(table["handedness"][::2]) == {"left"} and set(table["handedness"][1::2]) == {"right"}
    assert (left != right).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(left, right[:, :, ::-1])
    np.testing.assert_array_equal(
        np.sort(left.reshape(len(left), -1, 5), axis=1),
        np.sort(right.reshape(len(right), -1, 5), axis=1),
    )
    spectra = []
    for x in (left.astype(float), right.astype(float)):
        flat = x.reshape(len(x), -1, 5)
        correlation = np.stack([np.corrcoef(one.T) for one in flat])
        transform = np.fft.fft2(x - x.mean((1, 2), keepdims=True), axes=(1, 2))
        cross = np.einsum("nhwc,nhwk->nhwck", transform, transform.conj()).real
        f = np.fft.fftfreq(x.shape[1])
        ring = np.rint(64 * np.hypot(f[:, None], f[None, :])).astype(int)
        radial = np.stack([cross[:, ring == r].mean(axis=1) for r in range(1, 33)])
        power = np.sqrt(np.einsum("rncc->rnc", radial))  # of each ring, image and channel
        spectra.append((correlation, radial / (power[..., None] * power[..., None, :]), power))
    np.testing.assert_allclose(spectra[0][0], spectra[1][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(spectra[0][1], spectra[1][1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(spectra[0][2], spectra[1][2], rtol=1e-9)
    for one, other in zip(left, right, strict=True):
        mask, mirrored = (segment_nuclei(image, dna_channel=0) > 0 for image in (one, other))
        np.testing.assert_array_equal(mask, mirrored[:, ::-1])


def test_cells_that_disagree_differ_from_those_that_agree_in_the_organelles_alone() -> None:
    table, images = mirror_pairs("neighbour_agreement_only")
    different, same = images[::2], images[1::2]
    np.testing.assert_array_equal(different[..., 0], same[..., 0])  # the very nuclei
    changed = (different != same).any(axis=(1, 2))  # [n, c]
    assert changed[:, 2].all() and changed[:, 4].all()
    assert (table["n_cells"] == 2).all()
    # What a cell loses of a lobe at its border differs a little, and on the average not at all.
    light = [x.astype(float).mean(axis=(1, 2))[:, 2:5] for x in (different, same)]
    change = light[1] / light[0] - 1
    assert np.abs(change).max() < 0.25
    assert (np.abs(change.mean(0)) < 4 * change.std(0, ddof=1) / np.sqrt(len(change))).all()


@pytest.mark.parametrize(
    ("relation", "low", "high"), [("handedness", -1, 1), ("agreement", 0.5, 1)]
)
def test_a_relation_can_be_tied_to_the_label_and_to_a_nuisance(
    relation: str, low: float, high: float
) -> None:
    plan = planned("custom", label=relation, batch=relation, images_per_site=1, n_plates=7)
    table, images = drawn(plan, slice(None))
    assert images.shape[1:3] == (64, 64) and (table["n_cells"] == 2).all()
    value = table.groupby("treatment")[f"factor_{relation}"]
    assert value.min()["low"] == low and value.max()["high"] == high
    by_batch = table[table["treatment"] == "high"].groupby("batch")[f"factor_{relation}"]
    assert (by_batch.nunique() == 1).all() and by_batch.first().nunique() > 1
    only = planned("custom", label=relation, images_per_site=1, n_plates=3)
    assert set(drawn(only, slice(None))[0][f"factor_{relation}"]) == {low, high}


@pytest.mark.parametrize(
    ("config", "options", "symmetries", "erased_by"),
    [
        ("handedness_only", {}, ("rot90",), ()),
        ("custom", {"label": "handedness"}, ("rot90",), ()),
        ("neighbour_agreement_only", {}, ("flip", "rot90"), ("crop",)),
        ("intensity_only", {}, ("flip", "rot90"), ("intensity",)),
        ("default", {}, ("flip", "rot90"), ("intensity",)),
        ("custom", {"label": "intensity_Mito"}, ("flip", "rot90"), ("intensity",)),
        ("custom", {"label": "dna_content"}, ("flip", "rot90"), ("intensity",)),
        ("custom", {"position": "gain"}, ("flip", "rot90"), ()),
        ("position_only", {}, ("flip", "rot90"), ("intensity",)),
        ("mixed_screen", {}, ("flip", "rot90"), ("intensity",)),
        ("density_only", {}, ("flip", "rot90"), ()),
    ],
)
def test_a_preset_says_what_would_erase_its_label(
    config: str, options: dict[str, str], symmetries: tuple, erased_by: tuple
) -> None:
    said = planned(config, **options).declaration
    assert (said.symmetries, said.erased_by) == (symmetries, erased_by)


@pytest.mark.parametrize("config", ["handedness_only", "neighbour_agreement_only"])
def test_cells_lie_about_the_middle_or_a_mirrored_class_would_lie_beside_it(config: str) -> None:
    """Half a pixel to one side told the classes apart in a thumbnail: 0.535 of 10,080 images."""
    n, preset = 20_000, HOME.PRESETS[config]
    scene = HOME.scene_of(preset)
    dials = {
        name: np.full(n, preset.held.get(name, dial.control)) for name, dial in HOME.DIALS.items()
    }
    cells = HOME.place(np.random.default_rng(0), dials, scene)
    middle = (scene.canvas_px - 1) / 2
    for where in (cells.x, cells.y):
        assert cells.there.all() and where.shape == (n, 2)
        error = where.std() / np.sqrt(where.size)
        assert abs(where.mean() - middle) < 4 * error < 0.4
    # Two cells that overlap would show in how much light there is which of them is which.
    gap = np.hypot(*(where[:, 0] - where[:, 1] for where in (cells.x, cells.y)))
    assert (gap > cells.body_radius.sum(axis=1)).all()


@pytest.mark.parametrize("config", ["handedness_only", "neighbour_agreement_only"])
def test_what_mirroring_leaves_says_nothing_about_a_relation(config: str) -> None:
    """A difference of means of 48 pairs in units of its error, over every feature of a floor."""
    _, images = mirror_pairs(config)
    batch = {"image": images, "index": np.arange(len(images))}
    floors = [PixelRepresentation(CHANNELS), TextureBankRepresentation(CHANNELS, mirrored=True)]
    for floor in floors:
        values = np.asarray(floor.features(batch)[list(floor.layers)[-1]], np.float64)
        difference = values[1::2] - values[::2]
        scale = values.std(axis=0) + 1e-6
        if config == "handedness_only":
            assert np.abs(difference / scale).max() < 0.01
        else:
            error = difference.std(axis=0, ddof=1) / np.sqrt(len(difference)) + 1e-3 * scale
            assert np.abs(difference.mean(axis=0) / error).max() < 5


@pytest.mark.parametrize("config", ["handedness_only", "neighbour_agreement_only"])
def test_a_pair_never_straddles_a_split(config: str) -> None:
    plan = planned(config, n_plates=7, wells_per_treatment=1, images_per_site=2)
    table, _ = drawn(plan, slice(None))
    (fold,) = make_folds(table, plan.declaration.targets[0])
    pairs = (table["plate"] + table["well"] + table["pair"]).to_numpy()
    parts = [set(pairs[part]) for part in (fold.train, fold.validation, fold.test)]
    assert sum(map(len, parts)) == len(set(pairs)) == len(table) / 2


def audited(config: str, seed: int, **options: Any) -> str:
    """The verdict of the metadata audit on the first target, from the layout alone."""
    plan = planned(config, seed=seed, **options)
    table = BUILDER.layout(plan)
    target = plan.declaration.targets[0]
    return audit(table, make_folds(table, target), target)["verdict"]


@pytest.mark.parametrize("seed", range(5))
def test_a_design_is_confounded_where_the_metadata_tell_the_label_and_nowhere_else(
    seed: int,
) -> None:
    """`known_truth.calibrate` does this with 200 seeds."""
    assert audited("position_only", seed) == "confounded"
    assert audited("batch_confounded", seed) == "confounded"
    assert audited("position_only", seed, withhold=True) == ""
    for config in ("density_only", "mixed_screen", "handedness_only", "default"):
        assert audited(config, seed) == ""


def test_compounds_of_a_mechanism_turn_the_same_dials() -> None:
    """Treatments at a dose: steps of one mechanism go together, those of two do not."""
    plan = planned("mixed_screen")
    wells = [well_of(plan, unit) for unit in plan.units]
    by_name = {w.treatment.name: w.treatment for w in wells}
    top = [t for t in by_name.values() if t.dose_um == 3.0]
    dials = sorted({dial for t in top for dial in t.steps})
    steps = np.array([[t.steps.get(dial, 0.0) for dial in dials] for t in top])
    cosine = np.corrcoef(steps)
    same = np.array([[a.mechanism == b.mechanism for b in top] for a in top])
    np.fill_diagonal(same, False)
    apart = np.array([[a.mechanism != b.mechanism for b in top] for a in top])
    assert len(top) == 18 and cosine[same].min() > 0.5 > cosine[apart].max()
    assert {w.treatment.compound for w in wells if not w.treatment.steps} == {"DMSO"}


def test_a_prepared_set_has_its_splits_and_channels(tmp_path: Path) -> None:
    directory = prepare(name="synthetic_cells", out=tmp_path, options={"images_per_site": 1})
    dataset = open_dataset(directory)
    assert len(dataset) == 14 * 36 * 2
    assert dataset.declaration.channels == CHANNELS
    assert dataset.declaration.targets[0].name == "treatment"
    fold = dataset.folds("nucleus_size")[0]
    labels = dataset.metadata["level_nucleus_size"]
    assert set(labels.iloc[fold.train]) == {"low", "control", "high"}
    assert dataset.metadata["plate"].iloc[fold.test].nunique() == 6
    batches = [set(dataset.metadata["batch"].iloc[part]) for part in (fold.train, fold.test)]
    assert not batches[0] & batches[1]
    seen = dataset.metadata["split"].iloc[dataset.pretraining_indices()]
    assert set(seen) == {"train"}


@pytest.mark.parametrize("n_channels", range(3, 9))
def test_fields_have_three_to_eight_channels(n_channels: int) -> None:
    plan = planned("custom", view="field", image_px=96, n_channels=n_channels, images_per_site=1)
    _, images = drawn(plan, slice(2))
    assert images.shape == (2, 96, 96, n_channels) and images.dtype == np.uint16
    assert len(plan.declaration.channels) == n_channels
    assert (images.std(axis=(1, 2)) > 10).all()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("", {"images_per_site": 1000}, "images_per_site must be from 1 to 999, not 1000"),
        ("", {"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
        ("", {"image_per_site": 3}, "did you mean 'images_per_site'"),
        ("", {"image_px": 600}, "image_px must be from 32 to 512, not 600"),
        ("", {"view": "well"}, "view must be one of crop, field, not 'well'"),
        ("custom", {"label": "size"}, "label: 'size' is no dial"),
        ("custom", {"position": "gain+blurr"}, "position: 'blurr' is no dial"),
        ("custom", {"label": "handedness", "image_px": 40}, "no room for 2 cells that lie apart"),
        ("handedness_only", {"image_px": 47}, "image_px: 47 has no room .* expected at least 48"),
        ("custom", {"label": "intensity_Mito", "n_channels": 4}, "'intensity_Mito' is no dial"),
        ("handedness_only", {"label": "gain"}, "label: handedness_only has its own"),
        ("handedness_only", {"batch": "handedness"}, "batch: handedness_only draws handedness it"),
        ("handedness_only", {"confound": "batch"}, "confound: every well of handedness_only hold"),
        ("default", {"confound": "batch"}, "needs two treatments, and default has more"),
        ("mixed_screen", {"wells_per_treatment": 9}, "492 wells a plate, expected at most 312"),
        ("cells_per_well_only", {"withhold": True}, "a label of wells needs to know the wells"),
        ("nucleus_only", {}, "has no config 'nucleus_only'"),
    ],
)
def test_options_it_does_not_have_are_refused(config: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(config, **options)


def test_a_source_is_refused() -> None:
    with pytest.raises(InputError, match="is generated: no source"):
        BUILDER.plan_resolved("/data", "", {})

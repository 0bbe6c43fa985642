"""Synthetic cells: reproducible, and the factors change what they are named after."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.errors import InputError
from bioimg_jax.prepare import prepare

BUILDER = find_builder("synthetic_cells")


def wells(treatment: str, count: int = 3, **options: Any) -> tuple[list[dict], np.ndarray]:
    """Metadata and images [n, 64, 64, 5] of the first `count` wells of a treatment on plate 1."""
    plan = BUILDER.plan_resolved("", "", options)
    units = [unit for unit in plan.units if unit.data["treatment"] == treatment][:count]
    examples = [example for unit in units for example in BUILDER.examples(unit, plan.shared)]
    return [metadata for metadata, _ in examples], np.stack([image for _, image in examples])


def nuclear_areas(images: np.ndarray) -> np.ndarray:
    """Area of the central nucleus, thresholded half-way up, px [n]."""
    areas = []
    for dna in images[..., 0].astype(float):
        threshold = (np.median(dna) + np.percentile(dna[24:40, 24:40], 90)) / 2
        labels, _ = ndimage.label(dna > threshold)
        centre = labels[28:36, 28:36]
        areas.append((labels == np.bincount(centre[centre > 0]).argmax()).sum())
    return np.array(areas)


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = (wells("control", 1, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (28, 64, 64, 5)
    assert first.dtype == np.uint16
    assert (first != other[: len(first)]).mean() > 0.5


def test_a_well_does_not_depend_on_what_else_is_drawn() -> None:
    plan = BUILDER.plan_resolved("", "", {})
    unit = plan.units[40]
    alone = BUILDER.examples(unit, plan.shared)
    for other in plan.units[:2]:
        BUILDER.examples(other, plan.shared)
    np.testing.assert_array_equal(alone[3][1], BUILDER.examples(unit, plan.shared)[3][1])


def test_nuclei_grow_with_their_factor() -> None:
    areas = [np.median(nuclear_areas(wells(f"nucleus_size_{n}")[1])) for n in ("low", "high")]
    metadata, images = wells("control")
    assert areas[0] < np.median(nuclear_areas(images)) < areas[1]
    # The truth of every image, not of the treatment alone: area goes with radius squared.
    truth = [m["factor_nucleus_size"] for m in metadata]
    assert np.corrcoef(np.square(truth), nuclear_areas(images))[0, 1] > 0.2


def test_organelle_texture_becomes_finer() -> None:
    def fine_share(images: np.ndarray) -> float:
        mito = images[:, 8:56, 8:56, 4].astype(float)
        power = np.abs(np.fft.rfft2(mito - mito.mean((1, 2), keepdims=True))) ** 2
        frequency = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.rfftfreq(48)[None])
        fine, coarse = (frequency > 0.14) & (frequency < 0.24), (frequency > 0.04)
        return float(np.median(power[:, fine].sum(1) / power[:, coarse].sum(1)))

    low, high = (fine_share(wells(f"texture_frequency_{n}", 4)[1]) for n in ("low", "high"))
    assert high > 1.05 * low


def test_cells_crowd_and_brighten_with_their_factors() -> None:
    covered = []
    for name in ("low", "high"):
        dna = wells(f"cell_density_{name}")[1][..., 0].astype(float)
        threshold = (dna.min((1, 2)) + np.percentile(dna[:, 26:38, 26:38], 90, axis=(1, 2))) / 2
        covered.append((dna > threshold[:, None, None]).mean())
    assert covered[1] > 1.5 * covered[0]

    def contrast(images: np.ndarray) -> float:
        er = images[..., 2].astype(float)
        return float(np.median(np.percentile(er, 90, axis=(1, 2)) - np.percentile(er, 1, (1, 2))))

    low, high = (contrast(wells(f"intensity_{name}")[1]) for name in ("low", "high"))
    assert high > 1.3 * low


def test_every_plate_has_every_treatment_in_other_wells() -> None:
    plan = BUILDER.plan_resolved("", "", {})
    layouts: dict[int, dict[int, str]] = {}
    for unit in plan.units:
        layouts.setdefault(unit.data["plate"], {})[unit.data["well"]] = unit.data["treatment"]
    assert len(layouts) == 14
    for layout in layouts.values():
        assert len(layout) == 36
        assert len(set(layout.values())) == 9
    assert len({tuple(sorted(layout.items())) for layout in layouts.values()}) == 14


def test_a_prepared_set_has_its_splits_and_channels(tmp_path: Path) -> None:
    directory = prepare(name="synthetic_cells", out=tmp_path, options={"images_per_site": 1})
    dataset = open_dataset(directory)
    assert len(dataset) == 14 * 36 * 2
    assert dataset.declaration.channels == ("DNA", "RNA", "ER", "AGP", "Mito")
    assert dataset.declaration.targets[0].name == "treatment"
    fold = dataset.folds("nucleus_size")[0]
    labels = dataset.metadata["level_nucleus_size"]
    assert set(labels.iloc[fold.train]) == {"low", "control", "high"}
    assert dataset.metadata["plate"].iloc[fold.test].nunique() == 6
    batches = [set(dataset.metadata["batch"].iloc[part]) for part in (fold.train, fold.test)]
    assert not batches[0] & batches[1]
    seen = dataset.metadata["split"].iloc[dataset.pretraining_indices()]
    assert set(seen) == {"train"}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("/data", {}, "is generated: no source"),
        ("", {"images_per_site": 0}, "images_per_site must be from 1 to 999, not 0"),
        ("", {"seed": -1}, "seed must be from 0 to 4294967295, not -1"),
        ("", {"image_per_site": 3}, "did you mean 'images_per_site'"),
    ],
)
def test_options_it_does_not_have_are_refused(source: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BUILDER.plan_resolved(source, "", options)

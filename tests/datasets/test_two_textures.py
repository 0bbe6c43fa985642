"""Two textures: reproducible, told apart by direction and by no statistic of pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.errors import InputError
from bioimg_jax.prepare import prepare
from bioimg_jax.probes.linear import fit_linear
from bioimg_jax.representations.pixels import PixelRepresentation

BUILDER = find_builder("two_textures")


def drawn(**options: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """Metadata and images [n, 64, 64, 1]."""
    plan = BUILDER.plan_resolved("", "", options)
    examples = [example for unit in plan.units for example in BUILDER.examples(unit, plan.shared)]
    return pd.DataFrame([metadata for metadata, _ in examples]), np.stack([i for _, i in examples])


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = (drawn(n_sheets=3, seed=seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (48, 64, 64, 1) and first.dtype == np.uint16
    assert (first != other).mean() > 0.9


def test_a_sheet_does_not_depend_on_what_else_is_drawn() -> None:
    plan = BUILDER.plan_resolved("", "", {})
    alone = BUILDER.examples(plan.units[40], plan.shared)
    BUILDER.examples(plan.units[0], plan.shared)
    again = BUILDER.examples(plan.units[40], plan.shared)
    np.testing.assert_array_equal(alone[3][1], again[3][1])


def test_images_of_a_sheet_hold_the_same_pixels_in_another_order() -> None:
    metadata, images = drawn(n_sheets=6)
    ordered = np.sort(images.reshape(len(images), -1))
    for _, rows in metadata.groupby("sheet").indices.items():
        assert (ordered[rows] == ordered[rows[0]]).all()
    assert (images[0] != images[1]).mean() > 0.9
    standard = (ordered[0] - ordered[0].mean()) / ordered[0].std()
    np.testing.assert_allclose(np.quantile(standard, [0.0228, 0.1587, 0.5]), [-2, -1, 0], atol=0.01)


def test_waves_run_along_the_diagonal_that_the_texture_names() -> None:
    metadata, images = drawn(n_sheets=6)
    x = images[..., 0] - images[..., 0].mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(x)) ** 2
    fy, fx = np.meshgrid(*[np.fft.fftfreq(64)] * 2, indexing="ij")
    same, opposite = power[:, fx * fy > 0].sum(1), power[:, fx * fy < 0].sum(1)
    rising = (metadata["texture"] == "rising").to_numpy()
    assert (same > 3 * opposite)[rising].all()
    assert (opposite > 3 * same)[~rising].all()


def test_pixel_statistics_and_radial_spectra_are_at_chance() -> None:
    metadata, images = drawn()
    labels = (metadata["texture"] == "rising").to_numpy(int)
    train, test = ((metadata["split"] == part).to_numpy() for part in ("train", "test"))
    features = PixelRepresentation(("texture",)).features({"image": images})
    for values in map(np.asarray, features.values()):
        probe = fit_linear(values[train], labels[train], 2, strengths=(1e0, 1e-1, 1e-2, 1e-3))
        right = (probe.logits(values[test]).argmax(axis=2) == labels[test]).mean(axis=1)
        assert len(labels[test]) == 384  # sd of a share of right answers: 0.026
        assert (np.abs(right - 0.5) < 0.09).all()


def test_every_sheet_and_batch_has_both_textures_in_equal_parts() -> None:
    metadata, _ = drawn()
    shares = (metadata["texture"] == "rising").groupby(metadata["sheet"]).mean()
    assert len(shares) == 48 and (shares == 0.5).all()
    assert metadata.groupby("batch")["split"].nunique().tolist() == [3] * 4
    # No order: the place on the sheet gives nothing away.
    by_place = (metadata["texture"] == "rising").groupby(metadata["position"]).mean()
    assert ((by_place > 0.2) & (by_place < 0.8)).all()


def test_a_prepared_set_is_split_by_sheet(tmp_path: Path) -> None:
    directory = prepare(name="two_textures", out=tmp_path, options={"images_per_sheet": 2})
    dataset = open_dataset(directory)
    assert len(dataset) == 96 and dataset.declaration.channels == ("texture",)
    (fold,) = dataset.folds("texture")
    sheets = [set(dataset.metadata["sheet"].iloc[p]) for p in (fold.train, fold.test)]
    assert [len(part) for part in sheets] == [16, 24] and not sheets[0] & sheets[1]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("/data", {}, "is generated: no source"),
        ("", {"n_sheets": 2}, "n_sheets must be from 3 to 999, not 2"),
        ("", {"images_per_sheet": 3}, "images_per_sheet must be even, .*, not 3"),
        ("", {"sheets": 3}, "did you mean 'n_sheets'"),
    ],
)
def test_options_it_does_not_have_are_refused(source: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BUILDER.plan_resolved(source, "", options)

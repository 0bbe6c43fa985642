"""Floors by name: which there are, and which images can have them."""

import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.representations.floors import Floors

NAMES = ("pixels", "nuclei", "layout", "combined", "texture_bank", "random_projection",
         "aggregation_noise")  # fmt: skip


@pytest.mark.parametrize("channels", [("DNA", "ER"), ("Actin", "DAPI"), ("R", "G", "B")])
def test_every_floor_is_made_under_its_own_name(channels: tuple[str, ...]) -> None:
    floors = Floors(channels, 32)
    for name in NAMES:
        floors.check(name)
        assert floors.make(name).name == name


def test_nuclei_and_layout_share_their_segmentation() -> None:
    floors = Floors(("DNA",), 8)
    assert floors.make("nuclei").segmenter is floors.make("layout").segmenter  # type: ignore[attr-defined]


def test_unknown_names_and_impossible_channels_are_told() -> None:
    floors = Floors(("grey",), 8)
    with pytest.raises(InputError, match="'pixel', expected some of chance, twin, selected, pix"):
        floors.check("pixel")
    for name in ("nuclei", "layout", "combined"):
        with pytest.raises(InputError, match="the data set has grey"):
            floors.check(name)
    floors.check("texture_bank")

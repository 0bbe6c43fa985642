"""Representations by name: which there are, which images can have them, and a user's own."""

from pathlib import Path

import pytest

from bioimg_jax.benchmarks import ladder
from bioimg_jax.errors import InputError
from bioimg_jax.representations.floors import Floors

NAMES = ("pixels", "nuclei", "layout", "layout_rendered", "combined", "texture_bank",
         "texture_bank_mirrored", "random_projection", "aggregation_noise")  # fmt: skip
OWN = """
class Brightest:
    name, kind, dtype = "{name}", "{kind}", "float32"
    layers = {{"brightest": 1}}

    def features(self, batch):
        return {{"brightest": batch["image"].max(axis=(1, 2))[:, :1].astype("float32")}}


def build(channels, width):
    return Brightest()
"""


@pytest.mark.parametrize("channels", [("DNA", "ER"), ("Actin", "DAPI"), ("R", "G", "B")])
def test_every_floor_is_made_under_its_own_name(channels: tuple[str, ...]) -> None:
    floors = Floors(channels, 32, NAMES)
    assert floors.names == NAMES and not floors.omitted
    for name in NAMES:
        assert floors.make(name).name == name


def test_nuclei_and_layout_share_their_segmentation() -> None:
    floors = Floors(("DNA",), 8)
    made = [floors.make(name) for name in ("nuclei", "layout", "layout_rendered")]
    assert len({id(one.segmenter) for one in made}) == 1  # type: ignore[attr-defined]


def test_unknown_names_are_told_and_impossible_floors_are_left_out_with_the_reason() -> None:
    with pytest.raises(
        InputError, match="'pixel', expected some of chance, twin, selected, layout_trained, pix"
    ):
        Floors(("grey",), 8, ["pixel"])
    floors = Floors(("grey",), 8, NAMES)
    assert set(floors.omitted) == {"nuclei", "layout", "layout_rendered", "combined"}
    assert "the data set has grey" in floors.omitted["nuclei"]
    assert floors.names == (
        "pixels", "texture_bank", "texture_bank_mirrored", "random_projection", "aggregation_noise",
    )  # fmt: skip


def test_a_file_adds_a_representation_and_its_text_is_part_of_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN.format(name="brightest", kind="pixels"))
    floors = Floors(("DNA",), 8, ["pixels", "brightest"], [path])
    assert floors.names == ("pixels", "brightest")
    assert floors.make("brightest").layers == {"brightest": 1}
    assert floors.identity("brightest") != floors.identity("pixels")
    other = tmp_path / "other.py"
    other.write_text(path.read_text() + "# another text\n")
    assert Floors(("DNA",), 8, [], [other]).identity("brightest") != floors.identity("brightest")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("pixels", "pixels", "a name that is taken"),
        *(
            (name, "pixels", "a name that is taken")
            for name in (ladder.CHANCE, ladder.FAMILY, *ladder.OWN)
        ),
        ("metadata", "pixels", "a name that is taken"),
        ("../up", "pixels", "is called '../up'"),
        ("fine", "magic", "kind 'magic', expected one of trained"),
    ],
)
def test_a_file_with_a_wrong_name_or_kind_is_refused(
    tmp_path: Path, name: str, kind: str, message: str
) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN.format(name=name, kind=kind))
    with pytest.raises(InputError, match=message):
        Floors(("DNA",), 8, [], [path])

"""Pictures of dials: a file and a table row a dial."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from bioimg_jax.data.builders import find_builder
from bioimg_jax.known_truth import pictures
from bioimg_jax.report import write_strip


def test_every_dial_has_a_picture_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "N_STEPS", 2)
    assert pictures.main(["--name=synthetic_cells", f"--out={tmp_path}"]) == 0
    names = [dial.name for dial in find_builder("synthetic_cells").dials()]
    files = sorted(path.name for path in tmp_path.glob("*.jpg"))
    assert files == sorted(f"synthetic_cells-{name}.jpg" for name in names)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(names) + 2
    assert f"{len(names)} pictures" in said.err


def test_a_data_set_without_dials_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pictures.main(["--name=two_textures", f"--out={tmp_path}"]) == 2
    assert "--name=two_textures: this data set has no dials" in capsys.readouterr().err


def test_images_of_a_row_share_one_scale(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 2), np.uint16)
    images[0, :, :, 1], images[1, :, :, 1] = 100, 200
    images[0, :2, :, 1] = 0
    write_strip(tmp_path / "row.png", images, (1,))
    row = matplotlib.image.imread(tmp_path / "row.png")
    first, second = row[-4, 4, :3], row[-4, -4, :3]
    np.testing.assert_allclose(second, 1.0)
    assert 0.4 < first[0] < 0.6
    photographs = np.full((2, 8, 8, 3), 51, np.uint8)
    write_strip(tmp_path / "photographs.png", photographs, (0, 1, 2))
    np.testing.assert_allclose(
        matplotlib.image.imread(tmp_path / "photographs.png")[4, 4, :3], 0.2, atol=1e-6
    )


def test_two_channels_are_red_and_green_relative_to_the_light_around(tmp_path: Path) -> None:
    """A ramp is even light beside what is around it; a mark is drawn over everything."""
    ramp = np.linspace(1000, 4000, 240)[None, None, :, None]
    images = np.broadcast_to(ramp, (1, 240, 240, 2)).astype(np.uint16)
    images[0, 100:104, 100:104, 0] *= 2
    marks = np.zeros((1, 240, 240), np.uint8)
    marks[0, 10, 10] = 1
    path = tmp_path / "row.png"
    write_strip(path, images, (0, 1), relative_px=4.0, marks=marks)
    row = matplotlib.image.imread(path)[..., :3]
    assert row.shape == (240, 240, 3)
    np.testing.assert_allclose(row[10, 10], 1.0)
    np.testing.assert_allclose(np.delete(row[..., 2].ravel(), 10 * 240 + 10), 0.0)
    assert row[102, 102, 0] == 1.0
    quiet = row[200:210, 60:180, 0]
    assert quiet.std() < 0.05


def test_marks_say_the_hand_of_a_cell_and_the_type_of_a_nucleus() -> None:
    cells = find_builder("synthetic_cells").marks("agreement", [0.5, 1.0])
    assert set(np.unique(cells[0])) == {0, 1, 2} and len(np.unique(cells[1])) == 2
    assert find_builder("synthetic_cells").marks("gain", [1.0]) is None
    tissue = find_builder("synthetic_tissue")
    marks = tissue.marks("compartments", [0.0, 1.0])
    assert marks.shape == tissue.sweep("compartments", [0.0, 1.0]).shape[:3]
    assert set(np.unique(marks)) == {0, 2, 3}

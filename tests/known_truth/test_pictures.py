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

"""Real against generated: the curves say what they are, and the default preset is like LINCS."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from bioimg_jax.known_truth import hest, realism

CHANNELS = ("DNA", "Mito")


def blobs(n: int, radius: float, scale: float = 1000.0) -> np.ndarray:
    """uint16 [n, 64, 64, 2]: a disc in the first channel, a wave of 8 px in the second."""
    y, x = np.mgrid[:64, :64]
    disc = np.clip(radius - np.hypot(y - 31.5, x - 31.5) + 0.5, 0, 1)
    wave = 1 + np.sin(2 * np.pi * x / 8)
    noise = np.random.default_rng(0).normal(0, 0.01, (n, 64, 64, 2))
    return (scale * (0.1 + np.stack([disc, wave], -1) + np.abs(noise))).astype(np.uint16)


def test_measures_are_of_area_frequency_and_relative_intensity() -> None:
    found = realism.measures(blobs(8, 9.0), CHANNELS)
    assert found["nucleus area"] == pytest.approx(np.pi * 81, rel=0.08)
    # 1/8 cycle a pixel lies in the ring from 1/64 * 32^(4.8 / 8) on: the fifth of eight.
    assert int(np.argmax(found["Mito spectrum"])) == 4
    brighter = realism.measures(blobs(8, 9.0, 4000.0), CHANNELS)
    for name in ("DNA intensity", "Mito intensity"):
        np.testing.assert_allclose(brighter[name], found[name], atol=0.01)


def test_a_value_outside_every_plate_is_named() -> None:
    real = {plate: realism.measures(blobs(4, r), CHANNELS) for plate, r in (("a", 8), ("b", 10))}
    rows = realism.compare(real, realism.measures(blobs(4, 9.0), CHANNELS))
    area = next(row for row in rows if row["curve"] == "nucleus area")
    assert area["outside"] == []
    rows = realism.compare(real, realism.measures(blobs(4, 14.0), CHANNELS))
    area = next(row for row in rows if row["curve"] == "nucleus area")
    assert area["outside"] == list(range(len(realism.AREA_QUANTILES)))


def test_a_real_plate_lies_outside_the_others_at_either_end_of_their_order() -> None:
    """Of five plates alike, the lowest and the highest of each value are outside the others."""
    n = 1000
    values = np.random.default_rng(0).normal(size=(5, n))
    real = {str(i): {"curve": values[i]} for i in range(5)}
    found = realism.inside_of_others(real)
    assert sum(found.values()) == 3 * n
    assert all(abs(count - 0.6 * n) < 5 * np.sqrt(0.24 * n) for count in found.values())


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEST-Benchmark patches of another preset than the one they are shown beside."""
    out = tmp_path_factory.mktemp("hest")
    small = "n_centres=1,n_patients=3,sections_per_patient=1,spots_per_section=4"
    assert hest.main(["--config=tissue_layout", f"--out={out}", f"--options={small}"]) == 0
    return out / "tissue_layout" / "patches"


def test_tissue_is_of_all_patients_and_every_picture_is_another() -> None:
    spots = realism.tissue(5)
    assert spots.shape[0] == 5 and spots.shape[3] == 3 and spots.dtype == np.uint8
    assert all((spots[i] != spots[j]).any() for i in range(5) for j in range(i))


def test_real_tissue_is_shown_beside_generated(
    tmp_path: Path, patches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cells of next to nothing: they are measured below."""
    shown: dict[str, np.ndarray] = {}
    written = realism.write_realism

    def write(workdir: Path, found: dict, pictures: dict[str, np.ndarray]) -> Path:
        shown.update(pictures)
        return written(workdir, found, pictures)

    def few(name: str, source: str, options: dict) -> tuple[dict, tuple[str, ...]]:
        return {"one": blobs(20, 9.0), "other": blobs(20, 8.0)}, CHANNELS

    monkeypatch.setattr(realism, "plates_of", few)
    monkeypatch.setattr(realism, "write_realism", write)
    arguments = ["--cells=any", f"--tissue={patches}", f"--workdir={tmp_path}"]
    assert realism.main(arguments) == 0
    page = (tmp_path / "realism.html").read_text()
    for heading in ("real tissue", "generated tissue"):
        assert heading in page
        assert shown[heading].shape[0] == realism.SHOWN and shown[heading].dtype == np.uint8
    with h5py.File(sorted(patches.glob("*.h5"))[0]) as file:
        assert (np.asarray(file["img"]) == shown["real tissue"][0]).all(axis=(1, 2, 3)).any()
    assert page.count("data:image/png") == 4


def test_a_folder_without_patches_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--cells=any", f"--tissue={tmp_path}", f"--workdir={tmp_path / 'out'}"]
    assert realism.main(arguments) == 2
    assert f"{tmp_path}: no *.h5 in it" in capsys.readouterr().err
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    assert realism.main(arguments) == 2
    assert "broken.h5: not a patch file" in capsys.readouterr().err


def test_the_default_preset_is_like_real_plates(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = data_dir / "lincs_cell_painting"
    arguments = [f"--cells={cells}", f"--workdir={tmp_path}"]
    assert realism.main(arguments) == 0
    found = json.loads((tmp_path / "realism.json").read_text())
    assert len(found["plates"]) == 5
    inside = 0
    for row in found["curves"]:
        low, high, made = (np.array(row[key]) for key in ("low", "high", "generated"))
        inside += len(made) - len(row["outside"])
        # 80 of 85 lie inside.
        room = {"intensity": 0.005, "spectrum": 0.02, "area": 1.5}[row["curve"].split()[-1]]
        assert (made > low - room).all() and (made < high + room).all(), row
    assert inside >= 79, capsys.readouterr().out
    assert os.path.getsize(tmp_path / "realism.html") > 50_000

"""Real against generated: the curves say what they are, and the default preset is like LINCS."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bioimg_jax.known_truth import realism

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
        # 73 of 85 lie inside.
        room = {"intensity": 0.01, "spectrum": 0.04, "area": 2.0}[row["curve"].split()[-1]]
        assert (made > low - room).all() and (made < high + room).all(), row
    assert inside >= 72, capsys.readouterr().out
    assert os.path.getsize(tmp_path / "realism.html") > 50_000

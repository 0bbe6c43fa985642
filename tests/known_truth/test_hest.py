"""The command that writes HEST-Benchmark's layout; what is written is tested with the tissue."""

from pathlib import Path

import pytest

from bioimg_jax.features.hest import read_annotations, read_patches
from bioimg_jax.known_truth.hest import main

SMALL = "--options=n_centres=1,n_patients=3,sections_per_patient=1,spots_per_section=4"


def test_a_task_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config=tissue_layout", f"--out={tmp_path}", SMALL]
    assert main(arguments) == 0
    task = tmp_path / "tissue_layout"
    assert capsys.readouterr().out.strip() == f"written: {task}"
    assert read_patches(task / "patches", 3).shape[0] == 3
    spots, genes = read_annotations(task)
    assert len(spots) == 12 and set(genes["driver"]) == {"layout", "nothing"}
    assert spots["section"].tolist() == sorted(4 * ["P001S01", "P002S01", "P003S01"])
    assert spots["barcode"][:4].tolist() == ["0x0", "0x1", "1x0", "1x1"]
    assert (genes["effect"][genes["driver"] == "nothing"] == 0).all()
    assert spots["truth_clustering"].isin([0.0, 1.0]).all()
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_config_that_there_is_not_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config=tissue_layot", f"--out={tmp_path}"]) == 2
    assert "did you mean 'tissue_layout'?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

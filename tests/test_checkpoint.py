"""Checkpoints as a reader sees them: from their folder alone, of a training that may still run."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bioimg_jax.checkpoint import Saved, open_checkpoint
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.errors import BrokenCheckpoint, InputError
from bioimg_jax.train import build_run, train
from tests import tiny


@pytest.fixture(scope="module")
def trained(prepared_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    workdir = tmp_path_factory.mktemp("trained")
    dataset = open_dataset(next(prepared_cells.glob("synthetic_cells-*")))
    train(build_run(tiny.config(), dataset.declaration.channels), dataset, workdir)
    return workdir, dataset


def abstract(dataset: Dataset) -> tuple:
    states = build_run(tiny.config(), dataset.declaration.channels).states
    return states.abstract.params, states.abstract.objective


def test_the_newest_or_a_named_step_is_opened_with_what_rebuilds_it(trained: tuple) -> None:
    workdir, dataset = trained
    newest = open_checkpoint(workdir)
    assert newest.step == 12
    assert open_checkpoint(workdir / "checkpoints" / "8").step == 8
    meta = newest.meta
    assert meta["channels"] == list(dataset.declaration.channels)
    assert (meta["encoder"]["width"], meta["objective"]["decoder_width"]) == (64, 32)
    assert (meta["seed"], meta["crop_px"], meta["batch_size"]) == (0, 64, 16)
    assert meta["data"]["content_hash"] == dataset.content_hash
    first = newest.at(0)
    assert first is not None and newest.at(5) is None
    assert newest.digest() == open_checkpoint(workdir).digest() != first.digest()


def test_parameters_are_read_without_the_optimiser(trained: tuple, tmp_path: Path) -> None:
    workdir, dataset = trained
    shutil.copytree(workdir / "checkpoints" / "12", tmp_path / "checkpoints" / "12")
    shutil.rmtree(tmp_path / "checkpoints" / "12" / "optimizer")
    there, here = open_checkpoint(workdir), open_checkpoint(tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        there.restore(*abstract(dataset)),
        here.restore(*abstract(dataset)),
    )
    assert here.digest() == there.digest()


def test_what_a_running_training_is_writing_is_left_alone(trained: tuple, tmp_path: Path) -> None:
    folder = shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    unfinished = folder / "16.orbax-checkpoint-tmp"
    shutil.copytree(folder / "12", unfinished)
    assert open_checkpoint(tmp_path).step == 12
    assert unfinished.is_dir()


def test_what_is_no_checkpoint_is_told_in_one_line(trained: tuple, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*checkpoints"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="step 7 is not kept; there are 0, 8, 12"):
        open_checkpoint(trained[0] / "checkpoints" / "7")


def test_broken_files_and_other_formats_are_told(trained: tuple, tmp_path: Path) -> None:
    workdir, dataset = trained
    shutil.copytree(workdir / "checkpoints" / "12", tmp_path / "checkpoints" / "12")
    meta = next((tmp_path / "checkpoints" / "12" / "meta").rglob("metadata"))
    stored = json.loads(meta.read_text())
    meta.write_text(json.dumps({**stored, "format_version": 1}))
    with pytest.raises(InputError, match="has format 1; this version reads 2"):
        open_checkpoint(tmp_path)
    meta.write_text(json.dumps(stored))
    saved: Saved = open_checkpoint(tmp_path)
    for path in (saved.directory / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(BrokenCheckpoint, match="12 cannot be read"):
        saved.restore(*abstract(dataset))

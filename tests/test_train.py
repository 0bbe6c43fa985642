"""The training loop: the same on any devices, and the same after any interruption."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax import mesh as meshes
from bioimg_jax import train as training
from bioimg_jax.checkpoint import Checkpoints, open_checkpoint
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.errors import InputError
from bioimg_jax.logbook import read_logbook
from bioimg_jax.train import build_run, make_step, train, training_stream
from bioimg_jax.train_state import step_key
from tests import tiny

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
STEPS = 40
WORKER = """
import json, sys
from pathlib import Path
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.train import build_run, train
config, directory, workdir = json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
dataset = open_dataset(directory)
train(build_run(config, dataset.declaration.channels), dataset, workdir)
"""


@pytest.fixture
def dataset(prepared_cells: Path) -> Dataset:
    return open_dataset(next(prepared_cells.glob("synthetic_cells-*")))


def losses_and_inputs(dataset: Dataset, steps: int, **changes: Any) -> tuple[list, list, list]:
    """Of the first steps: losses, example ids, and mask noise drawn on the device."""
    run = build_run(tiny.config(train__steps=60, **changes), CHANNELS)
    losses, ids, noises = [], [], []
    with jax.set_mesh(run.mesh):
        state, update = run.states.initial(), make_step(run)
        views = jax.jit(
            lambda batch, step: run.objective.views(
                batch, jax.random.split(step_key(run.config["seed"], step))[0]
            )["noise"],
            in_shardings=(meshes.batch_sharding(run.mesh), None),
        )
        stream = training_stream(run, dataset, None, 0)
        for step in range(steps):
            batch = next(stream)
            ids.append(batch["index"])
            images = meshes.to_global({"image": batch["image"]}, run.mesh)
            noises.append(np.asarray(views(images, jnp.int32(step))))
            state, metrics = update(state, images)
            losses.append(float(metrics["loss"]))
    return losses, ids, noises


def test_one_and_eight_devices_and_fsdp_agree(dataset: Dataset) -> None:
    one = losses_and_inputs(dataset, 50, mesh__devices=1)
    for changes in ({"mesh__devices": 8}, {"mesh__devices": 8, "mesh__fsdp": True}):
        other = losses_and_inputs(dataset, 50, **changes)
        np.testing.assert_allclose(other[0], one[0], rtol=1e-5)
        np.testing.assert_array_equal(other[1], one[1])
        np.testing.assert_array_equal(other[2], one[2])
    assert one[0][-1] < one[0][0]


def test_fsdp_splits_parameters_and_moments(dataset: Dataset) -> None:
    run = build_run(tiny.config(mesh__devices=8, mesh__fsdp=True), CHANNELS)
    state = run.states.initial()
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 2**13]
    assert len(leaves) > 10
    for leaf in leaves:
        assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_accumulation_changes_nothing_but_rounding(dataset: Dataset) -> None:
    whole = losses_and_inputs(dataset, 6)[0]
    parts = losses_and_inputs(dataset, 6, train__accumulation=4)[0]
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    sharded = losses_and_inputs(dataset, 6, train__accumulation=2, mesh__devices=8)[0]
    np.testing.assert_allclose(sharded, whole, rtol=1e-5)


def worker(config: dict, dataset: Dataset, workdir: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(tiny.ROOT),
        "XLA_FLAGS": tiny.QUICKLY_COMPILED,  # and one device
    }
    command = [
        sys.executable,
        "-c",
        WORKER,
        json.dumps(config),
        str(dataset.directory),
        str(workdir),
    ]
    with (workdir / "stderr.txt").open("w") as said:
        return subprocess.Popen(command, env=environment, stderr=said)


def parameters(config: dict, workdir: Path) -> Any:
    abstract = build_run(config, CHANNELS).states.abstract
    saved = open_checkpoint(workdir)
    assert saved.step == config["train"]["steps"]
    return saved.restore(abstract.params, abstract.objective)[0]


def test_resume_is_bit_identical_after_five_kills(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny.config(train__steps=STEPS, train__save_every_steps=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert worker(config, dataset, whole).wait() == 0
    rng = random.Random(0)
    for kill_at in sorted(rng.sample(range(2, STEPS - 4), 5)):
        process = worker(config, dataset, broken)
        while process.poll() is None:
            entries = read_logbook(broken / "logbook.jsonl")
            if entries and entries[-1]["step"] >= kill_at:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        assert process.returncode == -signal.SIGKILL
    last = worker(config, dataset, broken)
    assert last.wait() == 0
    assert "going on from step" in (broken / "stderr.txt").read_text()
    losses = [
        [(entry["step"], entry["loss"]) for entry in read_logbook(folder / "logbook.jsonl")]
        for folder in (whole, broken)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))
    a, b = parameters(config, whole), parameters(config, broken)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_truncated_checkpoint_falls_back_with_a_warning(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny.config()
    run = build_run(config, CHANNELS)
    train(run, dataset, tmp_path)
    expected = parameters(config, tmp_path)
    newest = tmp_path / "checkpoints" / "12"
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 500]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    train(run, dataset, tmp_path)
    message = capsys.readouterr().err
    assert "12 cannot be read" in message and "going on from step 8" in message
    assert (tmp_path / "checkpoints.broken" / "12").is_dir()  # not for us to delete
    jax.tree.map(np.testing.assert_array_equal, parameters(config, tmp_path), expected)
    assert [e["step"] for e in read_logbook(tmp_path / "logbook.jsonl")] == list(range(1, 13))


@pytest.mark.parametrize("refusal", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_machine_that_refuses_is_not_taken_for_a_broken_checkpoint(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    run = build_run(tiny.config(train__steps=4), CHANNELS)
    train(run, dataset, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", run.meta(dataset))

    def refuse(*_: Any, **__: Any) -> None:
        raise refusal

    monkeypatch.setattr(checkpoints._manager, "restore", refuse)
    with pytest.raises(type(refusal)):
        checkpoints.restore_latest(run.states.abstract)
    checkpoints.close()
    assert not (tmp_path / "checkpoints.broken").exists()


def test_a_checkpoint_is_read_by_other_devices(dataset: Dataset, tmp_path: Path) -> None:
    train(build_run(tiny.config(mesh__devices=4, mesh__fsdp=True), CHANNELS), dataset, tmp_path)
    run = build_run(tiny.config(mesh__devices=8, mesh__fsdp=True), CHANNELS)
    checkpoints = Checkpoints(tmp_path / "checkpoints", run.meta(dataset))
    state = checkpoints.restore(12, run.states.abstract)
    checkpoints.close()
    kernel = state.params["encoder"]["blocks"]["stack"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    alone = parameters(tiny.config(), tmp_path)
    np.testing.assert_array_equal(kernel, alone["encoder"]["blocks"]["stack"]["up"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "channels", "message"),
    [
        ({"encoder__width": 32}, CHANNELS, r"another architecture: encoder.width is 64 there, 32"),
        ({"objective__mask_ratio": 0.5}, CHANNELS, r"objective.mask_ratio is 0.75 there, 0.5"),
        ({}, ("RNA", "DNA", "ER", "AGP", "Mito"), r"trained on channels DNA, RNA, .* has RNA, DNA"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    dataset: Dataset, tmp_path: Path, changes: dict, channels: tuple, message: str
) -> None:
    train(build_run(tiny.config(train__steps=4), CHANNELS), dataset, tmp_path)
    other = build_run(tiny.config(train__steps=4, **changes), channels)
    with pytest.raises(InputError, match=message):
        train(other, dataset, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = tiny.config(
        optimizer__learning_rate=1e30, optimizer__clip_norm=0.0, train__log_every_steps=5
    )
    with pytest.raises(InputError, match=r"the loss is not finite at step \d"):
        train(build_run(config, CHANNELS), dataset, tmp_path)
    checkpoints = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert checkpoints == [0]  # nothing that is not finite was saved


def test_a_gradient_that_is_not_finite_stops_the_run_too() -> None:
    fine = {"loss": jnp.float32(1), "gradient_norm": jnp.float32(1)}
    bad = {"loss": jnp.float32(1), "gradient_norm": jnp.float32("inf")}
    with pytest.raises(InputError, match="the gradient is not finite at step 7;"):
        training._read([(6, fine), (7, bad), (8, fine)])
    assert training._read([(6, fine)]) == {"loss": 1, "gradient_norm": 1}


def test_a_run_stopped_before_its_first_save_probes_step_0_once(
    dataset: Dataset, tmp_path: Path
) -> None:
    run = build_run(tiny.config(train__probe_every_steps=6, train__save_every_steps=12), CHANNELS)

    def probe(step: int, state: training.TrainState) -> list[dict]:
        if step == 6 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return [{"step": step, "probe": {"value": 0.5}}]

    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, tmp_path, probe=probe)
    train(run, dataset, tmp_path, probe=probe)
    entries = read_logbook(tmp_path / "logbook.jsonl")
    assert [e["step"] for e in entries if "probe" in e] == [0, 6, 12]
    assert [e["step"] for e in entries if "loss" in e] == list(range(1, 13))


def test_the_probe_is_asked_at_its_steps_and_logged_once(dataset: Dataset, tmp_path: Path) -> None:
    run = build_run(tiny.config(train__probe_every_steps=6), CHANNELS)

    def probe(step: int, state: training.TrainState) -> list[dict]:
        assert int(state.step) == step
        return [{"step": step, "probe": {"value": 0.5}}]

    train(run, dataset, tmp_path, probe=probe)
    train(run, dataset, tmp_path, probe=probe)  # finished: nothing happens
    entries = read_logbook(tmp_path / "logbook.jsonl")
    assert [e["step"] for e in entries if "probe" in e] == [0, 6, 12]
    assert {"loss", "learning_rate", "gradient_norm", "images_per_s", "data_wait_share"} <= set(
        entries[1]
    )


def test_bfloat16_trains_with_float32_parameters(dataset: Dataset) -> None:
    losses = losses_and_inputs(dataset, 5, encoder__dtype="bfloat16")[0]
    full = losses_and_inputs(dataset, 5)[0]
    np.testing.assert_allclose(losses, full, rtol=0.02)
    assert losses != full


def test_memory_estimate_grows_with_the_batch() -> None:
    small, large = (
        training.memory_estimate(build_run(tiny.config(train__batch_size=b), CHANNELS), jnp.uint16)
        for b in (16, 64)
    )
    assert large["temporary"] > 2 * small["temporary"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 0}, "train.batch_size: 0, expected at least 1"),
        ({"train__batch_size": 12, "mesh__devices": 8}, "is no multiple of the 8 devices"),
        ({"optimizer__warmup_steps": 12}, "optimizer.warmup_steps: 12, expected"),
        ({"mesh__devices": 9}, "mesh.devices: 9 wanted, 8 present"),
        ({"mesh__devices": -1}, "mesh.devices: -1 wanted, 8 present"),
        ({"mesh__model": 0}, "mesh.model: 0 does not divide"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_run(tiny.config(**changes), CHANNELS)

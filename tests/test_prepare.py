"""Preparation, on the toy data set of tests/data/toy."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.errors import InputError
from bioimg_jax.prepare import main, prepare

ROOT = Path(__file__).resolve().parent.parent
TOYS = ROOT / "tests" / "data"


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOIMG_DATASETS", str(TOYS))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """12 fields of 4 images."""
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for plate in ("P1", "P2", "P3"):
        for well in ("A01", "A02"):
            for site in (1, 2):
                images = rng.integers(0, 2**16, (4, 6, 6, 2), dtype=np.uint16)
                np.save(folder / f"{plate}_{well}_{site}.npy", images)
    return folder


def bytes_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_result_is_read_back_by_tfds(source: Path, tmp_path: Path) -> None:
    path = prepare(name="toy", source=str(source), out=tmp_path / "out", workers=1)
    examples = tfds.builder_from_directory(path).as_data_source("images")
    assert len(examples) == 48
    field = np.load(source / "P2_A01_2.npy")
    example = examples[22]
    np.testing.assert_array_equal(example["image"], field[2])
    assert (example["plate"], example["well"], example["number"]) == (b"P2", b"A01", 22)
    assert example["odd"] == np.False_
    assert example["mean"] == np.float32(field[2].mean())


def test_dataset_opens_with_images_metadata_and_folds(source: Path, tmp_path: Path) -> None:
    dataset = open_dataset(prepare(name="toy", source=str(source), out=tmp_path / "out", workers=1))
    assert len(dataset) == len(dataset.metadata) == 48
    assert dataset.declaration.channels == ("DNA", "ER")
    assert len(dataset.content_hash) == 64
    for i in (0, 17, 47):
        row, example = dataset.metadata.iloc[i], dataset.source[i]
        field = np.load(source / f"{row.plate}_{row.well}_{row.number // 10}.npy")
        assert example["index"] == i
        np.testing.assert_array_equal(example["image"], field[row.number % 10])
    fold = dataset.folds("well")[1]
    assert fold.name == "plate=P2"
    assert set(dataset.metadata.plate[fold.test]) == {"P2"}
    assert len(dataset.pretraining_indices(fold)) == 32
    with pytest.raises(InputError, match="no target"):
        dataset.folds("compound")


def test_builder_is_an_ordinary_tfds_builder(source: Path, tmp_path: Path) -> None:
    builder = find_builder("toy")(source=str(source), data_dir=tmp_path / "tfds")
    assert builder.info.name == "toy" and builder.info.features["image"].shape == (None, None, 2)
    assert builder.info.citation.startswith("@misc")
    assert len(list(builder._generate_examples())) == 48


def test_same_source_is_reused_and_a_changed_byte_is_not(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"name": "toy", "out": tmp_path / "out", "workers": 1}
    first = prepare(source=str(source), **arguments)
    before = bytes_of(first)
    copy = tmp_path / "moved"
    source.rename(copy)  # the contents count, not the path
    capsys.readouterr()
    assert prepare(source=str(copy), **arguments) == first
    assert f"prepared already: {first}" in capsys.readouterr().err

    field = copy / "P3_A02_1.npy"
    contents = bytearray(field.read_bytes())
    contents[-1] ^= 1
    field.write_bytes(contents)
    second = prepare(source=str(copy), **arguments)
    assert second != first and bytes_of(first) == before
    assert open_dataset(second).content_hash != open_dataset(first).content_hash
    assert prepare(options={"image_px": 7}, **arguments) != prepare(**arguments)


def test_bytes_do_not_depend_on_workers(source: Path, tmp_path: Path) -> None:
    one, two = (
        prepare(name="toy", source=str(source), out=tmp_path / str(n), workers=n) for n in (1, 2)
    )
    assert one.name == two.name
    assert bytes_of(one) == bytes_of(two)
    assert not [p for p in two.parent.iterdir() if p != two]


def test_shards_and_parts_do_not_change_the_order(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_dataset(prepare(name="toy", source=str(source), out=tmp_path / "a", workers=1))
    monkeypatch.setattr("bioimg_jax.prepare.MAX_PARTS", 5)
    monkeypatch.setattr("bioimg_jax.data.parts.SHARD_BYTES", 1)
    path = prepare(name="toy", source=str(source), out=tmp_path / "b", workers=1)
    assert len(list(path.glob("*.array_record*"))) == 4  # 3 fields a part
    sharded = open_dataset(path)
    for a, b in zip(plain.source.read(range(48)), sharded.source.read(range(48)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert plain.metadata.equals(sharded.metadata)


def test_finished_parts_are_not_done_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    whole = prepare(name="toy", source=str(source), out=tmp_path / "whole", workers=1)
    log.unlink()

    def interrupt(*_: object) -> None:
        if len(log.read_text().split()) >= 5:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("bioimg_jax.prepare._Progress.add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(name="toy", source=str(source), out=out, workers=1)
    assert not [p for p in out.iterdir() if not p.name.startswith(".")]
    done = log.read_text().split()
    # A part that was cut off while it was written counts as not done.
    parts = next(out.iterdir())
    cut = parts / "part-00003.array_record"
    cut.write_bytes(cut.read_bytes()[:-10])
    resumed = prepare(name="toy", source=str(source), out=out, workers=1)
    redone = log.read_text().split()[len(done) :]
    assert sorted(set(done) & set(redone)) == ["P1_A02_2"]
    assert len(done) + len(redone) == 13
    assert bytes_of(resumed) == bytes_of(whole)


def test_killed_preparation_goes_on_and_leaves_no_worker(source: Path, tmp_path: Path) -> None:
    for path in list(source.glob("*.npy")):
        np.save(path, np.tile(np.load(path), (40, 10, 10, 1)))
    out, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "bioimg_jax.prepare", "--name=toy", f"--source={source}"]
    command += [f"--out={out}", "--workers=2"]
    environment = {**os.environ, "TOY_LOG": str(log)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(out.glob(".*.parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    # The stderr pipe closes when the last process that holds it has ended.
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    while time.monotonic() < deadline and process.stderr.read() != b"":
        time.sleep(0.02)
    process.stderr.close()
    assert time.monotonic() < deadline
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    plain = prepare(name="toy", source=str(source), out=tmp_path / "plain", workers=1)
    assert bytes_of(Path(finished.stdout.strip())) == bytes_of(plain)


def test_script_without_main_guard_prepares_and_workers_load_no_jax(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, jax\n"
        "print('started')\n"
        "from bioimg_jax.data.workers import run_tasks, worker_pool\n"
        "from bioimg_jax.prepare import prepare\n"
        "prepare(name='toy', out=sys.argv[1], workers=2)\n"
        "with worker_pool(2) as pool:\n"
        '    code = \'__import__("bioimg_jax.data.parts") and "jax" in \'\n'
        "    code += '__import__(\"sys\").modules'\n"
        "    print(*run_tasks(pool, eval, [(code,)], 1))\n"
    )
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == ["started", "False"], result.stderr


def test_bad_image_stops_or_is_quarantined(source: Path, tmp_path: Path) -> None:
    np.save(source / "P1_A02_1.npy", np.zeros((4, 6, 6, 3), np.uint16))
    arguments = {"name": "toy", "source": str(source), "out": tmp_path / "out", "workers": 1}
    message = r"^P1_A02_1.npy \(row 3 of the index\): has no two channels; on_bad_image=skip"
    with pytest.raises(InputError, match=message):
        prepare(**arguments)
    path = prepare(**arguments, on_bad_image="skip")
    listed = (path / "bad_images.csv").read_text().splitlines()
    assert listed == ["file,row,why", "P1_A02_1.npy,3,has no two channels"]
    assert len(open_dataset(path)) == 44
    assert json.loads((path / "preparation.json").read_text())["n_bad"] == 1
    assert prepare(**arguments, on_bad_image="skip") == path
    with pytest.raises(InputError, match=message):  # the finished set is not silently given out
        prepare(**arguments)


def test_bad_image_in_a_worker_process_stops_in_one_line(source: Path, tmp_path: Path) -> None:
    np.save(source / "P1_A02_1.npy", np.zeros((4, 6, 6, 3), np.uint16))
    with pytest.raises(InputError, match="has no two channels"):
        prepare(name="toy", source=str(source), out=tmp_path / "out", workers=2)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"cannot write to {tmp_path}/file/out: Not a directory"):
        prepare(name="toy", out=tmp_path / "file" / "out", workers=1)


def test_full_disk_is_one_line_and_keeps_what_was_finished(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: both fail in the middle of a write."""
    code = (
        "import resource, sys; from bioimg_jax.prepare import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--name=toy", f"--out={tmp_path}", "--option=image_px=200", "--workers=1"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith(f"error: cannot write to {tmp_path}: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=toys"], "no data set 'toys'"),
        (["--name=toys"], "did you mean 'toy'?"),
        (["--name=toy", "--config=cells"], "data set 'toy' has no config 'cells'"),
        (["--name=toy", "--option=imagepx=3"], "did you mean 'image_px'?"),
        (["--name=toy", "--option=image_px=big"], "must be of type int, not 'big'"),
        (["--name=toy", "--option=image_px"], "expected KEY=VALUE"),
        (["--name=toy", "--option=plates=2"], "needs at least 3 groups of plate"),
    ],
)
def test_command_line_says_what_is_wrong_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"--out={tmp_path}", "--workers=1"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]


def test_incomplete_folder_is_no_prepared_set(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is not a prepared data set: it has no dataset_info.json"
    ):
        open_dataset(tmp_path)


def test_two_preparations_of_one_data_set_take_turns(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    name = prepare(name="toy", source=str(source), out=tmp_path / "first", workers=1).name
    parts = out / f".{name}.parts"
    parts.mkdir(parents=True)
    descriptor = os.open(parts, os.O_RDONLY)  # as another process would
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done: list[Path] = []
    second = threading.Thread(
        target=lambda: done.append(prepare(name="toy", source=str(source), out=out, workers=1))
    )
    second.start()
    while "waiting for another preparation" not in capsys.readouterr().err:
        time.sleep(0.01)
    assert not done and list(out.iterdir()) == [parts] and not list(parts.iterdir())
    np.save(source / "P4_A01_1.npy", np.zeros((4, 6, 6, 2), np.uint16))
    other = prepare(name="toy", source=str(source), out=out, workers=1)  # of another one does not
    assert other.is_dir() and not done
    os.close(descriptor)
    second.join()
    assert done[0].name == name
    assert {path.name for path in out.iterdir()} == {name, other.name}

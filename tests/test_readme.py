"""Every command of the README runs: those of `main`, `evaluate`, `embed`, `profiles`, `expression`
and `known_truth.calibrate` in their own tests."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

from bioimg_jax import prepare
from bioimg_jax.data.dataset import open_dataset
from tests import readme


def kind(words: list[str]) -> str:
    if words[0] == "make":
        return "make"
    if "-m" in words:
        return words[words.index("-m") + 1]
    return ""


def test_every_command_is_of_a_kind_that_a_test_runs() -> None:
    kinds = [kind(words) for words in readme.commands()]
    assert set(kinds) == {
        "make", "bioimg_jax.main", "bioimg_jax.prepare", "bioimg_jax.evaluate", "bioimg_jax.embed",
        "bioimg_jax.known_truth.calibrate", "bioimg_jax.profiles",
        "bioimg_jax.expression", "pip",
    }  # fmt: skip


def test_make_knows_its_targets() -> None:
    targets = [words[1] for words in readme.commands() if kind(words) == "make"]
    assert {"run", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=readme.ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_accelerator_lines_install_the_jax_that_is_locked() -> None:
    extras = importlib.metadata.metadata("jax").get_all("Provides-Extra") or []
    lines = [words[-1] for words in readme.commands() if kind(words) == "pip"]
    assert lines
    for line in lines:
        found = re.fullmatch(r"jax\[(\w+)\]==([\d.]+)", line)
        assert found, line
        assert found[1] in extras
        assert f"jax=={found[2]}" in (readme.ROOT / "requirements.txt").read_text().split()


@pytest.mark.data
def test_the_prepare_command_runs(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = readme.module_arguments(
        "bioimg_jax.prepare",
        PATH=str(data_dir / "lincs_cell_painting"),
        prepared=str(tmp_path),
    )
    assert prepare.main(arguments[1:]) == 0
    dataset = open_dataset(capsys.readouterr().out.strip())
    assert len(dataset) == 21_026

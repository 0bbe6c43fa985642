"""What the command lines share: how a config and its flags are read."""

import errno
import os
from pathlib import Path

import pytest

from bioimg_jax import command_line
from bioimg_jax.command_line import check_config, guarded, options, parse, write_json
from bioimg_jax.errors import InputError, Preempted
from tests import tiny


def test_options_may_hold_lists_and_values_may_stand_apart() -> None:
    assert options("channels=Mito,DNA, crop_px=32") == {"channels": "Mito,DNA", "crop_px": "32"}
    config, own = parse(
        ["main", f"--config={tiny.CONFIG}", "--config.train.steps", "7", "--dry_run"],
        {"dry_run": False, "workdir": "here", "checkpoint": []},
    )
    assert config["train"]["steps"] == 7
    assert own == {"dry_run": True, "workdir": "here", "checkpoint": []}


def test_a_flag_may_be_given_several_times() -> None:
    arguments = ["main", f"--config={tiny.CONFIG}", "--checkpoint=a", "--checkpoint=b,c"]
    assert parse(arguments, {"checkpoint": []})[1] == {"checkpoint": ["a", "b,c"]}


def test_a_config_may_take_an_argument(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(arm='x'):\n"
        "    return ml_collections.ConfigDict({'arm': arm, 'steps': 3})\n"
    )
    assert parse(["main", f"--config={path}:lincs"], {})[0] == {"arm": "lincs", "steps": 3}
    assert parse(["main", f"--config={path}"], {})[0]["arm"] == "x"
    with pytest.raises(InputError, match=r"config.stesp: .* did you mean --config.steps"):
        parse(["main", f"--config={path}:lincs", "--config.stesp=4"], {})


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("no such plate"), 2, "error: no such plate"),
        (Preempted("stopped at step 3"), 0, "stopped at step 3; the same command goes on"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.h5ad"), 2, "(x.h5ad): No space left"),
        (ValueError(f"wrapped: {os.strerror(errno.ENOSPC)}"), 2, "cannot write: No space left"),
    ],
)
def test_the_exit_status_says_how_it_ended(
    capsys: pytest.CaptureFixture, error: BaseException, status: int, said: str
) -> None:
    def run() -> None:
        raise error

    assert guarded(run) == status
    assert said in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def run() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(run)


def test_json_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_a_work_directory_with_an_unreadable_config_is_refused(tmp_path: Path) -> None:
    check_config(tmp_path, {"seed": 0})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not readable JSON"):
        check_config(tmp_path, {"seed": 0})


def test_a_key_that_an_older_run_lacks_is_no_difference_while_it_is_off(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"evaluate": {"floors": "pixels"}})
    off = {"floors": "pixels", "beyond": "", "beyond_permutations": 199, "new": False}
    check_config(tmp_path, {"evaluate": off})
    for change in ({"beyond": "count"}, {"new": True}, {"floors": ""}, {"other_permutations": 1}):
        (key,) = change
        with pytest.raises(InputError, match=f"holds a run with evaluate.{key}="):
            check_config(tmp_path, {"evaluate": off | change})


def test_help_is_asked_for_in_every_spelling() -> None:
    assert command_line.asks_for_help(["main", "--help"])
    assert command_line.asks_for_help(["main", "-h"])
    assert not command_line.asks_for_help(["main", "--config=help"])

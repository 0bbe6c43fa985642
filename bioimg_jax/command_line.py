"""What the command lines share: configs and flags in, one line and an exit status out."""

import contextlib
import copy
import difflib
import errno
import fcntl
import itertools
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from bioimg_jax.errors import MACHINE_ERRORS, InputError, Preempted


def guarded(run: Callable[[], None]) -> int:
    """Runs a command; returns its exit status.

    0: done, or stopped by a signal with everything saved. 2: something the user gave cannot be
    used, or the machine refused, told in one line. 130: interrupted.
    """
    try:
        run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        return 130
    except Preempted as error:
        print(f"{error}; the same command goes on from there", file=sys.stderr)
    except Exception as error:
        refusal = _refused_by_machine(error)
        if refusal is None:
            raise
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    return 0


def asks_for_help(arguments: Sequence[str]) -> bool:
    return any(argument.lstrip("-") in ("help", "h") for argument in arguments[1:])


def parse(
    arguments: Sequence[str], own: Mapping[str, str | bool | list[str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config as nested dicts, the other flags) of a command line, program name first.

    own: flag -> its default, whose type is the flag's; a list takes the flag several times.
    Raises `InputError`.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "A file of configs/; --config.KEY=VALUE changes a key.",
        flag_values=values, sys_argv=list(arguments),
    )  # fmt: skip
    for name, default in own.items():
        define: Any = {str: flags.DEFINE_string, bool: flags.DEFINE_bool, list: _define_list}
        define[type(default)](name, default, "", flag_values=values)
    _check_keys(arguments)
    try:
        rest = values(list(arguments))
        config = values["config"].value
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(_one_line(error)) from None
    if len(rest) > 1:
        raise InputError(f"unknown argument {rest[1]!r}; expected --NAME=VALUE")
    if config is None:
        raise InputError("--config=FILE is missing; for example --config=configs/mae_cells.py")
    return config.to_dict(), {name: values[name].value for name in own}


def check_sections(config: Mapping[str, Any], *names: str) -> None:
    """`InputError` for a config file without one of the sections."""
    for name in names:
        if name not in config:
            raise InputError(f"--config: this file has no section {name!r}")


def check_keys(held: Mapping[str, Any], section: str, *keys: str) -> None:
    """`InputError` for a section without one of the keys, as of a config that is older than it."""
    for key in keys:
        if key not in held:
            raise InputError(f"{section}: no key {key!r}, which the configs of configs/ explain")


def _define_list(name: str, default: list[str], text: str, **others: Any) -> None:
    flags.DEFINE_multi_string(name, default, text, **others)


def _check_keys(arguments: Sequence[str]) -> None:
    """Finds the file that is not there and the key that is misspelt, and says so in one line."""
    given = []
    for argument, following in itertools.zip_longest(arguments[1:], arguments[2:]):
        if argument.startswith("-"):
            value = "" if "=" in argument or following is None else f"={following}"
            given.append(argument.lstrip("-") + value)  # "--key value" as "--key=value"
    given_path = next((a.partition("=")[2] for a in given if a.startswith("config=")), None)
    if given_path is None:
        return
    path, colon, variant = given_path.partition(":")  # configs/study_small.py:lincs
    if not Path(path).is_file():
        raise InputError(f"--config={path}: there is no such file")
    try:
        get_config = runpy.run_path(path)["get_config"]
        keys = flatten((get_config(variant) if colon else get_config()).to_dict())
    except InputError:
        raise
    except Exception as error:
        if colon and isinstance(error, ValueError):  # of what stands behind the colon
            raise InputError(f"--config={path}:{variant}: {_one_line(error)}") from error
        raise InputError(f"--config={path}: not a config file ({_one_line(error)})") from error
    for argument in given:
        name, _, value = argument.partition("=")
        if not name.startswith("config."):
            continue
        key = name.removeprefix("config.")
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"; did you mean --config.{close[0]}?" if close else ""
            raise InputError(f"--config.{key}: {path} has no such key{hint}")
        expected = type(keys[key])
        if expected in (int, float, bool) and not _is_a(value, expected):
            raise InputError(f"--config.{key}={value}: expected {expected.__name__}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as "section.key"."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _is_a(text: str, kind: type) -> bool:
    if kind is bool:
        return text.lower() in ("", "true", "false", "1", "0")
    try:
        kind(text)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the work directory for this process."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"cannot write to work directory {workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InputError(
                f"work directory {workdir} is in use by process {lock.read().strip() or '?'}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def check_config(workdir: Path, config: dict[str, Any]) -> None:
    """A work directory belongs to one config and, once they are known, to the same images.

    A key that a run of an older version does not know is no difference while it is off.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        before = flatten(json.loads(path.read_text()))
    except ValueError:
        raise InputError(f"{path} is not readable JSON; choose another --workdir") from None
    now = flatten(json.loads(json.dumps(config)))
    if "content_hash" not in now:
        before.pop("content_hash", None)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key) and not (key not in before and _is_off(key, now)):
            raise InputError(
                f"{workdir} holds a run with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                "choose another --workdir"
            )


def _is_off(key: str, config: dict[str, Any]) -> bool:
    """Of a flat config: nothing is asked by this key, or by the one whose details it gives, as
    `evaluate.beyond` is of `evaluate.beyond_blocks`."""
    asked = [other for other in config if key == other or key.startswith(f"{other}_")]
    return any(not config[other] for other in asked)


def check_not_a_training(workdir: Path) -> None:
    """`InputError` for the folder of a training, whose config.json another run would replace."""
    if (workdir / "checkpoints").exists():
        raise InputError(f"--workdir={workdir} is a training's; choose another one")


def names(text: str) -> list[str]:
    """The names of a config's "one,another"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def options(text: str) -> dict[str, str]:
    """The options of a config's "key=value,key=value"; `InputError`."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = part.partition("=")
        if separator:
            found[key] = value
        elif found:  # one more value of the option before it
            key = next(reversed(found))
            found[key] += f",{part}"
        else:
            raise InputError(f"data.options: {part!r}, expected key=value,key=value")
    return found


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all; `ValueError` for a number that JSON does not have."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(copy.deepcopy(value), indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def _refused_by_machine(error: BaseException | None) -> str | None:
    """A full or unwritable disk, however deep in another library's exception it is."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            where = f" ({error.filename})" if error.filename else ""
            return f"cannot read or write{where}: {error.strerror}; what is finished is kept"
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # in other libraries' words
            if os.strerror(number) in str(error):
                return f"cannot write: {os.strerror(number)}; what is finished is kept"
        error = error.__cause__ or error.__context__
    return None


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())

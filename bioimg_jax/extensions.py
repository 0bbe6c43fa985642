"""A user's own representation or benchmark: one Python file that a config names by its path."""

import functools
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bioimg_jax.errors import InputError


def load_build(path: Path, key: str) -> Callable[..., Any]:
    """The function `build` of the file; it runs as a program of the user's own, once a text.

    key: of the config, for the message. Raises `InputError` for a file that is not there, cannot be
    loaded or has no `build`.
    """
    if not path.is_file():
        raise InputError(f"{key}: {path}: there is no such file")
    return _build_of(path, digest(path), key)


@functools.cache
def _build_of(path: Path, text_digest: str, key: str) -> Callable[..., Any]:
    module_name = f"bioimg_jax:{path.stem}:{text_digest[:8]}"  # no package can have this name
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{key}: {path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{key}: {where_it_failed(error, path)}") from error
    build = getattr(module, "build", None)
    if not callable(build):
        raise InputError(f"{key}: {path} defines no function 'build'")

    def told(*arguments: Any) -> Any:
        try:
            return build(*arguments)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{key}: {where_it_failed(error, path)}") from error

    return told


def where_it_failed(error: Exception, path: Path) -> str:
    """The error in one line, with the last line of a user's file that had a part in it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename) == path.absolute()]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f", line {lines[-1]}" if lines and lines[-1] else ""
    return f"{path}{where}: {type(error).__name__}: {' '.join(str(error).split())}"


def digest(path: Path) -> str:
    """SHA-256 of the file's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_name(name: str, taken: set[str], what: str) -> None:
    """`InputError` for a name that is no plain word (it becomes a file's) or is there already."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"{what} is called {name!r}; expected letters, digits, '_', '-' and '.'")
    if name in taken:
        raise InputError(f"{what} is called {name!r}, a name that is taken")

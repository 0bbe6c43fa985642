"""Results that are kept: plain JSON beside a key of everything that it was made of."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bioimg_jax import command_line
from bioimg_jax.sources import sources_digest

PLAIN = 150  # characters of a name that are read; file systems take 255 bytes
DIGITS = 16  # of a digest


def key_of(made_of: Any) -> str:
    """SHA-256 of plain JSON."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array of numbers: its type, shape and bytes."""
    held = np.ascontiguousarray(array)
    about = f"{held.dtype}{held.shape}".encode()
    return hashlib.sha256(about + held.tobytes()).hexdigest()


def read_kept(path: Path, key: str) -> Any:
    """What was kept with this key; None where nothing was, or it is damaged: it is made again."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held.get("value") if isinstance(held, dict) and held.get("key") == key else None


def write_kept(path: Path, key: str, value: Any) -> None:
    """Whole or not at all. Raises what JSON raises for a value that it does not take."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command_line.write_json(path, {"key": key, "value": value})


def file_name(name: str) -> str:
    """Another one for every name, upper and lower case included: its plain part and a digest."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:PLAIN]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:DIGITS]}"


def kept(folder: Path, name: str, made_of: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns, from disk if it was made of the same before, by the same code.

    name: which may hold anything, as columns of the metadata may be called like a path.
    """
    path = folder / f"{file_name(name)}.json"
    key = key_of([sources_digest("."), name, made_of])  # the whole package: who asks counts too
    value = read_kept(path, key)
    if value is None:
        value = make()
        write_kept(path, key, value)
    return value

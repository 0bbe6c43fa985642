"""Which code made a result: what is kept on disk is made again once its code is another."""

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@functools.cache
def sources_digest(*folders: str) -> str:
    """SHA-256 of all Python files in these folders of the package, names and texts."""
    found = hashlib.sha256()
    for folder in sorted(folders):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            found.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0")
            found.update(path.read_bytes() + b"\0")
    return found.hexdigest()

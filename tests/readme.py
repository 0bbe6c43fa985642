"""The commands that README.md and others show, for the tests that run them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(path: Path = ROOT / "README.md") -> list[list[str]]:
    """Every line of every bash block of a page, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.strip()]


def module_arguments(module: str, *having: str, **replace: str) -> list[str]:
    """The words after `-m` of the one command of `module` with these words; PATH is replaced."""
    (found,) = [words for words in commands() if {module, *having} <= set(words)]
    words = found[found.index(module) :]
    for old, new in replace.items():
        words = [re.sub(rf"\b{old}\b", new, word) for word in words]
    return words

"""Benchmarks by the names that a config gives them; a user's own file is one more."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.few_shot import FewShot
from bioimg_jax.benchmarks.knn import Knn
from bioimg_jax.benchmarks.linear import Linear
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.errors import InputError
from bioimg_jax.extensions import check_name, load_build

KEY = "evaluate.benchmarks"


def find_benchmarks(text: str, options: Mapping[str, Any]) -> list[Benchmark]:
    """The benchmarks of "linear,knn,own.py", in their order; the first one is the primary one.

    A part that ends with .py is a file with a function `build() -> Benchmark`. options:
    "strengths" of the linear probe; the others have no option. Raises `InputError`.
    """
    makers: dict[str, Callable[[], Benchmark]] = {
        "linear": lambda: Linear(tuple(options["strengths"])),
        "knn": Knn,
        "few_shot": FewShot,
        "ridge": Ridge,
    }
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{KEY}: {text!r}, expected some of {', '.join(makers)}")
    found: list[Benchmark] = []
    for part in parts:
        if part.endswith(".py"):
            benchmark = load_build(Path(part), KEY)()
            check_name(benchmark.name, {*makers, *(b.name for b in found)}, f"{KEY}: {part}")
        elif part in makers:
            benchmark = makers[part]()
        else:
            raise InputError(
                f"{KEY}: {part!r}, expected some of {', '.join(makers)} or a Python file"
            )
        if any(benchmark.name == other.name for other in found):
            raise InputError(f"{KEY}: {text!r} names {benchmark.name!r} twice")
        found.append(benchmark)
    return found

"""Benchmarks by the names that a config gives them; a user's own file is one more."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bioimg_jax.benchmarks.attentive import Attentive
from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.few_shot import FewShot
from bioimg_jax.benchmarks.knn import Knn
from bioimg_jax.benchmarks.linear import Linear
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.extensions import check_name, digest, load_build, where_it_failed
from bioimg_jax.features.table import FeatureTable

KEY = "evaluate.benchmarks"
CONTRACT = ("name", "identity", "fits", "operations", "check", "scores")


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
        "attentive": Attentive,
    }
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{KEY}: {text!r}, expected some of {', '.join(makers)}")
    found: list[Benchmark] = []
    for part in parts:
        if part.endswith(".py"):
            benchmark = _own(Path(part))
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


def _own(path: Path) -> Benchmark:
    """What the file builds, if it keeps the contract."""
    benchmark = load_build(path, KEY)()
    missing = [member for member in CONTRACT if not hasattr(benchmark, member)]
    if missing:
        raise InputError(f"{KEY}: {path}: what build() returns has no {missing[0]!r}")
    return _Own(benchmark, path, digest(path))


@dataclasses.dataclass(frozen=True)
class _Own:
    """A user's benchmark. Its code is part of its identity, or scores outlive a change of it."""

    benchmark: Benchmark
    path: Path
    file: str  # SHA-256 of its text

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"own": self.benchmark.identity, "file": self.file}

    @property
    def tokens(self) -> bool:
        return getattr(self.benchmark, "tokens", False)

    @property
    def fits(self) -> int:
        return self.benchmark.fits

    def operations(self, fold: Fold, width: int, n_classes: int) -> float:
        return self.benchmark.operations(fold, width, n_classes)

    def check(self, target: Target) -> None:
        self.benchmark.check(target)

    def scores(
        self, table: FeatureTable, folds: Sequence[Fold], target: Target, **about: Any
    ) -> list[Score]:
        try:
            return self.benchmark.scores(table, folds, target, **about)
        except InputError:
            raise
        except Exception as error:
            what = f"{self.name} on {target.name} could not score {about['representation']}"
            raise InputError(
                f"{KEY}: {what}: {where_it_failed(error, self.path)}; what is finished is kept"
            ) from error

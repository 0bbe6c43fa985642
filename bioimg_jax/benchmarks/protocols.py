"""The field's protocols on profiles, by the names that a config gives them.

Each reads columns of the metadata by fixed names; one whose column is not there is not run, and
says which. `Protocol.target` is what a score is of: its unit, its label and its metric.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.moa import DEEPPROFILER, NSC, UNIDINO, Moa
from bioimg_jax.benchmarks.retrieval import METRIC, Activity, Consistency
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, target_rows
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, controls_of

COMPOUND, DOSE, CLASS, PLATE, BATCH = "compound", "dose", "moa", "plate", "batch"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A benchmark of profiles and what it is asked; needs: the columns it reads."""

    benchmark: Benchmark
    target: Target
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.benchmark.name

    def fold(self, obs: pd.DataFrame) -> Fold:
        """The wells it is about: those with a label that are no controls. There is no training."""
        wells = target_rows(obs, self.target)
        wells = wells[~controls_of(obs)[wells]]
        if not len(wells):
            raise InputError(
                f"{self.name}: no well that is no control has a {self.target.column!r}"
            )
        nobody = np.array([], np.int64)
        return Fold("all", nobody, nobody, wells, self.target.unit)


def find_protocols(
    text: str, columns: Sequence[str], *, average: str, permutations: int, seed: int
) -> tuple[list[Protocol], dict[str, str]]:
    """Those of "nsc,activity" whose columns are there, in their order; and why others are not run.

    columns: of the metadata. A treatment is a compound at a dose, where there is a column `DOSE`.
    Raises `InputError` for a name that there is not, one given twice, or none at all.
    """
    treatment = (COMPOUND, DOSE) if DOSE in columns else (COMPOUND,)
    plate = (PLATE,) if PLATE in columns else ()

    def moa(rule: str, *batch: str) -> Protocol:
        benchmark = Moa(rule, average=average, treatment=treatment, batch=batch)
        return Protocol(benchmark, _target(benchmark.name, CLASS, "accuracy"),
                        (COMPOUND, CLASS, *batch))  # fmt: skip

    def activity() -> Protocol:
        benchmark = Activity(treatment, plate, permutations=permutations, seed=seed)
        return Protocol(benchmark, _target(benchmark.name, COMPOUND, METRIC), (COMPOUND, CONTROL))

    def consistency() -> Protocol:
        benchmark = Consistency(treatment, average)
        return Protocol(benchmark, _target(benchmark.name, CLASS, METRIC), (COMPOUND, CLASS))

    makers: dict[str, Callable[[], Protocol]] = {
        "nsc": lambda: moa(NSC),
        "nscb_deepprofiler": lambda: moa(DEEPPROFILER, BATCH),
        "nscb_unidino": lambda: moa(UNIDINO, BATCH),
        "activity": activity,
        "consistency": consistency,
    }
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise InputError(f"evaluate.benchmarks: {text!r}, expected some of {', '.join(makers)}")
    found, missing = [], {}
    for name in names:
        if name not in makers:
            raise InputError(f"evaluate.benchmarks: {name!r}, expected some of {', '.join(makers)}")
        protocol = makers[name]()
        absent = [column for column in protocol.needs if column not in columns]
        if absent:
            missing[name] = f"the metadata have no column {' and no column '.join(absent)}"
        else:
            found.append(protocol)
    return found, missing


def _target(name: str, column: str, metric: str) -> Target:
    about: dict[str, Any] = {"split": "leave_one_out", "metric": metric}
    return Target(name=name, column=column, unit=(COMPOUND,), **about)

"""A score: one row of results.json."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from bioimg_jax.benchmarks.answers import Answers

SCHEMA_VERSION = 5  # of results.json, whose rows these are; docs/results_schema.md has its rules
SELECTED = "selected"  # block and pooling of the row whose layer was chosen on validation units


@dataclasses.dataclass(frozen=True)
class Score:
    """One representation, at one block and pooling, on one target.

    value: mean of `per_unit`, the metric inside each unit of independence of the test side.
    interval: 95 % of the mean over units, None for fewer than 4 units.
    chance, ceiling: of the metric; ceiling None where unknown, and in results what the truth of the
      target scores, where the data set knows it (`ladder.with_ceilings`).
    unit: the metadata columns whose joint value is the unit of independence.
    exposure: what the encoder saw of the test side: "none", "images", "labels" or "unknown".
    search_budget: how many candidates validation chose from.
    unit_rows: test rows (images, or profiles of `Target.aggregate`) behind each unit's value, as
      many as an even sample of its classes has.
    verdict: of the encoder's chosen layer, from `statistics.verdict`; "confounded" for every row of
      a target that the audit has ruled out; else "".
    answers: of the row whose layer was chosen, for scores to be counted again; in no row of JSON.
    """

    benchmark: str
    target: str
    split: str
    metric: str
    higher_is_better: bool | None
    chance: float | None
    ceiling: float | None
    representation: str
    kind: str
    block: str
    pooling: str
    seed: int | None  # None: seeds averaged
    value: float
    per_unit: dict[str, float]
    interval: tuple[float, float] | None
    n_units: int
    unit: tuple[str, ...]
    exposure: str
    search_budget: int
    other_metrics: dict[str, float | None] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    unit_rows: dict[str, int] = dataclasses.field(default_factory=dict)
    verdict: str = ""
    answers: Answers | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_row(self) -> dict[str, Any]:
        """The row as JSON takes it."""
        row = dataclasses.asdict(dataclasses.replace(self, answers=None))
        del row["answers"]
        row["interval"] = None if self.interval is None else list(self.interval)
        row["unit"] = list(self.unit)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Score":
        """The score that `to_row` made this of."""
        interval = row["interval"]
        interval = None if interval is None else tuple(interval)
        return cls(**{**row, "interval": interval, "unit": tuple(row["unit"])})


def headline_rows(
    rows: Iterable[Mapping[str, Any]], target: str, benchmark: str
) -> list[Mapping[str, Any]]:
    """Of `Score.to_row` rows one a representation: what tables and charts show.

    The layer chosen on validation units, or the last one where there was nothing to choose; the
    average of a group of seeds in place of its members.
    """
    by_representation: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row["target"], row["benchmark"]) == (target, benchmark):
            by_representation.setdefault(row["representation"], []).append(row)
    averaged = {name for name, rows in by_representation.items() if rows[-1]["seed"] is None}
    return [
        next((row for row in rows if row["block"] == SELECTED), rows[-1])
        for name, rows in by_representation.items()
        if name in averaged or rows[-1]["settings"].get("group", "") not in averaged
    ]

"""`results.csv`: the scores of results.json, one row a score, for a spreadsheet or pandas."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "benchmark", "target", "representation", "kind", "block", "pooling", "seed", "metric",
    "higher_is_better", "value", "lower", "upper", "n_units", "unit", "chance", "ceiling",
    "exposure", "search_budget", "verdict", "split",
)  # fmt: skip


def write_csv(workdir: Path) -> Path:
    """Writes `results.csv` from `results.json`; UTF-8, quoted as RFC 4180 says."""
    rows = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["scores"]
    for row in rows:
        row["lower"], row["upper"] = row["interval"] or (None, None)
        row["unit"] = "/".join(row["unit"])
    path = workdir / "results.csv"
    write_rows(path, rows, COLUMNS)
    return path


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """A csv file of rows, by default of all columns of the first one; whole or not at all."""
    columns = list(rows[0]) if columns is None else columns
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    os.replace(temporary, path)


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return value

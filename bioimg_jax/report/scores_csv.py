"""`results.csv`: the scores of results.json, one row a score, for a spreadsheet or pandas."""

import csv
import json
import os
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
    path = workdir / "results.csv"
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            lower, upper = row["interval"] or (None, None)
            unit = "/".join(row["unit"])
            values = {**row, "lower": lower, "upper": upper, "unit": unit}
            writer.writerow([_cell(values[column]) for column in COLUMNS])
    os.replace(temporary, path)
    return path


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return value

"""calibration.json in, `calibration.html` and `calibration.md` out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bioimg_jax.errors import InputError
from bioimg_jax.report.page import environment
from bioimg_jax.representations.representation import KINDS

PAGE, TEXT = "calibration.html", "calibration.md"


def write_calibration(workdir: Path) -> Path:
    """Writes the page and the same tables as text; `InputError` for a missing file."""
    path = workdir / "calibration.json"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except ValueError:
        raise InputError(f"{path} is not readable JSON") from None
    tables = [_table(found["outcomes"], name) for name in _benchmarks(found["outcomes"])]
    page = workdir / PAGE
    template = environment().get_template("calibration.html")
    page.write_text(template.render(found=found, tables=tables), encoding="utf-8")
    (workdir / TEXT).write_text(_text(found, tables), encoding="utf-8")
    return page


def _benchmarks(outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(outcome["benchmark"] for outcome in outcomes))


def _table(outcomes: Sequence[Mapping[str, Any]], benchmark: str) -> dict[str, Any]:
    """A benchmark's rows: preset and target by representation, each a share of the ceiling."""
    mine = [outcome for outcome in outcomes if outcome["benchmark"] == benchmark]
    columns: dict[str, str] = {}
    for outcome in mine:
        for one in outcome["shown"]:
            if one["kind"] != "truth":
                columns.setdefault(_column(one), one["kind"])
    order = sorted(columns, key=lambda name: KINDS.index(columns[name]))
    rows = []
    for outcome in mine:
        cells = {_column(one): _cell(one) for one in outcome["shown"]}
        rows.append({"about": outcome, "cells": [cells.get(name) for name in order]})
    return {"benchmark": benchmark, "columns": order, "rows": rows}


def _column(one: Mapping[str, Any]) -> str:
    """Metadata of different targets are one column, as are the encoders of one recipe."""
    return "metadata" if one["kind"] == "metadata" else str(one["representation"])


def _cell(one: Mapping[str, Any]) -> dict[str, Any]:
    interval, share = one["interval"], one["share"]
    limits = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return {
        "value": one["value"],
        "title": f"{one['value']:.3f}{limits}, {share:.0%} of the ceiling",
        "shade": round(min(max(share, 0.0), 1.0), 2),
    }


def _text(found: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> str:
    """The same as Markdown."""
    lines = ["| preset | what must hold | what was found | |", "|---|---|---|---|"]
    for check in found["checks"]:
        lines.append(
            f"| {check['preset']} | {check['expected']} | {check['found']} | "
            f"{'holds' if check['holds'] else '**does not hold**'} |"
        )
    for table in tables:
        lines += ["", f"`{table['benchmark']}`:", ""]
        lines.append("| preset | target | n test | chance | truth | "
                     + " | ".join(table["columns"]) + " | verdict |")  # fmt: skip
        lines.append("|---" * (len(table["columns"]) + 6) + "|")
        for row in table["rows"]:
            about = row["about"]
            ceiling = "" if about["ceiling"] is None else f"{about['ceiling']:.3f}"
            cells = ["" if cell is None else f"{cell['value']:.3f}" for cell in row["cells"]]
            words = "; ".join(dict.fromkeys(about["verdicts"].values())) or about["confounded"]
            lines.append(
                f"| {about['preset']} | {about['target']} | {about['n_test']:,} | "
                f"{about['chance']:.3f} | {ceiling} | {' | '.join(cells)} | {words} |"
            )
    return "\n".join(lines) + "\n"

"""calibration.json in, `calibration.html` and `calibration.md` out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bioimg_jax.benchmarks.ladder import STEP0, TRUTH
from bioimg_jax.errors import InputError
from bioimg_jax.report.page import environment
from bioimg_jax.representations.representation import KINDS

PAGE, TEXT = "calibration.html", "calibration.md"
RESUMED = " (the last of several calls: what the others had finished was used again)"
MOST_FACTORS = 4  # that the text names


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
    best = _best(found["outcomes"])
    page = workdir / PAGE
    template = environment().get_template("calibration.html")
    html = template.render(found=found, tables=tables, best=best)
    page.write_text(html, encoding="utf-8")
    (workdir / TEXT).write_text(_text(found, tables, best), encoding="utf-8")
    return page


def _benchmarks(outcomes: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(outcome["benchmark"] for outcome in outcomes))


def _best(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each benchmark finds of what a label was drawn from: the best that is not the truth.

    Of targets that several benchmarks were tried on.
    """
    by_target: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for outcome in outcomes:
        by_target.setdefault((outcome["preset"], outcome["target"]), {})[outcome["benchmark"]] = (
            outcome
        )
    several = [of for of in by_target.values() if len(of) > 1]
    columns = list(dict.fromkeys(benchmark for of in several for benchmark in of))
    rows = []
    for of in several:
        first = next(iter(of.values()))
        cells = [_best_of(of[name]) if name in of else "" for name in columns]
        about = [first["preset"], _factors(first["factors"]), first["target"]]
        rows.append([*about, *cells])
    return {"columns": columns, "rows": rows}


def _best_of(outcome: Mapping[str, Any]) -> str:
    others = [one for one in outcome["shown"] if one["kind"] != TRUTH]
    best = max(others, key=lambda one: one["value"])
    return f"{_column(best)} {best['share']:.0%}"


def _table(outcomes: Sequence[Mapping[str, Any]], benchmark: str) -> dict[str, Any]:
    """A benchmark's rows: preset and target by representation, each a share of the ceiling."""
    mine = [outcome for outcome in outcomes if outcome["benchmark"] == benchmark]
    columns: dict[str, str] = {}
    for outcome in mine:
        for one in outcome["shown"]:
            if one["kind"] != TRUTH:
                columns.setdefault(_column(one), one["kind"])
    order = sorted(columns, key=lambda name: KINDS.index(columns[name]))
    rows = []
    for outcome in mine:
        cells: dict[str, list[dict[str, Any]]] = {}
        for one in outcome["shown"]:
            cells.setdefault(_column(one), []).append(_entry(one))
        reached = [one["name"] for name in order for one in cells.get(name, ()) if one["reaches"]]
        rows.append(
            {
                "about": outcome,
                "factors": _factors(outcome["factors"]),
                "truth": _truth(outcome),
                "cells": [cells.get(name, []) for name in order],
                "reached": reached,
            }
        )
    return {"benchmark": benchmark, "columns": order, "rows": rows}


def _column(one: Mapping[str, Any]) -> str:
    """Encoders differ from preset to preset: what they are is the column, as with metadata."""
    if one["kind"] == "untrained":
        return "its step 0" if str(one["representation"]).endswith(STEP0) else "random"
    columns = {"metadata": "metadata", "trained": "encoder"}
    return columns.get(one["kind"], str(one["representation"]))


def _entry(one: Mapping[str, Any]) -> dict[str, Any]:
    interval, share = one["interval"], one["share"]
    limits = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return {
        "name": one["representation"],
        "value": one["value"],
        "title": f"{one['representation']} {one['value']:.3f}{limits}, {share:.0%} of the ceiling",
        "shade": round(min(max(share, 0.0), 1.0), 2),
        "reaches": one["reaches"],
    }


def _text(
    found: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], best: Mapping[str, Any]
) -> str:
    """The same as Markdown."""
    checks, audits = found["checks"], found["audits"]
    processes = "1 process" if found["processes"] == 1 else f"{found['processes']} processes"
    lines = [
        f"`{found['command']}`, {found['started'][:10]}: {found['wall_s'] / 60:.1f} minutes in "
        f"{processes} on {found['devices']}, JAX {found['jax']}{RESUMED * found['resumed']}; "
        f"seed {found['seed']} of weights and batches. "
        f"{sum(check['holds'] for check in checks)} of {len(checks)} statements hold.",
        "",
    ]
    lines += _lines(
        ("preset", "what must hold", "what was found", ""),
        (
            (c["preset"], c["expected"], c["found"], "holds" if c["holds"] else "**does not hold**")
            for c in checks
        ),
    )
    lines += ["", "The best that is not the truth, and its share of what the ceiling lies above "
              "chance:", ""]  # fmt: skip
    lines += _lines(("preset", "factors", "target", *best["columns"]), best["rows"])
    for table in tables:
        lines += [
            "",
            f"`{table['benchmark']}`, **bold** where the ceiling is reached, "
            "a / b of two encoders:",
            "",
        ]
        columns = ("preset", "factors", "target", "n test", "chance", "truth")
        lines += _lines((*columns, *table["columns"], "verdict"), map(_row, table["rows"]))
    lines += ["", "Data sets and encoders:", ""]
    lines += _lines(
        ("preset", "data set", "options", "seed", "content hash", "minutes"),
        (
            (d["preset"], f"`{d['name']}/{d['config']}`", f"`{d['options']}`" if d["options"]
             else "", str(d["seed"]), f"`{d['content_hash'][:16]}`",
             f"{found['took_s'][d['preset']] / 60:.1f}")
            for d in found["data"]
        ),
    )  # fmt: skip
    lines += [""]
    lines += _lines(
        ("encoder", "trained on", "from the weights of", "steps", "minutes"),
        (
            (e["encoder"], f"`{e['trained_on']}`", e["starts_from"], str(e["step"]),
             f"{e['took_s'] / 60:.1f}")
            for e in found["encoders"]
        ),
    )  # fmt: skip
    lines += ["", "How often the metadata audit says confounded, over seeds of the design:", ""]
    lines += _lines(
        ("design", "target", "seeds", "confounded", "95 %"),
        (
            (a["design"], a["target"], str(a["seeds"]), str(a["confounded"]),
             f"{a['interval'][0]:.3f} to {a['interval'][1]:.3f}")
            for a in audits
        ),
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _factors(names: Sequence[str]) -> str:
    more = len(names) - MOST_FACTORS
    few = names if more <= 0 else [*names[:MOST_FACTORS], f"{more} more"]
    return ", ".join(few)


def _truth(outcome: Mapping[str, Any]) -> str:
    """The score of the truth; nothing where a label was drawn from no factor."""
    shown = any(one["kind"] == TRUTH for one in outcome["shown"])
    return f"{outcome['ceiling']:.3f}" if shown else ""


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    about = row["about"]
    words = " / ".join(word or "none" for word in about["verdicts"].values())
    return (
        about["preset"], row["factors"], about["target"], f"{about['n_test']:,}",
        f"{about['chance']:.3f}", row["truth"], *map(_cell, row["cells"]),
        words or about["confounded"],
    )  # fmt: skip


def _cell(entries: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"{one['value']:.3f}" for one in entries]
    return " / ".join(
        f"**{text}**" if one["reaches"] else text for one, text in zip(entries, shown, strict=True)
    )


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    found = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return found + [f"| {' | '.join(row)} |" for row in rows]

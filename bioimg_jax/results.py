"""What an evaluation leaves: results.json, results.csv, report.html and the table it prints."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bioimg_jax
from bioimg_jax import command_line
from bioimg_jax.benchmarks.score import SCHEMA_VERSION, headline_rows
from bioimg_jax.candidates import Trained
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold, rows_of
from bioimg_jax.statistics.verdict import UNCORRECTED

RESULTS, REPORT = "results.json", "report.html"


def encoder_row(one: Trained) -> dict[str, Any]:
    """What a trained encoder is and what it has seen."""
    meta = one.saved.meta
    return {
        "name": one.name,
        "kind": "trained",
        "seed": meta["seed"],
        "step": one.saved.step,
        "images_seen": one.saved.step * meta["batch_size"],
        "checkpoint": str(one.saved.directory),
        "encoder": meta["encoder"],
        "objective": meta["objective"],
        "trained_on": meta["data"],
        "starts_from": _origin(meta),
    }


def _origin(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """The training that an encoder starts from, and that one's own."""
    before = meta.get("starts_from")
    if before is None:
        return None
    return {
        "seed": before["seed"],
        "step": before["step"],
        "objective": before["objective"],
        "trained_on": before["data"],
        "starts_from": _origin(before),
    }


def target_row(
    target: Target,
    dataset: Dataset,
    rows: np.ndarray,
    folds: Mapping[str, Sequence[Fold]],
    audited: dict[str, Any],
) -> dict[str, Any]:
    """A target and its metadata audit; rows: the examples that its folds count."""
    used = rows_of(folds[target.name])
    labels = dataset.metadata[target.column].iloc[rows[used]]
    return {
        "name": target.name,
        "column": target.column,
        "unit": list(target.unit),
        "aggregate": list(target.aggregate),
        "n_classes": int(labels.nunique()),
        "n_examples": len(used),
        "nuisance": target.nuisance,
        "verdict": audited["verdict"],
        "reason": audited["reason"],
        "audit": audited,
    }


def published(about: Mapping[str, Any]) -> dict[str, Any]:
    """A target's row without what each column scores in each unit, which only verdicts need."""
    audited = {k: v for k, v in about["audit"].items() if k != "rivals"}
    return {**about, "audit": audited}


def about_run(
    *, seed: int, n_devices: int, command: str, start: float, kind: str, **more: Any
) -> dict[str, Any]:
    """The "run" section of the results; `start`: `time.time()` when it began."""
    return {
        "kind": kind,
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
        "wall_s": round(time.time() - start, 1),
        "seed": seed,
        "devices": f"{n_devices} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        **more,
    }


def publish(workdir: Path, run: Mapping[str, Any], results: dict[str, Any]) -> None:
    """Writes results.json, results.csv and report.html, and prints the short table."""
    from bioimg_jax.report import write_csv, write_report

    results = {
        "schema_version": SCHEMA_VERSION,
        "bioimg_jax": bioimg_jax.__version__,
        "run": run,
        **results,
    }
    command_line.write_json(workdir / RESULTS, results)
    write_csv(workdir)
    report = write_report(workdir)
    print(summary(results))
    print(f"\nreport: {report}")


def summary(results: Mapping[str, Any]) -> str:
    """The short table a run ends with: the layer chosen on validation, every target."""
    lines = []
    for benchmark in results["benchmarks"]:
        for target in results["targets"]:
            rows = headline_rows(results["scores"], target["name"], benchmark)
            if not rows:  # a benchmark of one's own may have nothing to say of a target
                continue
            note = "nuisance target: score, no verdict" if target["nuisance"] else target["verdict"]
            chance = "" if rows[0]["chance"] is None else f", chance {rows[0]['chance']:.3f}"
            classes = f", {target['n_classes']} classes" if target["n_classes"] else ""
            lines.append(
                f"\n{target['name']}, {benchmark}: {rows[0]['metric']}{classes}{chance}"
                + (f" ({note})" if note else "")
            )
            for row in rows:
                interval = row["interval"]
                shown = (
                    "no interval" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
                )
                spread = row["settings"].get("seed_sd")
                seeds = "" if spread is None else f"  sd over seeds {spread:.3f}"
                lines.append(f"  {row['representation']:<24} {row['value']:.3f}  {shown}{seeds}")
            for verdict in results["verdicts"]:
                key = (verdict["benchmark"], verdict["target"])
                if key == (benchmark, target["name"]) and not target["nuisance"]:
                    word = verdict["word"] or "no verdict"
                    line = f"  verdict on {verdict['encoder']}: {word} - {verdict['why']}"
                    notes = [n for n in verdict["qualified_by"] if UNCORRECTED in n]
                    lines.append(line + "".join(f" ({note})" for note in notes))
    return "\n".join(lines)

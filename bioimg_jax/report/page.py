"""Work directory in, `report.html` out: one file, no network, no script."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from bioimg_jax.benchmarks.score import headline_rows
from bioimg_jax.errors import InputError
from bioimg_jax.logbook import read_logbook
from bioimg_jax.report import figures

SCHEMA_VERSION = 3
KIND_ORDER = (
    "trained",
    "imported",
    "untrained",
    "combined",
    "pixels",
    "count",
    "layout",
    "texture",
)


def write_report(workdir: Path) -> Path:
    """Writes `report.html` from config.json, logbook.jsonl, results.json and examples.npz.

    The last is optional: not every objective draws pictures. Raises `InputError` that names a
    missing or foreign file.
    """
    config, results = (_read_json(workdir / name) for name in ("config.json", "results.json"))
    if results.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{workdir / 'results.json'} has schema_version {results.get('schema_version')!r}; "
            f"expected {SCHEMA_VERSION}"
        )
    entries = read_logbook(workdir / "logbook.jsonl")
    page = _environment().get_template("template.html").render(
        title=f"{config.get('name', 'run')} on {results['data']['name']}",
        results=results,
        run=results["run"],
        data=results["data"],
        summary=_summary(results),
        training=_training(entries),
        normalised=config.get("objective", {}).get("normalise_targets", False),
        pictures=_pictures(workdir / "examples.npz", results["data"]["channels"]),
        targets=[_target(target, results) for target in results["targets"]],
        settings=_flatten(config),
    )  # fmt: skip
    path = workdir / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    environment.filters["capfirst"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    return environment


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the report needs {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error


def _training(entries: list[dict[str, Any]]) -> dict[str, str]:
    logged = [entry for entry in entries if isinstance(entry.get("loss"), float)]
    probes = [entry for entry in entries if "probe" in entry]
    shown = {}
    if logged:
        shown["Loss and learning rate"] = figures.as_data_uri(figures.training_curves(logged))
    if len(probes) > 1:
        shown["Score of the frozen encoder on the way (a subset, one layer)"] = figures.as_data_uri(
            figures.score_curve(probes)
        )
    return shown


def _pictures(path: Path, channels: list[str]) -> str:
    if not path.exists():
        return ""
    with np.load(path, allow_pickle=False) as arrays:
        pictures = {name: arrays[name] for name in arrays.files}
    return figures.as_data_uri(figures.reconstructions(pictures, channels), kind="png")


def _target(target: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    scores = results["scores"]
    mine = [row for row in scores if row["target"] == target["name"]]
    shown = headline_rows(
        scores, target["name"], results["benchmarks"][0]
    )  # all layers and seeds are in a table below
    shown.sort(key=lambda row: (_order(row["kind"]), row["representation"]))
    chart = figures.as_data_uri(figures.target_chart(shown)) if shown else ""
    verdicts = [v for v in results["verdicts"] if v["target"] == target["name"]]
    return {"about": target, "shown": shown, "all": mine, "chart": chart, "verdicts": verdicts}


def _order(kind: str) -> int:
    return KIND_ORDER.index(kind) if kind in KIND_ORDER else len(KIND_ORDER)


def _summary(results: Mapping[str, Any]) -> list[str]:
    """The outcome in sentences, without a word the statistics do not carry."""
    sentences = [
        f"{one['name']} was trained on {one['images_seen']:,} crops of {one['trained_on']['name']} "
        "(no labels) and then frozen."
        for one in results["encoders"]
    ]
    for target in results["targets"]:
        if target["nuisance"]:
            continue
        rows = headline_rows(results["scores"], target["name"], results["benchmarks"][0])
        trained = next((r for r in rows if r["kind"] == "trained"), None)
        twin = next((r for r in rows if r["representation"].endswith("_step0")), None)
        if trained is None or twin is None:
            continue
        sentence = (
            f"{target['name']}: trained {trained['value']:.3f}, its own step-0 weights "
            f"{twin['value']:.3f}, chance {trained['chance']:.3f} "
            f"({trained['metric'].replace('_', ' ')})"
        )
        for verdict in results["verdicts"]:
            if (verdict["target"], verdict["encoder"]) == (
                target["name"], trained["representation"],
            ):  # fmt: skip
                sentence += f" – {verdict['word'] or 'no verdict'}: {verdict['why']}"
        sentences.append(sentence + ".")
        for row in rows:
            if held_out := row["settings"].get("held_out"):
                with_images = np.mean([trained["per_unit"][unit] for unit in row["per_unit"]])
                sentences.append(
                    f"{target['name']} on {held_out} alone: {row['value']:.3f} when trained "
                    f"without its images, {with_images:.3f} when trained with them."
                )
    return sentences


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat

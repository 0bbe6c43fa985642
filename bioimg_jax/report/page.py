"""Work directory in, `report.html` out: one file that needs no network."""

import base64
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

from bioimg_jax.benchmarks.ladder import CHANCE, FAMILY, OWN, STEP0, TRUTH, truth_name
from bioimg_jax.benchmarks.score import SCHEMA_VERSION, SELECTED, headline_rows
from bioimg_jax.command_line import flatten
from bioimg_jax.errors import InputError
from bioimg_jax.logbook import read_logbook
from bioimg_jax.report import figures
from bioimg_jax.statistics.verdict import (
    ABOVE,
    BELOW,
    CANNOT_TELL,
    CONFOUNDED,
    NOT_RUN,
    SAME,
    SATURATED,
)

ROWS_PRINTED = 200  # of all scores; more are pages that nobody reads
LEGENDS = {
    "Geometry of the features": (
        "How many directions the last block's features use (RankMe, participation ratio, two-NN "
        "dimension, alpha of the spectrum) and how they lie (uniformity, hubness, LiDAR and "
        "alignment by groups). None of it says what a feature is about; definitions and sources "
        "stand in bioimg_jax/statistics/geometry.py."
    ),
    "Similarity of the features": (
        "1 is alike for CKA and for the share of common nearest neighbours (its chance beside it); "
        "0 is alike for the Procrustes distance."
    ),
    "Association of targets and nuisance columns": (
        "Cramér's V, 0 for none and 1 where one column gives the other away."
    ),
    "Agreement of the protocol's variants": (
        "Kendall's tau between the orders in which two variants put the same representations; the "
        "interval is over redrawn test units, and there is none for fewer than 4."
    ),
    "Beyond a confound": (
        'What a score says beyond a confound such as the number of cells; never "corrected for" '
        "it, because a count is often an effect. Conditional permutation: labels permuted inside "
        "strata of the confound, the score less the mean of that. Added value: the score of floor "
        "and encoder together less that of the floor. Residualised: the score of features without "
        "their linear fit on the confound, descriptive only. Of the rows that are left, of n."
    ),
    "Nuisance": (
        "What features know of plate, batch and well, by alignment. No direction is better: noise "
        "is perfectly mixed. Read it beside the ladders above."
    ),
    "Screening: quality of the plates": (
        "Z' and SSMD of positive against negative controls by their distance to the controls of "
        "the plate; medians over plates. All plates are in screening/plate_quality.csv."
    ),
    "Screening: hits": (
        "Treatments further from the controls of their plates than by lot, at a false discovery "
        "rate of 0.05. Not tested: their wells allow no p-value that could be a hit. The list is "
        "in screening/hits.csv."
    ),
    "Screening: hits that a floor has too": (
        "Where an encoder finds what the count finds, it finds what kills or stops growing."
    ),
    "Screening: dose response": (
        "Of the distance to controls: compounds whose wells rise with dose (p ≤ 0.05, not "
        "corrected for their number), and those with an EC50 inside the doses. The curves are in "
        "screening/dose_response.csv."
    ),
    "Screening: replicates": (
        "Treatments whose replicates are more alike than wells drawn from them and the controls, "
        "and whose wells lie away from the controls (p ≤ 0.05, not corrected for their number). "
        "All are in screening/replicate_consistency.csv."
    ),
    "Screening: edges of the plates": (
        "Distance to controls at the edge less that of the rest; positions are the units of p."
    ),
    "Symmetries tried": (
        "A probe of downsampled pixels is asked about turned test images: where its score falls, "
        "the augmentation erases what it sees of the target."
    ),
}


SCREENING = {
    "plate_quality": "quality of the plates",
    "plate_layout": "edges of the plates",
    "hits": "hits",
    "hit_overlap": "hits that a floor has too",
    "dose_response": "dose response",
    "replicate_consistency": "replicates",
    "replicate_curve": "activity over the number of replicates",
}
WORDS = (ABOVE, SAME, BELOW, SATURATED, CANNOT_TELL, CONFOUNDED, "no verdict")


def write_report(workdir: Path) -> Path:
    """Writes `report.html` from config.json and results.json.

    logbook.jsonl, examples.npz, maps.npz and gallery.npz are shown where they are. Raises
    `InputError` that names a missing or foreign file.
    """
    config, results = (_read_json(workdir / name) for name in ("config.json", "results.json"))
    if results.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{workdir / 'results.json'} has schema_version {results.get('schema_version')!r}; "
            f"expected {SCHEMA_VERSION}"
        )
    logbook = workdir / "logbook.jsonl"
    script = (Path(__file__).parent / "tables.js").read_text(encoding="utf-8")
    page = environment().get_template("template.html").render(
        title=f"{config.get('name', 'run')} on {results['data']['name']}",
        results=results,
        run=results["run"],
        data=results["data"],
        sentences=_sentences(results),
        ladders=_ladders(results),
        unranked=_unranked(results),
        in_short=_in_short(results),
        legends=LEGENDS,
        units_shown=figures.UNITS_SHOWN,
        has_truth=any(row["kind"] == TRUTH for row in results["scores"]),
        rows_printed=ROWS_PRINTED,
        beside=_beside(results),
        doubts=_doubts(results),
        blocks=_by_block(results),
        numbers=_numbers(results),
        plates=_plates(results),
        maps=_maps(workdir / "maps.npz"),
        galleries=_galleries(workdir / "gallery.npz"),
        training=_training(read_logbook(logbook) if logbook.exists() else []),
        normalised=config.get("objective", {}).get("normalise_targets", False),
        pictures=_pictures(workdir / "examples.npz", results["data"]["channels"]),
        settings=flatten(config),
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    path = workdir / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of this folder; everything put into them is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    found.filters["signed"] = lambda value: "–" if value is None else f"{value:+.3f}"
    found.filters["capfirst"] = _capital
    found.filters["plain"] = _plain
    found.filters["count"] = lambda value: f"{value:,}"
    found.filters["words"] = lambda name: str(name).replace("_", " ")
    return found


def _plain(value: object) -> str:
    """A cell of a table: numbers to three digits, nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, float) and abs(value) < 1e-9:  # what rounding left of nothing
        return "0"
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, float) else str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


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
    pictures = _arrays(path)
    if not pictures:
        return ""
    return figures.as_data_uri(figures.reconstructions(pictures, channels), kind="png")


def _ladders(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A ladder for each benchmark and target, biology before nuisance: the best rung first.

    None where no direction of the metric is better: `_unranked`.
    """
    found, unranked = [], _unranked(results)
    order = sorted(results["targets"], key=lambda target: bool(target["nuisance"]))
    for benchmark in results["benchmarks"]:
        for target in order:
            key = (benchmark, target["name"])
            rows = [r for r in results["scores"] if (r["benchmark"], r["target"]) == key]
            if not rows or key in unranked:
                continue
            verdicts = [v for v in results["verdicts"] if (v["benchmark"], v["target"]) == key]
            judged = {v["encoder"] for v in verdicts}
            floors = _floor_names(results, judged)
            rungs = []
            for row in headline_rows(results["scores"], target["name"], benchmark):
                name = row["representation"]
                role = "encoder" if name in judged else "floor" if name in floors else "shown"
                rung = floors.get(name, "")
                if (name, row["kind"]) == (truth_name(target["name"]), TRUTH):
                    rung = figures.CEILING
                rungs.append({**row, "role": role, "rung": rung})
            blank = {**rungs[0], "per_unit": {}, "interval": None, "settings": {},
                     "exposure": "none", "search_budget": 1}  # fmt: skip
            if CHANCE in results["floors"] and rows[0]["chance"] is not None:
                rungs.append({**blank, "representation": CHANCE, "role": "floor", "rung": CHANCE,
                              "value": rows[0]["chance"], "kind": CHANCE})  # fmt: skip
            rungs += _selected(results, benchmark, target["name"], blank)
            if (best := target["audit"].get("best")) is not None:
                rungs.append({**blank, "representation": f"metadata: {best['columns']}",
                              "role": "shown", "rung": "audit", "value": best["score"],
                              "interval": best["interval"], "kind": "metadata"})  # fmt: skip
            rungs.sort(key=lambda row: (-row["value"], row["representation"]))
            if not rows[0]["higher_is_better"]:
                rungs.reverse()
            found.append({
                "benchmark": benchmark,
                "about": target,
                "rungs": rungs,
                "first": rows[0],
                "chart": figures.as_data_uri(figures.ladder(rungs)),
                "verdicts": verdicts,
            })  # fmt: skip
    return found


def _unranked(results: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """(benchmark, target) -> metric of the scores of which no direction is better: no ladder."""
    return {
        (row["benchmark"], row["target"]): row["metric"]
        for row in results["scores"]
        if row["higher_is_better"] is None
    }


def _floor_names(results: Mapping[str, Any], encoders: set[str]) -> dict[str, str]:
    """Representation -> id of the floor that it is, of the floors that the config listed."""
    found: dict[str, str] = {}
    for floor in results["floors"]:
        if floor in OWN:
            found |= {encoder + OWN[floor]: floor for encoder in encoders}
        else:
            found[floor] = floor
    return found


def _selected(
    results: Mapping[str, Any], benchmark: str, target: str, blank: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The rungs of the floor "selected": one, or one for each encoder where they differ."""
    rows = results["selected"].get(benchmark, {}).get(target, {})
    if FAMILY not in results["floors"]:
        return []
    distinct: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for encoder, row in rows.items():
        if row is not None:
            distinct.setdefault(json.dumps(row["members"]), ([], row))[0].append(encoder)
    found = []
    for encoders, row in distinct.values():
        name = "untrained, selected"
        name += f" for {', '.join(encoders)}" if len(distinct) > 1 else ""
        found.append({
            **blank, "representation": name, "role": "floor", "rung": FAMILY, "kind": "untrained",
            "value": row["value"], "interval": row["interval"], "per_unit": row["per_unit"],
            "search_budget": row["search_budget"],
        })  # fmt: skip
    return found


def _beside(results: Mapping[str, Any]) -> str:
    """Nuisance targets beside biology, by the first benchmark; "" where one of them is not there.

    Only of metrics that are better the higher they are: above chance means nothing for others.
    """
    benchmark, lines = results["benchmarks"][0], []
    for target in sorted(results["targets"], key=lambda target: bool(target["nuisance"])):
        rows = headline_rows(results["scores"], target["name"], benchmark)
        if not any(row["higher_is_better"] for row in rows):
            continue
        values = {}
        for row in rows:
            chance, name = row["chance"], row["representation"]
            shown = row["kind"] in ("trained", "imported", "pixels") or name.endswith(STEP0)
            if shown and chance is not None and not row["settings"].get("held_out"):
                values[name] = (row["value"] - chance) / max(1 - chance, 1e-9)
        lines.append((target["name"], bool(target["nuisance"]), values))
    if len({nuisance for _, nuisance, _ in lines}) < 2:
        return ""
    return figures.as_data_uri(figures.beside(lines))


def _by_block(results: Mapping[str, Any]) -> dict[str, str]:
    """Trained against twin at every block, a chart for each biological target."""
    shown, benchmark = {}, results["benchmarks"][0]
    encoders = [one["name"] for one in results["encoders"]]
    for target in results["targets"]:
        for encoder in encoders:
            names = (encoder, encoder + STEP0)
            rows = [
                row
                for row in results["scores"]
                if (row["benchmark"], row["target"]) == (benchmark, target["name"])
                and row["representation"] in names
                and row["block"] != SELECTED
                and row["seed"] is not None
                and "held_out" not in row["settings"]
            ]
            if not target["nuisance"] and len({row["block"] for row in rows}) > 1:
                heading = f"{target['name']}: {encoder}"
                shown[heading] = figures.as_data_uri(figures.by_block(rows, names))
    return shown


def _numbers(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Tables of plain numbers: heading -> rows of the same keys; an encoder's less its twin's."""
    geometry = []
    for row in results.get("geometry") or []:
        flat = {k: v for k, v in row.items() if k not in ("minus_twin", "twin")}
        geometry.append(flat)
        if row["minus_twin"] is not None:
            name = f"{row['representation']} − {row['twin']}"
            geometry.append({**dict.fromkeys(flat), **row["minus_twin"], "representation": name})
    tables = {
        "Geometry of the features": geometry,
        "Similarity of the features": results.get("similarity") or [],
        "Association of targets and nuisance columns": results.get("association") or [],
        "Agreement of the protocol's variants": results.get("variants") or [],
        "Beyond a confound": results.get("conditional") or [],
        "Nuisance": results.get("nuisance") or [],
        **{
            f"Screening: {SCREENING.get(name, name)}": rows
            for name, rows in (results.get("screening") or {}).items()
        },
        "Symmetries tried": [
            {k: row[k] for k in ("target", "augmentation", "declared", "used_in_training",
                                 "preserves", "score", "score_transformed", "reason")}
            for row in results.get("symmetry") or []
        ],
    }  # fmt: skip
    return {heading: rows for heading, rows in tables.items() if rows}


def _in_short(results: Mapping[str, Any]) -> str:
    """The verdicts of the run in one sentence: each word, and the targets it was given."""
    nuisance = {target["name"] for target in results["targets"] if target["nuisance"]}
    unranked, several = _unranked(results), len(results["benchmarks"]) > 1
    encoders = {verdict["encoder"] for verdict in results["verdicts"]}
    given: dict[str, list[str]] = {}
    for verdict in results["verdicts"]:
        if verdict["target"] in nuisance or (verdict["benchmark"], verdict["target"]) in unranked:
            continue
        name = verdict["target"] + (f" by {verdict['benchmark']}" if several else "")
        name += f" ({verdict['encoder']})" if len(encoders) > 1 else ""
        given.setdefault(verdict["word"] or "no verdict", []).append(name)
    ordered = sorted(given, key=lambda word: (WORDS.index(word), word))
    return "; ".join(f"{word} on {', '.join(given[word])}" for word in ordered)


def _doubts(results: Mapping[str, Any]) -> list[str]:
    """What this run cannot tell, from its audits, its plan and what was left out."""
    found, unranked = [], _unranked(results)
    for target in results["targets"]:
        if target["verdict"]:
            found.append(
                f"{target['name']}: no encoder can be judged here. {_capital(target['reason'])}."
            )
    for line in results.get("plan") or []:
        key = (line["benchmark"], line["target"])
        words = {v["word"] for v in results["verdicts"] if (v["benchmark"], v["target"]) == key}
        if words - {"confounded"} and key not in unranked:
            found.append(f"{line['target']} ({line['benchmark']}), by its design: "
                         f"{line['sentence']}.")  # fmt: skip
    for floor, reason in results["omitted"].items():
        found.append(f"The floor {floor} was left out: {reason}.")
    for verdict in results["verdicts"]:
        if verdict["why"].startswith(NOT_RUN):
            found.append(f"{verdict['target']}: {verdict['why']}.")
    unknown = sorted({r["representation"] for r in results["scores"] if r["exposure"] == "unknown"})
    if unknown:
        found.append(f"Whether {', '.join(unknown)} saw the test images in training is not known.")
    for exposure, how in (("labels", "with labels"), ("images", "without labels")):
        exposed = sorted({
            (r["representation"], r["target"]) for r in results["scores"]
            if r["exposure"] == exposure and r["seed"] is not None
        })  # fmt: skip
        for name in dict.fromkeys(name for name, _ in exposed):
            targets = ", ".join(target for other, target in exposed if other == name)
            found.append(f"{name} saw test images, {how}, in training: {targets}.")
    for target, audited in (results.get("duplicates") or {}).items():
        if audited["n_duplicates"]:
            found.append(f"{target}: {audited['reason']}.")
    for line in results.get("symmetry") or []:
        if line["preserves"] is False:
            found.append(f"{line['target']}: {line['reason']}.")
    if quality := results.get("segmentation"):
        found.append(f"Nuclei: {quality['reason']}.")
    permuted = any("permute_labels_seed" in r["settings"] for r in results["scores"])
    if permuted:
        found.append("Labels were permuted: every score must be at chance, and means nothing else.")
    return found


def _labels(data: Mapping[str, Any]) -> str:
    """What of a data set besides its images a training saw."""
    return f"labels of {data['labels']['target']}" if "labels" in data else "no labels"


def _start(encoder: Mapping[str, Any]) -> str:
    """What an encoder had learned before, where it did not start from its seed."""
    before = encoder.get("starts_from")
    if before is None:
        return ""
    data = before["trained_on"]
    return f", from an encoder trained on {data['name']}, {_labels(data)}"


def _sentences(results: Mapping[str, Any]) -> list[str]:
    """What was trained, and what one fold repeated without its images is worth."""
    sentences = [
        f"{one['name']} was trained on {one['images_seen']:,} crops of {one['trained_on']['name']} "
        f"({_labels(one['trained_on'])}{_start(one)}) and then frozen."
        for one in results["encoders"]
        if "trained_on" in one and not one["trained_on"]["hold_out"]
    ]
    sentences += [
        f"{one['name']} came as features; what it has seen is not known."
        for one in results["encoders"]
        if one.get("kind") == "imported"
    ]
    sentences += [f"{k} was not run: {v}." for k, v in results.get("not_run", {}).items()]
    shared = [
        f"{table}, {alignment}"
        for alignment, tables in results.get("alignments", {}).items()
        for table, facts in tables.items()
        if facts.get("controls_shared")
    ]
    if shared:
        sentences.append(
            f"Negatives are controls that the alignment has seen, so too much is told from them: "
            f"{'; '.join(shared)}."
        )
    benchmark = results["benchmarks"][0]
    for target in results["targets"]:
        rows = headline_rows(results["scores"], target["name"], benchmark)
        trained = next((r for r in rows if r["kind"] == "trained"), None)
        for row in rows:
            held_out = row["settings"].get("held_out")
            if held_out and trained is not None:
                if row["settings"].get("per_unit") != trained["settings"].get("per_unit"):
                    continue  # pseudo-values of many units beside a share of one
                with_images = np.mean([trained["per_unit"][unit] for unit in row["per_unit"]])
                sentences.append(
                    f"{target['name']} on {held_out} alone: {row['value']:.3f} when trained "
                    f"without its images, {with_images:.3f} when trained with them."
                )
    return sentences


def _plates(results: Mapping[str, Any]) -> str:
    maps = results.get("plate_maps")
    return figures.as_data_uri(figures.plate_maps(maps), kind="png") if maps else ""


def _maps(path: Path) -> str:
    arrays = _arrays(path)
    return figures.as_data_uri(figures.maps(arrays), kind="png") if arrays else ""


def _galleries(path: Path) -> dict[str, str]:
    arrays = _arrays(path)
    return {
        str(name): figures.as_data_uri(figures.gallery(arrays, i), kind="png")
        for i, name in enumerate(arrays.get("names", ()))
    }


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; none where there is no file."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}

"""The one evaluation: representations x benchmarks x targets -> scores, verdicts, results.json.

    python -m bioimg_jax.evaluate --config=configs/eval_cells.py --checkpoint=WORKDIR --workdir=OUT

evaluates the newest checkpoint of a training, finished or still running, from the checkpoint and a
data set alone, on any number of devices. `bioimg_jax.main` does the same after a training.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bioimg_jax import command_line
from bioimg_jax.benchmarks.benchmark import layers_for
from bioimg_jax.benchmarks.ladder import cases, floor_ids, untrained_distribution, with_ceilings
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.budget import budget
from bioimg_jax.candidates import Evaluation, build_evaluation, candidates, own_floors
from bioimg_jax.checkpoint import open_checkpoint
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.design import (
    audited_targets,
    check_settings,
    chosen_benchmarks,
    plans,
    print_plan,
    probed_examples,
    subset,
)
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import FeatureTable, read_table
from bioimg_jax.illustrate import write_examples, write_illustrations
from bioimg_jax.image_audits import audits
from bioimg_jax.image_beyond import conditional_rows, n_asked
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.prepare import prepare
from bioimg_jax.results import (
    about_run,
    encoder_row,
    publish,
    published,
    target_row,
)
from bioimg_jax.scoring import (
    averaged_over_seeds,
    check_units,
    scores_of,
    selected_rows,
    table_of,
    with_verdicts,
)
from bioimg_jax.statistics.intervals import train_overlap
from bioimg_jax.statistics.verdict import judge
from bioimg_jax.stop_signal import StopSignal
from bioimg_jax.train import Config

HELP = f"""{__doc__}
--checkpoint=PATH   a work directory, or its checkpoints/STEP; several times for several rows
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where tables, results.json and report.html are kept
--plan              says which verdicts the design can reach, and stops"""


def evaluate(evaluation: Evaluation, dataset: Dataset, workdir: Path) -> dict[str, Any]:
    """Scores every representation on every benchmark and target.

    Feature tables and scores that are finished are used again. Writes examples.npz; returns the
    results. Raises `InputError` for scores that no verdict can be made of.
    """
    settings, targets = evaluation.settings, dataset.declaration.targets
    benchmarks = chosen_benchmarks(settings)
    rows, folds = subset(evaluation.config, dataset, targets, "max_examples")
    used = dataset.metadata.iloc[rows].reset_index(drop=True)
    examples = probed_examples(dataset, rows, folds, targets)
    probed = {name: one.folds for name, one in examples.items()}  # of what a probe is given
    audited = audited_targets(evaluation, examples, targets)
    to_score = candidates(evaluation, dataset)
    n_classes = {t.name: used[t.column].nunique() for t in targets}
    print(
        budget(benchmarks, to_score, probed, n_classes, n_images=len(rows),
               crop_px=evaluation.crop_px, beyond=n_asked(settings, targets)),
        file=sys.stderr,
    )  # fmt: skip
    scores: list[Score] = []
    start = time.monotonic()
    with StopSignal() as stop:
        for i, candidate in enumerate(to_score):
            path = workdir / "features" / f"{candidate.name}.h5ad"
            table = table_of(evaluation, dataset, rows, candidate, path)
            for benchmark in benchmarks:
                for target in targets:
                    allowed = (candidate.folds or {}).get(target.name)
                    if candidate.folds is not None and allowed is None:
                        continue
                    part = folds[target.name]
                    if allowed is not None:
                        part = [part[j] for j in allowed]
                    found = scores_of(
                        evaluation, dataset, rows, table.only(layers_for(benchmark, table.widths)),
                        candidate, benchmark, target, part, workdir,
                    )  # fmt: skip
                    check_units(found, scores)
                    scores += found
                    stop.leave()
            elapsed = time.monotonic() - start
            left = elapsed / (i + 1) * (len(to_score) - i - 1)
            print(
                f"{candidate.name} ({i + 1}/{len(to_score)})  "
                f"{int(left) // 60}:{int(left) % 60:02d} left",
                file=sys.stderr,
            )
    overlap = {name: train_overlap(parts) for name, parts in probed.items()}
    scores = with_ceilings([*scores, *averaged_over_seeds(scores, overlap)])
    about = [target_row(target, dataset, rows, folds, audited[target.name]) for target in targets]
    floors = floor_ids(settings["floors"])
    omitted = own_floors(evaluation).omitted
    verdicts = judge(
        cases(
            scores,
            about,
            floors,
            omitted=omitted,
            delta=settings["delta"],
            overlap=overlap,
            method=settings["claim"] == "method",
        )
    )
    selected = selected_rows(scores, verdicts, overlap)
    scores = with_verdicts(scores, audited, verdicts)

    def finished(name: str) -> FeatureTable:
        return read_table(workdir / "features" / f"{name}.h5ad")

    with StopSignal() as stop:
        conditional = conditional_rows(
            settings, benchmarks, targets, folds, scores, finished, workdir,
            seed=evaluation.config["seed"], between=stop.leave,
        )  # fmt: skip
    of_images = {}
    for name in ("examples", "maps", "gallery"):  # those of another evaluation are not shown
        (workdir / f"{name}.npz").unlink(missing_ok=True)
    if settings["audits"]:
        print("auditing images and features", file=sys.stderr)
        of_images = audits(evaluation, dataset, rows, folds, to_score, finished)
    if settings["illustrate"]:
        write_examples(evaluation, dataset, workdir)
        write_illustrations(evaluation, dataset, rows, to_score, workdir)
    return {
        "data": {
            "name": dataset.declaration.name,
            "content_hash": dataset.content_hash,
            "channels": list(dataset.declaration.channels),
            "n_examples": len(dataset),
            "n_evaluated": len(rows),
            "n_pretraining": len(dataset.pretraining_indices()),
            "splits": {
                target.name: {
                    fold.name: {
                        "train": len(fold.train),
                        "validation": len(fold.validation),
                        "test": len(fold.test),
                    }
                    for fold in folds[target.name]
                }
                for target in targets
            },
        },
        "encoders": [encoder_row(one) for one in evaluation.trained],
        "benchmarks": [benchmark.name for benchmark in benchmarks],
        "targets": [published(row) for row in about],
        "floors": list(floors),
        "omitted": omitted,
        "selected": selected,
        "plan": plans(evaluation, targets, examples, audited),
        "verdicts": [verdict.to_row() for verdict in verdicts],
        "untrained": untrained_distribution(scores),
        "scores": [score.to_row() for score in scores],
        "conditional": conditional,
        **of_images,
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(arguments, {"checkpoint": [], "workdir": "", "plan": False})
    command_line.check_sections(config, "data", "mesh", "evaluate")
    if not (given["checkpoint"] or "encoder" in config):
        raise InputError("--checkpoint=PATH is missing; for example --checkpoint=runs/mae_cells")
    if not (given["workdir"] or given["plan"]):
        raise InputError("--workdir=DIR is missing: where tables and results are kept")
    settle_cpu()
    start = time.time()
    saved = [open_checkpoint(path) for path in given["checkpoint"]]
    build_evaluation(config, None, saved)  # what is wrong without the data is told first
    dataset = prepared(config["data"])
    evaluation = build_evaluation(config, dataset.declaration.channels, saved)
    check_settings(evaluation, dataset)
    if given["plan"]:
        print_plan(evaluation, dataset)
        return
    workdir = Path(given["workdir"])
    command_line.check_not_a_training(workdir)
    with command_line.locked(workdir):
        checkpoints = [str(one.saved.directory) for one in evaluation.trained]
        record = {**config, "content_hash": dataset.content_hash, "checkpoints": checkpoints}
        command_line.write_json(workdir / "config.json", record)
        results = evaluate(evaluation, dataset, workdir)
        command = shlex.join(["python", "-m", "bioimg_jax.evaluate", *arguments[1:]])
        run = about_run(
            seed=config["seed"],
            n_devices=evaluation.mesh.size,
            command=command,
            start=start,
            kind="evaluation",
        )
        publish(workdir, run, results)


def prepared(data: Config) -> Dataset:
    """The data set of a config's "data" section, prepared now unless it is there."""
    directory = prepare(
        name=data["name"],
        config=data["config"],
        source=data["source"],
        out=data["out"],
        options=command_line.options(data["options"]),
        on_bad_image=data["on_bad_image"],
    )
    return open_dataset(directory)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

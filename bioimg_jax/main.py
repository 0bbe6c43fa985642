"""The command line: prepare, train, evaluate, report.

python -m bioimg_jax.main --config=configs/mae_cells.py [--config.KEY=VALUE ...] [--workdir=DIR]
"""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bioimg_jax import command_line
from bioimg_jax.errors import InputError

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where the run keeps its files; runs/NAME-DATA-seedN by default
--dry_run           prepares the data, prints config, splits, parameters and memory, and stops
--plan              prepares the data, says which verdicts the design can reach, and stops"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(arguments, {"workdir": "", "dry_run": False, "plan": False})
    missing = [key for key in ("encoder", "objective", "optimizer", "train") if key not in config]
    if missing:
        raise InputError(
            f"--config: this file has no section {missing[0]!r} to train by; is it for "
            "python -m bioimg_jax.evaluate?"
        )
    default = f"runs/{config['name']}-{config['data']['name']}-seed{config['seed']}"
    command = shlex.join(["python", "-m", "bioimg_jax.main", *arguments[1:]])
    workdir = Path(given["workdir"] or default)
    if given["dry_run"] or given["plan"]:
        tell(config, everything=given["dry_run"])
    else:
        run(config, workdir, command=command)


def tell(config: dict[str, Any], *, everything: bool) -> None:
    """Prepares the data and prints the plan; with `everything` all that is known before a run."""
    setup, evaluation, dataset = _set_up(config)
    if everything:
        _print_dry_run(setup, dataset)
    from bioimg_jax.design import print_plan

    print_plan(evaluation, dataset)


def run(config: dict[str, Any], workdir: Path, *, command: str) -> None:
    """Prepares the data, trains, evaluates and reports; goes on where `workdir` stopped."""
    # Imported here, so that a mistake on the command line is told in a blink.
    from bioimg_jax import evaluate, results, train
    from bioimg_jax.candidates import build_evaluation
    from bioimg_jax.checkpoint import open_checkpoint
    from bioimg_jax.train_state import count_parameters
    from bioimg_jax.training_probe import make_probe

    start = time.time()
    with command_line.locked(workdir):
        command_line.check_config(workdir, config)
        if all((workdir / name).exists() for name in (results.RESULTS, results.REPORT)):
            print(f"{workdir} is finished; report: {workdir / results.REPORT}")
            return
        setup, _, dataset = _set_up(config)
        prepared_s = time.time() - start
        print(
            f"{len(dataset):,} images of {', '.join(dataset.declaration.channels)} in "
            f"{dataset.directory}",
            file=sys.stderr,
        )
        probe = make_probe(setup, dataset, workdir)
        record = {**config, "content_hash": dataset.content_hash}
        command_line.check_config(workdir, record)
        command_line.write_json(workdir / "config.json", record)
        train.train(setup, dataset, workdir, probe=probe)
        checkpoints = [open_checkpoint(workdir)]
        trained_s = time.time() - start - prepared_s
        fold = dataset.folds(dataset.declaration.targets[0].name)[0]
        seen, _ = train.training_examples(setup, dataset)
        if (
            config["evaluate"]["inductive"]
            and dataset.declaration.pretraining == "all"
            and not set(fold.test).isdisjoint(seen)  # labels are of a train part alone
        ):
            folder = workdir / "inductive"
            folder.mkdir(exist_ok=True)
            print(f"training again without {fold.name}", file=sys.stderr)
            train.train(setup, dataset, folder, hold_out=fold)
            checkpoints.append(open_checkpoint(folder))
        evaluation = build_evaluation(config, setup.channels, checkpoints)
        found = evaluate.evaluate(evaluation, dataset, workdir)
        facts = results.about_run(
            seed=config["seed"],
            n_devices=evaluation.mesh.size,
            command=command,
            start=start,
            kind="training",
            prepare_s=round(prepared_s, 1),
            train_s=round(trained_s, 1),
            images_seen=config["train"]["steps"] * config["train"]["batch_size"],
            n_params=count_parameters(setup.states.abstract.params["encoder"]),
        )
        results.publish(workdir, facts, found)


def _set_up(config: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(training run, evaluation, data set), with everything checked that can be."""
    from bioimg_jax import design, evaluate, train
    from bioimg_jax.candidates import build_evaluation
    from bioimg_jax.mesh import settle_cpu

    settle_cpu()
    # What is wrong without the data is told before hours of preparation; channels come later.
    train.build_run(config, ("any",))
    build_evaluation(config, ("any",))
    design.chosen_benchmarks(config["evaluate"])
    dataset = evaluate.prepared(config["data"])
    channels = dataset.declaration.channels
    setup, evaluation = train.build_run(config, channels), build_evaluation(config, channels)
    design.check_settings(evaluation, dataset)
    design.subset(config, dataset, dataset.declaration.targets[:1], "probe_examples")
    train.training_examples(setup, dataset)
    return setup, evaluation, dataset


def _print_dry_run(setup: Any, dataset: Any) -> None:
    from bioimg_jax import train
    from bioimg_jax.train_state import count_parameters

    print(json.dumps(setup.config, indent=2))
    print(f"data: {len(dataset):,} images in {dataset.directory}")
    print(f"  channels: {', '.join(dataset.declaration.channels)}")
    seen, labels = train.training_examples(setup, dataset)
    what = "" if labels is None else f", with the labels of {setup.objective.target}"
    print(f"  pre-training: {len(seen):,} images{what}")
    for target in dataset.declaration.targets:
        for fold in dataset.folds(target.name):
            print(
                f"  {target.name}, {fold.name}: {len(fold.train):,} train, "
                f"{len(fold.validation):,} validation, {len(fold.test):,} test"
            )
    params = setup.states.abstract.params
    parts = ", ".join(f"{name} {count_parameters(part):,}" for name, part in sorted(params.items()))
    print(f"parameters: {count_parameters(params):,} ({parts})")
    memory = train.memory_estimate(setup, dataset.source.dtype)
    print(
        f"memory of a training step per device: {sum(memory.values()) / 2**20:,.0f} MiB "
        f"(state and batch {memory['arguments'] / 2**20:,.0f}, "
        f"intermediate {memory['temporary'] / 2**20:,.0f})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""Runs every preset through the one evaluation and says what each floor, encoder and benchmark saw.

    python -m bioimg_jax.known_truth.calibrate --config=configs/calibrate.py --workdir=OUT

Trains the encoders that the config names, evaluates each preset with them, puts profiles and genes
through the field's protocols (`protocols.py`), tries the metadata audit on many seeds, and holds
the outcomes against what must be so (`expectations.py`). What is finished is used again. Leaves
calibration.json, calibration.html and calibration.md, and a report a preset.
"""

import dataclasses
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from bioimg_jax import command_line
from bioimg_jax.checkpoint import open_checkpoint
from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.workers import Task, run_in_order, worker_pool
from bioimg_jax.errors import InputError, Preempted
from bioimg_jax.known_truth.expectations import expectations
from bioimg_jax.known_truth.experiments import (
    audit_design,
    encoder_folder,
    evaluate_preset,
    train_encoder,
    training_of,
)
from bioimg_jax.known_truth.protocols import evaluate_genes, evaluate_screen
from bioimg_jax.report import write_calibration
from bioimg_jax.train import Config, build_run

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where encoders, evaluations and the calibration are kept
--processes=N       so many encoders and presets at a time (2), each in some 3 GB of memory"""
PROCESSES = 2
PRESET, SCREEN, GENES = "preset", "screen", "genes"
SECTIONS = {PRESET: "presets", SCREEN: "screens", GENES: "genes"}  # of the config


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    held: list[bool] = []
    status = command_line.guarded(lambda: held.append(_run(arguments)))
    return status or int(not all(held))


def _run(arguments: Sequence[str]) -> bool:
    """Whether everything that must hold does."""
    config, given = command_line.parse(arguments, {"workdir": "", "processes": str(PROCESSES)})
    command_line.check_sections(config, "encoders", "presets", "screens", "genes", "audits")
    workdir, processes = given["workdir"], given["processes"]
    if not workdir:
        raise InputError("--workdir=DIR is missing: where the calibration is kept")
    if not processes.isdecimal() or not int(processes):
        raise InputError(f"--processes={processes}: expected a whole number above 0")
    command = shlex.join(["python", "-m", "bioimg_jax.known_truth.calibrate", *arguments[1:]])
    signal.signal(signal.SIGTERM, _stop)
    with command_line.locked(Path(workdir)):
        found = calibrate(config, Path(workdir), command=command, processes=int(processes))
    return all(check["holds"] for check in found["checks"])


def _stop(number: int, frame: FrameType | None) -> None:
    raise Preempted("stopped while calibrating; what is finished is kept")


def calibrate(
    config: Config, workdir: Path, *, command: str, processes: int = PROCESSES
) -> dict[str, Any]:
    """Everything that the config names; returns what calibration.json holds."""
    start = time.time()
    _check(config)
    workdir.mkdir(parents=True, exist_ok=True)
    resumed = (workdir / "config.json").exists()
    command_line.check_config(workdir, dict(config))
    command_line.write_json(workdir / "config.json", config)
    done = _done(_tasks(config, workdir, command), processes)
    evaluated = {
        name: done[kind, name]
        for kind in (PRESET, SCREEN, GENES)
        for name in config[SECTIONS[kind]]
    }
    audits = [done["audit", name] for name in config["audits"]]
    outcomes = [outcome for one in evaluated.values() for outcome in one.outcomes]
    checks = [check for one in evaluated.values() for check in one.checks]
    checks += expectations(outcomes, audits)
    encoders = {name: open_checkpoint(encoder_folder(workdir, name)) for name in _wanted(config)}
    about = {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
        "wall_s": round(time.time() - start, 1),
        "resumed": resumed,
        "took_s": {name: round(one.seconds, 1) for name, one in evaluated.items()},
        "processes": processes,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "seed": config["seed"],
        "data": [one.data for one in evaluated.values()],
        "encoders": [
            {
                "encoder": name,
                "trained_on": _data_words(config["encoders"][name]["data"]),
                "starts_from": config["encoders"][name]["starts_from"],
                "step": saved.step,
                "took_s": round(done["encoder", name], 1),
            }
            for name, saved in encoders.items()
        ],
        "outcomes": [outcome.to_row() for outcome in outcomes],
        "audits": audits,
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    command_line.write_json(workdir / "calibration.json", about)
    page = write_calibration(workdir)
    for check in checks:
        print(f"{'holds' if check.holds else 'FAILS':<6} {check.preset}: {check.expected}; "
              f"{check.found}")  # fmt: skip
    print(f"\n{sum(c.holds for c in checks)} of {len(checks)} hold; page: {page}")
    return about


def _data_words(settings: Mapping[str, Any]) -> str:
    """A data set as `name/config options`."""
    return f"{settings['name']}/{settings['config']} {settings['options']}".strip()


def _tasks(config: Config, workdir: Path, command: str) -> dict[tuple[str, str], Task]:
    """What there is to do, (one of `SECTIONS`, name) -> task."""
    tasks = {}
    for name in _wanted(config):
        first = config["encoders"][name]["starts_from"]
        needs = [("encoder", first)] if first else []
        tasks["encoder", name] = Task(train_encoder, (name, config, workdir), needs)
    for kind, evaluate in ((PRESET, evaluate_preset), (GENES, evaluate_genes)):
        for name, about in config[SECTIONS[kind]].items():
            needs = [("encoder", encoder) for encoder in command_line.names(about["encoders"])]
            tasks[kind, name] = Task(evaluate, (name, config, workdir, command), needs)
    for name, about in config["screens"].items():
        needs = [(PRESET, about["preset"])]
        tasks[SCREEN, name] = Task(evaluate_screen, (name, config, workdir, command), needs)
    for name, about in config["audits"].items():
        tasks["audit", name] = Task(audit_design, (name, about), [])
    return tasks


def _wanted(config: Config) -> list[str]:
    """The encoders that a preset is evaluated with, each after the one that it starts from."""
    found: list[str] = []

    def add(name: str) -> None:
        first = config["encoders"][name]["starts_from"]
        if first:
            add(first)
        if name not in found:
            found.append(name)

    for about in (*config["presets"].values(), *config["genes"].values()):
        for name in command_line.names(about["encoders"]):
            add(name)
    return found


def _done(tasks: Mapping[tuple[str, str], Task], processes: int) -> dict[tuple[str, str], Any]:
    """What every task returned; says on stderr how far it is."""
    done: dict[tuple[str, str], Any] = {}
    begun = time.monotonic()
    with worker_pool(processes, share_cores=True) as pool:
        try:
            for key, result in run_in_order(pool, tasks, processes):
                done[key] = result
                elapsed = time.monotonic() - begun
                left = elapsed / len(done) * (len(tasks) - len(done))
                print(
                    f"{' '.join(key)} ({len(done)}/{len(tasks)})  {int(elapsed) // 60}:"
                    f"{int(elapsed) % 60:02d}, about {int(left) // 60}:{int(left) % 60:02d} left",
                    file=sys.stderr,
                    flush=True,
                )
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()  # an encoder that is being trained is saved first
            raise
    return done


def _check(config: Config) -> None:
    """`InputError` for a wrong name or setting, before anything takes time."""
    encoders = config["encoders"]
    wanted = [(f"{section}.{name}.encoders", encoder) for section in ("presets", "genes")
              for name, about in config[section].items()
              for encoder in command_line.names(about["encoders"])]  # fmt: skip
    wanted += [(f"encoders.{name}.starts_from", about["starts_from"])
               for name, about in encoders.items() if about["starts_from"]]  # fmt: skip
    for key, encoder in wanted:
        if encoder not in encoders:
            raise InputError(f"{key}: {encoder!r} is none of {', '.join(encoders)}")
    for name, about in config["screens"].items():
        if about["preset"] not in config["presets"]:
            presets = ", ".join(config["presets"])
            raise InputError(f"screens.{name}.preset: {about['preset']!r} is none of {presets}")
    for name in encoders:
        seen, first = [name], encoders[name]["starts_from"]
        while first and first not in seen:
            seen.append(first)
            first = encoders[first]["starts_from"]
        if first:
            raise InputError(f"encoders.{name}.starts_from: {' from '.join([*seen, first])}")
    for name in _wanted(config):
        try:
            build_run(training_of(name, config), ("any",))  # channels come later, with the data
        except InputError as error:
            raise InputError(f"encoders.{name}: {error}") from None
    for name, about in config["audits"].items():
        if not hasattr(find_builder(about["name"]), "layout"):
            raise InputError(
                f"audits.{name}: the design of data set {about['name']!r} is not known without "
                "its images; expected one with a `layout`, as synthetic_cells"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv))

"""The command line: prepare, train, evaluate, report.

python -m bioimg_jax.main --config=configs/mae_cells.py [--config.KEY=VALUE ...] [--workdir=DIR]
"""

import contextlib
import copy
import difflib
import errno
import fcntl
import itertools
import json
import os
import runpy
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

import bioimg_jax
from bioimg_jax.errors import MACHINE_ERRORS, InputError

HELP = f"""{__doc__}
--config.KEY=VALUE  changes a key of the config file, which explains them
--workdir=DIR       where the run keeps its files; runs/NAME-DATA-seedN by default
--dry_run           prepares the data, prints config, splits, parameters and memory, and stops"""
RESULTS, REPORT = "results.json", "report.html"


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status.

    0: done, or stopped by a signal with everything saved. 2: something the user gave cannot be
    used, told in one line.
    """
    if any(argument.lstrip("-") in ("help", "h") for argument in arguments[1:]):
        print(HELP)
        return 0
    try:
        config, workdir, dry_run = parse(arguments)
        run(
            config,
            workdir,
            dry_run=dry_run,
            command=shlex.join(["python", "-m", "bioimg_jax.main", *arguments[1:]]),
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        return 130
    except Exception as error:
        from bioimg_jax.train import Preempted

        if isinstance(error, Preempted):
            print(f"{error}; the same command goes on from there", file=sys.stderr)
            return 0
        refusal = _refused_by_machine(error)
        if refusal is None:
            raise
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], Path, bool]:
    """(config as nested dicts, work directory, dry run) of a command line; `InputError`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "A file of configs/; --config.KEY=VALUE changes a key.",
        flag_values=values, sys_argv=list(arguments),
    )  # fmt: skip
    flags.DEFINE_string(
        "workdir", "", "Where the run keeps its files; runs/NAME-DATA-seedN by default.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool(
        "dry_run", False, "Prints config, data, parameters and memory, and stops.",
        flag_values=values,
    )  # fmt: skip
    _check_keys(arguments)
    try:
        rest = values(list(arguments))
        config = values["config"].value
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(_one_line(error)) from None
    if len(rest) > 1:
        raise InputError(f"unknown argument {rest[1]!r}; expected --NAME=VALUE")
    if config is None:
        raise InputError("--config=FILE is missing; for example --config=configs/mae_cells.py")
    plain = config.to_dict()
    default = f"runs/{plain['name']}-{plain['data']['name']}-seed{plain['seed']}"
    return plain, Path(values["workdir"].value or default), bool(values["dry_run"].value)


def _check_keys(arguments: Sequence[str]) -> None:
    """Finds the file that is not there and the key that is misspelt, and says so in one line."""
    given = []
    for argument, following in itertools.zip_longest(arguments[1:], arguments[2:]):
        if argument.startswith("-"):
            value = "" if "=" in argument or following is None else f"={following}"
            given.append(argument.lstrip("-") + value)  # "--key value" as "--key=value"
    path = next((a.partition("=")[2] for a in given if a.startswith("config=")), None)
    if path is None:
        return
    if not Path(path).is_file():
        raise InputError(f"--config={path}: there is no such file")
    try:
        keys = _flatten(runpy.run_path(path)["get_config"]().to_dict())
    except Exception as error:
        raise InputError(f"--config={path}: not a config file ({_one_line(error)})") from error
    for argument in given:
        name, _, value = argument.partition("=")
        if not name.startswith("config."):
            continue
        key = name.removeprefix("config.")
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"; did you mean --config.{close[0]}?" if close else ""
            raise InputError(f"--config.{key}: {path} has no such key{hint}")
        expected = type(keys[key])
        if expected in (int, float, bool) and not _is_a(value, expected):
            raise InputError(f"--config.{key}={value}: expected {expected.__name__}")


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _is_a(text: str, kind: type) -> bool:
    if kind is bool:
        return text.lower() in ("", "true", "false", "1", "0")
    try:
        kind(text)
    except ValueError:
        return False
    return True


def run(config: dict[str, Any], workdir: Path, *, dry_run: bool, command: str) -> None:
    """Prepares the data, trains, evaluates and reports; goes on where `workdir` stopped."""
    # Imported here, so that a mistake on the command line is told in a blink.
    import jax

    from bioimg_jax import evaluate, train
    from bioimg_jax.data.dataset import open_dataset
    from bioimg_jax.mesh import settle_cpu
    from bioimg_jax.prepare import prepare
    from bioimg_jax.train_state import count_parameters

    settle_cpu()
    start = time.time()
    data = config["data"]
    with contextlib.nullcontext() if dry_run else _locked(workdir):
        if not dry_run:
            if _finished(workdir):
                _check_config(workdir, config)
                print(f"{workdir} is finished; report: {workdir / REPORT}")
                return
            _check_config(workdir, config)
        # What is wrong without the data is told before hours of preparation; channels come later.
        evaluate.check_config(train.build_run(config, ("any",)))
        directory = prepare(
            name=data["name"],
            config=data["config"],
            source=data["source"],
            out=data["out"],
            options=_options(data["options"]),
            on_bad_image=data["on_bad_image"],
        )
        dataset = open_dataset(directory)
        prepared_s = time.time() - start
        setup = train.build_run(config, dataset.declaration.channels)
        dataset.check_crop(data["crop_px"])
        evaluate.check_settings(setup, dataset)
        if dry_run:
            _print_dry_run(setup, dataset)
            return
        print(
            f"{len(dataset):,} images of {', '.join(dataset.declaration.channels)} in {directory}",
            file=sys.stderr,
        )
        probe = evaluate.make_probe(setup, dataset, workdir)
        record = {**config, "content_hash": dataset.content_hash}
        _check_config(workdir, record)
        _write_json(workdir / "config.json", record)
        train.train(setup, dataset, workdir, probe=probe)
        trained_s = time.time() - start - prepared_s
        inductive = None
        if config["evaluate"]["inductive"] and dataset.declaration.pretraining == "all":
            fold = dataset.folds(dataset.declaration.targets[0].name)[0]
            folder = workdir / "inductive"
            folder.mkdir(exist_ok=True)
            print(f"training again without {fold.name}", file=sys.stderr)
            train.train(setup, dataset, folder, hold_out=fold)
            inductive = (folder, fold)
        results = evaluate.evaluate(setup, dataset, workdir, inductive=inductive)
        settings = config["train"]
        results = {
            "schema_version": results.pop("schema_version"),
            "bioimg_jax": bioimg_jax.__version__,
            "run": {
                "command": command,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
                "wall_s": round(time.time() - start, 1),
                "prepare_s": round(prepared_s, 1),
                "train_s": round(trained_s, 1),
                "seed": config["seed"],
                "images_seen": settings["steps"] * settings["batch_size"],
                "n_params": count_parameters(setup.states.abstract.params["encoder"]),
                "devices": f"{setup.mesh.size} x {jax.devices()[0].device_kind}",
                "jax": jax.__version__,
            },
            **results,
        }
        from bioimg_jax.report import write_report

        _write_json(workdir / RESULTS, results)
        report = write_report(workdir)
        print(evaluate.summary(results))
        print(f"\nreport: {report}")


def _print_dry_run(setup: Any, dataset: Any) -> None:
    from bioimg_jax import evaluate, train
    from bioimg_jax.train_state import count_parameters

    print(json.dumps(setup.config, indent=2))
    print(f"data: {len(dataset):,} images in {dataset.directory}")
    print(f"  channels: {', '.join(dataset.declaration.channels)}")
    print(f"  pre-training: {len(dataset.pretraining_indices()):,} images")
    for target in dataset.declaration.targets:
        for fold in dataset.folds(target.name):
            print(
                f"  {target.name}, {fold.name}: {len(fold.train):,} train, "
                f"{len(fold.validation):,} validation, {len(fold.test):,} test"
            )
    print("verdicts that the design can reach:")
    for name, plan in evaluate.plans(setup, dataset).items():
        print(f"  {name}: {plan.sentence(setup.config['evaluate']['delta'])}")
    params = setup.states.abstract.params
    parts = ", ".join(f"{name} {count_parameters(part):,}" for name, part in sorted(params.items()))
    print(f"parameters: {count_parameters(params):,} ({parts})")
    memory = train.memory_estimate(setup, dataset.source.dtype)
    print(
        f"memory of a training step per device: {sum(memory.values()) / 2**20:,.0f} MiB "
        f"(state and batch {memory['arguments'] / 2**20:,.0f}, "
        f"intermediate {memory['temporary'] / 2**20:,.0f})"
    )


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the work directory for this process."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"cannot write to work directory {workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InputError(
                f"work directory {workdir} is in use by process {lock.read().strip() or '?'}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _finished(workdir: Path) -> bool:
    return (workdir / RESULTS).exists() and (workdir / REPORT).exists()


def _check_config(workdir: Path, config: dict[str, Any]) -> None:
    """A work directory belongs to one config and, once they are known, to the same images."""
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        before = _flatten(json.loads(path.read_text()))
    except ValueError:
        raise InputError(f"{path} is not readable JSON; choose another --workdir") from None
    now = _flatten(json.loads(json.dumps(config)))
    if "content_hash" not in now:
        before.pop("content_hash", None)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{workdir} holds a run with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                "choose another --workdir"
            )


def _options(text: str) -> dict[str, str]:
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = part.partition("=")
        if separator:
            options[key] = value
        elif options:  # one more value of the option before it
            key = next(reversed(options))
            options[key] += f",{part}"
        else:
            raise InputError(f"data.options: {part!r}, expected key=value,key=value")
    return options


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(copy.deepcopy(value), indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def _refused_by_machine(error: BaseException | None) -> str | None:
    """A full or unwritable disk, however deep in another library's exception it is."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            where = f" ({error.filename})" if error.filename else ""
            return f"cannot read or write{where}: {error.strerror}; what is finished is kept"
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # in other libraries' words
            if os.strerror(number) in str(error):
                return f"cannot write: {os.strerror(number)}; what is finished is kept"
        error = error.__cause__ or error.__context__
    return None


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv))

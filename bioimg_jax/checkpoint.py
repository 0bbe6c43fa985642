"""Checkpoints of a run, by orbax: asynchronous, atomic, readable on another number of devices."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from bioimg_jax.errors import MACHINE_ERRORS, BrokenCheckpoint, InputError
from bioimg_jax.train_state import TrainState

FORMAT_VERSION = 2
KEPT = 2  # newest checkpoints; step 0 stays too, because it is the encoder's own floor


class Checkpoints:
    """`checkpoints/` of a work directory.

    Four items a step: "params" and "objective" (the step, running statistics, a teacher), so that
    an evaluation reads them alone; "optimizer", the moments; and "meta", what the parameters belong
    to (`meta` of the constructor): a dict of plain JSON with "encoder" and "objective" (their
    configs), "channels" (of the data set) and whatever else rebuilds them.
    """

    def __init__(self, directory: Path, meta: dict[str, Any]) -> None:
        self.directory = directory.resolve()
        self._meta = json.loads(json.dumps({"format_version": FORMAT_VERSION, **meta}))
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("params", "objective", "optimizer", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(KEPT), preservation_policy.CustomSteps([0])]
                ),
                create=True,
            ),
        )

    def steps(self) -> list[int]:
        """Steps that were saved whole or broken since, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving; a saved step is left as it is."""
        if step in self.steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                # An item without a single array would make orbax warn.
                objective=ocp.args.StandardSave({"step": state.step, "state": state.objective}),
                optimizer=ocp.args.StandardSave(state.opt_state),
                meta=ocp.args.JsonSave(self._meta),
            ),
        )

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster wants this step to be the last; the same on every process."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when what was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, placed as `abstract` says; None without any.

        A broken one is skipped with a warning and put aside, into `checkpoints.broken`: its step
        will be trained again.
        Raises `InputError` for a checkpoint of another encoder or other channels.
        """
        broken = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, abstract)
            except BrokenCheckpoint as error:
                print(f"warning: {error}; trying the one before", file=sys.stderr)
                broken.append(step)
                continue
            for bad in broken:
                aside = self.directory.with_name(f"{self.directory.name}.broken")
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(bad), ignore_errors=True)
                (self.directory / str(bad)).rename(aside / str(bad))
            self._manager.reload()
            return state
        if broken:
            raise InputError(f"no checkpoint in {self.directory} can be read; choose a new workdir")
        return None

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state at `step`.

        Raises `BrokenCheckpoint`, and `InputError` for another encoder or other channels.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            objective=ocp.args.StandardRestore(
                {"step": abstract.step, "state": abstract.objective}
            ),
            optimizer=ocp.args.StandardRestore(abstract.opt_state),
        )
        with _told_if_broken(self.directory / str(step)):
            self._check_meta(step)
            restored = self._manager.restore(step, args=items)
        return TrainState(
            step=restored["objective"]["step"],
            params=restored["params"],
            opt_state=restored["optimizer"],
            objective=restored["objective"]["state"],
        )

    def _check_meta(self, step: int) -> None:
        where = f"checkpoint {self.directory / str(step)}"
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        found = _of_this_format(self._manager.restore(step, args=args)["meta"], where)
        ours, theirs = self._meta["channels"], found["channels"]
        if ours != theirs:
            raise InputError(
                f"{where} was trained on channels {', '.join(theirs)}; the data set has "
                f"{', '.join(ours)}"
            )
        for part in ("encoder", "objective"):
            for key in sorted({*self._meta[part], *found[part]}):
                there, here = found[part].get(key), self._meta[part].get(key)
                if there != here:
                    raise InputError(
                        f"{where} is of another architecture: {part}.{key} is {there!r} there, "
                        f"{here!r} here"
                    )


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """One saved step of a training, finished or still running, opened for reading alone.

    workdir: of the training; meta: what `Checkpoints` was given when it was saved.
    """

    workdir: Path
    step: int
    meta: dict[str, Any]

    @property
    def directory(self) -> Path:
        return self.workdir / "checkpoints" / str(self.step)

    def restore(self, params: Any, objective: Any) -> tuple[Any, Any]:
        """(params, state of the objective), placed as the two abstract trees say.

        Raises `BrokenCheckpoint`.
        """
        sharding = jax.tree.leaves(params)[0].sharding
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
        with _told_if_broken(self.directory), ocp.StandardCheckpointer() as reader:
            restored = reader.restore(self.directory / "params", params)
            rest = reader.restore(self.directory / "objective", {"step": step, "state": objective})
        return restored, rest["state"]

    def digest(self) -> str:
        """SHA-256 of the files that hold the parameters and the objective's state."""
        digest = hashlib.sha256()
        for item in ("params", "objective"):
            for path in sorted(p for p in (self.directory / item).rglob("*") if p.is_file()):
                digest.update(str(path.relative_to(self.directory)).encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def at(self, step: int) -> "Saved | None":
        """The same training at another step; None where it was not kept."""
        if not (self.directory.parent / str(step)).is_dir():
            return None
        return dataclasses.replace(self, step=step)


def open_checkpoint(path: str | Path) -> Saved:
    """The newest checkpoint of a work directory, or the one that `WORKDIR/checkpoints/STEP` names.

    Raises `InputError` where there is none or its format is another one.
    """
    path = Path(path).absolute()
    wanted = None
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        wanted, path = int(path.name), path.parent.parent
    folder = path / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"--checkpoint={path}: there is no folder {folder}")
    # Not through a manager: what a running training is writing is left alone.
    steps = sorted(ocp.utils.checkpoint_steps(folder))
    if not steps:
        raise InputError(f"--checkpoint={path}: {folder} holds no checkpoint yet")
    if wanted is not None and wanted not in steps:
        kept = ", ".join(map(str, steps))
        raise InputError(f"--checkpoint={path}: step {wanted} is not kept; there are {kept}")
    step = steps[-1] if wanted is None else wanted
    directory = folder / str(step)
    with (
        _told_if_broken(directory),
        ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader,
    ):
        meta = _of_this_format(reader.restore(directory / "meta"), f"checkpoint {directory}")
    return Saved(path, step, meta)


def _of_this_format(meta: dict[str, Any], where: str) -> dict[str, Any]:
    if meta.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{where} has format {meta.get('format_version')}; this version reads {FORMAT_VERSION}"
        )
    return meta


@contextlib.contextmanager
def _told_if_broken(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a file cut short makes the readers raise
        if isinstance(error, InputError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        raise BrokenCheckpoint(
            f"checkpoint {directory} cannot be read ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) < 160 else text[:157] + "..."

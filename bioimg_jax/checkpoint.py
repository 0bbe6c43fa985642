"""Checkpoints of a run, by orbax: asynchronous, atomic, readable on another number of devices."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from bioimg_jax.errors import MACHINE_ERRORS, BrokenCheckpoint, InputError
from bioimg_jax.train_state import TrainState

FORMAT_VERSION = 1
KEPT = 2  # newest checkpoints; step 0 stays too, because it is the encoder's own floor


class Checkpoints:
    """`checkpoints/` of a work directory.

    Three items a step: "params", so that an evaluation reads it alone; "state", the rest of the
    `TrainState`; and "meta", what the parameters belong to (`meta` of the constructor): a dict of
    plain JSON with "encoder" (its config) and "channels" (of the data set).
    """

    def __init__(self, directory: Path, meta: dict[str, Any]) -> None:
        self.directory = directory.resolve()
        self._meta = json.loads(json.dumps({"format_version": FORMAT_VERSION, **meta}))
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("params", "state", "meta"),
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
        rest = {"step": state.step, "opt_state": state.opt_state, "objective": state.objective}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                state=ocp.args.StandardSave(rest),
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
        rest = {
            "step": abstract.step,
            "opt_state": abstract.opt_state,
            "objective": abstract.objective,
        }
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            state=ocp.args.StandardRestore(rest),
        )
        with self._told_if_broken(step):
            self._check_meta(step)
            restored = self._manager.restore(step, args=items)
        return TrainState(params=restored["params"], **restored["state"])

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters alone, placed as `abstract` says; raises as `restore` does."""
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        with self._told_if_broken(step):
            self._check_meta(step)
            return self._manager.restore(step, args=items)["params"]

    @contextlib.contextmanager
    def _told_if_broken(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a file cut short makes the readers raise
            if isinstance(error, InputError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise
            if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
                raise
            raise BrokenCheckpoint(
                f"checkpoint {self.directory / str(step)} cannot be read ({_first_line(error)})"
            ) from error

    def _check_meta(self, step: int) -> None:
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        found = restored["meta"]
        where = f"checkpoint {self.directory / str(step)}"
        if found.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{where} has format {found.get('format_version')}; this version reads "
                f"{FORMAT_VERSION}"
            )
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


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) < 160 else text[:157] + "..."

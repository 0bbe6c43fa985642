"""The one training loop: any objective, any encoder, any mesh."""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bioimg_jax import mesh as meshes
from bioimg_jax import optimizer as optimizers
from bioimg_jax.checkpoint import Checkpoints
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.pipeline import check_augmentations, train_batches
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError, Preempted
from bioimg_jax.logbook import Logbook, plain
from bioimg_jax.mesh import Mesh
from bioimg_jax.models import Encoder, build_encoder
from bioimg_jax.objectives import Objective, build_objective
from bioimg_jax.stop_signal import StopSignal
from bioimg_jax.train_state import Start, StateFactory, TrainState, step_key

Config = Mapping[str, Any]
Probe = Callable[[int, TrainState], list[dict[str, Any]]]  # logbook entries at a step


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything a config stands for, before any array exists."""

    config: Config
    channels: tuple[str, ...]
    mesh: Mesh
    encoder: Encoder
    objective: Objective
    optimizer: optimizers.Optimizer
    schedule: optimizers.Schedule
    states: StateFactory

    def meta(
        self, dataset: Dataset, hold_out: Fold | None = None, start: Start | None = None
    ) -> dict[str, Any]:
        """What a checkpoint's parameters belong to, and what they have seen."""
        return {
            "encoder": self.encoder.config,
            "objective": dict(self.config["objective"]),
            "channels": list(self.channels),
            "seed": self.config["seed"],
            "crop_px": self.config["data"]["crop_px"],
            "steps": self.config["train"]["steps"],
            "batch_size": self.config["train"]["batch_size"],
            "recipe": {  # what else tells two trainings apart, besides their seeds
                "optimizer": dict(self.config["optimizer"]),
                "accumulation": self.config["train"]["accumulation"],
                "flips": self.config["data"]["flips"],
                "rotations": self.config["data"]["rotations"],
            },
            "data": {
                "name": dataset.declaration.name,
                "content_hash": dataset.content_hash,
                "hold_out": None if hold_out is None else hold_out.name,
                **self._labels(dataset),
            },
            **({} if start is None else {"starts_from": dict(start.origin)}),
        }

    def _labels(self, dataset: Dataset) -> dict[str, Any]:
        """The classes in the order of the head's outputs; nothing where images were all."""
        target = self.objective.target
        if not target:
            return {}
        return {"labels": {"target": target, "classes": list(dataset.labels(target)[1])}}


def build_run(config: Config, channels: tuple[str, ...]) -> Run:
    """Encoder, objective, optimiser and state shapes of a config; `InputError` names the key."""
    settings = config["train"]
    for key in ("batch_size", "steps", "accumulation", "log_every_steps", "save_every_steps"):
        if settings[key] < 1:
            raise InputError(f"train.{key}: {settings[key]}, expected at least 1")
    if not 0 <= config["seed"] < 2**32:
        raise InputError(f"seed: {config['seed']}, expected from 0 to {2**32 - 1}")
    mesh = meshes.make_mesh(model=config["mesh"]["model"], devices=config["mesh"]["devices"])
    n_data, accumulation = mesh.shape["data"], settings["accumulation"]
    if settings["batch_size"] % (n_data * accumulation):
        raise InputError(
            f"train.batch_size: {settings['batch_size']} is no multiple of the {n_data} devices "
            f"of the data axis times train.accumulation ({accumulation})"
        )
    encoder = build_encoder({**config["encoder"], "channels": channels})
    objective = build_objective(config["objective"], encoder)
    if accumulation > 1 and not objective.separable_over_batch:
        raise InputError(
            f"train.accumulation: {accumulation}, but objective {config['objective']['name']} "
            "compares the examples of a batch, or its encoder's BatchNorm does; expected 1"
        )
    optimizer, schedule = optimizers.build_optimizer(
        config["optimizer"], batch_size=settings["batch_size"], steps=settings["steps"]
    )
    states = StateFactory(
        objective, optimizer, mesh, seed=config["seed"], fsdp=config["mesh"]["fsdp"]
    )
    return Run(config, tuple(channels), mesh, encoder, objective, optimizer, schedule, states)


def make_step(run: Run) -> Any:
    """The jitted update (state, batch) -> (state, metrics); the old state's memory is reused.

    Its random draws depend on the seed and the step number alone.
    """
    objective, accumulation = run.objective, run.config["train"]["accumulation"]
    seed = run.config["seed"]

    def gradients(state: TrainState, inputs: Any, key: jax.Array) -> Any:
        def loss(params: Any, inputs: Any, key: jax.Array) -> Any:
            return objective.loss(params, state.objective, inputs, key=key, step=state.step)

        differentiate = jax.value_and_grad(loss, has_aux=True)
        if accumulation == 1:
            return differentiate(state.params, inputs, key)

        # Micro-batch i takes rows i, i + a, ...: every device keeps the rows it has.
        micro = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1), inputs
        )
        keys = jax.random.split(key, accumulation)
        shapes = jax.eval_shape(
            differentiate, state.params, jax.tree.map(lambda x: x[0], micro), keys[0]
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Any) -> Any:
            out = differentiate(state.params, *part)
            return jax.tree.map(lambda t, o: t + o / accumulation, total, out), None

        return jax.lax.scan(add, zeros, (micro, keys))[0]

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        views_key, loss_key = jax.random.split(step_key(seed, state.step))
        # Views are made for the global batch, before it is cut into micro-batches.
        inputs = objective.views(batch, views_key)
        (loss, aux), gradient = gradients(state, inputs, loss_key)
        params, opt_state, norm = optimizers.update(
            run.optimizer, gradient, state.opt_state, state.params
        )
        metrics = {
            "loss": loss,
            "learning_rate": jnp.asarray(run.schedule(state.step), jnp.float32),
            "gradient_norm": norm,
            **aux.metrics,
        }
        kept = objective.after_step(state.objective, aux, params, state.step)
        return TrainState(state.step + 1, params, opt_state, kept), metrics

    return jax.jit(
        step,
        in_shardings=(run.states.shardings, meshes.batch_sharding(run.mesh)),
        out_shardings=(run.states.shardings, None),
        donate_argnums=0,
    )


def training_examples(
    run: Run, dataset: Dataset, hold_out: Fold | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices of the examples that a training sees, and the labels of all examples if it sees any.

    Raises `InputError` for an augmentation that would erase a target of the data set, and one that
    names the key for a target that the data set has not, whose labels must not be trained on
    (`splits.labelled_indices`), or that has another number of classes.
    """
    check_augmentations(dataset, **_augmentations(run))
    target = run.objective.target
    if not target:
        return dataset.pretraining_indices(hold_out), None
    try:
        labels, classes = dataset.labels(target)
        indices = dataset.pretraining_indices(hold_out, target)
    except InputError as error:
        raise InputError(f"objective.target: {error}") from None
    if run.objective.n_classes != len(classes):
        raise InputError(
            f"objective.n_classes: {run.objective.n_classes}, but target {target!r} of data set "
            f"{dataset.declaration.name!r} has classes {', '.join(classes)}; expected "
            f"{len(classes)}"
        )
    return indices, labels


def _augmentations(run: Run) -> dict[str, Any]:
    """What is made of every image that is read, in the arguments of `train_batches`."""
    data = run.config["data"]
    return {
        **{key: data[key] for key in ("crop_px", "flips", "rotations")},
        "views": run.objective.augmentations,
    }


def training_stream(
    run: Run, dataset: Dataset, hold_out: Fold | None, start_step: int
) -> Iterator[dict[str, Any]]:
    """Batches of this process from step `start_step` on."""
    indices, labels = training_examples(run, dataset, hold_out)
    return train_batches(
        dataset,
        indices,
        labels=labels,
        batch_size=run.config["train"]["batch_size"],
        **_augmentations(run),
        seed=run.config["seed"],
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def train(
    run: Run,
    dataset: Dataset,
    workdir: Path,
    *,
    hold_out: Fold | None = None,
    probe: Probe | None = None,
    start_from: Start | None = None,
) -> None:
    """Trains to the last step, from the newest checkpoint if there is one.

    Args:
      hold_out: units tested by this fold are not seen (`training_examples`).
      probe: called every `train.probe_every_steps`; its entries go into the logbook.
      start_from: another training's encoder; by default it starts from the seed.

    Raises:
      Preempted: SIGTERM or SIGINT came; the step reached is saved.
      InputError: the loss is not finite; the message names the step. Labels that must not be
        trained on.
    """
    training_examples(run, dataset, hold_out)  # before anything is written
    settings = run.config["train"]
    steps, log_every = settings["steps"], settings["log_every_steps"]
    logbook = Logbook(workdir / "logbook.jsonl")
    checkpoints = Checkpoints(workdir / "checkpoints", run.meta(dataset, hold_out, start_from))
    try:
        state = checkpoints.restore_latest(run.states.abstract)
        if state is None:
            state = run.states.initial(start_from)
            checkpoints.save(0, state)
        start = int(state.step)
        logbook.rewind(start if start else -1)  # at step 0 the probe speaks again
        if start >= steps:
            return
        if start:
            print(f"going on from step {start}", file=sys.stderr)
        elif probe is not None and settings["probe_every_steps"]:
            for entry in probe(0, state):
                logbook.write(**entry)
        with jax.set_mesh(run.mesh), StopSignal() as stop:
            update = make_step(run)
            batches = training_stream(run, dataset, hold_out, start)
            meter = _Meter(start, steps, settings["batch_size"])
            unread: list[tuple[int, dict[str, jax.Array]]] = []  # steps whose loss nobody saw
            for step in range(start + 1, steps + 1):
                with meter.waiting():
                    batch = meshes.to_global(_seen(next(batches)), run.mesh)
                state, metrics = update(state, batch)
                if unread:  # at most one step runs ahead of the host
                    unread[-1][1]["loss"].block_until_ready()
                unread.append((step, metrics))
                leaving = stop.requested(step, checkpoints) or step == steps
                save = leaving or step % settings["save_every_steps"] == 0
                if step % log_every == 0 or save:
                    values = _read(unread)
                    unread = []
                    if step % log_every == 0 or step == steps:
                        logbook.write(step=step, **plain(values), **meter.rates(step))
                        meter.show(step, values["loss"])
                if (
                    probe is not None
                    and settings["probe_every_steps"]
                    and (step % settings["probe_every_steps"] == 0 or step == steps)
                ):
                    with meter.paused():
                        for entry in probe(step, state):
                            logbook.write(**entry)
                if save:
                    checkpoints.save(step, state)
                if leaving and step < steps:
                    checkpoints.wait()
                    raise Preempted(f"stopped at step {step} of {steps} and saved")
            meter.finish()
        checkpoints.wait()
    finally:
        checkpoints.close()


def memory_estimate(run: Run, dtype: Any) -> dict[str, int]:
    """Bytes a training step needs on each device, from the compiled program; images of `dtype`."""
    crop, batch_size = run.config["data"]["crop_px"], run.config["train"]["batch_size"]
    shape = (batch_size, crop, crop, len(run.channels))
    sharding = meshes.batch_sharding(run.mesh)
    batch = {"image": jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)}
    if run.objective.target:
        batch["label"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=sharding)
    with jax.set_mesh(run.mesh):
        compiled = make_step(run).lower(run.states.abstract, batch).compile()
    analysis = compiled.memory_analysis()
    return {
        "arguments": int(analysis.argument_size_in_bytes),
        "temporary": int(analysis.temp_size_in_bytes),
    }


def _seen(batch: dict[str, Any]) -> dict[str, Any]:
    """What of a batch the device is given: where an example came from is no input."""
    return {name: batch[name] for name in ("image", "label") if name in batch}


def _read(unread: list[tuple[int, dict[str, jax.Array]]]) -> dict[str, Any]:
    """The newest step's metrics, after a look at every loss and gradient since the last time."""
    for name, what in (("loss", "loss"), ("gradient_norm", "gradient")):
        values = jax.device_get([metrics[name] for _, metrics in unread])
        bad = [step for (step, _), v in zip(unread, values, strict=True) if not math.isfinite(v)]
        if bad:
            several = f" to {bad[-1]}" if len(bad) > 1 else ""
            raise InputError(
                f"the {what} is not finite at step {bad[0]}{several}; the last checkpoint is "
                "before it: lower optimizer.learning_rate or set optimizer.clip_norm"
            )
    return jax.device_get(unread[-1][1])


class _Meter:
    """Rates for the logbook, and a line on stderr with the time left."""

    def __init__(self, start: int, steps: int, batch_size: int) -> None:
        self._first, self._steps, self._batch_size = start, steps, batch_size
        self._begin = self._since = time.monotonic()
        self._last_step, self._waited = start, 0.0
        self._shown = 0.0
        self._rates: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()

    def waiting(self) -> "_Clock":
        return _Clock(self._add_wait)

    def paused(self) -> "_Clock":
        return _Clock(self._skip)

    def _add_wait(self, seconds: float) -> None:
        self._waited += seconds

    def _skip(self, seconds: float) -> None:
        self._since += seconds
        self._begin += seconds

    def rates(self, step: int) -> dict[str, float]:
        """Since the last call: images/s, and the share of the time spent waiting for data."""
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        self._rates = {
            "images_per_s": (step - self._last_step) * self._batch_size / elapsed,
            "data_wait_share": min(self._waited / elapsed, 1.0),
        }
        self._since, self._last_step, self._waited = now, step, 0.0
        return self._rates

    def show(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if step < self._steps and now - self._shown < (0.5 if self._terminal else 10.0):
            return
        self._shown = now
        left = (now - self._begin) / (step - self._first) * (self._steps - step)
        line = (
            f"step {step}/{self._steps}  loss {loss:.4f}  "
            f"{self._rates['images_per_s']:,.0f} images/s  "
            f"data wait {self._rates['data_wait_share']:.0%}  "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )
        start, end = ("\r", "\x1b[K") if self._terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._terminal:
            print(file=sys.stderr)


class _Clock:
    """Tells a listener how long its block took."""

    def __init__(self, listener: Callable[[float], None]) -> None:
        self._listener = listener

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._listener(time.monotonic() - self._start)

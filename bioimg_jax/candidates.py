"""What a run evaluates: its encoder, trained and untrained, and the floors of its config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bioimg_jax.benchmarks.ladder import CHANCE, FAMILY, TWIN, floor_ids
from bioimg_jax.checkpoint import Checkpoints
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.models import POOLINGS, Encoder, build_encoder
from bioimg_jax.representations.encoder import EncoderRepresentation
from bioimg_jax.representations.floors import Floors
from bioimg_jax.representations.representation import Representation
from bioimg_jax.train import Config, Run
from bioimg_jax.train_state import TrainState

# Random initialisations must not share their draws with a training run of a small seed.
UNTRAINED_STREAM = 10_000


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A representation to score: made when its turn comes, so that one is in memory at a time."""

    name: str
    kind: str
    seed: int
    saw: np.ndarray  # indices of the examples that its pre-training saw
    make: Callable[[], Representation]
    group: str = ""  # seeds of one group are averaged too
    folds: Mapping[str, Sequence[int]] | None = None  # target -> the folds it may be scored on
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def candidates(
    run: Run, dataset: Dataset, workdir: Path, inductive: tuple[Path, Fold] | None
) -> list[Candidate]:
    """Everything to score, in the order of the report; `inductive` as for `evaluate.evaluate`."""
    config, settings = run.config, run.config["evaluate"]
    encoder, seed = run.encoder, config["seed"]
    seen, nothing = dataset.pretraining_indices(), np.array([], np.int64)
    trained_name = f"{config['objective']['name']}_{encoder.name}"
    last = config["train"]["steps"]

    def represent(name: str, kind: str, encoder: Any, variables: Any) -> Representation:
        return EncoderRepresentation(
            name,
            kind,
            encoder,
            variables,
            blocks=settings["blocks"],
            poolings=chosen_poolings(settings, encoder),
        )

    def from_checkpoint(folder: Path, step: int, name: str, kind: str) -> Callable[[], Any]:
        def make() -> Representation:
            state = saved_state(run, folder, step)
            variables = {"params": state.params["encoder"], "stats": state.objective["stats"]}
            return represent(name, kind, encoder, variables)

        return make

    def at_random(name: str, encoder: Any, number: int) -> Callable[[], Any]:
        def make() -> Representation:
            key = jax.random.key(UNTRAINED_STREAM + number)
            return represent(name, "untrained", encoder, jax.jit(encoder.init)(key))

        return make

    found = [
        Candidate(
            trained_name,
            "trained",
            seed,
            seen,
            from_checkpoint(workdir, last, trained_name, "trained"),
            settings={"step": last},
        ),
        Candidate(
            f"{trained_name}_step0",
            "untrained",
            seed,
            nothing,
            from_checkpoint(workdir, 0, f"{trained_name}_step0", "untrained"),
            settings={"step": 0},
        ),
    ]
    group = f"{encoder.name}_random"
    for number in range(1, settings["untrained_seeds"] + 1):
        name = f"{group}_{number}"
        found.append(
            Candidate(
                name, "untrained", number, nothing, at_random(name, encoder, number), group=group
            )
        )
    if settings["resnet18"]:
        resnet = random_resnet18(run)
        found.append(
            Candidate(
                "resnet18_random", "untrained", 0, nothing, at_random("resnet18_random", resnet, 0)
            )
        )
    floors = Floors(run.channels, encoder.block_widths[-1])
    for name in own_floors(settings):
        make = functools.partial(floors.make, name)
        found.append(Candidate(name, make().kind, 0, nothing, make))
    if inductive is not None:
        folder, held_out = inductive
        primary = dataset.declaration.targets[0].name
        numbers = [i for i, fold in enumerate(dataset.folds(primary)) if fold.name == held_out.name]
        name = f"{trained_name}_inductive"
        found.append(
            Candidate(
                name,
                "trained",
                seed,
                dataset.pretraining_indices(held_out),
                from_checkpoint(folder, last, name, "trained"),
                folds={primary: numbers},
                settings={"step": last, "held_out": held_out.name},
            )
        )
    return found


def saved_state(run: Run, folder: Path, step: int) -> TrainState:
    """The state of a training in `folder` at a step that it saved; `InputError` if it is broken."""
    checkpoints = Checkpoints(folder / "checkpoints", run.meta())
    try:
        return checkpoints.restore(step, run.states.abstract)
    finally:
        checkpoints.close()


def random_resnet18(run: Run) -> Encoder:
    return build_encoder({"name": "resnet", "depth": 18, "channels": run.channels})


def chosen_poolings(settings: Config, encoder: Encoder) -> list[str]:
    """Those of `evaluate.poolings` that the encoder has; a ResNet has no cls."""
    wanted = [part.strip() for part in settings["poolings"].split(",") if part.strip()]
    for pooling in wanted:
        if pooling not in POOLINGS:
            raise InputError(
                f"evaluate.poolings: {pooling!r}, expected some of {', '.join(POOLINGS)}"
            )
    found = [pooling for pooling in wanted if pooling in encoder.pooled_keys]
    if not found:
        raise InputError(
            f"evaluate.poolings: {settings['poolings']!r}, but {encoder.name} has "
            f"{', '.join(encoder.pooled_keys)}"
        )
    return found


def own_floors(settings: Config) -> list[str]:
    """Pixels, and what `evaluate.floors` lists besides chance and the untrained ones."""
    listed = floor_ids(settings["floors"])
    return list(dict.fromkeys(["pixels", *(f for f in listed if f not in (CHANCE, TWIN, FAMILY))]))

"""What an evaluation scores: trained encoders, their untrained family, and the config's floors."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bioimg_jax import command_line
from bioimg_jax import mesh as meshes
from bioimg_jax.benchmarks.ladder import (
    CHANCE,
    FAMILY,
    ON_LAYOUT,
    OWN,
    STEP0,
    TWIN,
    floor_ids,
    truth_name,
)
from bioimg_jax.checkpoint import Saved
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import Fold
from bioimg_jax.errors import InputError
from bioimg_jax.mesh import Mesh
from bioimg_jax.models import POOLINGS, Encoder, build_encoder
from bioimg_jax.objectives import Objective, build_objective
from bioimg_jax.representations.encoder import EncoderRepresentation, layers_of, token_count
from bioimg_jax.representations.floors import Floors
from bioimg_jax.representations.metadata import MetadataRepresentation, metadata_columns
from bioimg_jax.representations.representation import ENCODERS, TOKENS, Representation
from bioimg_jax.representations.truth import TruthRepresentation
from bioimg_jax.representations.untrained import (
    Member,
    members,
    parse_variants,
    settings_of,
)
from bioimg_jax.train_state import Start, initial_key

Config = Mapping[str, Any]

METADATA = "metadata"  # in `evaluate.representations`: one for every target, never a floor
CLAIMS = ("checkpoints", "method")
DEFAULT_WIDTH = 384  # of random floors where there is no encoder to share it with


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A representation to score: made when its turn comes, so that one is in memory at a time.

    saw: indices of the examples that its pre-training saw; None where nobody knows.
    with_labels: it saw them with the labels of some target.
    layers: layer name -> width, known before it is made.
    identity: everything besides the images that its features depend on, as plain JSON.
    encoder: what the images go through, where it is one.
    group: seeds of one group are averaged too. folds: target -> the folds it may be scored on.
    """

    name: str
    kind: str
    seed: int
    saw: np.ndarray | None
    make: Callable[[], Representation]
    layers: Mapping[str, int]
    identity: Mapping[str, Any]
    encoder: Encoder | None = None
    group: str = ""
    folds: Mapping[str, Sequence[int]] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    with_labels: bool = False

    def exposure(self, tested: np.ndarray) -> str:
        """To the examples `tested` (indices): "none", "images", "labels" or "unknown".

        Labels of another target count as labels: targets of one well say much about each other.
        """
        if self.saw is None:
            return "unknown"
        if not np.isin(tested, self.saw).any():
            return "none"
        return "labels" if self.with_labels else "images"


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint, and the model that it says it belongs to."""

    name: str
    group: str
    saved: Saved
    objective: Objective

    @property
    def held_out(self) -> str | None:
        """The fold whose test units pre-training did not see, of the primary target."""
        return self.saved.meta["data"]["hold_out"]

    def restore(self, saved: Saved, mesh: Mesh) -> tuple[Any, Any]:
        """(params, state of the objective), whole on every device of the mesh."""
        key = initial_key(self.saved.meta["seed"])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=meshes.replicated(mesh)
            ),
            jax.eval_shape(self.objective.init, key),
        )
        return saved.restore(*abstract)

    def variables(self, mesh: Mesh, *, untrained: bool = False) -> dict[str, Any]:
        """The encoder's; with `untrained` those of step 0, drawn again where they were not kept."""
        saved = self.untrained_checkpoint() if untrained else self.saved
        if saved is None:
            key = initial_key(self.saved.meta["seed"])
            params, state = jax.jit(self.objective.init)(key)
        else:
            params, state = self.restore(saved, mesh)
        return {"params": params["encoder"], "stats": state["stats"]}

    def untrained_checkpoint(self) -> Saved | None:
        """Step 0, where it was kept and is of the seed: not where another training had begun."""
        return None if "starts_from" in self.saved.meta else self.saved.at(0)

    @property
    def with_labels(self) -> bool:
        """Whether it was trained on labels, or what it starts from was."""
        return any("labels" in meta["data"] for meta in self._trainings())

    def start(self, mesh: Mesh) -> Start:
        """For another training to start from."""
        return Start(self.variables(mesh), {**self.saved.meta, "step": self.saved.step})

    def _trainings(self) -> Iterator[Mapping[str, Any]]:
        """What this checkpoint says of itself, then what the one says that it starts from."""
        meta: Mapping[str, Any] | None = self.saved.meta
        while meta is not None:
            yield meta
            meta = meta.get("starts_from")

    def saw(self, dataset: Dataset) -> np.ndarray | None:
        """Rows of the data set that training saw; None if it was trained on another one."""
        seen = [
            dataset.pretraining_indices(
                self._fold(dataset, meta), meta["data"].get("labels", {}).get("target", "")
            )
            for meta in self._trainings()
            if meta["data"]["content_hash"] == dataset.content_hash
        ]
        return np.unique(np.concatenate(seen)) if seen else None

    def scorable(self, dataset: Dataset) -> dict[str, list[int]] | None:
        """The folds it may be scored on; None for all. One that held out a fold answers for it."""
        fold = self._fold(dataset, self.saved.meta)
        if fold is None or self.saw(dataset) is None:
            return None
        primary = dataset.declaration.targets[0].name
        folds = dataset.folds(primary)
        return {primary: [i for i, other in enumerate(folds) if other.name == fold.name]}

    def _fold(self, dataset: Dataset, meta: Mapping[str, Any]) -> Fold | None:
        if not dataset.declaration.targets:  # images to embed, with nothing to predict
            return None
        folds = dataset.folds(dataset.declaration.targets[0].name)
        return next((fold for fold in folds if fold.name == meta["data"]["hold_out"]), None)


def open_trained(checkpoints: Sequence[Saved]) -> tuple[Trained, ...]:
    """Names for the checkpoints of one evaluation, and groups for seeds of one recipe."""
    names, recipes, seeds = [], [], collections.defaultdict(list)
    for i, saved in enumerate(checkpoints):
        meta = saved.meta
        names.append(f"{meta['objective']['name']}_{meta['encoder']['name']}")
        recipe = {k: v for k, v in meta.items() if k != "seed"} | {"step": saved.step}
        if "recipe" not in meta:  # an older checkpoint: nobody knows what it shares with others
            recipe["number"] = i
        recipes.append(json.dumps(recipe, sort_keys=True))
        if not meta["data"]["hold_out"]:
            seeds[recipes[i]].append(meta["seed"])
    whole = [i for i, saved in enumerate(checkpoints) if not saved.meta["data"]["hold_out"]]
    # Two trainings of one seed are no two seeds.
    alike = {r: len(of) if len(set(of)) == len(of) else 1 for r, of in seeds.items()}
    places = collections.Counter(checkpoints[i].workdir.name for i in whole)
    found = []
    for i, saved in enumerate(checkpoints):
        name, group = names[i], ""
        if i not in whole:
            name += "_inductive"
        elif len(whole) > 1:
            name += "_" + re.sub(r"[^\w.-]+", "-", saved.workdir.name)
            if places[saved.workdir.name] > 1:
                name += f"_step{saved.step}"
            if alike[recipes[i]] > 1:
                number = sorted(alike).index(recipes[i])
                group = names[i] if len(alike) == 1 else f"{names[i]}_recipe{number + 1}"
        encoder = build_encoder(saved.meta["encoder"])
        objective = build_objective(saved.meta["objective"], encoder)
        found.append(Trained(name, group, saved, objective))
    repeated = [name for name, n in collections.Counter(t.name for t in found).items() if n > 1]
    if repeated:
        raise InputError(
            f"--checkpoint: two of them would both be called {repeated[0]!r}: give each once, and "
            "work directories different names"
        )
    return tuple(found)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything an evaluation's config stands for, before any table exists.

    encoders: the architectures whose untrained family stands beside the trained ones; none where
      floors alone are asked for.
    """

    config: Config
    channels: tuple[str, ...]
    mesh: Mesh
    crop_px: int
    encoders: tuple[Encoder, ...]
    trained: tuple[Trained, ...] = ()

    @property
    def settings(self) -> Config:
        return self.config["evaluate"]

    @property
    def batch_size(self) -> int:
        """A multiple of the devices; features do not depend on it."""
        n_data = self.mesh.shape["data"]
        return -(-self.settings["batch_size"] // n_data) * n_data


def build_evaluation(
    config: Config, channels: Sequence[str] | None, checkpoints: Sequence[Saved] = ()
) -> Evaluation:
    """The evaluation of a config, of checkpoints or, without any, of its own "encoder" section.

    channels: of the data set; None for those of the checkpoints, when the data are not there yet.
    Raises `InputError` for checkpoints of other channels, and for a setting that is wrong whatever
    the data are.
    """
    trained = open_trained(checkpoints)
    for one in trained:
        theirs = one.saved.meta["channels"]
        channels = theirs if channels is None else channels
        if list(channels) != theirs:
            raise InputError(
                f"checkpoint {one.saved.directory} was trained on channels {', '.join(theirs)}, "
                f"not {', '.join(channels)}"
            )
    channels = tuple(channels or ("any",))
    if trained:
        distinct = {json.dumps(t.objective.encoder.config, sort_keys=True): t for t in trained}
        encoders = [t.objective.encoder for t in distinct.values()]
    elif "encoder" in config:
        encoders = [build_encoder({**config["encoder"], "channels": channels})]
    else:
        encoders = []
    crop_px = config["data"]["crop_px"]
    if not crop_px:
        crops = sorted({t.saved.meta["crop_px"] for t in trained})
        if len(crops) != 1:
            raise InputError(
                "data.crop_px: 0 stands for the crop that a checkpoint was trained on, and there "
                f"are {len(crops)} of them ({', '.join(map(str, crops)) or 'no checkpoint'}); "
                "name one, for example --config.data.crop_px=64"
            )
        crop_px = crops[0]
    evaluation = Evaluation(
        config=config,
        channels=channels,
        mesh=meshes.make_mesh(model=config["mesh"]["model"], devices=config["mesh"]["devices"]),
        crop_px=crop_px,
        encoders=tuple(encoders),
        trained=trained,
    )
    _check(evaluation)
    return evaluation


def _check(evaluation: Evaluation) -> None:
    settings = evaluation.settings
    for key, least in (
        ("untrained_seeds", 0), ("blocks", 0), ("batch_size", 1), ("max_examples", 0),
        ("probe_examples", 0),
    ):  # fmt: skip
        if settings.get(key, least) < least:
            raise InputError(f"evaluate.{key}: {settings[key]}, expected at least {least}")
    for encoder in evaluation.encoders:
        chosen_poolings(settings, encoder)
    if settings["resnet18"]:
        chosen_poolings(settings, random_resnet18(evaluation.channels).encoder)
    untrained_members(evaluation)
    floor_ids(settings["floors"])
    if settings["claim"] not in CLAIMS:
        raise InputError(f"evaluate.claim: {settings['claim']!r}, expected {' or '.join(CLAIMS)}")
    if not 0 < settings["delta"] < 1:
        raise InputError(f"evaluate.delta: {settings['delta']}, expected between 0 and 1")


def candidates(evaluation: Evaluation, dataset: Dataset) -> list[Candidate]:
    """Everything to score, in the order of the report. Names differ."""
    settings = evaluation.settings
    nothing = np.array([], np.int64)
    floors = own_floors(evaluation)

    def looks(encoder: Encoder) -> dict[str, Any]:
        return {
            "blocks": settings["blocks"],
            "poolings": chosen_poolings(settings, encoder),
            "image_px": evaluation.crop_px,
        }

    def represent(name: str, kind: str, encoder: Encoder, variables: Any) -> Representation:
        return EncoderRepresentation(name, kind, encoder, variables, **looks(encoder))

    def layers(encoder: Encoder) -> dict[str, int]:
        return layers_of(encoder, **looks(encoder))

    def recorded(encoder: Encoder) -> dict[str, int]:
        """What the features alone do not tell a probe."""
        if TOKENS not in looks(encoder)["poolings"]:
            return {}
        return {TOKENS: token_count(encoder, evaluation.crop_px)}

    def of_checkpoint(one: Trained, untrained: bool) -> Candidate:
        name = one.name + STEP0 if untrained else one.name
        kind = "untrained" if untrained else "trained"
        seed = one.saved.meta["seed"]
        saved = one.untrained_checkpoint() if untrained else one.saved
        weights = {"drawn": seed, "jax": jax.__version__} if saved is None else saved.digest()
        return Candidate(
            name=name,
            kind=kind,
            seed=seed,
            saw=nothing if untrained else one.saw(dataset),
            make=lambda: represent(
                name,
                kind,
                one.objective.encoder,
                one.variables(evaluation.mesh, untrained=untrained),
            ),
            layers=layers(one.objective.encoder),
            identity={
                "encoder": one.objective.encoder.config,
                "layers": layers(one.objective.encoder),
                "weights": weights,
            },
            encoder=one.objective.encoder,
            group=one.group + STEP0 if one.group and untrained else one.group,
            with_labels=one.with_labels and not untrained,
            folds=None if untrained else one.scorable(dataset),
            settings={
                "step": 0 if untrained else one.saved.step,
                **({"held_out": one.held_out} if one.held_out and not untrained else {}),
                **recorded(one.objective.encoder),
            },
        )

    def on_layout(one: Trained) -> Candidate:
        """The trained encoder, shown where the nuclei are and nothing else."""
        own = of_checkpoint(one, untrained=False)
        encoder, suffix = one.objective.encoder, OWN[ON_LAYOUT]
        make = functools.partial(
            floors.on_layout,
            own.name + suffix,
            encoder,
            lambda: one.variables(evaluation.mesh),
            **looks(encoder),
        )
        return dataclasses.replace(
            own,
            name=own.name + suffix,
            kind="layout",
            make=make,
            identity={**own.identity, "shown": "layout"},
            group=own.group + suffix if own.group else "",
        )

    def of_metadata(target: Target) -> Candidate | None:
        """What the audit of a target is about, scored like any other; None without columns."""
        columns = metadata_columns(target, dataset.declaration.nuisance)
        if not columns:
            return None
        made = functools.partial(MetadataRepresentation, dataset.metadata, columns)
        return Candidate(
            name=f"metadata_{target.name}",
            kind="metadata",
            seed=0,
            saw=nothing,
            make=made,
            layers=made().layers,
            identity={"representation": "metadata", "columns": columns},
            folds={target.name: range(len(dataset.folds(target.name)))},
        )

    def of_truth(target: Target) -> Candidate:
        """What the label was drawn from, whose score is the ceiling; nobody has to ask for it."""
        made = functools.partial(TruthRepresentation, dataset.metadata, target.truth)
        return Candidate(
            name=truth_name(target.name),
            kind=TruthRepresentation.kind,
            seed=0,
            saw=nothing,
            make=made,
            layers=made().layers,
            identity={"representation": "truth", "columns": list(target.truth)},
            folds={target.name: range(len(dataset.folds(target.name)))},
        )

    def at_random(member: Member) -> Candidate:
        name, encoder = member.name, member.encoder
        identity = {
            "encoder": encoder.config,
            "layers": layers(encoder),
            "random": member.number,
            "jax": jax.__version__,
        }
        return Candidate(
            name=name,
            kind="untrained",
            seed=member.number,
            saw=nothing,
            make=lambda: represent(name, "untrained", encoder, member.init()),
            layers=layers(encoder),
            identity=identity,
            encoder=encoder,
            group=member.group,
            settings={**member.settings, **recorded(encoder)},
        )

    found = []
    for one in evaluation.trained:
        found.append(of_checkpoint(one, untrained=False))
        if one.held_out is None:
            found.append(of_checkpoint(one, untrained=True))
            if floors.has_on_layout:
                found.append(on_layout(one))
    found += map(at_random, untrained_members(evaluation))
    if settings["resnet18"]:
        found.append(at_random(random_resnet18(evaluation.channels)))
    for name in floors.names:
        make = functools.partial(floors.make, name)
        floor = make()  # without weights it costs nothing
        found.append(
            Candidate(
                name,
                floor.kind,
                0,
                None if floor.kind in ENCODERS else nothing,  # of one's own: who knows
                make,
                floor.layers,
                floors.identity(name),
            )
        )
    if METADATA in added_representations(settings):
        about = map(of_metadata, dataset.declaration.targets)
        found += [candidate for candidate in about if candidate is not None]
    found += [of_truth(t) for t in dataset.declaration.targets if t.truth and not t.nuisance]
    return found


def untrained_members(evaluation: Evaluation) -> list[Member]:
    """The random initialisations of every encoder and variant; `InputError` for a wrong variant."""
    settings = evaluation.settings
    variants = parse_variants(settings["untrained_variants"])
    return [
        member
        for i, encoder in enumerate(evaluation.encoders)
        for member in members(
            encoder.config,
            evaluation.channels,
            seeds=settings["untrained_seeds"],
            variants=variants,
            stem=f"{encoder.name}{i + 1 if i else ''}",
        )
    ]


def random_resnet18(channels: Sequence[str]) -> Member:
    """The one of another kind that is always in the family."""
    encoder = build_encoder({"name": "resnet", "depth": 18, "channels": list(channels)})
    return Member("resnet18_random", "", 0, encoder, settings_of(encoder, 0))


def chosen_poolings(settings: Config, encoder: Encoder) -> list[str]:
    """Those of `evaluate.poolings` that the encoder has; a ResNet has no cls."""
    wanted = command_line.names(settings["poolings"])
    for pooling in wanted:
        if pooling not in (*POOLINGS, TOKENS):
            raise InputError(
                f"evaluate.poolings: {pooling!r}, expected some of {', '.join(POOLINGS)}, {TOKENS}"
            )
    found = [pooling for pooling in wanted if pooling in (*encoder.pooled_keys, TOKENS)]
    if not set(found) - {TOKENS}:
        raise InputError(
            f"evaluate.poolings: {settings['poolings']!r}, but {encoder.name} has "
            f"{', '.join(encoder.pooled_keys)}"
        )
    return found


def added_representations(settings: Config) -> list[str]:
    """Those of `evaluate.representations`: names, and Python files."""
    return command_line.names(settings["representations"])


def own_floors(evaluation: Evaluation) -> Floors:
    """Pixels, what `evaluate.floors` lists besides chance and the untrained ones, and what
    `evaluate.representations` adds to be shown; `InputError` for one that does not exist."""
    settings = evaluation.settings
    listed = [f for f in floor_ids(settings["floors"]) if f not in (CHANCE, TWIN, FAMILY)]
    added = [name for name in added_representations(settings) if name != METADATA]
    return Floors(
        evaluation.channels,
        evaluation.encoders[0].width if evaluation.encoders else DEFAULT_WIDTH,
        names=["pixels", *listed, *(part for part in added if not part.endswith(".py"))],
        files=[Path(part) for part in added if part.endswith(".py")],
    )

"""Training on labels: the right loss, of the right rows, and an exposure that says so."""

import dataclasses
import functools
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bioimg_jax import mesh as meshes
from bioimg_jax.candidates import build_evaluation, candidates, open_trained
from bioimg_jax.checkpoint import open_checkpoint
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.data.transforms import standardise
from bioimg_jax.errors import InputError
from bioimg_jax.logbook import read_logbook
from bioimg_jax.models import build_encoder
from bioimg_jax.objectives import build_objective
from bioimg_jax.prepare import prepare
from bioimg_jax.results import encoder_row
from bioimg_jax.train import (
    build_run,
    make_step,
    memory_estimate,
    train,
    training_examples,
    training_stream,
)
from tests import tiny

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
VIT = {
    "name": "vit", "channels": CHANNELS, "width": 16, "depth": 1, "heads": 2, "patch_px": 16,
    "image_px": 32,
}  # fmt: skip
RESNET = {"name": "resnet", "channels": CHANNELS, "depth": 10, "width": 4}
OBJECTIVE = {"name": "supervised", "target": "treatment", "n_classes": 9}
TREATMENTS = [
    "cell_density_high", "cell_density_low", "control", "intensity_high", "intensity_low",
    "nucleus_size_high", "nucleus_size_low", "texture_frequency_high", "texture_frequency_low",
]  # fmt: skip


def make(encoder: dict = VIT, **objective: Any) -> tuple:
    supervised = build_objective({**OBJECTIVE, **objective}, build_encoder(encoder))
    shapes = jax.eval_shape(supervised.init, jax.random.key(0))
    return supervised, *drawn(shapes)


def drawn(shapes: Any) -> Any:
    """Values for a tree of shapes, as after an initialisation, which takes longer to compile."""
    rng = np.random.default_rng(0)

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name in ("bias", "mean"):
            return jnp.zeros(leaf.shape)
        if name in ("scale", "var"):
            return jnp.ones(leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 2
        return jnp.asarray(rng.normal(0, (2 / fan_in) ** 0.5, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def batch(n: int = 6) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 2**16, (n, 32, 32, 5), dtype=np.uint16)),
        "label": jnp.asarray(rng.integers(0, 9, n), jnp.int32),
    }


def config(encoder: dict = RESNET, **changes: Any) -> dict[str, Any]:
    """The nested config of a small run; keys of `changes` have "__" for the dot."""
    found = runpy.run_path(str(tiny.ROOT / "configs" / "supervised_cells.py"))["get_config"]()
    nested = found.to_dict()
    nested["encoder"] = {k: v for k, v in encoder.items() if k != "channels"}
    small = {
        "data.crop_px": 32,
        "mesh.devices": 1,
        "optimizer.warmup_steps": 1,
        "train.batch_size": 16,
        "train.steps": 6,
        "train.log_every_steps": 1,
        "train.save_every_steps": 3,
        "train.probe_every_steps": 0,
    }
    for key, value in {**small, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        section, name = key.split(".")
        assert name in nested[section], key
        nested[section][name] = value
    return nested


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("nine_treatments")
    return open_dataset(prepare(name="synthetic_cells", out=out, options={"images_per_site": 1}))


@pytest.mark.parametrize(
    ("encoder", "pooling", "hidden", "label_smoothing"),
    [(VIT, "cls", 0, 0.0), (VIT, "mean_std", 8, 0.1), (RESNET, "mean", 0, 0.1)],
)
def test_loss_and_the_heads_gradient_are_those_of_scipy(
    encoder: dict, pooling: str, hidden: int, label_smoothing: float
) -> None:
    supervised, params, state = make(
        encoder, pooling=pooling, hidden=hidden, label_smoothing=label_smoothing
    )
    inputs = supervised.views(batch(), jax.random.key(1))
    np.testing.assert_array_equal(inputs["image"], standardise(batch()["image"]))
    variables = {"params": params["encoder"], "stats": state["stats"]}

    @jax.jit
    def both(params: Any) -> tuple:
        differentiate = jax.value_and_grad(supervised.loss, has_aux=True)
        found = differentiate(params, state, inputs, key=jax.random.key(2), step=0)
        return found, supervised.encoder.apply(variables, inputs["image"], train=True)

    ((loss, aux), gradient), (encoded, stats) = both(params)
    features = np.asarray(encoded.pooled[pooling], np.float64)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["head"])
    if hidden:
        features = np.maximum(features @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
    logits = features @ head["predict"]["kernel"] + head["predict"]["bias"]
    wanted = np.eye(9)[np.asarray(inputs["label"])]
    wanted = (1 - label_smoothing) * wanted + label_smoothing / 9
    expected = -(wanted * log_softmax(logits, axis=1)).sum(axis=1).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    right = (logits.argmax(axis=1) == np.asarray(inputs["label"])).mean()
    assert float(aux.metrics["accuracy"]) == pytest.approx(right)
    residual = (softmax(logits, axis=1) - wanted) / len(logits)
    found = gradient["head"]["predict"]
    np.testing.assert_allclose(found["kernel"], features.T @ residual, atol=1e-4)
    np.testing.assert_allclose(found["bias"], residual.sum(axis=0), atol=1e-5)
    # What the loss leaves for the next step are the encoder's statistics after this batch.
    after = supervised.after_step(state, aux, params, 0)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, after, {"stats": stats})
    if encoder is RESNET:
        assert float(jnp.abs(stats["stem"]["norm"]["mean"]).max()) > 0


def test_the_encoders_gradient_is_the_slope_of_the_loss() -> None:
    supervised, params, state = make(VIT, hidden=8)
    inputs = supervised.views(batch(), jax.random.key(1))

    @jax.jit
    def loss(params: Any) -> jax.Array:
        return supervised.loss(params, state, inputs, key=jax.random.key(0), step=0)[0]

    gradient = jax.jit(jax.grad(loss))(params)["encoder"]
    norm = float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient))))
    step = 5e-3 / norm**2  # the loss moves by 0.01: far above float32's rounding, far below itself

    def moved(sign: float) -> float:
        encoder = jax.tree.map(lambda p, g: p + sign * step * g, params["encoder"], gradient)
        return float(loss({**params, "encoder": encoder}))

    assert norm > 1e-3
    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(norm**2, rel=0.05)


def test_batch_statistics_keep_batches_whole() -> None:
    assert make(VIT)[0].separable_over_batch
    assert not make(RESNET)[0].separable_over_batch
    with pytest.raises(InputError, match=r"train.accumulation: 2, .* BatchNorm does; expected 1"):
        build_run(config(train__accumulation=2), CHANNELS)


def losses_and_labels(dataset: Dataset, encoder: dict, **changes: Any) -> tuple[list, list]:
    run = build_run(config(encoder, **changes), CHANNELS)
    losses, labels = [], []
    with jax.set_mesh(run.mesh):
        abstract = run.states.abstract
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
        params, stats = drawn((abstract.params, abstract.objective))
        state = dataclasses.replace(zeros, params=params, objective=stats)
        state = jax.device_put(state, run.states.shardings)
        update = make_step(run)
        stream = training_stream(run, dataset, None, 0)
        for _ in range(run.config["train"]["steps"]):
            rows = next(stream)
            labels.append(rows["label"])
            names = dataset.metadata["treatment"].iloc[rows["index"]]
            np.testing.assert_array_equal([TREATMENTS[i] for i in rows["label"]], names)
            here = {name: rows[name] for name in ("image", "label")}
            state, metrics = update(state, meshes.to_global(here, run.mesh))
            losses.append(float(metrics["loss"]))
    return losses, labels


def test_one_and_eight_devices_agree_batch_statistics_included(dataset: Dataset) -> None:
    one, labels = losses_and_labels(dataset, RESNET)
    other, same = losses_and_labels(dataset, RESNET, mesh__devices=8, mesh__fsdp=True)
    np.testing.assert_allclose(
        other, one, rtol=1e-3
    )  # of 2 images a device; 16 make the statistics
    np.testing.assert_array_equal(same, labels)


def test_accumulation_changes_nothing_but_rounding(dataset: Dataset) -> None:
    whole, _ = losses_and_labels(dataset, VIT)
    parts, _ = losses_and_labels(dataset, VIT, train__accumulation=4)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_run_is_resumed_bit_by_bit_and_records_what_it_saw(
    dataset: Dataset, tmp_path: Path
) -> None:
    """The labels in the checkpoint, their rows in `saw`, and the exposure that follows."""
    run = build_run(config(VIT, train__probe_every_steps=4), CHANNELS)
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def stop_once(step: int, state: Any) -> list:
        if step == 4 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        return []

    train(run, dataset, whole)
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, broken, probe=stop_once)
    train(run, dataset, broken, probe=stop_once)
    logged = [
        [(entry["step"], entry["loss"], entry["accuracy"]) for entry in read_logbook(path)]
        for path in (whole / "logbook.jsonl", broken / "logbook.jsonl")
    ]
    assert logged[0] == logged[1] and [step for step, _, _ in logged[0]] == list(range(1, 7))
    abstract = run.states.abstract
    ends = [
        open_checkpoint(p).restore(abstract.params, abstract.objective) for p in (whole, broken)
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)

    saved = open_checkpoint(whole)
    assert saved.meta["objective"]["target"] == "treatment"
    assert saved.meta["data"]["labels"] == {"target": "treatment", "classes": TREATMENTS}
    evaluation = build_evaluation(config(VIT), CHANNELS, [saved])
    trained, step0 = candidates(evaluation, dataset)[:2]
    fold = dataset.folds("treatment")[0]
    np.testing.assert_array_equal(trained.saw, fold.train)
    assert trained.exposure(fold.test) == trained.exposure(fold.validation) == "none"
    fields = dataset.folds("plate")[0]  # test fields of the plates that were trained on
    assert trained.exposure(fields.test) == "labels"
    assert step0.exposure(fields.test) == "none"


def test_what_an_encoder_started_from_is_remembered(dataset: Dataset, tmp_path: Path) -> None:
    """Its rows count as seen, its labels as known, and the untrained twin is the seed's."""
    first = build_run(config(VIT, train__steps=2), CHANNELS)
    train(first, dataset, tmp_path / "first")
    (origin,) = open_trained([open_checkpoint(tmp_path / "first")])
    given = origin.start(first.mesh)

    other = {"target": "nucleus_size", "n_classes": 3}
    settings = config(VIT, train__steps=2)
    settings |= {"objective": settings["objective"] | other, "seed": 7}
    second = build_run(settings, CHANNELS)
    train(second, dataset, tmp_path / "second", start_from=given)
    saved = open_checkpoint(tmp_path / "second")
    before = saved.meta["starts_from"]
    assert (before["seed"], before["step"]) == (0, 2)
    (trained,) = open_trained([saved])
    at_0 = saved.at(0)
    assert at_0 is not None
    params, _ = trained.restore(at_0, second.mesh)
    same = np.testing.assert_array_equal
    jax.tree.map(same, params["encoder"], given.variables["params"])
    drawn_from_seed = second.states.initial()
    twin = trained.variables(second.mesh, untrained=True)["params"]
    assert trained.untrained_checkpoint() is None
    jax.tree.map(same, twin, drawn_from_seed.params["encoder"])

    saw = trained.saw(dataset)
    first_saw = origin.saw(dataset)
    assert saw is not None and first_saw is not None
    own = dataset.pretraining_indices(None, "nucleus_size")
    same(saw, np.union1d(own, first_saw))
    row = encoder_row(trained)
    assert row["starts_from"]["trained_on"]["labels"]["target"] == "treatment"
    assert row["starts_from"]["starts_from"] is None and origin.with_labels


def test_training_on_one_batch_learns_its_labels() -> None:
    supervised, params, state = make(VIT, hidden=8)
    inputs = supervised.views(batch(4), jax.random.key(1))

    @jax.jit
    def value_and_gradient(params: dict) -> tuple:
        return jax.value_and_grad(
            lambda p: supervised.loss(p, state, inputs, key=jax.random.key(0), step=0),
            has_aux=True,
        )(params)

    for _ in range(40):
        (_, aux), gradient = value_and_gradient(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    assert float(aux.metrics["accuracy"]) == 1


def test_intensity_augmentation_is_drawn_from_the_key() -> None:
    supervised, _, _ = make(augment=True)
    views = jax.jit(supervised.views)
    one, two = (views(batch(), jax.random.key(k))["image"] for k in (1, 2))
    assert float(jnp.abs(one - two).max()) > 0.01


def test_memory_is_estimated_with_labels() -> None:
    assert memory_estimate(build_run(config(VIT), CHANNELS), jnp.uint16)["temporary"] > 0


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"n_classes": 1}, "objective.n_classes: 1, expected at least 2"),
        ({"target": ""}, "objective.target: expected the name of a target"),
        ({"pooling": "max"}, "objective.pooling: 'max', but vit has cls, mean, mean_std"),
        ({"hidden": -1}, "objective.hidden: -1, expected at least 0"),
        ({"label_smoothing": 1.0}, r"objective.label_smoothing: 1.0, expected in \[0, 1\)"),
        ({"n_class": 9}, r"objective.n_class: unknown for supervised; did you mean 'n_classes'\?"),
    ],
)
def test_what_cannot_be_built_is_refused(objective: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(VIT, **objective)


def test_what_has_no_default_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"objective.target: missing; supervised has no default"):
        build_objective({"name": "supervised", "n_classes": 9}, build_encoder(VIT))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective__target": "dose"},
            "objective.target: data set 'synthetic_cells' has no targe",
        ),
        (
            {"objective__target": "plate"},
            r"objective.target: .*'plate' is cross-validated \(k_fold",
        ),
        ({"objective__n_classes": 4}, "objective.n_classes: 4, .* cell_density_.*; expected 9"),
    ],
)
def test_labels_that_must_not_be_learned_are_refused_before_a_file_is_written(
    dataset: Dataset, tmp_path: Path, changes: dict, message: str
) -> None:
    run = build_run(config(**changes), CHANNELS)
    with pytest.raises(InputError, match=message):
        train(run, dataset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cross_validated_target_is_learned_without_the_fold_that_is_held_out(
    dataset: Dataset,
) -> None:
    n_plates = dataset.metadata["plate"].nunique()
    run = build_run(config(objective__target="plate", objective__n_classes=n_plates), CHANNELS)
    fold = dataset.folds("plate")[1]
    indices, labels = training_examples(run, dataset, fold)
    assert labels is not None and (labels[indices] >= 0).all()
    assert set(indices) <= set(fold.train)

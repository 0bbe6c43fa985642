"""The untrained family: who its members are, and that they show what the literature found."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.linear import Linear
from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import read_table, write_table
from bioimg_jax.representations.encoder import EncoderRepresentation
from bioimg_jax.representations.untrained import Member, members, parse_variants, settings_of

SMALL = {"name": "vit", "width": 16, "depth": 2, "heads": 2, "patch_px": 8, "image_px": 16}


def small(text: str, seeds: int = 2, **changes: Any) -> list[Member]:
    return members({**SMALL, **changes}, ["DNA"], seeds=seeds, variants=parse_variants(text))


def test_variants_are_read_from_one_line() -> None:
    assert parse_variants("") == ({},)
    assert parse_variants("layerscale=1e-4, dtype=bfloat16 ; init=xavier") == (
        {"layerscale": 1e-4, "dtype": "bfloat16"},
        {"init": "xavier"},
    )
    assert parse_variants(";layerscale=none") == ({}, {"layerscale": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layerscale", "'layerscale' in 'layerscale', expected key=value"),
        ("init=xavier,", "'' in 'init=xavier,', expected key=value"),
        ("dtype=", "'dtype=' in 'dtype=', expected key=value"),
        ("layer_scale=1", "unknown key 'layer_scale'; did you mean 'layerscale'"),
        ("width=8", "unknown key 'width'; there are: init, layerscale, dtype, positions"),
        ("layerscale=1,layerscale=2", "layerscale is there twice"),
        ("layerscale=small", "layerscale=small, expected a number or none"),
        ("layerscale=nan", "layerscale=nan, expected a number or none"),
    ],
)
def test_variants_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"evaluate.untrained_variants: {message}"):
        parse_variants(text)


def test_members_are_the_seeds_of_every_variant() -> None:
    found = small(";layerscale=1e-4,dtype=bfloat16,init=trunc_normal,positions=learned")
    assert [member.name for member in found] == [
        "vit_w16_d2_random_1",
        "vit_w16_d2_random_2",
        "vit_w16_d2_layerscale0.0001_bfloat16_trunc_normal_learned_random_1",
        "vit_w16_d2_layerscale0.0001_bfloat16_trunc_normal_learned_random_2",
    ]
    assert all(member.name == f"{member.group}_{member.number}" for member in found)
    assert found[1].settings == {
        "init": "xavier",
        "layerscale": None,
        "dtype": "float32",
        "positions": "sincos",
        "seed": 2,
    }
    assert found[2].settings == {
        "init": "trunc_normal",
        "layerscale": 1e-4,
        "dtype": "bfloat16",
        "positions": "learned",
        "seed": 1,
    }
    assert found[2].encoder.config["layerscale"] == 1e-4
    assert members(SMALL, ["DNA"], seeds=1, stem="other")[0].name == "other_random_1"


def test_a_resnet_has_its_own_name_and_initialisation() -> None:
    (member,) = members({"name": "resnet", "depth": 18}, ["DNA"], seeds=1)
    assert member.name == "resnet18_random_1"
    assert (member.settings["init"], member.settings["layerscale"]) == ("he_fan_out", None)
    assert settings_of(member.encoder, 7)["seed"] == 7


def test_a_seed_draws_the_same_kernels_in_every_variant() -> None:
    one, other, scaled = (m.init()["params"] for m in small("layerscale=1;layerscale=1e-4")[:3])
    kernels = [p["blocks"]["stack"]["up"]["kernel"] for p in (one, other, scaled)]
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    np.testing.assert_allclose(scaled["blocks"]["stack"]["scale1"], 1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layerscale=1;layerscale=1.0", "vit_w16_d2_layerscale1_random and .* are one and the"),
        (";init=xavier", "vit_w16_d2_random and vit_w16_d2_xavier_random are one and the same"),
        ("dtype=float8", "encoder.dtype: 'float8', expected one of"),
        ("init=lecun", "encoder.init: 'lecun', expected one of xavier, trunc_normal"),
    ],
)
def test_variants_that_cannot_be_built_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"evaluate.untrained_variants: {message}"):
        small(text)


def test_what_is_wrong_with_the_encoder_itself_is_not_blamed_on_variants() -> None:
    with pytest.raises(InputError, match=r"^encoder.width: 18 must be a multiple of 4"):
        small("", width=18)


def test_layerscale_and_bfloat16_hide_from_cls_what_every_spread_shows(tmp_path: Path) -> None:
    """One architecture, two textures: from chance to perfect, by settings that nobody reports.

    With LayerScale 1e-4 the cls token is a constant plus updates of some ten thousandths of it. In
    bfloat16 (8 bits) they are rounded away, so that cls is at chance; in float32 they are there,
    and a table on disk must keep them (float16 has 11 bits). The mean over patches is then linear
    in the images and at chance in either. With LayerScale 1 both see the textures, and the spread
    over patches does in every setting: it is the power behind random filters.
    """
    builder = find_builder("two_textures")
    plan = builder.plan_resolved("", "", {"n_sheets": 24})
    examples = [e for unit in plan.units for e in builder.examples(unit, plan.shared)]
    obs = pd.DataFrame([metadata for metadata, _ in examples])
    images = np.stack([image for _, image in examples])
    (target,) = plan.declaration.targets
    variants = [
        {"layerscale": layerscale, "dtype": dtype}
        for layerscale in (1.0, 1e-4)
        for dtype in ("float32", "bfloat16")
    ]
    encoder = {
        "name": "vit",
        "width": 64,
        "depth": 12,
        "heads": 2,
        "patch_px": 8,
        "image_px": 64,
        "init": "trunc_normal",
        "positions": "learned",
    }
    values: dict[tuple[float, str, str], list[float]] = {}
    for member in members(encoder, plan.declaration.channels, seeds=3, variants=variants):
        found = EncoderRepresentation(
            member.name, "untrained", member.encoder, member.init(), blocks=1
        )
        features = {k: np.asarray(v) for k, v in found.features({"image": images}).items()}
        path = tmp_path / f"{member.name}.h5ad"
        batches = [(np.arange(len(obs)), features)]
        write_table(path, obs, found.layers, "final/mean", batches, {}, dtype=found.dtype)
        scores = Linear((1.0, 1e-1, 1e-2, 1e-3, 1e-4)).scores(
            read_table(path), make_folds(obs, target), target,
            representation=member.name, kind="untrained", seed=member.number, exposure="none",
            settings=member.settings,
        )  # fmt: skip
        for score in scores[:-1]:  # the last one chooses among the poolings
            key = (score.settings["layerscale"], score.settings["dtype"], score.pooling)
            values.setdefault(key, []).append(score.value)
    mean = {key: float(np.mean(seeds)) for key, seeds in values.items()}

    assert mean[1e-4, "bfloat16", "cls"] < 0.6
    assert mean[1e-4, "float32", "cls"] > 0.9
    for dtype in ("float32", "bfloat16"):
        assert mean[1.0, dtype, "cls"] > 0.95
        assert mean[1.0, dtype, "mean"] > 0.95
        assert mean[1e-4, dtype, "mean"] < 0.6
        for layerscale in (1.0, 1e-4):
            assert min(values[layerscale, dtype, "mean_std"]) > 0.98

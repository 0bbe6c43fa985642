"""The untrained family as an evaluation's config asks for it."""

import pytest

from bioimg_jax.candidates import Evaluation, build_evaluation, untrained_members
from bioimg_jax.errors import InputError
from tests import tiny


def evaluation(variants: str) -> Evaluation:
    config = tiny.config(evaluate__untrained_variants=variants)
    return build_evaluation(config, ("DNA", "RNA", "ER", "AGP", "Mito"))


def test_every_variant_of_the_encoder_is_in_the_family() -> None:
    found = untrained_members(evaluation(";layerscale=1e-4,dtype=bfloat16"))
    names = ["vit", "vit_layerscale0.0001_bfloat16"]
    assert [m.name for m in found] == [f"{n}_random_{i}" for n in names for i in (1, 2)]
    assert [m.encoder.config["dtype"] for m in found[1:3]] == ["float32", "bfloat16"]
    assert found[0].encoder.config["channels"] == ["DNA", "RNA", "ER", "AGP", "Mito"]


def test_a_wrong_variant_is_told_before_there_are_data() -> None:
    with pytest.raises(InputError, match=r"evaluate.untrained_variants: encoder.dtype: 'float8'"):
        evaluation("dtype=float8")

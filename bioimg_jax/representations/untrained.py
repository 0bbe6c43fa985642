"""The untrained family: random initialisations of an encoder, and what decides what they score.

A random network is no single number. Two of the settings below score at chance and perfectly on
the same images (`configs/untrained_atlas.py`), so every member says which ones it has:

* *LayerScale* 1e-4 (Touvron et al., arXiv 2103.17239) leaves every token what it was but for
  branches scaled to one ten thousandth. The cls token is a constant plus these: what it says of the
  image is in its last digits. bfloat16 has 8 of them (binary) and rounds most branches away, block
  by block; float32 keeps them. The mean over patches is at chance in either: it is a linear
  function of the mean patch, in which a texture of random phase cancels out. The spread over
  patches, in "mean_std", is the power behind random linear filters, and survives everything.
* The *initialisation* of the kernels sets how large a branch is beside its token, before
  LayerScale: at width 192 Glorot's kernels are 3.6 times (query, key, value: 2.5 times) those of
  standard deviation 0.02, and there are two in a row. Of theirs enough survives even bfloat16.
* *Positions*: fixed sines have a root mean square of 0.7, learned ones start at 0.02, and what is
  the same in all images dilutes what is not.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bioimg_jax.errors import InputError
from bioimg_jax.models import Encoder, build_encoder
from bioimg_jax.models.encoder import DEFAULT_INIT

# Random initialisations must not share their draws with a training run of a small seed.
UNTRAINED_STREAM = 10_000
KEY = "evaluate.untrained_variants"


def _number_or_none(text: str) -> float | None:
    if text.lower() == "none":
        return None
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


# What a variant may change, and how its value is read; `build_encoder` knows which ones there are.
CHANGES: dict[str, Callable[[str], Any]] = {
    "init": str,
    "layerscale": _number_or_none,
    "dtype": str,
    "positions": str,
}


@dataclasses.dataclass(frozen=True)
class Member:
    """One random initialisation of one variant of an encoder.

    name: of the group, with the number of the seed; fit for a file name.
    group: of the variant, whose seeds are averaged too.
    number: of the seed, from 1. One number draws the same kernels in every variant with the same
      `init`, so that variants can be compared seed by seed.
    settings: "init", "layerscale", "dtype", "positions" (None where the encoder has no such thing)
      and "seed", to be recorded with every score.
    """

    name: str
    group: str
    number: int
    encoder: Encoder
    settings: Mapping[str, Any]

    def init(self) -> dict[str, Any]:
        """{"params", "stats"}, a function of the encoder's config and the number alone."""
        return _compiled_init(self.encoder)(jax.random.key(UNTRAINED_STREAM + self.number))


@functools.cache
def _compiled_init(encoder: Encoder) -> Callable[[jax.Array], dict[str, Any]]:
    """Compiled once for all seeds of an encoder: it takes longer than the rest."""
    return jax.jit(encoder.init)


def parse_variants(text: str) -> tuple[dict[str, Any], ...]:
    """`evaluate.untrained_variants` as keys to change: "layerscale=1;layerscale=1e-4,init=xavier".

    ";" between variants, "," between the keys of one. Nothing between two ";" is the encoder as it
    is, and so is "". Raises `InputError` for what is no key=value, an unknown key, one given twice
    or a LayerScale that is no number.
    """
    return tuple(_parse_variant(part.strip()) for part in text.split(";"))


def _parse_variant(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in text.split(",") if text else ():
        key, _, value = (word.strip() for word in part.partition("="))
        if not (key and value):
            raise InputError(f"{KEY}: {part.strip()!r} in {text!r}, expected key=value")
        if key not in CHANGES:
            close = difflib.get_close_matches(key, CHANGES, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(CHANGES)}"
            raise InputError(f"{KEY}: unknown key {key!r}; {hint}")
        if key in found:
            raise InputError(f"{KEY}: {key} is there twice in {text!r}")
        try:
            found[key] = CHANGES[key](value)
        except ValueError:
            raise InputError(f"{KEY}: {key}={value}, expected a number or none") from None
    return found


def members(
    encoder: Mapping[str, Any],
    channels: Sequence[str],
    *,
    seeds: int,
    variants: Sequence[Mapping[str, Any]] = ({},),
    stem: str = "",
) -> list[Member]:
    """Seeds 1 ... `seeds` of every variant; the seeds of a variant follow each other.

    Args:
      encoder: the config of the encoder, as `build_encoder` takes it; `channels` replace its own.
      variants: keys to change in it, as `parse_variants` gives them.
      stem: begins the names; "" for the encoder's kind and size, "vit_w192_d12" or "resnet18". Two
        encoders of one evaluation need different ones.

    Raises `InputError` for a variant that cannot be built, and for two that are the same.
    """
    found: list[Member] = []
    groups: dict[str, dict[str, Any]] = {}
    for changes in variants:
        try:
            built = build_encoder({**encoder, "channels": list(channels), **changes})
        except InputError as error:
            if not changes:
                raise
            raise InputError(f"{KEY}: {error}") from None
        group = "_".join([stem or _stem(built), *_words(changes), "random"])
        made_of = {**built.config, "init": settings_of(built, 0)["init"]}
        for other, theirs in groups.items():
            if theirs == made_of:
                raise InputError(f"{KEY}: {other} and {group} are one and the same")
        groups[group] = made_of
        found += [
            Member(f"{group}_{number}", group, number, built, settings_of(built, number))
            for number in range(1, seeds + 1)
        ]
    return found


def settings_of(encoder: Encoder, number: int) -> dict[str, Any]:
    """What is recorded with every score of a random initialisation: see `Member`."""
    init = encoder.config.get("init") or DEFAULT_INIT.get(encoder.name, "default")
    return {**{key: encoder.config.get(key) for key in CHANGES}, "init": init, "seed": number}


def _stem(encoder: Encoder) -> str:
    depth = encoder.config["depth"]
    if encoder.patch_px is None:
        width = f"_w{encoder.config['width']}" if "width" in encoder.config else ""
        return f"{encoder.name}{depth}{width}"
    return f"{encoder.name}_w{encoder.width}_d{depth}"


def _words(changes: Mapping[str, Any]) -> list[str]:
    """The changes for a file name: ["layerscale0.0001", "bfloat16"]."""
    words = [
        value
        if isinstance(value, str)
        else f"{key}{value if value is None else format(value, 'g')}"
        for key, value in changes.items()
    ]
    return [re.sub(r"[^\w.-]+", "-", word) for word in words]

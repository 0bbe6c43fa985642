"""The contract every encoder keeps, and the table from a config to one."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioimg_jax.errors import InputError
from bioimg_jax.models.functional import Functional, Variables
from bioimg_jax.models.resnet import DEPTHS, WIDTH, ResNet, stage_widths
from bioimg_jax.models.transformer import INITS, XAVIER
from bioimg_jax.models.vit import POSITIONS, VARIANTS, Vit

DTYPES = ("float32", "bfloat16")
# How kernels are drawn where no `init` says so; a ResNet's as in He et al., arXiv 1502.01852.
DEFAULT_INIT = {"vit": XAVIER, "resnet": "he_fan_out"}
POOLINGS = ("cls", "mean", "mean_std")  # an encoder has some of them


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """What an encoder makes of b images; all float32.

    `pooled` has "cls" [b, d] (where the encoder has one), "mean" [b, d] over the patches, and
    "mean_std" [b, 2d], mean and standard deviation. `blocks` has the same of every block's (a
    ResNet's stage's) raw output, before the final norm.
    """

    tokens: jax.Array  # [b, n, d] after the final norm; cls first where there is one
    pooled: dict[str, jax.Array]
    blocks: tuple[dict[str, jax.Array], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """Pure functions and the facts about them; holds no arrays. Made by `build_encoder`."""

    name: str
    config: dict[str, Any]  # everything `build_encoder` needs to make it again; plain JSON
    channels: tuple[str, ...]
    pooled_keys: tuple[str, ...]
    block_widths: tuple[int, ...]
    patch_px: int | None  # None where there are no patches
    functional: Functional

    @property
    def width(self) -> int:
        return self.block_widths[-1]

    def init(self, key: jax.Array) -> dict[str, Any]:
        """{"params", "stats"}, plain nested dicts of float32 arrays; a function of `key` alone."""
        return self.functional.init(key)

    def apply(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        keep: jax.Array | None = None,
        token_mask: jax.Array | None = None,
        channels: tuple[str, ...] | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[Encoded, dict[str, Any]]:
        """Encodes standardised images [b, h, w, c]; returns the "stats" after it as well.

        Args:
          keep: int32 [b, k], the patches to see, in this order (MAE). Transformers only.
          token_mask: bool [b, n], patches replaced by the mask token. Transformers only.
          channels: names of the images' channels, checked against the encoder's own.
          train: batch statistics instead of running ones; stochastic depth, drawn from `key`.

        Raises `InputError` for another number, other names or another order of channels.
        """
        if channels is not None:
            check_channels(self, channels)
        if images.shape[-1] != len(self.channels):
            raise InputError(
                f"images have {images.shape[-1]} channels; the encoder has {len(self.channels)}: "
                f"{', '.join(self.channels)}"
            )
        if self.patch_px is None:
            if keep is not None or token_mask is not None:
                raise InputError(f"{self.name} has no patches to mask; choose a vit encoder")
            stages, stats = self.functional.apply(variables, images, train=train)
            blocks = tuple(_pool(_as_tokens(stage), has_cls=False) for stage in stages)
            return Encoded(_as_tokens(stages[-1]), blocks[-1], blocks), stats
        (tokens, outputs), stats = self.functional.apply(
            variables, images, keep=keep, token_mask=token_mask, train=train, key=key
        )
        tokens = tokens.astype(jnp.float32)
        blocks = tuple(
            _pool(outputs[i].astype(jnp.float32), has_cls=True)
            for i in range(len(self.block_widths))
        )
        return Encoded(tokens, _pool(tokens, has_cls=True), blocks), stats


def check_channels(encoder: Encoder, channels: tuple[str, ...]) -> None:
    """Wrong channel order is the field's classic silent error; `InputError` says both lists."""
    if tuple(channels) != encoder.channels:
        raise InputError(
            f"the encoder's channels are {', '.join(encoder.channels)}; "
            f"the images' are {', '.join(channels)}"
        )


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """The encoder of a config: {"name": "vit" | "resnet", "channels": names, ...}.

    The same one for the same config: what is traced and compiled of it serves all its checkpoints,
    twins and seeds.

    vit: `variant` Ti, S, B or L, which sets `width`, `depth` and `heads`, or "" and the three;
    `patch_px`, `image_px`;
    `positions` sincos or learned; `layerscale` None or its initial value; `stochastic_depth`;
    `init` of the kernels, xavier or trunc_normal; None, as in older checkpoints, is xavier.
    resnet: `depth` 10, 18, 34 or 50; `width` of its first stage, which the other three double, 64
    as published. Both: `dtype`, float32 or bfloat16, of the computation; parameters are float32.
    Raises `InputError` for what cannot be built.
    """
    config = dict(config)
    name = config.pop("name", None)
    if name not in _BUILDERS:
        raise InputError(f"encoder.name: {name!r}{_closest(str(name), list(_BUILDERS))}")
    defaults, build = _BUILDERS[name]
    for key in config:
        if key not in defaults:
            raise InputError(f"encoder.{key}: unknown for {name}{_closest(key, list(defaults))}")
    config = {**defaults, **config}
    config["channels"] = list(config["channels"])
    if not config["channels"]:
        raise InputError("encoder.channels: expected the names of at least one channel")
    if config["dtype"] not in DTYPES:
        raise InputError(f"encoder.dtype: {config['dtype']!r}, expected one of {DTYPES}")
    config = {"name": name, **config}
    key = json.dumps(config, sort_keys=True)
    if key not in _built:
        _built[key] = build(config)
    return _built[key]


def _build_vit(config: dict[str, Any]) -> Encoder:
    if config["variant"]:
        if config["variant"] not in VARIANTS:
            raise InputError(
                f"encoder.variant: {config['variant']!r}, expected one of {', '.join(VARIANTS)}"
            )
        sizes = dict(zip(("width", "depth", "heads"), VARIANTS[config["variant"]], strict=True))
        config = {**config, **sizes}
    width, depth, heads = config["width"], config["depth"], config["heads"]
    for key, value in (("width", width), ("depth", depth), ("heads", heads)):
        if value < 1:
            raise InputError(f"encoder.{key}: {value}, expected at least 1")
    if width % heads or width % 4:
        raise InputError(f"encoder.width: {width} must be a multiple of 4 and of heads ({heads})")
    if config["patch_px"] < 1 or config["image_px"] % config["patch_px"]:
        raise InputError(
            f"encoder.patch_px: {config['patch_px']} does not divide images of "
            f"{config['image_px']} px"
        )
    if config["positions"] not in POSITIONS:
        raise InputError(f"encoder.positions: {config['positions']!r}, expected one of {POSITIONS}")
    if config["init"] not in (None, *INITS):
        raise InputError(
            f"encoder.init: {config['init']!r}, expected one of {', '.join(INITS)}, or None"
        )
    if not 0 <= config["stochastic_depth"] < 1:
        raise InputError(
            f"encoder.stochastic_depth: {config['stochastic_depth']}, expected in [0, 1)"
        )
    functional = Functional(
        lambda rngs: Vit(
            n_channels=len(config["channels"]),
            image_px=config["image_px"],
            patch_px=config["patch_px"],
            width=width,
            depth=depth,
            heads=heads,
            positions=config["positions"],
            layerscale=config["layerscale"],
            stochastic_depth=config["stochastic_depth"],
            dtype=jnp.dtype(config["dtype"]),
            init=config["init"] or DEFAULT_INIT["vit"],
            rngs=rngs,
        )
    )
    return Encoder(
        name="vit",
        config=config,
        channels=tuple(config["channels"]),
        pooled_keys=POOLINGS,
        block_widths=(width,) * depth,
        patch_px=config["patch_px"],
        functional=functional,
    )


def _build_resnet(config: dict[str, Any]) -> Encoder:
    if config["depth"] not in DEPTHS:
        raise InputError(f"encoder.depth: {config['depth']}, expected one of {tuple(DEPTHS)}")
    expansion, width = DEPTHS[config["depth"]][1], config["width"]
    if width < 1:
        raise InputError(f"encoder.width: {width}, expected at least 1")
    functional = Functional(
        lambda rngs: ResNet(
            n_channels=len(config["channels"]),
            depth=config["depth"],
            width=width,
            dtype=jnp.dtype(config["dtype"]),
            rngs=rngs,
        )
    )
    if width == WIDTH:  # as older checkpoints, which know of no other, record it
        config = {key: value for key, value in config.items() if key != "width"}
    return Encoder(
        name="resnet",
        config=config,
        channels=tuple(config["channels"]),
        pooled_keys=("mean", "mean_std"),
        block_widths=tuple(inner * expansion for inner in stage_widths(width)),
        patch_px=None,
        functional=functional,
    )


_built: dict[str, Encoder] = {}
# Encoder name -> its keys with their defaults, and what builds it.
_BUILDERS: dict[str, tuple[dict[str, Any], Any]] = {
    "vit": (
        {
            "channels": (),
            "variant": "",
            "width": 0,
            "depth": 0,
            "heads": 0,
            "patch_px": 16,
            "image_px": 224,
            "positions": "sincos",
            "layerscale": None,
            "stochastic_depth": 0.0,
            "init": None,
            "dtype": "float32",
        },
        _build_vit,
    ),
    "resnet": ({"channels": (), "depth": 18, "width": WIDTH, "dtype": "float32"}, _build_resnet),
}


def _as_tokens(stage: jax.Array) -> jax.Array:
    """[b, h, w, d] -> float32 [b, h * w, d]"""
    return stage.reshape(stage.shape[0], -1, stage.shape[-1]).astype(jnp.float32)


def _pool(tokens: jax.Array, *, has_cls: bool) -> dict[str, jax.Array]:
    patches = tokens[:, 1:] if has_cls else tokens
    mean = patches.mean(axis=1)
    variance = jnp.square(patches - mean[:, None, :]).mean(axis=1)
    # The small number keeps the gradient of the root finite where all patches are alike.
    pooled = {
        "mean": mean,
        "mean_std": jnp.concatenate([mean, jnp.sqrt(variance + 1e-12)], axis=-1),
    }
    return {"cls": tokens[:, 0], **pooled} if has_cls else pooled


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"

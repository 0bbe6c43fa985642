"""The ViT against Hugging Face's, and the promises of the Encoder contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.models import build_encoder
from bioimg_jax.models.transformer import sincos_positions
from bioimg_jax.models.vit import patchify, unpatchify
from tests.models import hugging_face

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
SMALL = {
    "name": "vit",
    "channels": CHANNELS,
    "width": 32,
    "depth": 3,
    "heads": 4,
    "patch_px": 8,
    "image_px": 32,
}


def images(n: int, px: int = 32, channels: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, px, px, channels)).astype(np.float32)


@pytest.mark.peers
@pytest.mark.parametrize("n_channels", [3, 5])
def test_vit_gives_the_outputs_of_hugging_face(n_channels: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    peer = ViTModel(
        ViTConfig(
            num_hidden_layers=12,
            hidden_size=192,
            num_attention_heads=3,
            intermediate_size=768,
            image_size=64,
            patch_size=16,
            num_channels=n_channels,
            layer_norm_eps=1e-6,
            initializer_range=0.05,
        ),
        add_pooling_layer=False,
    ).eval()
    for parameter in peer.parameters():  # biases and norms away from 0 and 1 too
        parameter.data += 0.02 * torch.randn_like(parameter)
    encoder = build_encoder(
        {
            "name": "vit",
            "variant": "Ti",
            "channels": CHANNELS[:n_channels],
            "patch_px": 16,
            "image_px": 64,
            "positions": "learned",
        }
    )
    variables = encoder.init(jax.random.key(0))
    params = hugging_face.vit(peer, variables["params"])
    x = images(2, 64, n_channels)
    with torch.no_grad():
        out = peer(torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True)
    with jax.numpy_dtype_promotion("strict"):
        encoded, _ = encoder.apply({"params": params, "stats": {}}, jnp.asarray(x))
    assert np.ptp(out.last_hidden_state.numpy()) > 1
    np.testing.assert_allclose(encoded.tokens, out.last_hidden_state.numpy(), atol=1e-4)
    # Hidden state i is the output of block i; 0 is the embedding.
    for block, hidden in zip(encoded.blocks[:-1], out.hidden_states[1:-1], strict=True):
        np.testing.assert_allclose(block["cls"], hidden[:, 0].numpy(), atol=1e-4)
        np.testing.assert_allclose(block["mean"], hidden[:, 1:].numpy().mean(1), atol=1e-4)


def test_sincos_positions_follow_the_formula() -> None:
    positions = sincos_positions(3, 4, 8)
    assert positions.shape == (12, 8)
    row, column = 2, 3  # patch 11; two wavelengths: 1 and 100
    expected = [
        *np.sin([column, column / 100]),
        *np.cos([column, column / 100]),
        *np.sin([row, row / 100]),
        *np.cos([row, row / 100]),
    ]
    np.testing.assert_allclose(positions[11], expected, rtol=1e-6)


def test_patches_survive_the_round_trip() -> None:
    x = images(2, 24)[:, :16]
    patches = patchify(jnp.asarray(x), 8)
    assert patches.shape == (2, 6, 8 * 8 * 5)
    np.testing.assert_array_equal(patches[0, 1].reshape(8, 8, 5), x[0, :8, 8:16])
    np.testing.assert_array_equal(unpatchify(patches, 8, 2), x)


def test_keeping_all_patches_in_any_order_changes_nothing_but_the_order() -> None:
    encoder = build_encoder(SMALL)
    variables = encoder.init(jax.random.key(1))
    x = jnp.asarray(images(3))
    order = jnp.argsort(jax.random.uniform(jax.random.key(2), (3, 16)), axis=1)
    whole, _ = encoder.apply(variables, x)
    shuffled, _ = encoder.apply(variables, x, keep=order)
    np.testing.assert_allclose(
        shuffled.tokens[:, 1:],
        jnp.take_along_axis(whole.tokens[:, 1:], order[:, :, None], axis=1),
        atol=1e-5,
    )
    np.testing.assert_allclose(shuffled.pooled["mean_std"], whole.pooled["mean_std"], atol=1e-5)


def test_hidden_patches_cannot_be_seen() -> None:
    encoder = build_encoder(SMALL)
    variables = encoder.init(jax.random.key(1))
    x = images(1)
    other = x.copy()
    other[:, :8, :8] += 5.0  # patch 0
    keep = jnp.arange(1, 16)[None, :]
    mask = jnp.arange(16)[None, :] == 0
    for arguments in ({"keep": keep}, {"token_mask": mask}):
        a, _ = encoder.apply(variables, jnp.asarray(x), **arguments)
        b, _ = encoder.apply(variables, jnp.asarray(other), **arguments)
        np.testing.assert_array_equal(a.tokens, b.tokens)
    a, _ = encoder.apply(variables, jnp.asarray(x))
    b, _ = encoder.apply(variables, jnp.asarray(other))
    assert float(jnp.abs(a.tokens - b.tokens).max()) > 1e-3


def test_stochastic_depth_drops_branches_in_training_only() -> None:
    encoder = build_encoder({**SMALL, "stochastic_depth": 0.9})
    variables = encoder.init(jax.random.key(1))
    x = jnp.asarray(images(4))
    plain, _ = encoder.apply(variables, x, key=jax.random.key(3))
    frozen, _ = encoder.apply(variables, x)
    np.testing.assert_array_equal(plain.tokens, frozen.tokens)
    trained, _ = encoder.apply(variables, x, train=True, key=jax.random.key(3))
    # The first block is never dropped: its rate is zero.
    np.testing.assert_allclose(trained.blocks[0]["mean"], frozen.blocks[0]["mean"], atol=1e-5)
    assert float(jnp.abs(trained.tokens - frozen.tokens).max()) > 1e-2


def test_layerscale_of_zero_makes_blocks_the_identity() -> None:
    encoder = build_encoder({**SMALL, "layerscale": 0.0})
    encoded, _ = encoder.apply(encoder.init(jax.random.key(1)), jnp.asarray(images(2)))
    np.testing.assert_array_equal(encoded.blocks[0]["mean"], encoded.blocks[2]["mean"])


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters() -> None:
    full, half = (build_encoder({**SMALL, "dtype": d}) for d in ("float32", "bfloat16"))
    variables = half.init(jax.random.key(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = jnp.asarray(images(2))
    a, b = (encoder.apply(variables, x)[0].tokens for encoder in (full, half))
    assert b.dtype == jnp.float32
    difference = float(jnp.abs(a - b).max())
    assert 0 < difference < 0.2


@pytest.mark.parametrize("init", ["xavier", "trunc_normal"])
def test_kernels_are_drawn_as_the_init_says(init: str) -> None:
    params = build_encoder({**SMALL, "init": init}).init(jax.random.key(0))["params"]
    up = np.asarray(params["blocks"]["stack"]["up"]["kernel"])  # [depth, 32, 128]
    embed = np.asarray(params["embed"]["kernel"])  # [320, 32]
    for kernel, inputs, outputs in ((up, 32, 128), (embed, 320, 32)):
        largest = np.sqrt(6 / (inputs + outputs))  # Glorot and Bengio (2010), equation 16
        sd = largest / np.sqrt(3) if init == "xavier" else 0.02
        np.testing.assert_allclose(kernel.std(), sd, rtol=0.05)
        # A uniform distribution ends at sqrt(3) sd; 4,000 draws of a normal one go beyond 3.
        assert (np.abs(kernel).max() < 1.75 * sd) == (init == "xavier")


def test_an_encoder_without_init_is_what_it_always_was() -> None:
    config = build_encoder(SMALL).config
    assert config["init"] is None  # as `get` finds it in a checkpoint older than the key
    old, named = (
        build_encoder({**SMALL, **more}).init(jax.random.key(0))
        for more in ({}, {"init": "xavier"})
    )
    jax.tree.map(np.testing.assert_array_equal, old, named)


def test_sincos_takes_other_image_sizes_and_learned_positions_refuse_them() -> None:
    x = jnp.asarray(images(1, 48))
    encoder = build_encoder(SMALL)
    assert encoder.apply(encoder.init(jax.random.key(0)), x)[0].tokens.shape == (1, 37, 32)
    encoder = build_encoder({**SMALL, "positions": "learned"})
    with pytest.raises(InputError, match="32 x 32 px, not 48 x 48"):
        encoder.apply(encoder.init(jax.random.key(0)), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vitt"}, r"encoder.name: 'vitt'; did you mean 'vit'\?"),
        ({"patch": 8}, r"encoder.patch: unknown for vit; did you mean 'patch_px'\?"),
        ({"heads": 5}, r"encoder.width: 32 must be a multiple of 4 and of heads \(5\)"),
        ({"patch_px": 7}, r"encoder.patch_px: 7 does not divide images of 32 px"),
        ({"channels": ()}, r"encoder.channels: expected the names"),
        ({"dtype": "float64"}, r"encoder.dtype: 'float64', expected one of"),
        ({"positions": "rotary"}, r"encoder.positions: 'rotary', expected one of"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build_encoder({**SMALL, **change})
    assert "\n" not in str(error.value)


def test_wrong_channels_are_refused() -> None:
    encoder = build_encoder(SMALL)
    variables = encoder.init(jax.random.key(0))
    with pytest.raises(InputError, match="images have 3 channels; the encoder has 5: DNA, RNA"):
        encoder.apply(variables, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(InputError, match=r"channels are DNA, RNA, .* are RNA, DNA"):
        encoder.apply(
            variables,
            jnp.zeros((1, 32, 32, 5)),
            channels=("RNA", "DNA", "ER", "AGP", "Mito"),
        )


def test_a_variant_sets_the_sizes_whatever_else_is_given() -> None:
    encoder = build_encoder({**SMALL, "variant": "S"})
    assert encoder.block_widths == (384,) * 12
    assert build_encoder(encoder.config).config == encoder.config
    assert encoder.config["heads"] == 6


def test_named_variants_have_the_published_sizes() -> None:
    published = {"Ti": 5.5e6, "S": 21.7e6, "B": 85.8e6, "L": 303.3e6}
    for variant, expected in published.items():
        encoder = build_encoder({"name": "vit", "variant": variant, "channels": ("R", "G", "B")})
        shapes = jax.eval_shape(encoder.init, jax.random.key(0))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        assert abs(count / expected - 1) < 0.01, (variant, count)

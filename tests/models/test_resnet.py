"""The ResNet against Hugging Face's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.models import build_encoder
from tests.models import hugging_face

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")


def conv_norm(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    kernel = hugging_face.array(module.convolution.weight).transpose(2, 3, 1, 0)
    params = {"conv": {"kernel": kernel}, "norm": hugging_face.norm(module.normalization)}
    stats = {
        "norm": {
            "mean": hugging_face.array(module.normalization.running_mean),
            "var": hugging_face.array(module.normalization.running_var),
        }
    }
    return params, stats


@pytest.mark.peers
@pytest.mark.parametrize(("depth", "n_channels"), [(18, 3), (18, 5), (34, 5), (50, 5)])
def test_resnet_gives_the_outputs_of_hugging_face(depth: int, n_channels: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    bottleneck = depth == 50
    peer = ResNetModel(
        ResNetConfig(
            num_channels=n_channels,
            embedding_size=64,
            hidden_sizes=[256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512],
            depths=[2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3],
            layer_type="bottleneck" if bottleneck else "basic",
        )
    )
    x = np.random.default_rng(0).normal(size=(2, 64, 64, n_channels)).astype(np.float32)
    inputs = torch.tensor(x.transpose(0, 3, 1, 2))
    peer.train()
    with torch.no_grad():
        for module in peer.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight += 0.1 * torch.randn_like(module.weight)
                module.bias += 0.1 * torch.randn_like(module.bias)
        peer(inputs)  # running statistics away from 0 and 1
    peer.eval()

    params, stats = {}, {}
    params["stem"], stats["stem"] = conv_norm(peer.embedder.embedder)
    for i, stage in enumerate(peer.encoder.stages):
        for j, layer in enumerate(stage.layers):
            name = f"stage{i + 1}_block{j + 1}"
            parts = {f"conv{k + 1}": conv_norm(conv) for k, conv in enumerate(layer.layer)}
            if isinstance(layer.shortcut, torch.nn.Module) and list(layer.shortcut.parameters()):
                parts["shortcut"] = conv_norm(layer.shortcut)
            params[name] = {key: part[0] for key, part in parts.items()}
            stats[name] = {key: part[1] for key, part in parts.items()}

    encoder = build_encoder({"name": "resnet", "depth": depth, "channels": CHANNELS[:n_channels]})
    like = encoder.init(jax.random.key(0))
    variables = hugging_face.as_jax({"params": params, "stats": stats}, like)
    with torch.no_grad():
        out = peer(inputs, output_hidden_states=True)
    encoded, new_stats = encoder.apply(variables, jnp.asarray(x))
    expected = out.last_hidden_state.numpy().transpose(0, 2, 3, 1)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(
        encoded.tokens, expected.reshape(2, -1, expected.shape[-1]), atol=1e-4
    )
    for block, hidden in zip(encoded.blocks, out.hidden_states[1:], strict=True):
        np.testing.assert_allclose(block["mean"], hidden.numpy().mean((2, 3)), atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, new_stats, variables["stats"])  # frozen


def test_training_uses_the_batch_and_moves_the_running_statistics() -> None:
    encoder = build_encoder({"name": "resnet", "depth": 18, "channels": ("DNA",)})
    variables = encoder.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 32, 32, 1)) + 3
    _, stats = encoder.apply(variables, x, train=True)
    before, after = variables["stats"]["stem"]["norm"], stats["stem"]["norm"]
    assert float(jnp.abs(after["mean"] - before["mean"]).max()) > 0.01
    # Momentum 0.9: one step takes a tenth of the way to the batch's own mean.
    shifted, _ = encoder.apply({**variables, "stats": stats}, x)
    frozen, _ = encoder.apply(variables, x)
    assert float(jnp.abs(shifted.tokens - frozen.tokens).max()) > 1e-3


def test_resnet_has_no_cls_and_no_patches() -> None:
    encoder = build_encoder({"name": "resnet", "depth": 50, "channels": ("DNA",)})
    assert encoder.pooled_keys == ("mean", "mean_std")
    assert encoder.block_widths == (256, 512, 1024, 2048)
    variables = jax.eval_shape(encoder.init, jax.random.key(0))
    with pytest.raises(InputError, match="resnet has no patches to mask"):
        encoder.apply(variables, jnp.zeros((1, 32, 32, 1)), keep=jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(InputError, match=r"encoder.depth: 20, expected one of \(10, 18, 34, 50\)"):
        build_encoder({"name": "resnet", "depth": 20, "channels": ("DNA",)})
    with pytest.raises(InputError, match=r"encoder.width: 0, expected at least 1"):
        build_encoder({"name": "resnet", "width": 0, "channels": ("DNA",)})


def test_stages_double_the_width_of_the_first() -> None:
    narrow = build_encoder({"name": "resnet", "depth": 10, "width": 16, "channels": CHANNELS})
    assert narrow.block_widths == (16, 32, 64, 128)
    variables = jax.eval_shape(narrow.init, jax.random.key(0))
    shapes = {
        name: part["conv1"]["conv"]["kernel"].shape
        for name, part in variables["params"].items()
        if name != "stem"
    }
    assert shapes == {  # one block a stage
        "stage1_block1": (3, 3, 16, 16),
        "stage2_block1": (3, 3, 16, 32),
        "stage3_block1": (3, 3, 32, 64),
        "stage4_block1": (3, 3, 64, 128),
    }
    images = jnp.zeros((2, 64, 64, 5))
    encoded, _ = jax.eval_shape(narrow.apply, variables, images)
    assert encoded.pooled["mean_std"].shape == (2, 256)
    assert build_encoder(narrow.config).config == narrow.config
    assert build_encoder({**narrow.config, "depth": 50}).block_widths == (64, 128, 256, 512)


def test_a_config_recorded_before_there_was_a_width_is_that_of_width_64() -> None:
    recorded = {"name": "resnet", "channels": list(CHANNELS), "depth": 18, "dtype": "float32"}
    old, new = build_encoder(recorded), build_encoder({**recorded, "width": 64})
    assert old.config == new.config == recorded
    assert old.block_widths == (64, 128, 256, 512)
    key = jax.random.key(0)
    jax.tree.map(np.testing.assert_array_equal, old.init(key), new.init(key))

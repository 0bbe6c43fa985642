"""Hugging Face parameters under our names: what parity tests and speed comparisons share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().copy()


def dense(module: Any) -> dict[str, np.ndarray]:
    return {"kernel": array(module.weight).T, "bias": array(module.bias)}


def norm(module: Any) -> dict[str, np.ndarray]:
    return {"scale": array(module.weight), "bias": array(module.bias)}


def patch_embedding(conv: Any) -> dict[str, np.ndarray]:
    """Torch [d, c, p, p] -> [p * p * c, d]."""
    kernel = array(conv.weight).transpose(2, 3, 1, 0)
    return {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": array(conv.bias)}


def block(layer: Any) -> dict[str, Any]:
    """A `ViTLayer` or `ViTMAELayer`, whose names changed with transformers 5."""
    named = dict(layer.named_modules())

    def first(*names: str) -> Any:
        return next(named[name] for name in names if name in named)

    q = first("attention.q_proj", "attention.attention.query")
    k = first("attention.k_proj", "attention.attention.key")
    v = first("attention.v_proj", "attention.attention.value")
    parts = [dense(module) for module in (q, k, v)]
    return {
        "norm1": norm(named["layernorm_before"]),
        "attention": {
            "qkv": {
                "kernel": np.concatenate([part["kernel"] for part in parts], axis=1),
                "bias": np.concatenate([part["bias"] for part in parts]),
            },
            "out": dense(first("attention.o_proj", "attention.output.dense")),
        },
        "norm2": norm(named["layernorm_after"]),
        "up": dense(first("mlp.fc1", "intermediate.dense")),
        "down": dense(first("mlp.fc2", "output.dense")),
    }


def blocks(layers: Any) -> dict[str, Any]:
    return {"stack": jax.tree.map(lambda *leaves: np.stack(leaves), *map(block, layers))}


def as_jax(tree: Any, like: Any) -> Any:
    """`tree` as float32 arrays; fails unless its structure and shapes are those of `like`."""
    arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    assert jax.tree.map(jnp.shape, arrays) == jax.tree.map(jnp.shape, like)
    return arrays


def vit(model: Any, like: Any) -> Any:
    """The parameters of a `ViTModel` as those of our vit encoder, whose own are `like`."""
    return as_jax(
        {
            "embed": patch_embedding(model.embeddings.patch_embeddings.projection),
            "cls": array(model.embeddings.cls_token)[0, 0],
            "mask_token": like["mask_token"],  # it has none
            "positions": array(model.embeddings.position_embeddings)[0],
            "blocks": blocks(model.layers),
            "norm": norm(model.layernorm),
        },
        like,
    )


def mae(model: Any, like: Any) -> Any:
    """The parameters of a `ViTMAEForPreTraining` as those of our mae objective."""
    embeddings, decoder = model.vit.embeddings, model.decoder
    return as_jax(
        {
            "encoder": {
                "embed": patch_embedding(embeddings.patch_embeddings.projection),
                "cls": array(embeddings.cls_token)[0, 0],
                "mask_token": like["encoder"]["mask_token"],
                "blocks": blocks(model.vit.layers),
                "norm": norm(model.vit.layernorm),
            },
            "decoder": {
                "embed": dense(decoder.decoder_embed),
                "mask_token": array(decoder.mask_token)[0, 0],
                "blocks": blocks(decoder.decoder_layers),
                "norm": norm(decoder.decoder_norm),
                "predict": dense(decoder.decoder_pred),
            },
        },
        like,
    )


def fill_mae_positions(model: Any) -> None:
    """Gives a model made from a config alone the positions that published weights have.

    Without, they are zero.
    """
    import torch
    from transformers.models.vit_mae import modeling_vit_mae

    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        side, width = round((positions.shape[1] - 1) ** 0.5), positions.shape[-1]
        table = modeling_vit_mae.build_2d_sinusoidal_position_embedding(
            height=side, width=side, embed_dim=width, cls_token=True
        )
        positions.data[0] = torch.roll(table, width // 2, dims=-1)

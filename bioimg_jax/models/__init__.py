"""Encoders in Flax NNX; outside this folder a model is `init` and `apply` over nested dicts."""

from bioimg_jax.models.encoder import POOLINGS, Encoded, Encoder, build_encoder
from bioimg_jax.models.head import Head
from bioimg_jax.models.mae_decoder import MaeDecoder

__all__ = ["POOLINGS", "Encoded", "Encoder", "Head", "MaeDecoder", "build_encoder"]

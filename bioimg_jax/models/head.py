"""The classification head on an encoder's pooled features."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bioimg_jax.models.functional import Functional, Variables
from bioimg_jax.models.transformer import Linear


class _Head(nnx.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.hidden = Linear(inputs, hidden, jnp.float32, rngs) if hidden else None
        self.predict = Linear(hidden or inputs, outputs, jnp.float32, rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        if self.hidden is not None:
            features = jax.nn.relu(self.hidden(features))
        return self.predict(features)


class Head:
    """Features [b, inputs] -> logits [b, outputs], by one hidden layer (ReLU) or, with 0, none.

    In float32 whatever the encoder's type: softmax takes differences of logits.
    """

    def __init__(self, *, inputs: int, hidden: int, outputs: int) -> None:
        self._functional = Functional(lambda rngs: _Head(inputs, hidden, outputs, rngs))

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The parameters: a plain nested dict."""
        return self._functional.init(key)["params"]

    def apply(self, params: Variables, features: jax.Array) -> jax.Array:
        """[b, inputs] float32 -> [b, outputs] float32."""
        logits, _ = self._functional.apply({"params": params, "stats": {}}, features)
        return logits

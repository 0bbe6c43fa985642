"""Classification of a declared target: the positive control, and weak supervision by treatment.

What no encoder finds with the labels in hand is not in the images. Trained on the treatment that a
well got, it is the weakly supervised recipe of Caicedo et al. (CVPR 2018) and Moshkov et al. (Nat.
Commun. 2024).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bioimg_jax.data import transforms
from bioimg_jax.errors import InputError
from bioimg_jax.models import Encoder, Head
from bioimg_jax.objectives.objective import Aux


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross-entropy of a head on the encoder's pooled features.

    Args:
      target: name of the data set's target whose labels are learned, on its train part alone.
      n_classes: of the target; checked against the data when they are there.
      pooling: which pooled features the head sees, one of the encoder's `pooled_keys`.
      hidden: width of the head's hidden layer; 0: linear.
      label_smoothing: share s of a label that is spread evenly over all classes, its own too
        (Szegedy et al., arXiv 1512.00567, equation 7).
      augment: intensity augmentations (`transforms.augment_intensity`) on the images.
    """

    encoder: Encoder
    target: str
    n_classes: int
    pooling: str = "mean"
    hidden: int = 0
    label_smoothing: float = 0.0
    augment: bool = False

    def __post_init__(self) -> None:
        if not self.target:
            raise InputError("objective.target: expected the name of a target of the data set")
        if self.n_classes < 2:
            raise InputError(f"objective.n_classes: {self.n_classes}, expected at least 2")
        if self.pooling not in self.encoder.pooled_keys:
            raise InputError(
                f"objective.pooling: {self.pooling!r}, but {self.encoder.name} has "
                f"{', '.join(self.encoder.pooled_keys)}"
            )
        if self.hidden < 0:
            raise InputError(f"objective.hidden: {self.hidden}, expected at least 0")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"objective.label_smoothing: {self.label_smoothing}, expected in [0, 1)"
            )

    @functools.cached_property
    def separable_over_batch(self) -> bool:
        """Unless the encoder has batch statistics."""
        return not jax.tree.leaves(jax.eval_shape(self.encoder.init, jax.random.key(0))["stats"])

    @functools.cached_property
    def head(self) -> Head:
        inputs = self.encoder.width * (2 if self.pooling == "mean_std" else 1)
        return Head(inputs=inputs, hidden=self.hidden, outputs=self.n_classes)

    @property
    def augmentations(self) -> tuple[str, ...]:
        return ("intensity",) if self.augment else ()

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        encoder_key, head_key = jax.random.split(key)
        variables = self.encoder.init(encoder_key)
        params = {"encoder": variables["params"], "head": self.head.init(head_key)}
        return params, {"stats": variables["stats"]}

    def views(self, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """ "image" float32 [b, h, w, c] and "label" int32 [b]."""
        images = transforms.standardise(batch["image"])
        if self.augment:
            images = transforms.augment_intensity(images, key)
        return {"image": images, "label": batch["label"]}

    def loss(
        self, params: Any, state: Any, inputs: Mapping[str, jax.Array], *, key: jax.Array, step: Any
    ) -> tuple[jax.Array, Aux]:
        encoded, stats = self.encoder.apply(
            {"params": params["encoder"], "stats": state["stats"]},
            inputs["image"],
            train=True,
            key=key,
        )
        logits = self.head.apply(params["head"], encoded.pooled[self.pooling])  # [b, n_classes]
        log_p = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(log_p, inputs["label"][:, None], axis=1)[:, 0]
        smoothed = (1 - self.label_smoothing) * own + self.label_smoothing * log_p.mean(axis=-1)
        right = (logits.argmax(axis=-1) == inputs["label"]).astype(jnp.float32)
        return -smoothed.mean(), Aux(metrics={"accuracy": right.mean()}, updates={"stats": stats})

    def after_step(self, state: Any, aux: Aux, params: Any, step: Any) -> Any:
        return {"stats": aux.updates["stats"]}

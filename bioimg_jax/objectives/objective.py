"""The contract every objective keeps, and the table from a config to one."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from bioimg_jax.errors import InputError
from bioimg_jax.models import Encoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
    """What a loss says beside its value."""

    metrics: dict[str, jax.Array]  # scalars for the logbook
    updates: Any  # what `after_step` needs: new running statistics, centres


class Objective(Protocol):
    """A task around one encoder. Holds no arrays and no randomness.

    `separable_over_batch`: the loss of a batch is the mean of its examples' losses. False
    (contrastive losses, batch statistics) refuses gradient accumulation.
    `target`: name of the data set's target whose labels its batches hold, "label" int32 [b]; "" for
    images alone. `augmentations`: what `views` makes of an image, in the words that a data set's
    declaration has for it (`data.declaration.ERASERS`). `n_classes`, where there is a target: how
    many labels it tells apart.
    """

    encoder: Encoder
    separable_over_batch: bool
    target: str
    n_classes: int

    @property
    def augmentations(self) -> tuple[str, ...]: ...

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """(params, state): params["encoder"] are the encoder's, state["stats"] its statistics."""
        ...

    def views(self, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Inputs of the loss, each with the leading axis b of the *global* batch.

        Standardises and augments on the device, and makes every random draw that belongs to an
        example, so that neither devices nor accumulation change what an example sees.
        """
        ...

    def loss(
        self, params: Any, state: Any, inputs: Mapping[str, jax.Array], *, key: jax.Array, step: Any
    ) -> tuple[jax.Array, Aux]:
        """Mean loss over the examples given, a float32 scalar."""
        ...

    def after_step(self, state: Any, aux: Aux, params: Any, step: Any) -> Any:
        """The next state, once an optimiser step: statistics, teachers, centres."""
        ...


def build_objective(config: Mapping[str, Any], encoder: Encoder) -> Objective:
    """The objective of a config {"name": ..., keyword arguments of its class}."""
    from bioimg_jax.objectives.mae import Mae
    from bioimg_jax.objectives.supervised import Supervised

    classes: dict[str, Any] = {"mae": Mae, "supervised": Supervised}
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in classes:
        raise InputError(f"objective.name: {name!r}{_closest(str(name), list(classes))}")
    fields = [field for field in dataclasses.fields(classes[name]) if field.name != "encoder"]
    known = [field.name for field in fields]
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in arguments:
            raise InputError(f"objective.{field.name}: missing; {name} has no default for it")
    for key in arguments:
        if key not in known:
            raise InputError(f"objective.{key}: unknown for {name}{_closest(key, known)}")
    return classes[name](encoder=encoder, **arguments)


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"

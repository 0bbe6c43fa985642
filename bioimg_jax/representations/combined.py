"""Several representations side by side as one: the floor of everything simple together."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bioimg_jax.representations.representation import Batch, Representation


class CombinedRepresentation:
    """The default layers of `parts`, concatenated in their order into one layer, "combined".

    Features are joined as they are. Whoever uses them standardises every column on training rows,
    as the linear probe does, so that no part counts for more because of its units; `columns` says
    which columns are whose, for anything that weighs whole parts.

    Args:
      parts: at least one; their names differ.

    Raises:
      ValueError: no parts, or two of one name.
    """

    name = "combined"
    kind = "combined"

    def __init__(self, parts: Sequence[Representation]) -> None:
        names = [part.name for part in parts]
        if not parts or len(set(names)) < len(names):
            raise ValueError(f"parts {names}, expected one or more of different names")
        self._parts = tuple(parts)
        # The precision of the part that needs most.
        self.dtype = "float32" if any(part.dtype == "float32" for part in parts) else "float16"
        self.columns: dict[str, slice] = {}
        width = 0
        for part in parts:
            following = width + part.layers[_default(part)]
            self.columns[part.name] = slice(width, following)
            width = following
        self.layers = {"combined": width}

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        features = [part.features(batch)[_default(part)] for part in self._parts]
        joined = jnp.concatenate([jnp.asarray(f, jnp.float32) for f in features], axis=1)
        return {"combined": joined}


def _default(part: Representation) -> str:
    return next(reversed(part.layers))

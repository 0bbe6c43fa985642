"""What turns an image into a vector, trained or not: one interface, and nothing downstream differs.

A new representation is one file with a class of this shape.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

Batch = Mapping[str, Any]  # "image" [b, h, w, c] storage dtype, "index" int [b], "mask" bool [b]

# A layer "final/tokens" has an encoder's tokens one after the other, for the attentive probe. It
# is asked for like a pooling, and not pooled.
TOKENS = "tokens"

KINDS = (
    "trained",
    "untrained",
    "imported",
    "pixels",
    "count",
    "layout",
    "combined",  # several of the others side by side
    "noise",  # does not look at the images
    "texture",
    "truth",
    "metadata",  # of the audit: never a rung of the ladder
)


def is_tokens(layer: str) -> bool:
    return layer.endswith(f"/{TOKENS}")


ENCODERS = ("trained", "imported")  # kinds that are judged; the others are what they are held to


# Kinds whose spread is a layer of its own, "spread", where rows are averaged: all that noise gives
# away of a group is how many rows it has, and a linear probe does not see that in the means.
SPREAD_KINDS = ("noise",)


class Representation(Protocol):
    """Images in, named feature vectors out."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """One of `KINDS`."""

    @property
    def layers(self) -> dict[str, int]:
        """Layer name, "block03/mean" (block and pooling), -> width. The last one is the default."""

    @property
    def dtype(self) -> str:
        """Precision on disk: "float16" where it is enough (`write_table`), or "float32"."""

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        """Features [b, width] of each layer; rows whose mask is False hold anything."""


def stream_features(
    representation: Representation, batches: Iterable[Batch]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Features batch by batch, padding dropped: what `features.table.write_table` takes.

    Yields (positions int64 [m], {layer: [m, width]}); positions count the real examples in the
    order they come. The device computes a batch while the one before it is being written.
    """
    first = 0
    waiting: tuple[np.ndarray, dict[str, jax.Array]] | None = None
    for batch in batches:
        computed = (np.asarray(batch["mask"], bool), representation.features(batch))
        if waiting is not None:
            yield _fetch(first, *waiting)
            first += int(waiting[0].sum())
        waiting = computed
    if waiting is not None:
        yield _fetch(first, *waiting)


def _fetch(
    first: int, mask: np.ndarray, features: dict[str, jax.Array]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    positions = np.arange(first, first + int(mask.sum()))
    return positions, {name: np.asarray(values)[mask] for name, values in features.items()}

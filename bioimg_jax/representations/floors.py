"""The representations that need no encoder, by name: floors, and whatever a user's file adds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bioimg_jax.benchmarks.ladder import CHANCE, FAMILY, ON_LAYOUT, TRUTH, TWIN, truth_name
from bioimg_jax.errors import InputError
from bioimg_jax.extensions import check_name, digest, load_build
from bioimg_jax.representations.aggregation_noise import AggregationNoiseRepresentation
from bioimg_jax.representations.combined import CombinedRepresentation
from bioimg_jax.representations.layout import LayoutRepresentation
from bioimg_jax.representations.metadata import MetadataRepresentation
from bioimg_jax.representations.nuclei import NucleiRepresentation, Segmenter
from bioimg_jax.representations.pixels import PixelRepresentation, StainRepresentation
from bioimg_jax.representations.random_projection import RandomProjectionRepresentation
from bioimg_jax.representations.rendered_layout import RenderedLayoutRepresentation
from bioimg_jax.representations.representation import KINDS, Representation
from bioimg_jax.representations.texture import TextureBankRepresentation

if TYPE_CHECKING:
    from bioimg_jax.models import Encoder

DNA = ("DNA", "DAPI", "Hoechst")
RGB = ("R", "G", "B")
SEGMENTED = ("nuclei", "layout", "layout_rendered", ON_LAYOUT, "combined")
NOT_MADE = (CHANCE, TWIN, FAMILY, ON_LAYOUT)  # floors that need more than the images
KEY = "evaluate.representations"


class UnknownFloor(InputError):
    """A name that no floor has; `known` are those that are made from the images."""

    def __init__(self, message: str, known: tuple[str, ...]) -> None:
        super().__init__(message)
        self.known = known


class Floors:
    """Representations of images with these channels, made when their names are called.

    Args:
      width: of the encoder, which the random ones share. Nuclei and layout share one segmentation.
      names: those that the config wants, floors first; a repeated one counts once.
      files: Python files with a function `build(channels, width) -> Representation`.

    Raises:
      InputError: for a name without a representation, or a file that does not give one.
    """

    def __init__(
        self,
        channels: Sequence[str],
        width: int,
        names: Sequence[str] = (),
        files: Sequence[Path] = (),
    ) -> None:
        self._channels = tuple(channels)
        self._width = width
        self._segmenter: Segmenter | None = None
        self._makers: dict[str, Callable[[], Representation]] = {
            "pixels": lambda: PixelRepresentation(self._channels),
            "pixels_no_cross": lambda: PixelRepresentation(self._channels, cross_spectrum=False),
            "stain": StainRepresentation,
            "nuclei": lambda: NucleiRepresentation(self._segmented()),
            "layout": lambda: LayoutRepresentation(self._segmented()),
            "layout_rendered": lambda: RenderedLayoutRepresentation.untrained(self._segmented()),
            "combined": lambda: CombinedRepresentation(
                [self.make(part) for part in ("pixels", "nuclei", "layout")]
            ),
            "texture_bank": lambda: TextureBankRepresentation(self._channels),
            "texture_bank_mirrored": lambda: TextureBankRepresentation(
                self._channels, mirrored=True
            ),
            "random_projection": lambda: RandomProjectionRepresentation(width),
            "aggregation_noise": lambda: AggregationNoiseRepresentation(width),
        }
        self._files: dict[str, Path] = {}
        for path in files:
            self._add(path)
        names = tuple(dict.fromkeys([*names, *self._files]))
        for name in names:
            if name not in (*self._makers, ON_LAYOUT):
                raise UnknownFloor(
                    f"evaluate.floors: {name!r}, expected some of "
                    f"{', '.join((*NOT_MADE, *self._makers))}",
                    tuple(self._makers),
                )
        # A floor that these images cannot have is left out, and every verdict says so.
        self.omitted: dict[str, str] = {}
        if "any" not in self._channels and self._stain() is None:
            reason = (
                f"nuclei are segmented in a channel called {', '.join(DNA)}, or in R,G,B; the data "
                f"set has {', '.join(self._channels)}"
            )
            self.omitted = {name: reason for name in names if name in SEGMENTED}
        if "stain" in names and self._channels != RGB:
            has = ", ".join(self._channels)
            self.omitted["stain"] = f"stain is measured in R,G,B; the data set has {has}"
        self.names = tuple(name for name in names if name not in (*self.omitted, ON_LAYOUT))
        self.has_on_layout = ON_LAYOUT in names and ON_LAYOUT not in self.omitted

    def make(self, name: str) -> Representation:
        return self._makers[name]()

    def on_layout(
        self, name: str, encoder: "Encoder", variables: Callable[[], Any], **options: Any
    ) -> Representation:
        """An encoder of these images that is shown where the nuclei are: in the stain's channel.

        The channel that is segmented has the distances to the edge, the others nothing; nuclei of
        brightfield images are dark. options: of `RenderedLayoutRepresentation`.
        """
        segmenter, stain = self._segmented(), self._stain()
        paint = np.zeros((2, len(self._channels)), np.float32)
        if stain == "haematoxylin":
            paint[0] = -1.0
        else:
            paint[1, self._channels.index(stain or "")] = 1.0
        return RenderedLayoutRepresentation(name, segmenter, encoder, variables, paint, **options)

    def identity(self, name: str) -> Mapping[str, Any]:
        """What its features depend on besides the images, as plain JSON."""
        identity = {
            "representation": name, "channels": list(self._channels), "width": self._width,
        }  # fmt: skip
        return identity | ({"file": digest(self._files[name])} if name in self._files else {})

    def _add(self, path: Path) -> None:
        representation = load_build(path, KEY)(self._channels, self._width)
        name, kind = representation.name, representation.kind
        taken = {*self._makers, *NOT_MADE, MetadataRepresentation.name, TRUTH}
        if name.startswith(truth_name("")):  # would be taken for the ceiling of a target
            taken.add(name)
        check_name(name, taken, f"{KEY}: {path}")
        if kind not in KINDS:
            raise InputError(f"{KEY}: {path}: kind {kind!r}, expected one of {', '.join(KINDS)}")
        self._files[name] = path
        self._makers[name] = lambda: representation

    def _stain(self) -> str | None:
        """The channel to segment, "haematoxylin" of RGB images, None where there is nothing."""
        if self._channels == RGB:
            return "haematoxylin"
        return next((name for name in self._channels if name in DNA), None)

    def _segmented(self) -> Segmenter:
        if self._segmenter is None:
            stain = self._stain()
            if stain is None:
                raise ValueError("no channel to segment: see `omitted`")
            self._segmenter = (
                Segmenter(self._channels, "haematoxylin")
                if stain == "haematoxylin"
                else Segmenter(self._channels, dna_channel=stain)
            )
        return self._segmenter

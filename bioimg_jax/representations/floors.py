"""The floors that need no encoder, by the name that a config's `evaluate.floors` gives them."""

from collections.abc import Callable, Mapping, Sequence

from bioimg_jax.errors import InputError
from bioimg_jax.representations.aggregation_noise import AggregationNoiseRepresentation
from bioimg_jax.representations.combined import CombinedRepresentation
from bioimg_jax.representations.layout import LayoutRepresentation
from bioimg_jax.representations.nuclei import NucleiRepresentation, Segmenter
from bioimg_jax.representations.pixels import PixelRepresentation
from bioimg_jax.representations.random_projection import RandomProjectionRepresentation
from bioimg_jax.representations.representation import Representation
from bioimg_jax.representations.texture import TextureBankRepresentation

DNA = ("DNA", "DAPI", "Hoechst")
RGB = ("R", "G", "B")


class Floors:
    """Representations of images with these channels, made when their names are called.

    width: of the encoder, which the random ones share. Nuclei and layout share one segmentation.
    """

    def __init__(self, channels: Sequence[str], width: int) -> None:
        self._channels = tuple(channels)
        self._segmenter: Segmenter | None = None
        self._makers: Mapping[str, Callable[[], Representation]] = {
            "pixels": lambda: PixelRepresentation(self._channels),
            "nuclei": lambda: NucleiRepresentation(self._segmented()),
            "layout": lambda: LayoutRepresentation(self._segmented()),
            "combined": lambda: CombinedRepresentation(
                [self.make(part) for part in ("pixels", "nuclei", "layout")]
            ),
            "texture_bank": lambda: TextureBankRepresentation(self._channels),
            "random_projection": lambda: RandomProjectionRepresentation(width),
            "aggregation_noise": lambda: AggregationNoiseRepresentation(width),
        }

    def check(self, name: str) -> None:
        """`InputError` for a name without a floor, and for one that these channels cannot have."""
        if name not in self._makers:
            raise InputError(
                f"evaluate.floors: {name!r}, expected some of chance, twin, selected, "
                f"{', '.join(self._makers)}"
            )
        if name in ("nuclei", "layout", "combined"):
            self._segmented()

    def make(self, name: str) -> Representation:
        return self._makers[name]()

    def _segmented(self) -> Segmenter:
        if self._segmenter is None:
            if self._channels == RGB:
                self._segmenter = Segmenter(self._channels, "haematoxylin")
            else:
                dna = next((name for name in self._channels if name in DNA), None)
                if dna is None:
                    raise InputError(
                        f"evaluate.floors: nuclei are segmented in a channel called "
                        f"{', '.join(DNA)}, or in R,G,B; the data set has "
                        f"{', '.join(self._channels)}"
                    )
                self._segmenter = Segmenter(self._channels, dna_channel=dna)
        return self._segmenter

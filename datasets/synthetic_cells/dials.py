"""The dials of synthetic cells: what can be turned, in which unit, how far, and what it means."""

import dataclasses

from .rendering import CHANNELS


@dataclasses.dataclass(frozen=True)
class Dial:
    """One property of cells or optics.

    A *step* is how far a label or a nuisance turns it: a factor of `effect` on a ratio scale (log),
    an addition of `effect` otherwise. Values stay between `low` and `high`.
    """

    control: float  # its value where nothing turns it
    effect: float  # of a step up; a step down is its opposite
    spread: float  # sd between images of a well: of the logarithm, or of the value
    low: float
    high: float
    meaning: str  # with its unit
    log: bool = True

    def turned(self, steps: float) -> float:
        """The value that lies `steps` above the control, before limits."""
        return self.control * self.effect**steps if self.log else self.control + steps * self.effect


BIOLOGY = {
    "cell_density": Dial(2.84, 1.8, 0.10, 0.2, 14, "cells wanted per 64 x 64 px"),
    "clustering": Dial(0.022, 0.45, 0.0, 0, 1, "share of cells that lie beside another", log=False),
    "nucleus_size": Dial(6.05, 1.25, 0.142, 3, 14, "mean radius of a nucleus, px"),
    "nucleus_eccentricity": Dial(0.682, 0.25, 0.05, 0, 0.95, "eccentricity of nuclei", log=False),
    "dna_content": Dial(1.0, 1.4, 0.0801, 0.1, 8, "DNA stain in a nucleus, 1 = usual"),
    "chromatin_texture": Dial(0.0122, 4.0, 0.10, 0.001, 0.6, "relative contrast of the chromatin"),
    "cytoplasm_area": Dial(26.3, 1.4, 0.06, 2.5, 36, "area of a cell over that of its nucleus"),
    "intensity": Dial(1.0, 1.5, 0.10, 0.1, 10, "all stains but DNA, 1 = usual"),
    **{
        f"intensity_{name}": Dial(1.0, 1.5, 0.05, 0.1, 10, f"{name} stain, 1 = usual")
        for name in CHANNELS
    },
    "texture_frequency": Dial(0.095, 1.3, 0.05, 0.04, 0.24, "organelles, cycles per px"),
    "granularity": Dial(0.109, 2.0, 0.08, 0.02, 1.2, "relative contrast of the organelles"),
    "colocalisation": Dial(
        0.0, 0.9, 0.0, -1, 1,
        "correlation of ER and mitochondria: coarse band, its negative in the fine", log=False,
    ),
    "handedness": Dial(
        0.0, 1.0, 0.0, -1, 1, "of the organelles around a nucleus: -1 all left, 1 all right",
        log=False,
    ),
    "agreement": Dial(
        0.5, 0.5, 0.0, 0.5, 1, "share of an image's cells that have the hand of the first one",
        log=False,
    ),
    "polarity": Dial(0.0936, 2.4, 0.08, 0, 1.5, "strength of the lobes of organelles"),
}  # fmt: skip
OPTICS = {
    "gain": Dial(1.0, 1.35, 0.0, 0.1, 10, "light of all channels, 1 = usual"),
    "background": Dial(1.0, 1.8, 0.0, 0.1, 20, "light of the empty well, 1 = usual"),
    "defocus": Dial(0.0, 1.0, 0.0, 0, 3, "more blur in all channels, sigma in px", log=False),
    "vignetting": Dial(0.10, 0.25, 0.0, 0, 0.9, "light lost in the corners", log=False),
    "bleed_through": Dial(0.02, 0.15, 0.0, 0, 0.5, "of a channel into the next", log=False),
    "exposure": Dial(1.0, 4.0, 0.0, 0.25, 100, "photons collected, 1 = usual"),
}
# Of a well, not of its images: how many cells of it there are.
WELL = {"cells_per_well": Dial(1.0, 2.0, 0.0, 0.05, 20, "images of cells in a well, 1 = usual")}
DIALS = BIOLOGY | OPTICS | WELL

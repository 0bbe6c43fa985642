"""The dials of the tissue: every property that a preset sets, a patient shifts or a picture sweeps.

A dial is one float a spot. `low` and `high` are the ends of its useful range and are enforced by
clipping, `default` is what it is where nothing sets it.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dial:
    """One property of a spot. `low` < `high`, both drawable."""

    default: float
    low: float
    high: float
    unit: str
    what: str

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)


DIALS = {
    "density": Dial(6500, 3000, 11000, "nuclei per mm2", "nuclei outside glands"),
    "nuclear_size": Dial(1.0, 0.75, 1.3, "ratio", "radius of a nucleus to that of its type"),
    "pleomorphism": Dial(
        0.12, 0.0, 0.4, "sd", "spread of tumour nuclei's log radius, and their dents"
    ),
    "chromatin_um": Dial(2.0, 1.4, 4.5, "um", "wavelength of the chromatin's clumps"),
    "infiltrate": Dial(0.2, 0.0, 1.0, "share", "lymphocytes and plasma cells among free nuclei"),
    "stroma": Dial(0.25, 0.0, 1.0, "share", "fibroblasts and endothelium among the other ones"),
    "gland_share": Dial(0.0, 0.0, 0.6, "share", "area of the image inside glands"),
    "fibre_alignment": Dial(0.6, 0.0, 1.0, "ratio", "0: fibres in all directions, 1: all in one"),
    "clustering": Dial(0.2, 0.0, 1.0, "share", "nuclei that lie against another one of their nest"),
    "evenness": Dial(0.0, 0.0, 1.0, "share", "moves made towards one power spectrum for all"),
    "compartments": Dial(0.7, 0.0, 1.0, "ratio", "how far the types keep to regions of their own"),
    "out_of_focus": Dial(
        0.25, 0.0, 1.0, "ratio", "stain of nuclei above and below the focal plane"
    ),
    "haematoxylin": Dial(1.0, 0.5, 1.6, "ratio", "concentration of haematoxylin"),
    "eosin": Dial(1.0, 0.4, 1.8, "ratio", "concentration of eosin"),
    "blur_um": Dial(0.4, 0.25, 1.2, "um", "sd of the Gaussian point-spread function"),
}


def complete(given: Mapping[str, np.ndarray | float], n: int) -> dict[str, np.ndarray]:
    """All dials as float64 [n], clipped to their ranges: those `given`, the rest at default."""
    unknown = set(given) - set(DIALS)
    if unknown:
        raise KeyError(f"no dial {sorted(unknown)[0]!r}; there are: {', '.join(DIALS)}")
    return {
        name: np.clip(np.broadcast_to(given.get(name, dial.default), n), dial.low, dial.high)
        for name, dial in DIALS.items()
    }

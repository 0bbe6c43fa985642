"""Gene counts of a spot: negative binomial, each gene driven by one latent or by none.

    count ~ NB(mean = depth * exp(base + effect * latent), variance = mean + DISPERSION * mean^2)

the mean-dispersion model of RNA counts (Robinson & Smyth, Biostatistics 9, 321, 2008). A latent
lies in about -1 ... 1 and is one of

    composition   what share of the nuclei are lymphocytes and plasma cells
    layout        what share of them lie against another one of their nest
    texture       the logarithm of the wavelength of their chromatin
    nothing       0

Depth is the library size of the spot: log-normal around its patient's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .dials import DIALS

DRIVERS = ("composition", "layout", "texture", "nothing")
DISPERSION = 0.2  # of a gene's counts at a fixed mean
BASE = (1.0, 4.0)  # range of the log mean at depth 1 and latent 0
EFFECT = (0.6, 1.2)  # range of a driven gene's effect, of either sign
PATIENT_DEPTH, SPOT_DEPTH = 0.3, 0.2  # sd of the logarithm of depth, between patients and spots


@dataclasses.dataclass(frozen=True)
class Gene:
    """How one gene is made; `base` and `effect` are natural logarithms."""

    name: str
    driver: str
    base: float
    effect: float


def make_genes(rng: np.random.Generator, n_genes: int, drivers: Sequence[str]) -> tuple[Gene, ...]:
    """Gene j is driven by drivers[j mod their number]; its name says which."""
    base, size = rng.uniform(*BASE, n_genes), rng.uniform(*EFFECT, n_genes)
    sign = rng.choice([-1.0, 1.0], n_genes)
    genes = []
    for j in range(n_genes):
        driver = drivers[j % len(drivers)]
        effect = 0.0 if driver == "nothing" else float(sign[j] * size[j])
        genes.append(Gene(f"{driver.upper()}{j + 1}", driver, float(base[j]), effect))
    return tuple(genes)


def latents(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The latents of one spot from the `truth_*` columns of its metadata."""
    immune = metadata["truth_share_lymphocyte"] + metadata["truth_share_plasma"]
    chromatin = DIALS["chromatin_um"]
    middle = np.sqrt(chromatin.low * chromatin.high)
    octaves = np.log(metadata["truth_chromatin_um"] / middle) / np.log(chromatin.high / middle)
    return {
        "composition": 2 * immune - 1,
        "layout": 2 * metadata["truth_clustering"] - 1,
        "texture": float(octaves),
        "nothing": 0.0,
    }


def patient_depth(rng: np.random.Generator) -> float:
    return float(np.exp(rng.normal(0, PATIENT_DEPTH)))


def draw_counts(
    rng: np.random.Generator, genes: Sequence[Gene], spot: Mapping[str, float], depth: float
) -> np.ndarray:
    """Counts int64 [genes] of one spot with these `latents`, in a patient of this `depth`."""
    base, effect, latent = np.array([(g.base, g.effect, spot[g.driver]) for g in genes]).T
    mean = depth * np.exp(rng.normal(0, SPOT_DEPTH) + base + effect * latent)
    return rng.negative_binomial(1 / DISPERSION, 1 / (1 + DISPERSION * mean))

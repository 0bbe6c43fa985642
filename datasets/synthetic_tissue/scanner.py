"""What a centre's stain and scanner make of concentrations: uint8 R, G, B."""

import dataclasses

import numpy as np
from scipy import ndimage

from .placement import PIXEL_UM

# Optical density (natural logarithm) in R, G, B of the reference concentration 1: directions near
# those of Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution",
# 2001, lengths read off scanned breast and colon sections.
HAEMATOXYLIN = np.array([0.98, 1.05, 0.46])
EOSIN = np.array([0.13, 0.52, 0.17])
WHITE = np.array([244.0, 241.0, 246.0])  # of an empty slide


@dataclasses.dataclass(frozen=True)
class Scanner:
    """The technique of a centre."""

    haematoxylin: np.ndarray  # [3] optical density of concentration 1
    eosin: np.ndarray  # [3]
    white: np.ndarray  # [3] counts of an empty slide
    gamma: float  # exponent of the transmitted light
    blur: float  # factor on the sd of the point-spread function
    noise: float  # counts, standard deviation


REFERENCE = Scanner(HAEMATOXYLIN, EOSIN, WHITE, 1.0, 1.0, 1.5)


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """A centre at random: hue and strength of both stains, colour, contrast, blur and noise."""

    def hue(stain: np.ndarray) -> np.ndarray:
        turned = stain * np.exp(rng.normal(0, 0.08, 3))
        return turned * np.linalg.norm(stain) / np.linalg.norm(turned) * np.exp(rng.normal(0, 0.1))

    return Scanner(
        haematoxylin=hue(HAEMATOXYLIN),
        eosin=hue(EOSIN),
        white=np.clip(WHITE * np.exp(rng.normal(0, 0.02, 3)), 215, 255),
        gamma=float(np.exp(rng.normal(0, 0.08))),
        blur=float(np.exp(np.clip(rng.normal(0, 0.12), -0.3, 0.3))),
        noise=float(rng.uniform(1.0, 2.5)),
    )


def expose(
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    noise: np.ndarray,
    blur_um: np.ndarray,
    scanner: Scanner,
) -> np.ndarray:
    """Images uint8 [n, s, s, 3] of concentrations [n, s, s], by Beer and Lambert.

    Args:
      noise: standard normal [n, s, s, 3].
      blur_um: sd of the point-spread function [n], before the scanner's own factor.
    """
    images = np.empty((*haematoxylin.shape, 3), np.uint8)
    for i in range(len(images)):  # a point-spread function an image
        density = haematoxylin[i, ..., None] * scanner.haematoxylin
        density = density + eosin[i, ..., None] * scanner.eosin
        light = np.exp(-scanner.gamma * density)
        sigma = blur_um[i] * scanner.blur / PIXEL_UM
        light = ndimage.gaussian_filter(light, sigma, axes=(0, 1), mode="wrap", truncate=3.0)
        counts = scanner.white * light + scanner.noise * noise[i]
        images[i] = np.clip(np.rint(counts), 0, 255)
    return images

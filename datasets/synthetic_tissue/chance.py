"""Randomness and rounding: why the same seed gives the same bytes everywhere.

A spot draws from a generator of its own, as many numbers whatever its dials are. So its image
depends neither on the spots drawn beside it nor on the number of workers, and a dial can be turned
with everything else held.

Libraries round transcendental functions and Fourier transforms in their own ways, and processors
differ in the last bit. They are used in float64 only, and what they return is put on a coarse grid
at once: a difference in the last bit is then lost but for one value in some 10^10. What follows is
float32 and uses only operations that IEEE 754 rounds exactly: + - * / sqrt, comparisons, floor.
"""

from collections.abc import Sequence

import numpy as np
import scipy.fft

GRID = 4096.0  # steps to 1


class Chance:
    """One generator a spot; arrays with the spots along the first axis, float64."""

    def __init__(self, rngs: Sequence[np.random.Generator]) -> None:
        self.rngs = rngs

    def uniform(self, *shape: int) -> np.ndarray:
        """Uniform in [0, 1) [n, *shape]."""
        return np.stack([rng.random(shape) for rng in self.rngs])

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal [n, *shape]."""
        return np.stack([rng.standard_normal(shape) for rng in self.rngs])

    def fields(self, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two independent periodic Gaussian fields [n, s, s] of unit variance, on the grid.

        gain: amplitude [n, s, s] or [s, s] at the frequencies of `frequencies`.
        """
        gain = np.broadcast_to(gain, (len(self.rngs), *gain.shape[-2:]))
        scale = 1 / np.sqrt(np.square(gain).sum(axis=(1, 2), keepdims=True))
        side = gain.shape[-1]
        white = self.normal(side, 2 * side).view(np.complex128)
        field = scipy.fft.ifft2(white * (gain * scale), norm="forward", workers=1)
        return on_grid(field.real), on_grid(field.imag)  # its two parts are independent


def on_grid(values: np.ndarray) -> np.ndarray:
    """float32, to the nearest multiple of 1 / GRID; exact in float32 below 4096."""
    return (np.rint(values * GRID) / GRID).astype(np.float32)


def frequencies(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fx, fy and their length [s, s] in cycles a pixel, as `scipy.fft.ifft2` orders them."""
    f = np.fft.fftfreq(side)
    fx, fy = np.broadcast_to(f[None, :], (side, side)), np.broadcast_to(f[:, None], (side, side))
    return fx, fy, np.sqrt(fx * fx + fy * fy)


def ring(length: np.ndarray, wavelength_px: float | np.ndarray, width: float) -> np.ndarray:
    """Gain of a band around a wavelength (a number, or [n] for a gain an image).

    width: sd of the band, relative to its centre.
    """
    centre = np.asarray(1 / np.asarray(wavelength_px))[..., None, None]
    return np.exp(-0.5 * ((length - centre) / (width * centre)) ** 2)

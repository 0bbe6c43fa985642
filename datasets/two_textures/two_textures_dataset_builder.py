"""Generated images of two textures that only their direction tells apart.

Two textures are mirror images of each other, and every image of a sheet has the same multiset of
pixel values: mean, standard deviation, histogram and radial power spectrum say nothing about the
class. What is left is where the power lies by direction, which any linear filter sees.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from scipy import stats

from bioimg_jax.data.builders import Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

SIZE_PX = 64
TEXTURES = {"rising": 1, "falling": -1}  # the sign of the angle of the wave vector

# The texture: white noise through a band of frequencies and directions.
FREQUENCY = 0.14  # cycles a pixel: a wave of 7 px
FREQUENCY_SPREAD = 0.35  # of its logarithm, inside an image
ANGLE = np.pi / 4  # of the wave vector; +: rising, -: falling
ANGLE_SPREAD = 0.35  # rad, inside an image
# Sheets differ, so that images of one sheet are not independent of each other.
SHEET_FREQUENCY_SPREAD = 0.10  # of the logarithm
SHEET_ANGLE_SPREAD = 0.10  # rad

LEVEL, CONTRAST = 20_000.0, 4_000.0  # of 16 bits: mean and standard deviation of an image
BATCHES = 4
BATCH_SPREAD = 0.15  # of the logarithms of level and contrast, between batches

# Split of six sheets, again and again: most of them test, which is what is measured.
SPLITS = ("train", "test", "validation", "test", "train", "test")
METADATA = {
    "sheet": "text",
    "batch": "text",
    "position": "int",
    "texture": "text",
    "split": "text",
    "frequency": "float",
    "angle": "float",
}
NUISANCE = ("batch", "position")
# What a random stream is for; the first word of its key, so that no two streams are the same.
BATCH, SHEET = range(2)


class Builder(ImageDatasetBuilder):
    """Sheets of as many images of one texture as of the other; a unit is a sheet."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="default", description="two directions of one band of noise")
    ]
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "seed": 0,
        "n_sheets": 48,
        "images_per_sheet": 16,
    }
    LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
        "seed": (0, 2**32 - 1),
        "n_sheets": (3, 999),  # the first three are one of each split
        "images_per_sheet": (2, 998),
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        if source:
            raise InputError(f"data set 'two_textures' is generated: no source, not {source!r}")
        for name, (low, high) in cls.LIMITS.items():
            if not low <= options[name] <= high:
                raise InputError(
                    f"two_textures option {name} must be from {low} to {high}, not {options[name]}"
                )
        if options["images_per_sheet"] % 2:
            raise InputError(
                "two_textures option images_per_sheet must be even, half of it for each texture, "
                f"not {options['images_per_sheet']}"
            )
        sheets = range(1, options["n_sheets"] + 1)
        return Plan(
            declaration=_declaration(),
            metadata=METADATA,
            dtype="uint16",
            units=tuple(Unit(f"{sheet:03d}", {"sheet": sheet}) for sheet in sheets),
            options=dict(options),
            shared=dict(options),
        )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        sheet, n = unit.data["sheet"], shared["images_per_sheet"]
        cycle, position = divmod(sheet - 1, len(SPLITS))
        batch = cycle % BATCHES  # of all splits, and of both textures
        shift = np.random.default_rng([BATCH, shared["seed"], batch]).normal(0, BATCH_SPREAD, 2)
        rng = np.random.default_rng([SHEET, shared["seed"], sheet])
        frequency = FREQUENCY * np.exp(rng.normal(0, SHEET_FREQUENCY_SPREAD))
        angle = ANGLE + rng.normal(0, SHEET_ANGLE_SPREAD)  # of both textures, mirrored
        textures = rng.permutation(np.repeat(list(TEXTURES), n // 2))  # no order in the positions
        values = LEVEL * np.exp(shift[0]) + CONTRAST * np.exp(shift[1]) * _quantiles()
        examples = []
        for i, texture in enumerate(textures):
            noise = band_noise(rng, frequency, TEXTURES[str(texture)] * angle)
            metadata = {
                "sheet": f"S{sheet:03d}",
                "batch": f"B{batch + 1}",
                "position": i + 1,
                "texture": str(texture),
                "split": SPLITS[position],
                "frequency": float(frequency),
                "angle": float(TEXTURES[str(texture)] * angle),
            }
            examples.append((metadata, np.rint(ranked(noise, values)).astype(np.uint16)[..., None]))
        return examples


def band_noise(rng: np.random.Generator, frequency: float, angle: float) -> np.ndarray:
    """White noise filtered to a band around a wave vector and its opposite, float64 [64, 64].

    The filter's amplitude is a Gaussian of the logarithm of the frequency times one of the angle
    between a frequency and the wave vector, modulo a half turn (a log-Gabor filter: Field, J. Opt.
    Soc. Am. A 4, 2379, 1987). Phases are random, so there is nothing beyond the power spectrum.

    Args:
      frequency: cycles a pixel. angle: of the wave vector from the x axis towards y, rad.
    """
    fy, fx = np.meshgrid(*[np.fft.fftfreq(SIZE_PX)] * 2, indexing="ij")
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    across = np.log(radius / frequency) / FREQUENCY_SPREAD
    turn = (np.arctan2(fy, fx) - angle + np.pi / 2) % np.pi - np.pi / 2
    gain = np.exp(-0.5 * (across**2 + (turn / ANGLE_SPREAD) ** 2))
    gain[0, 0] = 0.0
    spectrum = np.fft.fft2(rng.normal(size=(SIZE_PX, SIZE_PX))) * gain
    return np.fft.ifft2(spectrum).real


def ranked(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image with its k-th smallest pixel set to the k-th of the ascending `values`."""
    flat = np.empty(image.size)
    flat[np.argsort(image, axis=None, kind="stable")] = values
    return flat.reshape(image.shape)


def _quantiles() -> np.ndarray:
    """As many quantiles of the standard normal distribution as an image has pixels, ascending."""
    n = SIZE_PX**2
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


def _declaration() -> Declaration:
    return Declaration(
        name="two_textures",
        channels=("texture",),
        pixel_um=None,
        targets=(
            Target(
                "texture",
                "texture",
                unit=("sheet",),
                split="fixed",
                split_column="split",
                audit=NUISANCE,
            ),
        ),
        nuisance=NUISANCE,
        symmetries=(),  # a flip or a quarter turn makes one texture the other
        pretraining="train",
    )

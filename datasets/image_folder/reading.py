"""Image files: size, channels and depth from the header, and the pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

TIFF = (".tif", ".tiff")
SUFFIXES = (".jpg", ".jpeg", ".png", *TIFF)
# Pillow's modes of JPEG and PNG -> channels, alpha, dtype. 16-bit PNG comes in several modes.
MODES = {
    "L": (1, False, "uint8"),
    "LA": (1, True, "uint8"),
    "RGB": (3, False, "uint8"),
    "RGBA": (3, True, "uint8"),
    "I": (1, False, "uint16"),
    "I;16": (1, False, "uint16"),
    "I;16B": (1, False, "uint16"),
    "I;16L": (1, False, "uint16"),
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class UnsupportedImage(ValueError):
    """A readable image of a kind that this data set cannot hold; the text says which."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file says about itself; an alpha channel is not counted."""

    height: int
    width: int
    channels: int
    colour: bool  # the channels are red, green and blue
    dtype: str  # "uint8" or "uint16"

    @property
    def kind(self) -> str:
        """All but the size, in words."""
        names = "RGB" if self.colour else "grey" if self.channels == 1 else ""
        return f"{names or f'{self.channels} channels'} of {self.dtype}"


def read_header(path: Path) -> Header:
    """Raises `UnsupportedImage`, or whatever the decoder raises for a file that is no image."""
    if path.suffix.lower() in TIFF:
        with tifffile.TiffFile(path) as tiff:
            return _tiff_layout(tiff)[0]
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        if image.mode not in MODES:
            raise UnsupportedImage(f"is of mode {image.mode}; expected grey or RGB")
        channels, _, dtype = MODES[image.mode]
        header = Header(image.height, image.width, channels, channels == 3, dtype)
    if channels == 3 or image.mode == "LA":
        with path.open("rb") as file:
            start = file.read(25)
        # Pillow would drop the lower 8 bits without a word.
        if start.startswith(PNG_SIGNATURE) and start[24] == 16:
            raise UnsupportedImage("is a PNG of 16-bit colour, which comes out as 8; expected TIFF")
    return header


def read_image(path: Path) -> np.ndarray:
    """The pixels [h, w, c], uint8 or uint16, of a file whose header could be read.

    An alpha channel that hides nothing is dropped. Raises as `read_header` does.
    """
    if path.suffix.lower() in TIFF:
        with tifffile.TiffFile(path) as tiff:
            header, axis, alpha = _tiff_layout(tiff)
            pixels = np.asarray(tiff.series[0].asarray())
        pixels = pixels[..., np.newaxis] if axis is None else np.moveaxis(pixels, axis, -1)
    else:
        header = read_header(path)
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            alpha = MODES[image.mode][1]
            pixels = np.atleast_3d(np.asarray(image)).astype(header.dtype, copy=False)
    if alpha:
        if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
            raise UnsupportedImage("has transparent pixels; expected an opaque image")
        pixels = pixels[..., :-1]
    return pixels


def _tiff_layout(tiff: tifffile.TiffFile) -> tuple[Header, int | None, bool]:
    """Header, the axis of the channels (None: there is none), and whether the last one is alpha."""
    if len(tiff.series) != 1:
        raise UnsupportedImage(
            f"holds {len(tiff.series)} separate images; expected one, with its channels as pages"
        )
    series = tiff.series[0]
    axes, shape, dtype = series.axes, series.shape, str(series.dtype)
    photometric = tifffile.PHOTOMETRIC(series.keyframe.photometric).name
    size = " x ".join(map(str, shape))
    if photometric not in ("MINISBLACK", "RGB"):
        raise UnsupportedImage(f"is a TIFF of kind {photometric}; expected MINISBLACK or RGB")
    if not {"Y", "X"} <= set(axes) or len(axes) > 3:
        raise UnsupportedImage(
            f"has axes {axes} of {size}; expected height, width and one of channels"
        )
    if dtype not in ("uint8", "uint16"):
        raise UnsupportedImage(f"is {size} of {dtype}; expected 8 or 16 bits")
    axis = next((i for i, name in enumerate(axes) if name not in "YX"), None)
    channels = 1 if axis is None else shape[axis]
    samples = axis is not None and axes[axis] == "S"
    colour = photometric == "RGB" and samples and channels in (3, 4)
    alpha = colour and channels == 4
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    return Header(height, width, channels - alpha, colour, dtype), axis, alpha

"""Draws multi-channel fluorescence images of cells: factors in, uint16 camera counts out.

Three stages, each vectorised over a batch of n images, in the order light takes them:

    draw_cells   where the cells are and what shape they have          Cells        [n, m]
    paint        what the five stains of those cells emit              photons      [n, c, s, s]
    expose       point-spread function, illumination, noise, camera    uint16       [n, h, w, c]

The canvas of side s is `MARGIN_PX` wider than the image on each side, so that cells outside the
image, the point-spread function and the periodic textures reach its edge without a seam.
Coordinates are pixels of the canvas, (0, 0) the centre of its first pixel. All arithmetic is
NumPy, float32 and one thread; the only source of chance is the generator that is passed in.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.fft
from scipy import ndimage

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
MARGIN_PX = 8  # at least 3 sigma of the widest point-spread function
FAR_PX = 1e4  # where the cells that do not exist are: outside every canvas

# Photons a pixel receives from stain of concentration 1, and from the empty part of a well.
BRIGHTNESS = np.array([330, 260, 250, 270, 300], np.float32)
BACKGROUND = np.array([8, 22, 20, 26, 10], np.float32)
READ_NOISE = 3.0  # photons, standard deviation
COUNTS_PER_PHOTON = 12.0
CAMERA_OFFSET = 120.0  # counts of a dark pixel


@dataclasses.dataclass(frozen=True)
class Factors:
    """The biology to draw, one value an image: float32 [n] each."""

    nucleus_size: np.ndarray  # mean radius of a nucleus, pixels
    intensity: np.ndarray  # concentration of the RNA, ER, AGP and Mito stains, 1 = reference
    texture_frequency: np.ndarray  # centre of the organelles' spatial spectrum, cycles per pixel
    cell_density: np.ndarray  # neighbours wanted per 64 x 64 pixels, before overlaps are dropped


@dataclasses.dataclass(frozen=True)
class Optics:
    """The technique to draw with, the same for all images of a well."""

    gain: np.ndarray  # [c] factor on all light of a channel
    background: np.ndarray  # [c] factor on the light of the empty well
    blur_px: np.ndarray  # [c] sigma of the Gaussian point-spread function, at most MARGIN_PX / 3
    ramp: tuple[float, float]  # relative illumination at the bottom and right edge, less 1


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells of n images, m places each; float32 [n, m] but for `stain`.

    Cell 0 is the central one. Places without a cell lie at `FAR_PX`. A border is the ellipse
    xx dx^2 + xy dx dy + yy dy^2 = 1 around the centre.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray  # mean radius of the nucleus, pixels
    body_radius: np.ndarray  # mean radius of the whole cell, pixels
    nucleus: tuple[np.ndarray, np.ndarray, np.ndarray]  # xx, xy, yy
    body: tuple[np.ndarray, np.ndarray, np.ndarray]
    golgi_x: np.ndarray  # canvas coordinates
    golgi_y: np.ndarray
    stain: np.ndarray  # [n, m, c] concentrations


def render(
    rng: np.random.Generator, factors: Factors, optics: Optics, image_px: int = 64
) -> np.ndarray:
    """Images of one well, each around a central cell: uint16 [n, image_px, image_px, 5]."""
    canvas_px = image_px + 2 * MARGIN_PX
    cells = draw_cells(rng, factors, canvas_px)
    return expose(rng, paint(rng, cells, factors, canvas_px), optics)


def draw_cells(rng: np.random.Generator, factors: Factors, canvas_px: int) -> Cells:
    """One cell in the centre and neighbours at random, where there is room for their nuclei."""
    n = len(factors.nucleus_size)
    side = canvas_px + 2 * MARGIN_PX  # bodies of cells outside the canvas reach into it
    wanted = rng.poisson(factors.cell_density * (side / 64) ** 2)
    m = 1 + int(wanted.max())

    radius = factors.nucleus_size[:, None] * rng.lognormal(0, 0.08, (n, m))
    radius[:, 0] = factors.nucleus_size  # the truth belongs to the central cell
    body_radius = 2.5 * radius * rng.lognormal(0, 0.12, (n, m))
    angle = rng.uniform(0, np.pi, (n, m))
    nucleus = _ellipse(radius, rng.uniform(1.0, 1.5, (n, m)), angle)
    body_angle = angle + rng.normal(0, 0.4, (n, m))
    body = _ellipse(body_radius, rng.uniform(1.0, 1.8, (n, m)), body_angle)

    x = rng.uniform(-MARGIN_PX, canvas_px + MARGIN_PX, (n, m))
    y = rng.uniform(-MARGIN_PX, canvas_px + MARGIN_PX, (n, m))
    # Upstream software centres the crop on a segmented nucleus, to within a pixel or so.
    x[:, 0], y[:, 0] = canvas_px / 2 - 0.5 + rng.normal(0, 0.7, (2, n))
    for j in range(1, m):  # a neighbour stays if its nucleus keeps clear of those before it
        gap = np.hypot(x[:, :j] - x[:, j : j + 1], y[:, :j] - y[:, j : j + 1])
        room = gap > 1.15 * (radius[:, :j] + radius[:, j : j + 1]) + 1
        gone = ~room.all(axis=1) | (j > wanted)
        x[gone, j] = y[gone, j] = FAR_PX

    side_angle = rng.uniform(0, 2 * np.pi, (n, m))
    golgi_x = x + 1.25 * radius * np.cos(side_angle)
    golgi_y = y + 1.25 * radius * np.sin(side_angle)
    # Brightness is shared by the stains of a cell in part, and each stain's own in part.
    stain = rng.lognormal(0, 0.15, (n, m, 1)) * rng.lognormal(0, 0.15, (n, m, len(CHANNELS)))
    stain[:, :, 1:] *= factors.intensity[:, None, None]
    return _as_float32(Cells(x, y, radius, body_radius, nucleus, body, golgi_x, golgi_y, stain))


def paint(rng: np.random.Generator, cells: Cells, factors: Factors, canvas_px: int) -> np.ndarray:
    """Stain in each pixel, background included, as expected photons: float32 [n, c, s, s].

    A pixel belongs to the cell it is nearest to in units of that cell's radius; everything else
    follows from the pixel's place in its cell and from random textures.
    """
    n, s = len(cells.x), canvas_px
    broad = np.full(n, 0.035, np.float32)
    fine = np.full(n, 0.13, np.float32)
    bend_x, bend_y = _textures(rng, broad, s)  # smooth: bends the outlines
    cloud, nucleoli = _textures(rng, 2 * broad, s)
    chromatin, fibres = _textures(rng, fine, s)
    mito_ridge, er_ridge = _textures(rng, factors.texture_frequency, s)

    grid = np.arange(s, dtype=np.float32)
    plain_x, plain_y = grid[None, None, :], grid[None, :, None]
    owner, u, gap = _territories(cells, plain_x + 3.0 * bend_x, plain_y + 3.0 * bend_y)

    def of_owner(values: np.ndarray) -> np.ndarray:  # [n, m] -> [n, s, s]
        return np.take_along_axis(values, owner, axis=1).reshape(n, s, s)

    radius, body_radius = of_owner(cells.radius), of_owner(cells.body_radius)
    edge_px = np.minimum(1 - u, 0.5 * gap) * body_radius  # to the border of the cell
    inside = np.clip(0.6 * edge_px + 0.3, 0, 1)
    thickness = inside * (0.18 + np.exp(-4.0 * u * u))

    dx = plain_x + 0.8 * bend_x - of_owner(cells.x)
    dy = plain_y + 0.8 * bend_y - of_owner(cells.y)
    xx, xy, yy = (of_owner(values) for values in cells.nucleus)
    un = np.sqrt(xx * dx * dx + xy * dx * dy + yy * dy * dy)
    nucleus = np.clip((1 - un) * radius + 0.5, 0, 1)
    nucleoli = nucleus * np.clip(3 * (nucleoli - 0.7), 0, 1) * (un < 0.8)
    halo = np.exp(-0.7 * np.maximum(un - 1, 0) * radius)  # out-of-focus light, per pixel away

    dx = (plain_x - of_owner(cells.golgi_x)) / radius
    dy = (plain_y - of_owner(cells.golgi_y)) / radius
    cap = np.exp(-1.4 * (dx * dx + dy * dy)) * inside
    golgi = cap * cap * (1 + 0.5 * chromatin).clip(0)
    outside_nucleus = 1 - nucleus
    cloud = 1 + 0.2 * cloud

    photons = np.empty((n, len(CHANNELS), s, s), np.float32)
    photons[:, 0] = nucleus * (0.85 + 0.2 * chromatin - 0.4 * nucleoli) + 0.12 * halo
    photons[:, 1] = (
        thickness * cloud * (0.55 + 0.35 * outside_nucleus) + 0.45 * nucleoli + 0.45 * cap
    )
    photons[:, 2] = (
        thickness * cloud * (0.35 + 0.65 * outside_nucleus) * (0.55 + 0.7 * _ridges(er_ridge, 0.5))
        + 0.4 * cap
    )
    rim = np.exp(-0.35 * (edge_px - 1) ** 2) * inside
    photons[:, 3] = (
        inside * (0.2 + 0.08 * fibres) + 0.2 * thickness + 0.25 * rim + 0.2 * nucleus + 0.8 * golgi
    )
    filaments = _ridges(mito_ridge, 0.35) * np.clip(0.55 + 0.6 * (cloud - 1) / 0.2, 0, 2)
    photons[:, 4] = (
        inside * np.exp(-2.0 * u * u) * (0.12 + 1.2 * outside_nucleus * filaments) + 0.15 * cap
    )

    for c, (brightness, background) in enumerate(zip(BRIGHTNESS, BACKGROUND, strict=True)):
        photons[:, c] *= brightness * of_owner(cells.stain[:, :, c])
        photons[:, c] += background
    return np.maximum(photons, 0, out=photons)


def expose(rng: np.random.Generator, photons: np.ndarray, optics: Optics) -> np.ndarray:
    """What the camera makes of expected photons [n, c, s, s]: uint16 [n, h, w, c]."""
    light = photons + (BACKGROUND * (optics.background - 1))[None, :, None, None]
    for c, sigma in enumerate(optics.blur_px):
        light[:, c] = ndimage.gaussian_filter(light[:, c], sigma, axes=(1, 2), truncate=3.0)
    light = light[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    edge = np.linspace(-1, 1, light.shape[2], dtype=np.float32)
    ramp = 1 + np.float32(optics.ramp[0]) * edge[:, None] + np.float32(optics.ramp[1]) * edge
    light = np.maximum(light, 0) * ramp * optics.gain[None, :, None, None].astype(np.float32)
    # Shot noise as a Gaussian of the same variance, which it is at these intensities.
    noise = rng.standard_normal(light.shape, np.float32) * np.sqrt(light + READ_NOISE**2)
    counts = CAMERA_OFFSET + COUNTS_PER_PHOTON * (light + noise)
    return np.clip(np.rint(counts), 0, 65535).astype(np.uint16).transpose(0, 2, 3, 1)


def _textures(
    rng: np.random.Generator, frequency: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two independent Gaussian fields, float32 [n, side, side], of zero mean and unit variance.

    Their power lies in a ring around `frequency` [n], in cycles per pixel, a quarter as wide.
    """
    f = np.fft.fftfreq(side).astype(np.float32)
    distance = np.hypot(f[:, None], f[None, :])
    centre = frequency.astype(np.float32)[:, None, None]
    ring = np.exp(-0.5 * ((distance - centre) / (0.25 * centre)) ** 2)
    ring /= np.sqrt(np.square(ring).sum(axis=(1, 2), keepdims=True))
    white = rng.standard_normal((len(frequency), side, 2 * side), np.float32).view(np.complex64)
    field = scipy.fft.ifft2(white * ring, norm="forward")  # its two parts are independent
    return field.real, field.imag


def _ridges(field: np.ndarray, width: float) -> np.ndarray:
    """1 along the zero lines of a random field, falling off on both sides: filaments."""
    return np.exp(-((field / np.float32(width)) ** 2))


def _ellipse(
    radius: np.ndarray, aspect: np.ndarray, angle: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients xx, xy, yy of ellipses with the area of a circle of `radius`."""
    a, b = 1 / (radius**2 * aspect), aspect / radius**2
    cosine, sine = np.cos(angle), np.sin(angle)
    xx = a * cosine**2 + b * sine**2
    yy = a * sine**2 + b * cosine**2
    return xx, 2 * (a - b) * cosine * sine, yy


def _territories(
    cells: Cells, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whose each pixel is: owner int [n, s * s], distance u and gap to the next cell [n, s, s].

    Distances are in units of the cell's own border: 1 on it.
    """
    n, side = len(cells.x), x.shape[-1]
    nearest = np.full((n, side, side), np.inf, np.float32)
    second = nearest.copy()
    owner = np.zeros((n, side, side), np.intp)
    xx, xy, yy = (values[:, :, None, None] for values in cells.body)
    for j in range(cells.x.shape[1]):
        there = cells.x[:, j] < FAR_PX / 2
        if not there.any():
            continue
        dx, dy = x - cells.x[:, j, None, None], y - cells.y[:, j, None, None]
        square = xx[:, j] * dx * dx + xy[:, j] * dx * dy + yy[:, j] * dy * dy
        closer = square < nearest
        second = np.minimum(second, np.where(closer, nearest, square))
        nearest = np.where(closer, square, nearest)
        owner[closer] = j
    u = np.sqrt(np.minimum(nearest, 1e4))
    return owner.reshape(n, -1), u, np.sqrt(np.minimum(second, 1e4)) - u


def _as_float32(cells: Cells) -> Cells:
    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(convert(part) for part in value)
        return np.asarray(value, np.float32)

    return Cells(**{f.name: convert(getattr(cells, f.name)) for f in dataclasses.fields(cells)})

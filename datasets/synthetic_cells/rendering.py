"""Draws multi-channel fluorescence images of cells: dials in, uint16 camera counts out.

Four stages, each vectorised over a batch of n images, in the order light takes them:

    place      where the cells are, what shape they have, which way round they are    Cells
    paint      what the stains of those cells emit                     photons  [n, c, s, s]
    collect    point-spread function, bleed-through, illumination      photons  [n, c, h, w]
    expose     shot noise, read noise, camera                          uint16   [n, h, w, c]

The canvas of side s is `MARGIN_PX` wider than the image on each side, so that cells outside the
image and the point-spread function in focus reach its edge without a seam; a blur that is wider
than that repeats the edge. Coordinates are pixels of the
canvas, (0, 0) the centre of its first pixel.

The same generator gives the same bytes on every machine. Pixels are made by +, -, *, / and square
roots alone, which IEEE 754 rounds in one way, where processors differ in the last digit of exp or
cos; transforms and filters, whose last digit depends on how they were compiled, are of double
precision and rounded to float32. All of it is NumPy and SciPy in one thread, and the only source of
chance is the generator that is passed in.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import scipy.fft
from scipy import ndimage, special

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito", "Actin", "Tubulin", "Lysosome")
MARGIN_PX = 4
REACH_PX = 16  # beyond the canvas: bodies of cells that lie there reach into it
TRIES = 24  # of places for a cell
# Centres of nuclei are at least so far apart, in sums of their radii and 1 px more: beside another
# or where there is no more room, and where there is all the room that there can be.
CLOSE, APART = 0.95, 1.16
FAR_PX = 1e4  # where the cells that do not exist are: outside every canvas

# Photons a pixel receives from stain of concentration 1, and from the empty part of a well.
BRIGHTNESS = np.array([563, 457, 432, 457, 495, 408, 389, 408], np.float32)
BACKGROUND = np.array([10.3, 11.9, 12, 17.1, 6.15, 18.4, 18.4, 12.6], np.float32)
# Of the logarithm of each stain between cells, beside what all stains of a cell share.
STAIN_SPREAD = np.array([0.0709, 0.136, 0.135, 0.0529, 0.253, 0.119, 0.119, 0.119])
USUAL_RADIUS_PX = 6.0  # of a nucleus that is as thick as `BRIGHTNESS` means
READ_NOISE = 1.5  # photons, standard deviation
COUNTS_PER_PHOTON = 9.3
CAMERA_OFFSET = 120.0  # counts of a dark pixel

# Angles of the three lobes of organelles around the nucleus, in turns, seen from the Golgi on in
# the sense of the cell's handedness. Three different gaps: a mirror image is another arrangement.
MITO_TURN, ER_TURN = 0.30, 0.62
LOBE_DISTANCE = 1.06  # of a lobe from the centre of the nucleus, in its mean radii
COARSE, FINE = 0.7, 1.4  # bands of the organelles' texture, times its frequency

Dials = Mapping[str, np.ndarray]  # name -> float [n], a value an image


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is fixed for all images of a batch.

    view: "crop", around a cell in the centre, or "field", cells anywhere.
    n_cells: of a field, that many, all of them whole and apart; 0: as many as the dials say.
    """

    image_px: int = 64
    n_channels: int = 5
    view: str = "crop"
    n_cells: int = 0

    @property
    def canvas_px(self) -> int:
        return self.image_px + 2 * MARGIN_PX


@dataclasses.dataclass(frozen=True)
class Optics:
    """The technique of a well, the same for all its images; [c] a channel."""

    gain: np.ndarray  # [c] factor on all light
    background: np.ndarray  # [c] factor on the light of the empty well
    blur_px: np.ndarray  # [c] sigma of the Gaussian point-spread function in focus
    ramp: tuple[float, float] = (0.0, 0.0)  # relative illumination at the bottom and right, less 1


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells of n images, m places each; float32 [n, m] but for `stain`.

    Cell 0 of a crop is the central one. Places without a cell lie at `FAR_PX`. A border is the
    ellipse xx dx^2 + xy dx dy + yy dy^2 = 1 around the centre.
    """

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray  # mean radius of the nucleus, pixels
    body_radius: np.ndarray  # mean radius of the whole cell, pixels
    nucleus: tuple[np.ndarray, np.ndarray, np.ndarray]  # xx, xy, yy
    body: tuple[np.ndarray, np.ndarray, np.ndarray]
    golgi: np.ndarray  # direction of the Golgi, turns
    hand: np.ndarray  # +1 or -1: the sense in which mitochondria and ER follow the Golgi
    stain: np.ndarray  # [n, m, c] concentrations

    @property
    def there(self) -> np.ndarray:
        """bool [n, m]: places that hold a cell."""
        return self.x < FAR_PX / 2


def place(rng: np.random.Generator, dials: Dials, scene: Scene) -> Cells:
    """Cells of n images."""
    n, c, s = len(dials["nucleus_size"]), scene.n_channels, scene.canvas_px
    crop, apart = scene.view == "crop", bool(scene.n_cells)

    def dial(name: str) -> np.ndarray:
        return np.asarray(dials[name], np.float64)[:, None]

    reach = 0 if apart else REACH_PX
    wanted = rng.poisson(dials["cell_density"] * ((s + 2 * reach) / 64) ** 2)
    if apart:
        wanted = np.full(n, scene.n_cells)
    m = int(crop) + max(1, int(wanted.max()))

    radius = dial("nucleus_size") * rng.lognormal(0, 0.04 if apart else 0.0614, (n, m))
    if crop:
        radius[:, 0] = dials["nucleus_size"]  # the truth belongs to the central cell
    # Eccentricity e of an ellipse with axes a > b: b/a = sqrt(1 - e^2).
    eccentricity = np.clip(dial("nucleus_eccentricity") + rng.normal(0, 0.135, (n, m)), 0, 0.97)
    angle = rng.uniform(0, np.pi, (n, m))
    nucleus = _ellipse(radius, 1 / np.sqrt(1 - eccentricity**2), angle)
    spread = 0.03 if apart else 0.118
    body_radius = radius * np.sqrt(dial("cytoplasm_area")) * rng.lognormal(0, spread, (n, m))
    roundness = rng.uniform(1.0, 1.1 if apart else 1.77, (n, m))
    body = _ellipse(body_radius, roundness, angle + rng.normal(0, 0.319, (n, m)))

    if apart:
        x, y = _apart(rng, body_radius, s)
    else:
        x, y = _scattered(rng, dial("clustering"), radius, wanted, scene)

    # Brightness is shared by the stains of a cell in part, and each stain's own in part.
    stain = rng.lognormal(0, 0.206, (n, m, 1)) * rng.lognormal(0, STAIN_SPREAD[:c], (n, m, c))
    stain[:, :, 0] *= dial("dna_content") * radius / USUAL_RADIUS_PX  # larger ones are thicker too
    stain[:, :, 1:] *= dial("intensity")[:, :, None]
    for i, name in enumerate(CHANNELS[:c]):
        stain[:, :, i] *= dial(f"intensity_{name}")
    golgi = rng.uniform(0, 1, (n, m))
    hand = _hands(rng, dials, x < FAR_PX / 2)
    return _as_float32(Cells(x, y, radius, body_radius, nucleus, body, golgi, hand, stain))


def _hands(rng: np.random.Generator, dials: Dials, there: np.ndarray) -> np.ndarray:
    """Handedness [n, m] of every cell; `there` says which places hold one.

    A share |handedness| of cells, by chance, has the hand of its sign. The others go by agreement:
    that share of an image's cells, to the nearest whole one, has the hand of its first cell, drawn
    by a coin, and the rest have the opposite one: at 1/2 just half of an even number.
    """
    n, m = there.shape
    first = np.where(rng.uniform(size=(n, 1)) < 0.5, 1.0, -1.0)
    agreement = np.asarray(dials["agreement"], np.float64)
    alike = np.floor(there.sum(axis=1) * agreement + 0.5)[:, None]
    order = np.where(there, rng.uniform(size=(n, m)), 2.0)
    rank = order.argsort(axis=1).argsort(axis=1)
    by_agreement = np.where(rank < alike, first, -first)
    handedness = np.asarray(dials["handedness"], np.float64)[:, None]
    forced = rng.uniform(size=(n, m)) < np.abs(handedness)
    return np.where(forced, np.sign(handedness), by_agreement)


def _scattered(
    rng: np.random.Generator,
    clustering: np.ndarray,
    radius: np.ndarray,
    wanted: np.ndarray,
    scene: Scene,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres x, y [n, m] of `wanted` [n] cells, beside a central one where there is a crop.

    A cell without room for its nucleus is tried elsewhere, but inside the image where it was drawn
    inside and outside where it was outside, and so is one that lies beside another: how many cells
    an image shows is what the density drew, however large or clustered they are, as long as they
    fit in.
    """
    n, m = radius.shape
    s, h = scene.canvas_px, scene.image_px
    crop, side = int(scene.view == "crop"), s + 2 * REACH_PX
    middle = s / 2 - 0.5
    free = rng.uniform(-side / 2, side / 2, (TRIES, 2, n, m))  # from the middle
    within = (np.abs(free[0]) < h / 2).all(axis=0)
    free[1:] *= np.where(within, h / side, 1.0)
    beside = rng.uniform(size=(n, m)) < clustering
    step = rng.uniform(2.3, 3.2, (TRIES, n, m)) * radius
    bearing = rng.uniform(0, 2 * np.pi, (TRIES, n, m))
    aside = np.stack([step * np.cos(bearing), step * np.sin(bearing)], 1)
    host = np.floor(rng.uniform(size=(TRIES, n, m)) * np.arange(m)).astype(int)
    at = np.full((2, n, m), FAR_PX)
    if crop:  # upstream software centres the crop on a segmented nucleus, to within a pixel or so
        at[:, :, 0] = rng.normal(0, 0.7, (2, n))
    for j in range(crop, m):
        todo = np.flatnonzero(j < wanted + crop)
        for k in range(TRIES):
            if not len(todo):
                break
            near = at[:, todo, host[k, todo, j]]
            # Those that find no room beside another one lie anywhere in the end.
            move = beside[todo, j] & (near[0] < FAR_PX / 2) & (k < TRIES // 2) & (j > 0)
            new = np.where(move, near + aside[k, :, todo, j].T, free[k, :, todo, j].T)
            gap = np.hypot(*(at[:, todo, :j] - new[:, :, None]))
            # Cells keep their distance, the less the harder it is to find a place.
            apart = np.where(move, CLOSE, CLOSE + (APART - CLOSE) * (1 - k / TRIES))
            room = gap > apart[:, None] * (radius[todo, :j] + radius[todo, j : j + 1]) + 1
            good = room.all(axis=1) & ((np.abs(new) < h / 2).all(axis=0) == within[todo, j])
            at[:, todo[good], j] = new[:, good]
            todo = todo[~good]
    found = np.where(at < FAR_PX / 2, at + middle, FAR_PX)
    return found[0], found[1]


def _apart(
    rng: np.random.Generator, body_radius: np.ndarray, s: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centres x, y [n, m] of cells that lie whole in the image and do not touch.

    Dart throwing; where no place is left for a dart the image begins anew.
    """
    n, m = body_radius.shape
    x, y = np.zeros((2, n, m))
    low = MARGIN_PX + 1.05 * body_radius
    todo = np.arange(n)
    for _ in range(100_000):
        if not len(todo):
            return x, y
        # Whole arrangements at once: most are taken at these densities after a few tries.
        u, v = rng.uniform(size=(2, len(todo), m))
        low_j = low[todo]
        # About the middle, (s - 1) / 2, or a mirrored image would lie to the other side.
        x[todo] = low_j - 0.5 + u * (s - 2 * low_j)
        y[todo] = low_j - 0.5 + v * (s - 2 * low_j)
        ok = np.ones(len(todo), bool)
        for i in range(m):
            for j in range(i):
                gap = np.hypot(x[todo, i] - x[todo, j], y[todo, i] - y[todo, j])
                ok &= gap > 1.1 * (body_radius[todo, i] + body_radius[todo, j])
        todo = todo[~ok]
    raise ValueError(f"{m} cells of radius {body_radius.mean():.0f} px have no room in {s} px")


def paint(rng: np.random.Generator, cells: Cells, dials: Dials, scene: Scene) -> np.ndarray:
    """Stain in each pixel, background left out, as expected photons: float32 [n, c, s, s].

    A pixel belongs to the cell it is nearest to in units of that cell's radius; everything else
    follows from the pixel's place in its cell and from random textures. The constants are no
    biology: they were fitted to the curves of real plates that `known_truth.realism` compares.
    """
    n, s, c = len(cells.x), scene.canvas_px, scene.n_channels

    def dial(name: str) -> np.ndarray:
        return np.asarray(dials[name], np.float32)[:, None, None]

    bend_x, bend_y = _textures(rng, np.full(n, 0.0588), s)  # bends the outlines
    cloud, nucleoli = _textures(rng, np.full(n, 0.0505), s)
    chromatin, fibres = _textures(rng, np.full(n, 0.22), s)
    er, mito = _organelles(rng, dials, s)

    grid = np.arange(s, dtype=np.float32)
    plain_x, plain_y = grid[None, None, :], grid[None, :, None]
    owner, u, gap = _territories(cells, plain_x + 1.94 * bend_x, plain_y + 1.94 * bend_y)

    def of_owner(values: np.ndarray) -> np.ndarray:  # [n, m] -> [n, s, s]
        return np.take(values.ravel(), owner)

    radius, body_radius = of_owner(cells.radius), of_owner(cells.body_radius)
    edge_px = np.minimum(1 - u, 0.5 * gap) * body_radius  # to the border of the cell
    inside = np.clip(0.955 * edge_px + 0.0822, 0, 1)
    uu = u * u
    belt = inside * _decay(1.87 * uu)  # between nucleus and border, where some stains are fainter
    glow = _decay(1.89 * uu)  # light of the whole height of a cell, in focus or not
    polarity = dial("polarity")
    # Organelles lie around the nucleus or, the more polarity there is, in the lobes beside it.
    around, aside = 1.11 - 0.836 * np.minimum(polarity, 1), polarity * (0.544 + 1.23 * polarity)
    thickness = inside * (0.715 + 0.502 * around * _decay(10.4 * uu)) + 0.0701 * glow

    dx = plain_x + 1.06 * bend_x - of_owner(cells.x)
    dy = plain_y + 1.06 * bend_y - of_owner(cells.y)
    xx, xy, yy = (of_owner(values) for values in cells.nucleus)
    un = np.sqrt(xx * dx * dx + xy * dx * dy + yy * dy * dy)
    nucleus = np.clip((1 - un) * radius + 0.5, 0, 1)
    nucleoli = nucleus * np.clip(3 * (nucleoli - 0.445), 0, 1)
    halo = _decay(0.264 * np.maximum(un - 1, 0) * radius)  # out-of-focus light
    outside_nucleus = 1 - nucleus
    cloud = 1 + 0.16 * cloud

    # Three lobes of organelles around the nucleus, the Golgi's light in every stain.
    relative_x, relative_y = dx / radius, dy / radius
    turns = (np.zeros_like(cells.hand), MITO_TURN * cells.hand, ER_TURN * cells.hand)
    sharp = 0.285 + 1.25 * polarity  # a glow around the nucleus, or three spots
    lobes = []
    for turn in turns:
        angle = 2 * np.pi * (cells.golgi + turn).astype(np.float64)
        lobe_x = relative_x - of_owner((LOBE_DISTANCE * np.cos(angle)).astype(np.float32))
        lobe_y = relative_y - of_owner((LOBE_DISTANCE * np.sin(angle)).astype(np.float32))
        lobes.append(_decay(sharp * (lobe_x * lobe_x + lobe_y * lobe_y)) * inside)
    golgi_lobe, mito_lobe, er_lobe = lobes
    cap = (1 - np.minimum(polarity, 1)) * golgi_lobe  # what all stains share of it

    granularity = dial("granularity")
    chromatin_contrast = dial("chromatin_texture")
    photons = np.empty((n, c, s, s), np.float32)
    photons[:, 0] = (
        nucleus * (1.49 - 0.125 * un * un + chromatin_contrast * chromatin - 0.262 * nucleoli)
        + 0.44 * halo
        + 0.034 * glow
    )
    photons[:, 1] = (
        thickness * cloud * (0.747 + 0.0176 * outside_nucleus)
        - 0.524 * belt
        + 1.74 * nucleoli
        + 2.71 * cap
    )
    reticulum = 1 + 0.525 * granularity * er
    photons[:, 2] = thickness * cloud * (0.876 + 0.0551 * outside_nucleus) * reticulum + (
        3.28 * cap + 2.54 * aside * er_lobe
    ) * (1.26 + 0.377 * reticulum)
    if c > 3:
        rim = inside * _decay(0.45 * (edge_px - 1) ** 2)
        golgi = golgi_lobe * (1.2 + 0.242 * golgi_lobe) * (1 + 0.0625 * chromatin)
        photons[:, 3] = (
            inside * (0.542 + 0.0518 * fibres)
            + 0.491 * thickness
            - 0.151 * belt
            + 0.0457 * rim
            + 0.962 * nucleus
            + (2.46 + 0.824 * aside) * golgi
        )
    if c > 4:
        network = np.maximum(1 + 1.52 * granularity * mito, 0) * cloud
        photons[:, 4] = (
            0.0293 * glow
            + inside * around * _decay(239.0 * uu) * (1.13 + 2.67 * outside_nucleus * network)
            + (0.423 * cap + 0.791 * aside * mito_lobe) * (0.716 + 0.451 * network)
        )
    if c > 5:  # stress fibres and cortex
        photons[:, 5] = inside * (0.2 + 0.5 * _decay(6.0 * fibres * fibres)) + 0.5 * rim
    if c > 6:  # microtubules: filaments that thin out from the nucleus
        photons[:, 6] = thickness * (0.3 + 0.9 * _decay(8.0 * mito * mito)) * outside_nucleus
    if c > 7:  # puncta near the nucleus
        puncta = np.clip(er * fibres - 0.8, 0, 1.5)
        photons[:, 7] = inside * _decay(2.0 * uu) * outside_nucleus * (0.1 + 1.6 * puncta)

    for i, brightness in enumerate(BRIGHTNESS[:c]):
        photons[:, i] *= brightness * of_owner(cells.stain[:, :, i])
    return np.maximum(photons, 0, out=photons)


def _organelles(rng: np.random.Generator, dials: Dials, s: int) -> tuple[np.ndarray, np.ndarray]:
    """Textures of ER and mitochondria, float32 [n, s, s] each, of zero mean and unit variance.

    Each has a coarse and a fine band of equal power. `colocalisation` r is the correlation of the
    two in the coarse band, and -r that in the fine one: together they are uncorrelated at every r,
    and a spectrum of one against the other sees best what differs. Optics dim the fine band more,
    which leaves a little of it in the plain correlation.
    """
    coarse, coarse_own = _textures(rng, COARSE * dials["texture_frequency"], s)
    fine, fine_own = _textures(rng, FINE * dials["texture_frequency"], s)
    r = np.asarray(dials["colocalisation"], np.float32)[:, None, None]
    rest = np.sqrt(np.maximum(1 - r * r, 0))
    half = np.float32(math.sqrt(0.5))
    return half * (coarse + fine), half * (
        r * coarse + rest * coarse_own - r * fine + rest * fine_own
    )


def collect(photons: np.ndarray, dials: Dials, optics: Optics) -> np.ndarray:
    """What of painted photons [n, c, s, s] reaches the camera, expected: float32 [n, c, h, w]."""
    n, c, s, _ = photons.shape
    h = s - 2 * MARGIN_PX
    focus = np.asarray(dials["defocus"], np.float64)
    light = np.empty((n, c, h, h), np.float32)
    inner = slice(MARGIN_PX, MARGIN_PX + h)
    for i in range(c):
        sigma = np.sqrt(optics.blur_px[i] ** 2 + focus**2)
        for level in np.unique(sigma):  # most batches have a single one
            rows = np.flatnonzero(sigma == level)
            blurred = ndimage.gaussian_filter(photons[rows, i], level, axes=(1, 2), truncate=3.0)
            light[rows, i] = blurred[:, inner, inner]
    share = np.asarray(dials["bleed_through"], np.float32)[:, None, None]
    for i in range(c - 1, 0, -1):  # each stain into the next channel, from the last one on
        light[:, i] += share * light[:, i - 1]
    background = np.asarray(dials["background"], np.float32)[:, None]
    per_channel = BACKGROUND[:c] * optics.background.astype(np.float32)
    light += (background * per_channel)[:, :, None, None]
    # The same on either side of the axes to the last bit: an image and its mirror image match.
    edge = np.linspace(-1, 1, h)
    edge = ((edge - edge[::-1]) / 2).astype(np.float32)
    distance = (edge[:, None] ** 2 + edge[None, :] ** 2) / 2
    vignetting = 1 - np.asarray(dials["vignetting"], np.float32)[:, None, None] * distance
    ramp = 1 + np.float32(optics.ramp[0]) * edge[:, None] + np.float32(optics.ramp[1]) * edge
    gain = np.asarray(dials["gain"], np.float32)[:, None] * optics.gain.astype(np.float32)
    light *= gain[:, :, None, None]
    light *= (vignetting * ramp)[:, None]
    return light


def expose(
    rng: np.random.Generator, light: np.ndarray, exposure: np.ndarray, *, noise: bool = True
) -> np.ndarray:
    """What the camera makes of expected photons [n, c, h, w]: uint16 [n, h, w, c].

    exposure: [n], photons collected, 1 = usual; counts stay where they are.
    """
    counts = np.zeros_like(light)
    if noise:
        # Poisson's law with the read noise beside it, to its third cumulant (Cornish and Fisher
        # 1938): a normal number z becomes sd z + skewness sd (z^2 - 1) / 6. Read noise is wide
        # enough that single photons are not told apart.
        times = np.asarray(exposure, np.float32)[:, None, None, None]
        photons = light * times
        variance = photons + np.float32(READ_NOISE**2)
        counts = _normal(rng, light.shape)
        skewed = counts * counts
        skewed -= 1
        photons /= variance
        photons *= np.float32(1 / 6)
        skewed *= photons
        counts *= np.sqrt(variance, out=variance)
        counts += skewed
        counts /= times
    counts += light
    counts *= np.float32(COUNTS_PER_PHOTON)
    counts += np.float32(CAMERA_OFFSET)
    np.rint(counts, out=counts)
    np.clip(counts, 0, 65535, out=counts)
    return np.ascontiguousarray(counts.astype(np.uint16).transpose(0, 2, 3, 1))


# Quantiles of the normal distribution, a 65,536th part of it apart: from -4.3 to 4.3, of variance
# 0.99998.
_QUANTILES = special.ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers of mean 0 and variance 1, float32: `_QUANTILES`, each as likely.

    Faster than NumPy's, of which an image takes some 36,000, and the same everywhere, where the
    tails of NumPy's depend on the system's logarithm.
    """
    size = math.prod(shape)
    words = rng.integers(0, 2**64, -(-size // 4), dtype=np.uint64).astype("<u8", copy=False)
    return np.take(_QUANTILES, words.view("<u2")[:size]).reshape(shape)


def _textures(
    rng: np.random.Generator, frequency: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two independent Gaussian fields, float32 [n, side, side], of zero mean and unit variance.

    Their power lies in a ring around `frequency` [n], in cycles per pixel, a quarter as wide.
    Waves above twice the frequency would have 3e-4 of the peak's power, and are not drawn.
    """
    n, frequency = len(frequency), np.asarray(frequency, np.float64)
    block = min(side, 2 * math.ceil(2 * float(frequency.max()) * side) + 1)
    f = np.fft.fftfreq(block) * block  # whole cycles a canvas: 0, 1, ... -1
    distance = np.sqrt(f[:, None] ** 2 + f[None, :] ** 2) / side
    levels, level = np.unique(frequency, return_inverse=True)  # often a single one
    centre = levels[:, None, None]
    ring = np.exp(-0.5 * ((distance - centre) / (0.25 * centre)) ** 2)
    ring[:, 0, 0] = 0
    ring /= np.sqrt(np.square(ring).sum(axis=(1, 2), keepdims=True))
    if len(levels) > 1:
        ring = ring[level]
    white = _normal(rng, (n, block, 2 * block)).view(np.complex64).astype(np.complex128)
    # The first pass is of the columns that hold waves alone: 0, 1, ... `up`, and `-down` to -1.
    down, up = block // 2, block - block // 2
    tall = np.zeros((n, side, block), np.complex128)
    white *= ring
    tall[:, :up], tall[:, side - down :] = white[:, :up], white[:, up:]
    tall = scipy.fft.ifft(tall, axis=1, norm="forward", overwrite_x=True)
    full = np.zeros((n, side, side), np.complex128)
    full[:, :, :up], full[:, :, side - down :] = tall[:, :, :up], tall[:, :, up:]
    field = scipy.fft.ifft(full, axis=2, norm="forward", overwrite_x=True)
    return field.real.astype(np.float32), field.imag.astype(np.float32)  # independent


def _decay(x: np.ndarray) -> np.ndarray:
    """(1 + x / 4)^-4 for x >= 0: falls like exp(-x) at first, with the longer tail of real light.

    Of exact operations, so that it is the same number on every machine.
    """
    y = 1 + np.float32(0.25) * x
    y *= y
    y *= y
    return 1 / y


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
    """Whose each pixel is: owner int [n, s, s], distance u and gap to the next cell [n, s, s].

    Distances are in units of the cell's own border: 1 on it. Owners count through all images: they
    are places in the flattened [n, m] arrays. A pixel out of every cell's reach belongs to the
    first cell of its image, at a distance of `OUTSIDE`.
    """
    n, s, _ = x.shape
    m = cells.x.shape[1]
    nearest = np.full((n, s, s), OUTSIDE**2, np.float32)
    second = nearest.copy()
    owner = np.broadcast_to((np.arange(n) * m)[:, None, None], (n, s, s)).copy()
    xx, xy, yy = cells.body
    # Half the box around an ellipse, and as far as its outline is bent.
    grid = np.arange(s, dtype=np.float32)
    root = OUTSIDE / np.sqrt(xx * yy - xy * xy / 4)
    wide = root * np.sqrt(yy) + np.abs(x - grid).max(axis=(1, 2))[:, None]
    high = root * np.sqrt(xx) + np.abs(y - grid[:, None]).max(axis=(1, 2))[:, None]
    left = np.maximum(0, np.floor(cells.x - wide)).astype(int)
    right = np.minimum(s, np.ceil(cells.x + wide) + 1).astype(int)
    top = np.maximum(0, np.floor(cells.y - high)).astype(int)
    bottom = np.minimum(s, np.ceil(cells.y + high) + 1).astype(int)
    for i, j in zip(*np.nonzero((left < right) & (top < bottom)), strict=True):
        box = (i, slice(top[i, j], bottom[i, j]), slice(left[i, j], right[i, j]))
        dx, dy = x[box] - cells.x[i, j], y[box] - cells.y[i, j]
        square = xx[i, j] * dx
        square += xy[i, j] * dy
        square *= dx
        dy *= dy
        dy *= yy[i, j]
        square += dy
        first = nearest[box]
        np.copyto(owner[box], i * m + j, where=square < first)
        np.minimum(second[box], np.maximum(first, square, out=dx), out=second[box])
        np.minimum(first, square, out=first)
    u = np.sqrt(nearest)
    return owner, u, np.sqrt(second) - u


OUTSIDE = 2.0  # in borders: nothing of a cell is farther out


def _as_float32(cells: Cells) -> Cells:
    def convert(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(convert(part) for part in value)
        return np.asarray(value, np.float32)

    return Cells(**{f.name: convert(getattr(cells, f.name)) for f in dataclasses.fields(cells)})

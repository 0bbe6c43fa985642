"""Draws H&E-like tissue: dials in, uint8 R, G, B out.

Four stages, each vectorised over a batch of n images:

    fields      smooth random fields: compartments, fibres, chromatin             [n, s, s]
    place       glands, vessels and nuclei (`placement.py`)                       Nuclei [n, m]
    paint       concentrations of haematoxylin and eosin                          [n, s, s] each
    expose      Beer and Lambert, point-spread function, camera (`scanner.py`)    uint8 [n, s, s, 3]

Images are 0.5 um a pixel, and their opposite edges meet (`placement.py` says what for). NumPy and
SciPy on one thread; `chance.py` says how the bytes stay the same everywhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.fft

from .chance import Chance, frequencies, on_grid, ring
from .dials import complete
from .placement import PIXEL_UM, RING, TYPES, Discs, Nuclei, place
from .scanner import REFERENCE, Scanner, expose

CHANNELS = ("R", "G", "B")
LUMEN = 0.42  # of a gland's radius
MOST_BEND = 2.5  # sd
MARGIN_PX = 7  # of a window: what an outline's dents and its soft edge can reach beyond its radius
GHOSTS = 10_000  # nuclei out of focus per mm2
GHOST_BLUR_PX = 4.5


@dataclasses.dataclass(frozen=True)
class Fields:
    """Random fields [n, s, s] of unit variance, float32 on the grid."""

    bend: tuple[np.ndarray, np.ndarray]  # smooth: dents outlines and waves fibres
    cloud: np.ndarray  # thickness of the section
    region: np.ndarray  # the compartments
    fibre: np.ndarray  # fine lines along the fibres' direction
    cleft: np.ndarray  # gaps between them
    chromatin: np.ndarray
    grain: np.ndarray  # cytoplasm
    ghosts: np.ndarray  # nuclei out of focus: haematoxylin, about 1 at their centres


def draw(
    rngs: Sequence[np.random.Generator],
    dials: Mapping[str, np.ndarray | float],
    *,
    scanner: Scanner = REFERENCE,
    image_px: int = 128,
) -> tuple[np.ndarray, Nuclei]:
    """Images uint8 [n, image_px, image_px, 3] and their nuclei.

    Args:
      rngs: a generator a spot. Generators of the same seed draw the same tissue, so that a row of
        images can show one dial alone.
      dials: some of `dials.DIALS`, [n] each or one value for all; the rest stay at their default.
    """
    chance = Chance(rngs)
    full = complete(dials, len(rngs))
    fibre_angle = np.pi * chance.uniform()
    fields = _fields(chance, full, fibre_angle, image_px)
    nuclei, glands, vessels = place(chance, full, image_px, fibre_angle, fields.region)
    haematoxylin, eosin = paint(chance, full, fields, nuclei, glands, vessels)
    noise = chance.normal(image_px, image_px, 3)
    return expose(haematoxylin, eosin, noise, full["blur_um"], scanner), nuclei


def _fields(
    chance: Chance, dials: dict[str, np.ndarray], fibre_angle: np.ndarray, side: int
) -> Fields:
    fx, fy, length = frequencies(side)
    bend_x, bend_y = chance.fields(ring(length, 22.0, 0.35))
    bend = np.clip(bend_x, -MOST_BEND, MOST_BEND), np.clip(bend_y, -MOST_BEND, MOST_BEND)
    cloud, region = chance.fields(ring(length, 80.0, 0.4))
    chromatin, _ = chance.fields(ring(length, dials["chromatin_um"] / PIXEL_UM, 0.3))
    grain, _ = chance.fields(ring(length, 5.0, 0.4))

    # Fibres: waves across the fibres' direction, von Mises in twice the angle.
    square = np.where(length > 0, length * length, 1)
    cos2, sin2 = (fx * fx - fy * fy) / square, 2 * fx * fy / square
    across = 2 * (fibre_angle + np.pi / 2)[:, None, None]
    narrow = (8 * dials["fibre_alignment"] ** 2)[:, None, None]
    towards = np.exp(narrow * (cos2 * np.cos(across) + sin2 * np.sin(across) - 1))
    fibre, cleft = chance.fields(towards * ring(length, 9.0, 0.4))

    number = round(GHOSTS * (side * PIXEL_UM / 1000) ** 2)
    places = np.floor(chance.uniform(number, 2) * side).astype(int)
    points = np.zeros((len(fibre_angle), side, side))
    np.add.at(points, (np.arange(len(points))[:, None], places[..., 0], places[..., 1]), 1.0)
    blur = np.exp(-2 * (np.pi * GHOST_BLUR_PX * length[:, : side // 2 + 1]) ** 2)
    ghosts = scipy.fft.irfft2(scipy.fft.rfft2(points, workers=1) * blur, s=(side, side), workers=1)
    ghosts = on_grid(2 * np.pi * GHOST_BLUR_PX**2 * ghosts)
    return Fields(bend, cloud, region, _wave(fibre, bend), _wave(cleft, bend), chromatin, grain,
                  ghosts)  # fmt: skip


def _wave(field: np.ndarray, bend: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The field with every pixel moved along the bend."""
    n, side, _ = field.shape
    rows = np.arange(side)
    y = (rows[:, None] + np.rint(2.5 * bend[1]).astype(int)) % side
    x = (rows[None, :] + np.rint(2.5 * bend[0]).astype(int)) % side
    return field[np.arange(n)[:, None, None], y, x]


def paint(
    chance: Chance,
    dials: dict[str, np.ndarray],
    fields: Fields,
    nuclei: Nuclei,
    glands: Discs,
    vessels: Discs,
) -> tuple[np.ndarray, np.ndarray]:
    """Concentrations of haematoxylin and eosin, float32 [n, s, s]."""
    per_image = {name: on_grid(values)[:, None, None] for name, values in dials.items()}
    stroma = np.sqrt(per_image["stroma"])
    fibre = np.clip(0.5 + 0.35 * fields.fibre, 0, 1)
    gaps = np.clip(1.2 * fields.cleft + 0.5 * fields.region - 1.2, 0, 1) * (0.2 + 0.8 * stroma)
    eosin = (0.42 + 0.1 * fields.grain * 0.5 + stroma * (0.9 * fibre - 0.2)) * (1 - gaps)
    haematoxylin = (0.07 + 0.015 * fields.grain) * (1 - gaps)

    haematoxylin, eosin = _paint_glands(haematoxylin, eosin, fields, glands)
    haematoxylin, eosin = _paint_vessels(haematoxylin, eosin, fields, vessels, chance.uniform())
    haematoxylin += 0.5 * per_image["out_of_focus"] * fields.ghosts * (eosin > 0.12)
    _paint_cells(haematoxylin, eosin, fields, nuclei, chance.normal(nuclei.x.shape[1]))
    details = chance.uniform(nuclei.x.shape[1], 5)
    _paint_nuclei(haematoxylin, eosin, fields, nuclei, on_grid(details), per_image["pleomorphism"])

    thickness = 1 + 0.08 * np.clip(fields.cloud, -2, 2)
    haematoxylin *= thickness * per_image["haematoxylin"]
    eosin *= thickness * per_image["eosin"]
    return np.maximum(haematoxylin, 0), np.maximum(eosin, 0)


def _polar(discs: Discs, g: int, fields: Fields, bend: float) -> np.ndarray:
    """Distance of every pixel to the centre of disc g, in its radii [n, s, s]; far if none."""
    side = fields.cloud.shape[-1]
    grid = np.arange(side, dtype=np.float32)
    x, y, radius = (getattr(discs, f)[:, g, None, None] for f in ("x", "y", "radius"))
    dx = grid[None, None, :] - x
    dy = grid[None, :, None] - y
    dx = dx - side * np.rint(dx / side) + bend * fields.bend[0]
    dy = dy - side * np.rint(dy / side) + bend * fields.bend[1]
    distance = np.sqrt(dx * dx + dy * dy)
    return np.where(radius > 0, distance / np.maximum(radius, 1), 9)


def _paint_glands(
    haematoxylin: np.ndarray, eosin: np.ndarray, fields: Fields, glands: Discs
) -> tuple[np.ndarray, np.ndarray]:
    """A white lumen, pale columnar cytoplasm, and a pink basement membrane around."""
    for g in range(glands.x.shape[1]):
        if not glands.radius[:, g].any():
            continue
        u = _polar(glands, g, fields, 1.2)
        scale = np.maximum(glands.radius[:, g, None, None], 1)
        inside = np.clip((1 - u) * scale + 0.5, 0, 1)
        lumen = np.clip((LUMEN - u) * scale * 0.6 + 0.5, 0, 1)
        apical = np.clip((RING - u) / (RING - LUMEN), 0, 1)
        membrane = np.clip(1 - np.abs(u - 1.03) * scale / 2.0, 0, 1)
        tissue = inside * (1 - lumen)
        brush = np.clip(1 - np.abs(u - LUMEN - 0.03) * scale / 2.0, 0, 1)
        own = 0.85 - 0.3 * apical + 0.35 * brush + 0.07 * fields.grain
        eosin = eosin * (1 - inside) + tissue * own + 0.4 * membrane + 0.03 * lumen
        own = 0.17 - 0.07 * apical + 0.02 * fields.grain
        haematoxylin = haematoxylin * (1 - inside) + tissue * own
    return haematoxylin, eosin


def _paint_vessels(
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    fields: Fields,
    vessels: Discs,
    lot: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """A thin wall around an empty lumen or a red cell."""
    u = _polar(vessels, 0, fields, 0.8)
    scale = np.maximum(vessels.radius[:, 0, None, None], 1)
    lumen = np.clip((1 - u) * scale + 0.5, 0, 1)
    wall = np.clip(1 - np.abs(u - 1.2) * scale / 2.0, 0, 1)
    red = np.where(lot < 0.6, np.float32(2.4), np.float32(0))[:, None, None]
    cell = np.clip((0.72 - u) * scale + 0.5, 0, 1)
    eosin = eosin * (1 - lumen) + red * cell + 0.5 * wall
    return haematoxylin * (1 - lumen), eosin


class _Windows:
    """The pixels around one nucleus of each image, and how far from its centre they are."""

    def __init__(self, x: np.ndarray, y: np.ndarray, half: int, side: int) -> None:
        steps = np.arange(-half, half + 1)
        columns = np.floor(x).astype(np.int64)[:, None] + steps
        rows = np.floor(y).astype(np.int64)[:, None] + steps
        images = np.arange(len(x))[:, None, None] * side * side
        self.index = images + (rows % side)[:, :, None] * side + (columns % side)[:, None, :]
        self.dx = (columns - x[:, None]).astype(np.float32)[:, None, :]
        self.dy = (rows - y[:, None]).astype(np.float32)[:, :, None]


def _of_type(kind: np.ndarray, name: str) -> np.ndarray:
    """A property of the types of nuclei [n], as float32 [n, 1, 1]."""
    values = np.array([getattr(t, name) for t in TYPES.values()], np.float32)
    return values[kind][:, None, None]


def _paint_cells(
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    fields: Fields,
    nuclei: Nuclei,
    turns: np.ndarray,
) -> None:
    """Cytoplasm, in place, one cell after the other over what is there."""
    side = eosin.shape[-1]
    h, e, grain = haematoxylin.reshape(-1), eosin.reshape(-1), fields.grain.reshape(-1)
    bend_x, bend_y = (b.reshape(-1) for b in fields.bend)
    cytoplasm = np.array([t.cytoplasm for t in TYPES.values()], np.float32)
    cells = np.array([t.cell for t in TYPES.values()])
    cosine, sine = on_grid(np.cos(turns * np.pi)), on_grid(np.sin(turns * np.pi))
    for j in range(nuclei.x.shape[1]):
        rows = np.flatnonzero((nuclei.kind[:, j] >= 0) & (cells[nuclei.kind[:, j]] > 1))
        if not len(rows):
            continue
        kind, radius = nuclei.kind[rows, j], nuclei.radius[rows, j]
        away = _of_type(kind, "eccentric")[:, 0, 0] * radius
        reach = _of_type(kind, "cell")[:, 0, 0] * radius
        x = nuclei.x[rows, j] + away * cosine[rows, j]
        y = nuclei.y[rows, j] + away * sine[rows, j]
        windows = _Windows(x, y, int(reach.max()) + MARGIN_PX, side)
        index = windows.index + ((rows - np.arange(len(rows))) * side * side)[:, None, None]
        dx, dy = windows.dx + 1.5 * bend_x[index], windows.dy + 1.5 * bend_y[index]
        depth = reach[:, None, None] - np.sqrt(dx * dx + dy * dy)
        cover = 0.8 * np.clip(0.5 * depth + 0.5, 0, 1)
        border = 0.12 * np.clip(1 - np.abs(depth - 0.5) / 1.5, 0, 1)
        own_h, own_e = (cytoplasm[kind, c][:, None, None] for c in (0, 1))
        granular = 1 + 0.12 * grain[index]
        h[index] += cover * (own_h * granular - h[index])
        e[index] += cover * (own_e * granular - e[index]) + border


def _paint_nuclei(
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    fields: Fields,
    nuclei: Nuclei,
    details: np.ndarray,
    pleomorphism: np.ndarray,
) -> None:
    """Nuclei, in place: outline, rim, chromatin and nucleoli.

    The chromatin of every nucleus is brought to mean 0 and sd 1 inside it, so that the texture's
    scale changes neither the stain of a nucleus nor its contrast; towards the outline it fades, so
    that the outline stays where it is.
    """
    side = eosin.shape[-1]
    h, e, chromatin = haematoxylin.reshape(-1), eosin.reshape(-1), fields.chromatin.reshape(-1)
    bend_x, bend_y = (b.reshape(-1) for b in fields.bend)
    for j in range(nuclei.x.shape[1]):
        rows = np.flatnonzero(nuclei.kind[:, j] >= 0)
        if not len(rows):
            continue
        kind = nuclei.kind[rows, j]
        radius, aspect = nuclei.radius[rows, j], nuclei.aspect[rows, j]
        long = np.sqrt(aspect)
        windows = _Windows(
            nuclei.x[rows, j], nuclei.y[rows, j], int((radius * long).max()) + MARGIN_PX, side
        )
        index = windows.index + ((rows - np.arange(len(rows))) * side * side)[:, None, None]
        radius, long = radius[:, None, None], long[:, None, None]
        dent = 0.5 + 2.5 * pleomorphism[rows] * (kind == 0)[:, None, None]
        dx, dy = windows.dx + dent * bend_x[index], windows.dy + dent * bend_y[index]
        cosine, sine = (v[rows, j][:, None, None] for v in (nuclei.cosine, nuclei.sine))
        along, over = (dx * cosine + dy * sine) / long, (dy * cosine - dx * sine) * long
        # Distance to the outline: exact for a circle, along the short axis for an ellipse.
        depth = (radius - np.sqrt(along * along + over * over)) / np.sqrt(long)
        cover = np.clip(depth + 0.5, 0, 1)
        fade = np.clip(depth / 2.5, 0, 1)

        texture = chromatin[index]
        weight = fade.sum(axis=(1, 2), dtype=np.float64, keepdims=True) + 1e-3
        mean = (fade * texture).sum(axis=(1, 2), dtype=np.float64, keepdims=True) / weight
        texture = texture - on_grid(mean)
        spread = (fade * texture * texture).sum(axis=(1, 2), dtype=np.float64, keepdims=True)
        texture = texture / on_grid(np.sqrt(spread / weight) + 0.2)

        rim = np.clip(1 - depth / 2.5, 0, 1)
        vesicular = _of_type(kind, "vesicular")
        own = 1 - vesicular * (0.6 - rim) + _of_type(kind, "clumping") * fade * texture
        for k in range(2):
            there = _of_type(kind, "nucleoli") > k
            spot_x = along - (details[rows, j, 2 * k] - 0.5)[:, None, None] * radius
            spot_y = over - (details[rows, j, 2 * k + 1] - 0.5)[:, None, None] * radius
            spot = np.clip(1 - (spot_x * spot_x + spot_y * spot_y) / 5.0, 0, 1)
            own = own + there * (0.9 - 0.3 * k) * spot * fade
        shade = 0.85 + 0.3 * details[rows, j, 4][:, None, None]  # nuclei differ in stain
        own = np.maximum(own, 0.1) * shade * _of_type(kind, "haematoxylin")
        h[index] += cover * (own - h[index])
        e[index] += cover * (0.35 - e[index])

"""Where the nuclei are: glands and a vessel first, then every other nucleus where there is room.

Coordinates are pixels of the image, and opposite edges of an image meet: a nucleus that leaves on
the right comes in on the left. So the sum of all that is painted does not depend on where the
nuclei lie, and two arrangements of the same nuclei have the same mean stain, as the question
"arrangement or pixels?" needs it.
"""

import dataclasses

import numpy as np

from .chance import Chance, on_grid
from .dials import DIALS
from .spectrum import APART_PX, distance, even_out, number_of_moves

PIXEL_UM = 0.5  # a 20x objective; HEST's patches have the same
CANDIDATES = 24  # places tried for each nucleus
MOST_GLANDS = 3
GLAND_AREA = 0.3  # of the image: more than that is a second gland
RING = 0.8  # of a gland's radius: where its nuclei are
MOST_IN_RING = 24
VESSEL_PX = 7.0  # radius of a capillary's lumen
MOST_IN_VESSEL = 3
NEST = 3  # nuclei of a nest, under clustering 1
TOUCH_PX = 2.2  # between the outlines of two neighbours in a nest: they can still be told apart


@dataclasses.dataclass(frozen=True)
class NucleusType:
    """How nuclei of a type look. Concentrations are of the reference stain."""

    radius_um: float  # of the circle of the same area
    aspect: float  # long to short axis
    haematoxylin: float  # mean concentration in the nucleus
    clumping: float  # sd of the chromatin, relative to the mean
    vesicular: float  # how much paler the inside is than the rim
    nucleoli: int
    cell: float  # radius of the cell, in radii of the nucleus
    eccentric: float  # distance from the cell's centre to the nucleus, in radii of the nucleus
    cytoplasm: tuple[float, float]  # haematoxylin, eosin


TYPES = {
    "tumour": NucleusType(3.9, 1.25, 0.78, 0.17, 0.35, 2, 1.6, 0.15, (0.13, 0.62)),
    "epithelial": NucleusType(3.3, 1.7, 0.85, 0.18, 0.25, 1, 1.0, 0.0, (0.0, 0.0)),
    "lymphocyte": NucleusType(2.7, 1.08, 1.3, 0.20, 0.0, 0, 1.15, 0.1, (0.08, 0.45)),
    "plasma": NucleusType(2.9, 1.12, 1.1, 0.28, 0.1, 0, 1.9, 0.75, (0.24, 0.7)),
    "fibroblast": NucleusType(2.8, 3.2, 0.95, 0.12, 0.1, 0, 1.0, 0.0, (0.0, 0.0)),
    "endothelial": NucleusType(2.3, 3.0, 1.1, 0.10, 0.0, 0, 1.0, 0.0, (0.0, 0.0)),
}
NAMES = tuple(TYPES)
TUMOUR, EPITHELIAL, LYMPHOCYTE, PLASMA, FIBROBLAST, ENDOTHELIAL = range(len(NAMES))
PLASMA_SHARE = 0.2  # of the infiltrate
ENDOTHELIAL_SHARE = 0.12  # of the stroma
# How a type likes the compartment field: stroma and infiltrate on one side, tumour on the other.
AFFINITY = np.array([-1, 0, 0.8, 0.8, 1, 0], np.float32)


@dataclasses.dataclass(frozen=True)
class Nuclei:
    """Nuclei of n images, m places each; float32 [n, m] but for `kind`.

    Places without a nucleus have kind -1. `angle` is stored as its cosine and sine.
    """

    kind: np.ndarray  # int [n, m], index into NAMES
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray  # of the circle of the same area, pixels
    aspect: np.ndarray
    cosine: np.ndarray  # of the angle of the long axis from the x axis
    sine: np.ndarray

    def shares(self) -> np.ndarray:
        """Share of each type among an image's nuclei [n, types]."""
        counts = np.stack([(self.kind == k).sum(axis=1) for k in range(len(NAMES))], axis=1)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def count(self) -> np.ndarray:
        """Nuclei with their centre in the image [n], which is all of them."""
        return (self.kind >= 0).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Discs:
    """Glands and vessels, g places an image; float32 [n, g]. A radius of 0 is none."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def place(
    chance: Chance,
    dials: dict[str, np.ndarray],
    side: int,
    fibre_angle: np.ndarray,
    region: np.ndarray,
) -> tuple[Nuclei, Discs, Discs]:
    """Nuclei, glands and vessels of n images of `side` pixels.

    Args:
      fibre_angle: direction of the stroma's fibres [n], rad.
      region: field [n, s, s] of unit variance that the compartments follow.
    """
    n = len(fibre_angle)
    area_mm2 = (side * PIXEL_UM / 1000) ** 2
    most = int(np.ceil(DIALS["density"].high * area_mm2)) + 1
    # All draws come first and are as many whatever the dials are.
    places = on_grid(chance.uniform(most, CANDIDATES, 2) * side)
    turns = 2 * np.pi * chance.uniform(most, CANDIDATES)
    apart, lot = on_grid(chance.uniform(most, CANDIDATES)), chance.uniform(most, 3)
    order, sizes, angles = chance.uniform(most), chance.normal(most), chance.uniform(most)
    gland_places = on_grid(chance.uniform(MOST_GLANDS + 1, CANDIDATES, 2) * side)
    ring_draws = chance.normal(MOST_GLANDS * MOST_IN_RING, 4)
    vessel_draws = chance.normal(MOST_IN_VESSEL, 2)
    moves = chance.uniform(number_of_moves(side), 2)

    glands, vessels = _discs(dials, side, gland_places)
    free = np.rint(dials["density"] * area_mm2 * (1 - dials["gland_share"])).astype(int)
    kind = _kinds(dials, free, order, most)
    radius, aspect, room = _sizes(kind, dials, sizes)
    x, y = np.zeros((2, n, most), np.float32)
    group = np.zeros((n, most), int)
    rows = np.arange(n)
    turn_x, turn_y = on_grid(np.cos(turns)), on_grid(np.sin(turns))
    nests = np.maximum(-(-free // NEST), 1)  # the first `nests` nuclei are the seeds of one each
    obstacles = (np.concatenate([getattr(glands, f), getattr(vessels, f)], 1) for f in "xy")
    obstacle_x, obstacle_y = obstacles
    obstacle_r = np.concatenate([glands.radius, vessels.radius * 1.6], axis=1)

    for j in range(int(free.max(initial=0))):
        cx, cy = places[:, j, :, 0], places[:, j, :, 1]  # [n, candidates]
        attached = (j >= nests) & (lot[:, j, 0] < dials["clustering"])
        if attached.any():
            # Against a member of the same nest that is there already.
            members = np.maximum(j // nests, 1)
            parent = j % nests + nests * np.floor(lot[:, j, 1] * members).astype(int)
            reach = (room[rows, parent] + room[:, j])[:, None] + TOUCH_PX * (1 + 0.3 * apart[:, j])
            beside_x = (x[rows, parent][:, None] + reach * turn_x[:, j]) % side
            beside_y = (y[rows, parent][:, None] + reach * turn_y[:, j]) % side
            cx = np.where(attached[:, None], beside_x, cx)
            cy = np.where(attached[:, None], beside_y, cy)
        clear = np.full(cx.shape, side, np.float32)
        for ox, oy, r in ((obstacle_x, obstacle_y, obstacle_r), (x[:, :j], y[:, :j], room[:, :j])):
            if ox.shape[1]:
                gap = distance(cx[..., None] - ox[:, None], cy[..., None] - oy[:, None], side)
                gap = np.where(r[:, None] > 0, gap - r[:, None], side)
                clear = np.minimum(clear, gap.min(axis=2))
        clear -= room[:, j, None] + np.where(attached, TOUCH_PX, APART_PX)[:, None]
        # Room first of all. Then the compartment, and for the seeds of nests distance from others.
        score = 100 * np.minimum(clear, 0) - 0.001 * np.arange(CANDIDATES, dtype=np.float32)
        liking = AFFINITY[kind[:, j]] * dials["compartments"].astype(np.float32)
        there = region[rows[:, None], cy.astype(int) % side, cx.astype(int) % side]
        score += (2 * liking)[:, None] * np.minimum(np.maximum(there, -1), 1) * ~attached[:, None]
        spread = np.where(j < nests, dials["clustering"], 0).astype(np.float32)
        score += (0.5 * spread)[:, None] * clear
        home_x, home_y = x[rows, j % nests][:, None], y[rows, j % nests][:, None]
        score -= np.where(attached[:, None], 0.3, 0) * distance(cx - home_x, cy - home_y, side)
        best = score.argmax(axis=1)
        x[:, j], y[:, j] = cx[rows, best], cy[rows, best]
        group[:, j] = np.where(attached, j % nests, j)

    weight = _stain(kind) * radius * radius
    obstacles = Discs(obstacle_x, obstacle_y, obstacle_r)
    even_out(x, y, room, weight, group, obstacles, moves, dials["evenness"], side)

    angle = 2 * np.pi * angles
    along = (
        fibre_angle[:, None]
        + (0.15 + 0.8 * (1 - dials["fibre_alignment"][:, None])) * (angles - 0.5) * np.pi
    )
    angle = np.where(kind == FIBROBLAST, along, angle)
    loose = Nuclei(kind, x, y, radius, aspect, on_grid(np.cos(angle)), on_grid(np.sin(angle)))
    around = _ring(glands, dials, side, ring_draws)
    lining = _lining(vessels, dials, side, vessel_draws)
    nuclei = Nuclei(
        *(
            np.concatenate([getattr(part, f.name) for part in (around, lining, loose)], axis=1)
            for f in dataclasses.fields(Nuclei)
        )
    )
    return nuclei, glands, vessels


def _kinds(
    dials: dict[str, np.ndarray], free: np.ndarray, order: np.ndarray, most: int
) -> np.ndarray:
    """Types of the free nuclei int [n, most] in random order, in numbers nearest their shares."""
    immune, stroma = dials["infiltrate"], (1 - dials["infiltrate"]) * dials["stroma"]
    shares = np.stack([immune * (1 - PLASMA_SHARE), immune * PLASMA_SHARE, stroma], axis=1)
    bounds = np.rint(np.cumsum(shares, axis=1) * free[:, None]).astype(int)
    # The first `free` places are taken; which of them a type gets is drawn.
    index = np.arange(most)
    keyed = np.where(index < free[:, None], order, 2.0)
    rank = np.argsort(np.argsort(keyed, axis=1, kind="stable"), axis=1, kind="stable")
    kind = np.full(rank.shape, TUMOUR)
    for bound, name in zip(bounds.T[::-1], (FIBROBLAST, PLASMA, LYMPHOCYTE), strict=True):
        kind[rank < bound[:, None]] = name
    return np.where(index < free[:, None], kind, -1)


def _stain(kind: np.ndarray) -> np.ndarray:
    """Haematoxylin of nuclei [n, m]; 0 where there is none."""
    values = np.array([*(t.haematoxylin for t in TYPES.values()), 0], np.float32)
    return values[kind]  # -1 is the last one


def _sizes(
    kind: np.ndarray, dials: dict[str, np.ndarray], draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radius, aspect and the radius that is kept clear, each [n, m]; 0 where there is none."""
    types = list(TYPES.values())
    radius = np.array([t.radius_um / PIXEL_UM for t in types])[kind]
    aspect = np.array([t.aspect for t in types])[kind]
    # Pleomorphism is a tumour's; other types vary little.
    spread = np.where(kind == TUMOUR, dials["pleomorphism"][:, None], 0.06)
    radius = radius * dials["nuclear_size"][:, None] * np.exp(spread * np.clip(draws, -2, 2))
    radius = np.where(kind >= 0, radius, 0)
    return on_grid(radius), on_grid(aspect), on_grid(radius * aspect**0.3)


def _discs(dials: dict[str, np.ndarray], side: int, places: np.ndarray) -> tuple[Discs, Discs]:
    """Glands that share the wanted area, and a capillary where there is stroma."""
    share = dials["gland_share"]
    number = np.ceil(share / GLAND_AREA).astype(int)
    gland = on_grid(np.sqrt(share / np.pi / np.maximum(number, 1)) * side)
    vessel = (dials["stroma"] * (1 - share) > 0.12) * np.float32(VESSEL_PX)
    n = len(share)
    x, y, radius = np.zeros((3, n, MOST_GLANDS + 1), np.float32)
    rows = np.arange(n)
    for g in range(MOST_GLANDS + 1):
        own = np.where(g < number, gland, 0) if g < MOST_GLANDS else vessel
        cx, cy = places[:, g, :, 0], places[:, g, :, 1]
        best = np.zeros(n, int)
        if g:
            gap = distance(cx[..., None] - x[:, None, :g], cy[..., None] - y[:, None, :g], side)
            gap = np.where(radius[:, None, :g] > 0, gap - radius[:, None, :g], side)
            best = gap.min(axis=2).argmax(axis=1)
        x[:, g], y[:, g], radius[:, g] = cx[rows, best], cy[rows, best], own
    glands = Discs(x[:, :-1], y[:, :-1], radius[:, :-1])
    return glands, Discs(x[:, -1:], y[:, -1:], radius[:, -1:])


def _ring(glands: Discs, dials: dict[str, np.ndarray], side: int, draws: np.ndarray) -> Nuclei:
    """Epithelial nuclei on a ring in each gland, their long axes towards its centre."""
    n = len(glands.x)
    kind = np.full((n, MOST_GLANDS, MOST_IN_RING), EPITHELIAL)
    draws = draws.reshape(n, MOST_GLANDS, MOST_IN_RING, 4)
    width = 2 * TYPES["epithelial"].radius_um / PIXEL_UM / np.sqrt(TYPES["epithelial"].aspect)
    spacing = 1.15 * width * dials["nuclear_size"][:, None] + 1
    number = np.floor(2 * np.pi * RING * glands.radius / spacing).astype(int)
    number = np.minimum(number, MOST_IN_RING)
    index = np.arange(MOST_IN_RING)
    kind[index >= number[:, :, None]] = -1
    turn = (index + 0.12 * np.clip(draws[..., 0], -2, 2)) / np.maximum(number, 1)[..., None]
    angle = 2 * np.pi * (turn + 0.37 * np.arange(MOST_GLANDS)[:, None])
    far = glands.radius[..., None] * (RING + 0.03 * np.clip(draws[..., 1], -2, 2))
    x = on_grid(glands.x[..., None] + far * np.cos(angle)) % side
    y = on_grid(glands.y[..., None] + far * np.sin(angle)) % side
    tilt = angle + 0.12 * draws[..., 2]
    parts = (v.reshape(n, -1) for v in (kind, x, y, np.cos(tilt), np.sin(tilt), draws[..., 3]))
    kind, x, y, cosine, sine, sizes = parts
    radius, aspect, _ = _sizes(kind, dials, sizes)
    return Nuclei(kind, x, y, radius, aspect, on_grid(cosine), on_grid(sine))


def _lining(vessels: Discs, dials: dict[str, np.ndarray], side: int, draws: np.ndarray) -> Nuclei:
    """Flat endothelial nuclei along the wall of each vessel."""
    wanted = np.rint(ENDOTHELIAL_SHARE * dials["stroma"] * 10).astype(int) + 1
    number = np.minimum(wanted, MOST_IN_VESSEL) * (vessels.radius[:, 0] > 0)
    index = np.arange(MOST_IN_VESSEL)
    kind = np.where(index < number[:, None], ENDOTHELIAL, -1)
    angle = 2 * np.pi * index / MOST_IN_VESSEL + 0.3 * draws[..., 0]
    radius, aspect, _ = _sizes(kind, dials, draws[..., 1])
    far = vessels.radius + 3.0
    x = on_grid(vessels.x + far * np.cos(angle)) % side
    y = on_grid(vessels.y + far * np.sin(angle)) % side
    return Nuclei(kind, x, y, radius, aspect, on_grid(-np.sin(angle)), on_grid(np.cos(angle)))

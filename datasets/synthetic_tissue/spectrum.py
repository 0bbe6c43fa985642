"""Moves nuclei until their power spectrum is a given one, whatever their arrangement.

Nests have other pair distances than dispersed nuclei, so their power spectra differ, and a question
about arrangement could be answered from the spectrum of the pixels. But an arrangement has many
more degrees of freedom than a radial spectrum has rings. So groups of nuclei are moved as they are,
one at a time, and a move stays if it brings the spectrum nearer to the target: patterns that differ
in who lies beside whom, with nearly the same second-order statistics at long range. (Such
reconstructions: Yeong & Torquato, Phys. Rev. E 57, 495, 1998. That second-order statistics do not
determine a pattern: Baddeley & Silverman, Biometrics 40, 1089, 1984.)
"""

import functools
from typing import NamedTuple, Protocol

import numpy as np

MOVES = 480  # in an image of 128 x 128 pixels; as many for its area in another one
DIRECTIONS, LENGTHS_PX = 16, (1.0, 2.5, 6.0, 14.0)  # of a move
APART_PX = 3.0  # least distance between the outlines of two groups
STEPS = 8  # positions to a pixel
SHORTEST_PX = 10.0  # wavelength: from there on, size and outline of nuclei make the spectrum
# Structure factor (1: nuclei placed independently) that the moves aim at, by cycles a pixel:
# between those that dispersed nuclei and nests have of themselves, so that neither has far to go.
TARGET = ((0.008, 0.023, 0.031, 0.045, 0.06, 0.1), (0.43, 0.6, 0.62, 0.68, 0.95, 1.0))
LOW = 1 / 32  # cycles a pixel: above it all octaves count alike, below it all rings


class _Obstacles(Protocol):
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


def distance(dx: np.ndarray, dy: np.ndarray, side: int) -> np.ndarray:
    """Length of a difference where opposite edges meet."""
    dx = dx - side * np.rint(dx / side)
    dy = dy - side * np.rint(dy / side)
    return np.sqrt(dx * dx + dy * dy)


def number_of_moves(side: int) -> int:
    return round(MOVES * (side / 128) ** 2)


def even_out(
    x: np.ndarray,
    y: np.ndarray,
    room: np.ndarray,
    weight: np.ndarray,
    group: np.ndarray,
    obstacles: _Obstacles,
    draws: np.ndarray,
    evenness: np.ndarray,
    side: int,
) -> None:
    """Moves the nuclei of images with an evenness above 0, in place.

    Args:
      x, y, room: float32 [n, m], pixels; room is the radius that is kept clear, 0 for no nucleus.
      weight: stain of each nucleus [n, m].
      group: [n, m] int, nuclei with the same number move together.
      draws: uniform [n, number_of_moves(side), 2]: which group, and where to.
      evenness: [n], the share of the moves that is made.
    """
    images = np.flatnonzero(evenness > 0)
    if not len(images):
        return
    x_own, y_own, room, group = x[images], y[images], room[images], group[images]
    n = len(images)
    rows = np.arange(n)
    number = (room > 0).sum(axis=1)
    members = _members(group, number)
    waves = _waves(side)
    stain = weight[images].astype(np.float64)
    angle = (
        np.rint(STEPS * x_own[..., None]) * waves.x + np.rint(STEPS * y_own[..., None]) * waves.y
    )
    each = stain[..., None] * waves.table[angle.astype(np.int64) % len(waves.table)]
    amplitude = np.zeros_like(each)  # of each group [n, m, waves]
    np.add.at(amplitude, (rows[:, None], group), each)
    total = amplitude.sum(axis=1)
    norm = np.square(stain).sum(axis=1, keepdims=True)

    def misfit(amplitude: np.ndarray) -> np.ndarray:
        power = amplitude.real**2 + amplitude.imag**2
        rings = np.add.reduceat(power, waves.starts, axis=1) / norm
        return (np.square(np.log(rings / waves.target + 1e-3)) * waves.share).sum(axis=1)

    worst = misfit(total)
    moves = draws.shape[1]
    which = np.floor(draws[images, :, 0] * number[:, None]).astype(int)
    step = np.floor(draws[images, :, 1] * len(waves.steps)).astype(int)
    for t in range(moves):
        chosen = group[rows, which[:, t]]
        changed = total + amplitude[rows, chosen] * waves.turn[step[:, t]]
        energy = misfit(changed)
        better = np.flatnonzero((energy < worst) & (t < moves * evenness[images]))
        if not len(better):
            continue
        moved = members[better, chosen[better]]  # [k, members], -1 for none
        to_x, to_y = (
            (place[better[:, None], moved] + waves.steps[step[better, t], a, None]) % side
            for place, a in ((x_own, 0), (y_own, 1))
        )
        clear = np.full(len(better), side, np.float32)
        there = (moved >= 0)[:, :, None]
        same = (group[better] == chosen[better, None])[:, None, :]
        reach = room[better[:, None], moved][:, :, None]
        for others_x, others_y, radius, but in (
            (x_own[better], y_own[better], room[better], same),
            (*(getattr(obstacles, f)[images[better]] for f in ("x", "y", "radius")), False),
        ):
            gap = distance(
                to_x[:, :, None] - others_x[:, None], to_y[:, :, None] - others_y[:, None], side
            )
            counts = there & (radius > 0)[:, None] & ~np.asarray(but)
            gap = np.where(counts, gap - reach - radius[:, None], side)
            clear = np.minimum(clear, gap.min(axis=(1, 2)))
        free = clear >= APART_PX
        keep, moved, to_x, to_y = better[free], moved[free], to_x[free], to_y[free]
        image, member = np.nonzero(moved >= 0)
        x_own[keep[image], moved[image, member]] = to_x[image, member]
        y_own[keep[image], moved[image, member]] = to_y[image, member]
        amplitude[keep, chosen[keep]] *= 1 + waves.turn[step[keep, t]]
        total[keep], worst[keep] = changed[keep], energy[keep]
    x[images], y[images] = x_own, y_own


def _members(group: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The nuclei [n, m, k] of each group, -1 for none. Only the first `number` [n] places count."""
    n, m = group.shape
    counts = np.zeros((n, m), int)
    members = np.full((n, m, m), -1)
    rows = np.arange(n)
    for j in range(m):
        taken = rows[j < number]
        g = group[taken, j]
        members[taken, g, counts[taken, g]] = j
        counts[taken, g] += 1
    return members[:, :, : max(int(counts.max(initial=1)), 1)]


class _Waves(NamedTuple):
    """Half of the plane of wave numbers, ring by ring, and the moves; w waves, r rings, k moves."""

    x: np.ndarray  # [w] waves to an image
    y: np.ndarray
    starts: np.ndarray  # [r] index of a ring's first wave
    target: np.ndarray  # [r] power of a whole ring
    share: np.ndarray  # [r] of a ring in the misfit
    table: np.ndarray  # e^(-2 pi i t) at the positions of a nucleus along an axis
    steps: np.ndarray  # [k, 2] px, float32
    turn: np.ndarray  # [k, w] what each of them does to an amplitude, less 1


@functools.cache
def _waves(side: int) -> _Waves:
    most = int(side / SHORTEST_PX)
    y, x = np.mgrid[-most : most + 1, 0 : most + 1]
    ring = np.rint(np.sqrt(x * x + y * y)).astype(int)
    keep = ((x > 0) | (y > 0)) & (ring <= most)
    order = np.argsort(ring[keep], kind="stable")
    ring, x, y = (v[keep][order] for v in (ring, x, y))
    rings = np.arange(1, most + 1)
    target = np.interp(rings / side, *TARGET) * np.bincount(ring)[1:]
    table = np.exp(-2j * np.pi * np.arange(STEPS * side) / (STEPS * side))
    direction = np.exp(2j * np.pi * np.arange(DIRECTIONS) / DIRECTIONS)
    move = (direction[:, None] * np.array(LENGTHS_PX)).ravel()
    steps = np.rint(STEPS * np.stack([move.real, move.imag], axis=1)).astype(np.int64)
    turn = table[(steps[:, :1] * x + steps[:, 1:] * y) % len(table)] - 1
    starts = np.searchsorted(ring, rings)
    return _Waves(
        x,
        y,
        starts,
        target,
        np.minimum(1, LOW / (rings / side)),
        table,
        (steps / STEPS).astype(np.float32),
        turn,
    )

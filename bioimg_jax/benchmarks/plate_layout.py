"""Where on the plate a number is high: the map of a layout, its row, column and edge effects.

Position matters on real plates (evaporation at the edge, the order of dispensing), and a layout
that is the same on every plate turns it into "treatment effects". The map says how much there is.
It can only be read so where position and treatment are not one: wells of one kind (the negative
controls, say) or treatments placed at random. `PlateLayout.one_sided` says how far that holds.
"""

import dataclasses
import re

import numpy as np

from bioimg_jax.benchmarks.columns import Column, names, numbers
from bioimg_jax.errors import InputError

SHAPES = ((2, 3), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))  # of 6 to 1536 wells
DRAWS = 9_999
SWEEPS = 100
TIE = 1e-9  # relative: sums that are equal on paper
BLOCK = 1 << 20  # permuted numbers at a time


def well_positions(wells: Column) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, int [n] from 0, of wells named like "B07", "b7" or "AF48".

    Raises:
      InputError: a name that is none of those.
    """
    rows, columns = [], []
    for i, well in enumerate(names(wells, len(wells), "well").tolist()):
        found = re.fullmatch(r"(A?[A-Z])0*([1-9][0-9]?)", well.strip().upper())
        letters, number = found.groups() if found else ("", "0")
        row = 26 * (len(letters) - 1) + ord(letters[-1:] or "A") - ord("A")
        if not found or row >= SHAPES[-1][0] or int(number) > SHAPES[-1][1]:
            raise InputError(f"well {well!r} of row {i}: expected a name from A01 to AF48")
        rows.append(row)
        columns.append(int(number) - 1)
    return np.array(rows, int), np.array(columns, int)


@dataclasses.dataclass(frozen=True, eq=False)
class PlateLayout:
    """A layout over plates; arrays of its positions [r, c] are nan where no plate has a well.

    map: mean over plates of a well's value less the median of its plate, so that a plate that is
      high as a whole does not lift the positions it has; n_plates: int [r, c] behind each.
    overall, row_effects [r], column_effects [c], residuals [r, c]: of the map by `median_polish`.
    edge: mean of the outermost rows and columns less the mean of the rest, over the map.
    edge_by_plate: plate -> the same on each plate that has wells of both sides.
    p: two-sided, of "the edge is like the rest": the map shuffled among positions that equally many
      plates have. The positions are the units, not the wells: a treatment that sits at the same
      place on every plate is one observation. None, with a `reason`, where nothing can be shuffled.
    one_sided: the share of wells whose treatment is never seen on the other side (edge or rest), so
      that it and the edge cannot be told apart; None without treatments.
    """

    map: np.ndarray
    n_plates: np.ndarray
    overall: float
    row_effects: np.ndarray
    column_effects: np.ndarray
    residuals: np.ndarray
    edge: float | None
    edge_by_plate: dict[str, float]
    p: float | None
    reason: str
    one_sided: float | None


def plate_layout(
    values: Column,
    plates: Column,
    rows: Column,
    columns: Column,
    *,
    treatments: Column | None = None,
    shape: tuple[int, int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> PlateLayout:
    """The map of one value a well [n] over plates [n], at rows and columns [n] counted from 0.

    Args:
      treatments: [n], to say whether the edge can be told from them.
      shape: rows and columns of the plates; by default the smallest usual format that holds them.

    Raises:
      InputError: a value that is not finite, a position outside the shape or not a whole number, a
        well that is there twice.
    """
    n = len(values)
    value = numbers(values, n, "value")
    plate = names(plates, n, "plate")
    if not n:
        raise InputError("plate layout: no well given")
    row, column, shape = _positions(rows, columns, n, shape)
    position = row * shape[1] + column
    plate_names, code = np.unique(plate, return_inverse=True)
    key = code * (shape[0] * shape[1]) + position
    order = np.argsort(key, kind="stable")  # by plate and position: any order of rows gives this
    twice = np.flatnonzero(np.diff(key[order]) == 0)
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise InputError(
            f"rows {first} and {second} are both at row {row[first]}, column {column[first]} of "
            f"plate {str(plate[first])!r}, expected one row a well"
        )
    at_edge = np.zeros(shape, bool)
    at_edge[[0, -1], :] = at_edge[:, [0, -1]] = True
    edge_well = at_edge.ravel()[position]

    centred, edge_by_plate = np.empty(n), {}
    for i, name in enumerate(plate_names.tolist()):
        here = order[code[order] == i]
        centred[here] = value[here] - np.median(value[here])
        sides = edge_well[here]
        if 0 < sides.sum() < len(here):
            means = value[here][sides].mean(), value[here][~sides].mean()
            edge_by_plate[name] = float(means[0] - means[1])
    size = at_edge.size
    counts = np.bincount(position, minlength=size)
    sums = np.bincount(position[order], centred[order], minlength=size)
    held = counts > 0
    flat = np.full(size, np.nan)
    flat[held] = sums[held] / counts[held]

    found = flat.reshape(shape)
    overall, row_effects, column_effects, residuals = median_polish(found)
    edge, p, reason = _edge_test(flat[held], at_edge.ravel()[held], counts[held], draws, seed)
    one_sided = None
    if treatments is not None:
        one_sided = _one_sided(names(treatments, n, "treatment"), edge_well)
    return PlateLayout(
        map=found,
        n_plates=counts.reshape(shape),
        overall=overall,
        row_effects=row_effects,
        column_effects=column_effects,
        residuals=residuals,
        edge=edge,
        edge_by_plate=edge_by_plate,
        p=p,
        reason=reason,
        one_sided=one_sided,
    )


def median_polish(table: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Tukey's additive fit of a table [r, c]: overall, row effects, column effects, residuals.

    Medians of rows, then of columns, are swept out until nothing changes or 100 times (Tukey,
    Exploratory Data Analysis, 1977, chapter 11). Cells that are nan are absent; so are the effects
    of rows and columns without any other.
    """
    table = np.asarray(table, np.float64)
    rows, columns = (~np.isnan(table).all(axis=axis) for axis in (1, 0))
    rest = table[np.ix_(rows, columns)]
    effects = [np.zeros(len(rest)), np.zeros(rest.shape[1])]
    overall, scale = 0.0, np.abs(rest[~np.isnan(rest)]).max(initial=0.0)
    for _ in range(SWEEPS if rest.size else 0):
        largest = 0.0
        for axis in (0, 1):
            medians = np.nanmedian(rest, axis=1 - axis)
            rest = rest - np.expand_dims(medians, 1 - axis)
            other = float(np.median(effects[1 - axis]))
            effects[axis] += medians
            effects[1 - axis] -= other
            overall += other
            largest = max(largest, float(np.abs(medians).max()))
        if largest <= 1e-12 * scale:
            break
    row_effects, column_effects = np.full(len(rows), np.nan), np.full(len(columns), np.nan)
    row_effects[rows], column_effects[columns] = effects
    residuals = np.full(table.shape, np.nan)
    residuals[np.ix_(rows, columns)] = rest
    return overall, row_effects, column_effects, residuals


def _positions(
    rows: Column, columns: Column, n: int, shape: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    places = []
    for axis, given in (("plate row", rows), ("plate column", columns)):
        place = numbers(given, n, axis)
        odd = np.flatnonzero((place < 0) | (place != np.round(place)))
        if len(odd):
            raise InputError(f"{axis} of row {odd[0]} is {place[odd[0]]:g}, expected 0, 1, 2 ...")
        places.append(place.astype(int))
    needed = tuple(int(place.max()) + 1 for place in places)
    shapes = SHAPES if shape is None else (shape,)
    fitting = [s for s in shapes if s[0] >= needed[0] and s[1] >= needed[1]]
    if not fitting:
        raise InputError(
            f"wells reach plate row {needed[0] - 1} and column {needed[1] - 1} (from 0), expected "
            f"a plate of at most {shapes[-1][0]} x {shapes[-1][1]}"
        )
    return places[0], places[1], fitting[0]


def _edge_test(
    values: np.ndarray, edge: np.ndarray, counts: np.ndarray, draws: int, seed: int
) -> tuple[float | None, float | None, str]:
    """(edge less rest, p, why there is none) of positions [m] with wells on `counts` plates."""
    if draws < 1:
        raise InputError(f"draws of a permutation test: {draws}, expected 1 or more")
    if edge.all() or not edge.any():
        return None, None, f"no well {'off' if edge.all() else 'at'} the edge"
    weights = np.where(edge, 1 / edge.sum(), -1 / (~edge).sum())
    observed = float(weights @ values)
    strata = [np.flatnonzero(counts == c) for c in np.unique(counts)]
    mixed = [rows for rows in strata if 0 < edge[rows].sum() < len(rows)]
    if not mixed:
        return observed, None, "no position at the edge is on as many plates as one off the edge"
    fixed = np.setdiff1d(np.arange(len(values)), np.concatenate(mixed))
    base = float(weights[fixed] @ values[fixed])
    rng = np.random.default_rng(seed)
    reached, slack = 0, TIE * float(np.abs(weights * values).sum())
    step = max(1, BLOCK // len(values))
    for first in range(0, draws, step):
        b = min(step, draws - first)
        drawn = np.full(b, base)
        for rows in mixed:
            drawn += rng.permuted(np.tile(values[rows], (b, 1)), axis=1) @ weights[rows]
        reached += int((np.abs(drawn) >= abs(observed) - slack).sum())
    return observed, (1 + reached) / (1 + draws), ""


def _one_sided(treatment: np.ndarray, edge: np.ndarray) -> float:
    _, code = np.unique(treatment, return_inverse=True)
    at_edge = np.bincount(code, edge)
    total = np.bincount(code)
    return float(total[(at_edge == 0) | (at_edge == total)].sum() / total.sum())

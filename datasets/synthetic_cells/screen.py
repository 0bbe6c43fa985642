"""The layout of an experiment: batches x plates x wells, what is in each, and its true values."""

import dataclasses
import functools

import numpy as np

from .dials import BIOLOGY, DIALS, OPTICS
from .presets import COMPOUNDS, CONTROL_WELLS, DOSES_UM, MECHANISMS, Preset
from .rendering import Optics

CONTROL = "control"
COLUMNS = 12  # of a plate
# Usual sigma of the point-spread function, a channel of `rendering.CHANNELS`.
BLUR_PX = np.array([0.719, 0.77, 0.592, 0.716, 0.525, 0.75, 0.75, 0.75])
WELL_SPREAD = 0.02  # of the logarithm of a dial, between wells of one treatment
CONFOUNDED_STEPS = 1.5  # that a batch of one treatment turns a dial, up or down
POSITION_STEPS = 2.0  # that a dial is turned between the middle and the edge of a plate

# Split and batch of seven plates, again and again. Plates of a training batch are in training only,
# and a test plate is alone in its batch: so test plates are independent of training and each other.
PLATES = (
    ("train", 1),
    ("validation", 2),
    ("test", 3),
    ("train", 1),
    ("test", 4),
    ("train", 1),
    ("test", 5),
)
MOSTLY_TEST = (*PLATES[:5], ("test", 5), ("test", 6))
# What a random stream is for: the first word of its key, so that no two streams are the same.
LAYOUT, BATCH, PLATE, WELL, COMPOUND, NAMES = range(6)


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What is done to a well, and the steps that it turns the dials."""

    name: str
    steps: dict[str, float]
    compound: str = ""
    mechanism: str = ""
    dose_um: float = 0.0


@dataclasses.dataclass(frozen=True)
class Well:
    """A place on a plate. Plates and batches count from 1; wells, rows and columns from 0."""

    plate: int
    batch: int
    split: str
    number: int
    row: int
    column: int
    n_rows: int
    treatment: Treatment

    @property
    def name(self) -> str:
        return f"{self.letter}{self.column + 1:02d}"

    @property
    def letter(self) -> str:
        return chr(ord("A") + self.row)

    @property
    def down(self) -> float:
        """From -1 at the first row to 1 at the last one."""
        return 2 * self.row / max(self.n_rows - 1, 1) - 1

    @property
    def right(self) -> float:
        return 2 * self.column / (COLUMNS - 1) - 1


def rng(seed: int, stream: int, *about: int) -> np.random.Generator:
    """A generator of its own for every use: nothing depends on what was drawn before.

    The key says its length too: NumPy takes [1, 2] and [1, 2, 0] for the same one.
    """
    return np.random.default_rng([stream, len(about), seed, *about])


@functools.lru_cache(maxsize=8)
def treatments(preset: Preset, seed: int) -> list[Treatment]:
    """All treatments, the control first where there is one."""
    if preset.kind == "pairs":  # every well holds both classes
        return [Treatment("untreated", {})]
    if preset.kind == "screen":
        return _compounds(seed)
    if preset.kind == "factors":
        return [
            Treatment(CONTROL, {}),
            *(
                Treatment(f"{dial}_{level}", {dial: sign * preset.steps})
                for dial in preset.label
                for level, sign in (("low", -1), ("high", 1))
            ),
        ]
    return [
        Treatment(level, dict.fromkeys(preset.label, sign * preset.steps))
        for level, sign in (("low", -1), ("high", 1))
    ]


def _compounds(seed: int) -> list[Treatment]:
    """Compounds of a mechanism share its direction; each has a strength and a side of its own."""
    found = [Treatment("DMSO", {}, compound="DMSO")]
    number = 0
    for mechanism, direction in MECHANISMS.items():
        for _ in range(COMPOUNDS):
            number += 1
            draw = rng(seed, COMPOUND, number)
            strength = draw.uniform(0.8, 1.2)
            aside = draw.choice(sorted({d for m in MECHANISMS.values() for d in m}), 2, False)
            own = {str(dial): float(draw.normal(0, 0.25)) for dial in aside}
            full = {d: direction.get(d, 0.0) + own.get(d, 0.0) for d in sorted({*direction, *own})}
            for dose, share in DOSES_UM.items():
                steps = {dial: strength * share * value for dial, value in full.items()}
                name = f"C{number:02d}_{dose:g}uM"
                found.append(Treatment(name, steps, f"C{number:02d}", mechanism, dose))
    return found


def n_wells(preset: Preset) -> int:
    """Wells of a plate, without drawing anything."""
    if preset.kind == "screen":
        compounds = len(MECHANISMS) * COMPOUNDS * len(DOSES_UM)
        return CONTROL_WELLS + preset.wells_per_treatment * compounds
    n_treatments = {"pairs": 1, "classes": 2, "factors": 1 + 2 * len(preset.label)}[preset.kind]
    return n_treatments * preset.wells_per_treatment


@functools.lru_cache(maxsize=8)
def wells_of_plate(preset: Preset, seed: int, plate: int) -> list[Well]:
    """The wells of a plate, numbered from 0, row by row."""
    known = treatments(preset, seed)
    repeats = [preset.wells_per_treatment] * len(known)
    if preset.kind == "screen":
        repeats[0] = CONTROL_WELLS
    of_plate = [t for t, n in zip(known, repeats, strict=True) for _ in range(n)]
    n = len(of_plate)
    places = [(i // COLUMNS, i % COLUMNS) for i in range(n)]
    split, batch = place_of(preset, plate)
    if preset.confound == "batch":
        batch = 1 + plate % len(known)  # in every split
        layout = [known[plate % len(known)]] * n
    elif preset.confound == "position":  # from the left to the right, on every plate the same
        by_column = sorted(range(n), key=lambda i: places[i][::-1])
        layout = [of_plate[by_column.index(i)] for i in range(n)]
    else:
        layout = [of_plate[i] for i in rng(seed, LAYOUT, plate).permutation(n)]
    return [Well(plate, batch, split, i, *places[i], -(-n // COLUMNS), layout[i]) for i in range(n)]


def place_of(preset: Preset, plate: int) -> tuple[str, int]:
    """Split and batch number of a plate; plates and batches count from 1."""
    pattern = MOSTLY_TEST if preset.mostly_test else PLATES
    cycle, position = divmod(plate - 1, len(pattern))
    split, batch = pattern[position]
    return split, cycle * pattern[-1][1] + batch


def draw_dials(
    draw: np.random.Generator, preset: Preset, well: Well, seed: int, n: int
) -> dict[str, np.ndarray]:
    """The true values of n images of a well, float64 [n] each.

    A dial is what it is held at, turned by the treatment and by the nuisances that it is tied to,
    and varies between wells and between images.
    """
    nuisance = _nuisance_steps(preset, well, seed)
    drawn = {}
    for name, dial in (BIOLOGY | OPTICS).items():
        if name in preset.held:
            dial = dataclasses.replace(dial, control=preset.held[name])
        steps = well.treatment.steps.get(name, 0.0) + nuisance.get(name, 0.0)
        between, within = draw.normal(0, 1), draw.normal(0, 1, n)
        values = np.full(n, dial.turned(steps))
        spread = 0.0 if name in preset.steady else dial.spread
        if spread and dial.log:
            values *= np.exp(WELL_SPREAD * between + spread * within)
        elif spread:
            values += 0.3 * spread * between + spread * within
        drawn[name] = np.clip(values, dial.low, dial.high)
    return drawn


def cells_of(preset: Preset, well: Well, seed: int) -> int:
    """How many images of cells a well has."""
    usual = preset.sites_per_well * preset.images_per_site
    steps = well.treatment.steps.get("cells_per_well", 0.0)
    steps += _nuisance_steps(preset, well, seed).get("cells_per_well", 0.0)
    return max(1, round(usual * DIALS["cells_per_well"].turned(steps)))


def _nuisance_steps(preset: Preset, well: Well, seed: int) -> dict[str, float]:
    """Steps that the batch, the plate and the place on the plate turn the dials tied to them."""
    steps: dict[str, float] = dict.fromkeys((*preset.batch, *preset.plate, *preset.position), 0.0)
    of_batch, of_plate = rng(seed, BATCH, well.batch, 1), rng(seed, PLATE, well.plate, 1)
    for dial in preset.batch:
        # Where a batch has one treatment they are as far apart as can be seen, and not at random.
        sides = CONFOUNDED_STEPS * (2 * (well.batch % 2) - 1)
        steps[dial] += sides if preset.confound == "batch" else of_batch.normal()
    for dial in preset.plate:
        steps[dial] += of_plate.normal()
    for dial in preset.position:
        steps[dial] += POSITION_STEPS * well.right
    return steps


def optics(preset: Preset, well: Well, seed: int) -> Optics:
    """The technique of a well: its batch, its plate and its place on the plate."""
    gain, background, blur, slope = _plate_optics(seed, well.batch, well.plate, preset.n_channels)
    scale = preset.optics_spread
    tilt = slope[0] * well.down + slope[1] * well.right  # stain or light runs unevenly
    return Optics(
        gain=np.exp(scale * (gain + tilt)),
        background=np.exp(scale * background),
        blur_px=np.clip(BLUR_PX[: preset.n_channels] * np.exp(scale * blur), 0.4, 1.6),
        ramp=(preset.ramp * well.down, preset.ramp * well.right),
    )


@functools.lru_cache(maxsize=64)
def _plate_optics(
    seed: int, batch: int, plate: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logarithms of gain, background and blur [n], and the slope of the stain over the plate."""
    gain, background, blur = np.zeros(n), np.zeros(n), np.zeros(n)
    batch_rng, plate_rng = rng(seed, BATCH, batch), rng(seed, PLATE, plate)
    for draw, size in ((batch_rng, 1.0), (plate_rng, 0.7)):
        gain += draw.normal(0, 0.3 * size, n)
        background += draw.normal(0, 0.4 * size, n)
        blur += draw.normal(0, 0.08 * size) + draw.normal(0, 0.06 * size, n)
    return gain, background, blur, plate_rng.normal(0, 0.1, 2)

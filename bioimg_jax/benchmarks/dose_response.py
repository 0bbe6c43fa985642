"""Dose response of a score of wells, compound by compound: a Hill curve and a test of trend.

    y = bottom + (top − bottom) / (1 + (EC50 / dose)^hill),   hill > 0

is bottom at dose 0, so negative controls may come as dose 0 of a compound. For given EC50 and hill
it is linear in bottom and top, which are then a straight line's: only two parameters are searched
for (variable projection; Golub & Pereyra, SIAM Journal on Numerical Analysis 10, 1973), on a grid
first, so that no start value decides. The interval of the EC50 is the profile likelihood's (Bates &
Watts, Nonlinear Regression Analysis, 1988, chapter 6): all EC50 whose least sum of squares is at
most the best one's times 1 + F(0.95; 1, n − 4) / (n − 4). Wells are taken as independent.
"""

import dataclasses
import functools

import numpy as np
from scipy import optimize, special, stats

from bioimg_jax.benchmarks.columns import Column, names, numbers
from bioimg_jax.errors import InputError

DRAWS = 9_999
HILLS = (0.25, 8.0)  # the bounds of hill
FIRST_HILLS, NEXT_HILLS, ZOOMS = 41, 21, 6  # grids of them: seven digits
EC50S = 81  # grid from the lowest to the highest dose above 0
TINY = float(np.finfo(float).tiny)
MIN_DOSES = 4  # as many as the curve has parameters
MIN_WELLS = 5
EXACT_PAIRS = 10_000  # of wells at different doses: the exact null takes about their square
BLOCK = 1 << 22
TIE = 1e-9


@dataclasses.dataclass(frozen=True)
class DoseResponse:
    """One compound.

    ec50: in units of the doses, between the lowest and the highest above 0; None with a `failure`,
      one of which is that values neither rise nor fall with dose at 1 − confidence: a curve through
      noise has an EC50 too.
    interval: 95 % of the EC50; an end beyond the tested doses is 0 or infinite. None where nothing
      was fitted; it may be there where the EC50 is not.
    hill, bottom, top: of the curve, a falling one has its top below. hill is within 0.25 ... 8; at
      8 the data show a step between two doses and no more.
    r2: share of the variance that the curve explains.
    trend: (pairs of wells with the higher value at the higher dose − those with the lower) / pairs
      of wells at different doses, −1 ... 1.
    trend_p: one-sided, Jonckheere & Terpstra's of "no increase"; trend_exact: not by drawing.
    failure: why there is no EC50, else "".
    """

    compound: str
    n_wells: int
    n_doses: int
    ec50: float | None
    interval: tuple[float, float] | None
    hill: float | None
    bottom: float | None
    top: float | None
    r2: float | None
    trend: float
    trend_p: float
    trend_exact: bool
    failure: str


@dataclasses.dataclass(frozen=True)
class DoseResponses:
    """One `DoseResponse` a compound, by name; excluded: compound -> why it has none."""

    compounds: tuple[DoseResponse, ...]
    excluded: dict[str, str]


def dose_responses(
    values: Column,
    doses: Column,
    compounds: Column,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> DoseResponses:
    """Curve and trend of every compound with two doses or more.

    Args:
      values: [n], one score a well, such as its `phenotype.well_strengths`.
      doses: [n], 0 or more; equal to nine digits is equal.
      compounds: [n].
      draws: permutations of the test of trend where it cannot be exact.

    Raises:
      InputError: a value or dose that is not finite, a dose below 0, a row without a compound.
    """
    n = len(values)
    y, dose = numbers(values, n, "value"), numbers(doses, n, "dose")
    compound = names(compounds, n, "compound")
    below = np.flatnonzero(dose < 0)
    if len(below):
        raise InputError(f"dose of row {below[0]} is {dose[below[0]]:g}, expected 0 or more")
    if not 0 < confidence < 1 or draws < 1:
        raise InputError(
            f"dose response: confidence {confidence} and draws {draws}, expected between 0 and 1, "
            f"and 1 or more"
        )
    dose = np.array([float(f"{d:.9g}") for d in dose])
    found, excluded = [], {}
    for name in np.unique(compound).tolist():
        here = np.flatnonzero(compound == name)
        here = here[np.lexsort((y[here], dose[here]))]  # any order of rows gives the same numbers
        n_doses = len(np.unique(dose[here]))
        if n_doses < 2:
            excluded[name] = f"{len(here)} wells at one dose, expected two doses or more"
            continue
        trend, p, exact = jonckheere(y[here], dose[here], draws=draws, seed=seed)
        curve = fit_hill(y[here], dose[here], confidence=confidence)
        falling = jonckheere(-y[here], dose[here], draws=draws, seed=seed)[1]
        two_sided = min(1.0, 2 * min(p, falling))
        if not curve.failure and two_sided > 1 - confidence:
            none = f"no trend with dose (p = {two_sided:.2g})"
            curve = dataclasses.replace(curve, ec50=None, failure=none)
        found.append(
            DoseResponse(
                compound=name,
                n_wells=len(here),
                n_doses=n_doses,
                **dataclasses.asdict(curve),
                trend=trend,
                trend_p=p,
                trend_exact=exact,
            )
        )
    return DoseResponses(tuple(found), excluded)


@dataclasses.dataclass(frozen=True)
class Hill:
    """A fitted curve; fields as in `DoseResponse`."""

    ec50: float | None = None
    interval: tuple[float, float] | None = None
    hill: float | None = None
    bottom: float | None = None
    top: float | None = None
    r2: float | None = None
    failure: str = ""


def fit_hill(values: np.ndarray, doses: np.ndarray, *, confidence: float = 0.95) -> Hill:
    """Least squares of values [n] at doses [n] (0 or more) of one compound."""
    y, dose = np.asarray(values, np.float64), np.asarray(doses, np.float64)
    n, n_doses = len(y), len(np.unique(dose))
    if n_doses < MIN_DOSES or n < MIN_WELLS:
        return Hill(
            failure=f"{n} wells at {n_doses} doses, expected {MIN_WELLS} or more at {MIN_DOSES}"
        )
    if np.ptp(y) <= TIE * np.abs(y).max():
        return Hill(failure="all values are equal")
    levels, code, counts = np.unique(dose, return_inverse=True, return_counts=True)
    means = np.bincount(code, y - y.mean()) / counts  # of a dose: they are all a curve can fit
    inside = float(np.square(y - y.mean() - means[code]).sum())
    with np.errstate(divide="ignore"):
        log_dose = np.log(levels)  # -inf at dose 0, where the curve is at its bottom

    def profile(e: np.ndarray) -> np.ndarray:
        return _profile(means, counts, log_dose, e)[0] + inside

    def at(e: float) -> float:
        return float(profile(np.array([e]))[0])

    grid = np.linspace(log_dose[levels > 0].min(), log_dose.max(), EC50S)
    i = int(profile(grid).argmin())
    best = optimize.minimize_scalar(
        at,
        bounds=(grid[max(i - 1, 0)], grid[min(i + 1, EC50S - 1)]),
        method="bounded",
        options={"xatol": 1e-9},
    )
    points = np.union1d(grid, best.x)  # ln EC50
    squares = profile(points)
    least, centre = float(squares.min()), float(points[squares.argmin()])

    total = float(np.square(y - y.mean()).sum())
    limit = least * (1 + stats.f.ppf(confidence, 1, n - 4) / (n - 4)) + 1e-12 * total
    first, last = np.flatnonzero(squares <= limit)[[0, -1]]

    def crossing(within: int, beyond: int) -> float:
        return float(
            np.exp(optimize.brentq(lambda e: at(e) - limit, points[within], points[beyond]))
        )

    interval = (
        crossing(first, first - 1) if first > 0 else 0.0,
        crossing(last, last + 1) if last < len(points) - 1 else np.inf,
    )
    r2 = 1 - least / total
    span = f"{np.exp(grid[0]):g} ... {np.exp(grid[-1]):g}"
    if interval == (0.0, np.inf):
        return Hill(interval=interval, r2=r2, failure=f"doses {span} do not determine the EC50")
    if min(centre - grid[0], grid[-1] - centre) < 1e-6:
        return Hill(interval=interval, r2=r2, failure=f"the EC50 is beyond the doses {span}")
    hill = float(_profile(means, counts, log_dose, np.array([centre]))[1][0])
    s = special.expit(hill * (log_dose[code] - centre))
    slope, bottom = np.polyfit(s, y, 1)
    return Hill(float(np.exp(centre)), interval, hill, float(bottom), float(bottom + slope), r2)


def _profile(
    means: np.ndarray, counts: np.ndarray, log_dose: np.ndarray, e: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Least sums of squares [m] about the means of doses [g], their hills [m]) for ln EC50 e [m].

    The grid of hills is followed by finer ones about its best, each a tenth of the last.
    """
    low, high = (np.full(len(e), np.log(bound)) for bound in HILLS)
    steps = FIRST_HILLS
    x = (log_dose[None, :] - e[:, None])[:, None, :]  # [m, 1, g]
    weight = counts / counts.sum()
    for _ in range(ZOOMS):
        hills = np.exp(np.linspace(low, high, steps, axis=1))  # [m, k]
        s = special.expit(hills[:, :, None] * x)  # [m, k, g]
        s = s - (s @ weight)[:, :, None]
        slope = (s @ (weight * means)) / np.maximum(np.square(s) @ weight, TINY)
        squares = np.square(means[None, None, :] - slope[:, :, None] * s) @ counts  # [m, k]
        i = squares.argmin(axis=1)
        at = np.arange(len(e))
        low = np.log(hills[at, np.maximum(i - 1, 0)])
        high = np.log(hills[at, np.minimum(i + 1, steps - 1)])
        steps = NEXT_HILLS
    return squares[at, i], hills[at, i]


def jonckheere(
    values: np.ndarray, doses: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, bool]:
    """(trend −1 ... 1, one-sided p of "no increase with dose", whether p is exact).

    Jonckheere (Biometrika 41, 1954) and Terpstra (1952): J, the pairs of wells at different doses
    with the higher value at the higher dose, ties half. Without ties its null distribution is
    exact: the counts of arrangements by J are the coefficients of the Gaussian multinomial. With
    ties, or more than `EXACT_PAIRS` pairs, doses are shuffled among the wells, (1 + number at least
    as far) / (1 + draws).
    """
    order = np.lexsort((values, doses))
    y, (levels, code) = values[order], np.unique(doses[order], return_inverse=True)
    if len(levels) < 2:
        raise InputError("a trend needs two doses or more")
    i, j = np.triu_indices(len(y), 1)
    pairs = int((code[i] != code[j]).sum())
    up = np.sign(y[j] - y[i])
    observed = float(up[code[i] != code[j]].sum())
    if (up != 0).all() and pairs <= EXACT_PAIRS:
        counts = _arrangements(tuple(np.bincount(code).tolist()))
        reached = round((observed + pairs) / 2)  # J
        return observed / pairs, sum(counts[reached:]) / sum(counts), True
    rng = np.random.default_rng([seed, len(y)])
    i, j, up = i[up != 0], j[up != 0], up[up != 0]
    at_least, step = 0, max(1, BLOCK // max(len(up), 1))
    for first in range(0, draws, step):
        b = min(step, draws - first)
        drawn = rng.permuted(np.tile(code, (b, 1)), axis=1)
        sums = np.sign(drawn[:, j] - drawn[:, i]) @ up
        at_least += int((sums >= observed - 0.5).sum())
    return observed / pairs, (1 + at_least) / (1 + draws), False


@functools.lru_cache(maxsize=256)
def _arrangements(sizes: tuple[int, ...]) -> list[int]:
    """How many arrangements of groups of these sizes have J = 0, 1, 2 ...

    Coefficients of Π over groups of the Gaussian binomial of (wells before + m) over m, and each is
    Π over i ≤ m of (1 − q^(before + i)) / (1 − q^i) (Mann & Whitney, Annals of Mathematical
    Statistics 18, 1947, for two groups). Whole numbers of any size.
    """
    counts, before = np.ones(1, object), sizes[0]
    for m in sizes[1:]:
        for i in range(1, m + 1):
            times = before + i
            longer = np.concatenate([counts, np.zeros(times, object)])
            longer[times:] -= counts
            for start in range(i):  # divided by 1 − q^i
                longer[start::i] = np.add.accumulate(longer[start::i])
            counts = longer[: len(longer) - i]
        before += m
    return [int(c) for c in counts]

"""Which verdicts a design can reach, and what it would take: from units and floors alone.

Differences are taken to be normal with the sd of `verdict.UNIT_SD`, and tested by t; from 20 units
on the bootstrap and the guard against skewness make the real tests a little more careful. "Above"
must beat every floor: its power is over floors that are tied with each other, which is the worst
case, all scores correlated 0.5, and so are the differences to two floors.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from bioimg_jax.statistics.intervals import MIN_UNITS
from bioimg_jax.statistics.verdict import ALPHA, ALPHA_SAME, DELTA, UNIT_SD

POWER = 0.8
MAX_UNITS = 100_000
DRAWS = 10_000  # data sets behind the power over several floors


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a benchmark with so many units and floors can say.

    detectable: the gain over `floors` tied floors that "above" finds with `POWER`, for the last and
      the first test of Holm's family; None below `MIN_UNITS`.
    power_same: chance that an encoder equal to its floors is called the same.
    units_same: units at which that chance is `POWER`; None above `MAX_UNITS`.
    """

    n_units: int
    floors: int
    detectable: tuple[float, float] | None
    power_same: float
    units_same: int | None

    def sentence(self, delta: float = DELTA) -> str:
        """The plan as `--dry_run` prints it."""
        same = "no number of units" if self.units_same is None else f"{self.units_same:,} units"
        if self.detectable is None:
            return (
                f"{self.n_units} units: always cannot tell ({MIN_UNITS} are the fewest; {same} for "
                f"'same')"
            )
        alone, family = self.detectable
        rivals = "one floor" if self.floors == 1 else f"{self.floors} tied floors"
        return (
            f"{self.n_units} units: 'above' finds gains from {alone:.3f} (alone) or {family:.3f} "
            f"(in this family) over {rivals} in {POWER:.0%} of runs; 'same' within ± {delta:g} in "
            f"{self.power_same:.0%}, and in {POWER:.0%} with {same}"
        )


def plan(
    n_units: int,
    *,
    floors: int,
    family: int,
    delta: float = DELTA,
    sd: float = UNIT_SD,
    overlap: float = 0.0,
) -> Plan:
    """The `Plan` of n units, so many floors, and a family of so many tests under Holm."""
    detectable = None
    if n_units >= MIN_UNITS:
        error = sd * math.sqrt((1 + overlap) / n_units)
        detectable = (
            _detectable(n_units, floors, ALPHA) * error,
            _detectable(n_units, floors, ALPHA / family) * error,
        )
    return Plan(
        n_units=n_units,
        floors=floors,
        detectable=detectable,
        power_same=_power_same(n_units, floors, delta, sd, overlap),
        units_same=_units_same(floors, delta, sd, overlap),
    )


@dataclasses.dataclass(frozen=True)
class Design:
    """What `plan` needs to know of one target on one benchmark; arguments as there."""

    target: str
    benchmark: str
    n_units: int
    floors: int
    delta: float = DELTA
    sd: float = UNIT_SD
    overlap: float = 0.0


def plan_table(designs: Sequence[Design], *, encoders: int = 1) -> list[dict[str, Any]]:
    """The plan of a run, one row a design, as JSON takes it.

    Every encoder is tested on every design: their product is Holm's family. Rows have "target",
    "benchmark", "n_units", "detectable_alone" and "detectable_family" (None where no gain can be
    detected), "power_same", "units_same" (None above `MAX_UNITS`) and "sentence".
    """
    rows = []
    for design in designs:
        found = plan(
            design.n_units,
            floors=design.floors,
            family=len(designs) * encoders,
            delta=design.delta,
            sd=design.sd,
            overlap=design.overlap,
        )
        alone, family = found.detectable or (None, None)
        rows.append(
            {
                "target": design.target,
                "benchmark": design.benchmark,
                "n_units": design.n_units,
                "detectable_alone": alone,
                "detectable_family": family,
                "power_same": found.power_same,
                "units_same": found.units_same,
                "sentence": found.sentence(design.delta),
            }
        )
    return rows


def settled_row(target: str, benchmark: str, n_units: int, sentence: str) -> dict[str, Any]:
    """A row of `plan_table` where no test decides, for a reason that is known beforehand."""
    return {
        "target": target,
        "benchmark": benchmark,
        "n_units": n_units,
        "detectable_alone": None,
        "detectable_family": None,
        "power_same": 0.0,
        "units_same": None,
        "sentence": sentence,
    }


def sd_of_shares(rows: Sequence[int] | np.ndarray) -> float:
    """sd of a difference of two shares of right answers, of so many rows in each unit.

    Near one half, correlated 0.5: what their number adds to `UNIT_SD`.
    """
    return math.sqrt(UNIT_SD**2 + 0.25 * float(np.mean(1 / np.asarray(rows, np.float64))))


@functools.lru_cache(maxsize=1024)
def _detectable(n_units: int, floors: int, alpha: float) -> float:
    """The gain in standard errors that t tests at alpha against each floor find with `POWER`.

    A simulated data set finds every gain above max_k (critical s_k - z_k), so the answer is a
    quantile of that. What more floors cost is taken from it; one floor is exact (noncentral t).
    """
    critical = float(stats.t.ppf(1 - alpha, n_units - 1))
    low, high = 0.0, 100.0 * critical
    for _ in range(60):
        middle = (low + high) / 2
        found = stats.nct.sf(critical, n_units - 1, middle) >= POWER
        low, high = (low, middle) if found else (middle, high)
    if floors == 1:
        return high
    means, sds = _tied(n_units, floors)
    enough = critical * sds - means
    return high + float(np.quantile(enough.max(axis=1), POWER) - np.quantile(enough, POWER))


@functools.lru_cache(maxsize=4)
def _tied(n_units: int, floors: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and sds [`DRAWS`, floors] of differences without gain, in true standard errors and sds.

    A difference is (a + b_k) / √2 in every unit: a the encoder's effect, b_k the floor's. The sum
    of squares of a unit vector u plus v_k needs of v_k its part along u, normal, and the length of
    the rest, chi-squared: no unit is drawn by itself. The seed is fixed.
    """
    rng, df, size = np.random.default_rng(0), n_units - 1, (DRAWS, floors)
    means = (rng.standard_normal((DRAWS, 1)) + rng.standard_normal(size)) / math.sqrt(2)
    along = np.sqrt(rng.chisquare(df, (DRAWS, 1))) + rng.standard_normal(size)
    squares = (along**2 + rng.chisquare(df - 1, size)) / 2
    return means, np.sqrt(squares / df)


def _power_same(n_units: int, floors: int, delta: float, sd: float, overlap: float) -> float:
    """Chance of "same" at gain 0 for one floor whose upper test is Bonferroni's for all of them.

    Given the sample sd, the mean must lie between two limits; averaged over the sd's distribution.
    """
    if n_units < MIN_UNITS:
        return 0.0
    df = n_units - 1
    error = sd * math.sqrt((1 + overlap) / n_units)
    share = np.sqrt(stats.chi2.ppf((np.arange(400) + 0.5) / 400, df) / df)  # sample sd over sd
    low = -delta + stats.t.ppf(1 - ALPHA_SAME, df) * error * share
    high = delta - stats.t.ppf(1 - ALPHA_SAME / floors, df) * error * share
    inside = stats.norm.cdf(high / error) - stats.norm.cdf(low / error)
    return float(np.mean(np.where(high > low, inside, 0.0)))


def _units_same(floors: int, delta: float, sd: float, overlap: float) -> int | None:
    low, high = MIN_UNITS, MIN_UNITS
    while _power_same(high, floors, delta, sd, overlap) < POWER:
        low, high = high, high * 2
        if high > MAX_UNITS:
            return None
    while low < high:
        middle = (low + high) // 2
        if _power_same(middle, floors, delta, sd, overlap) >= POWER:
            high = middle
        else:
            low = middle + 1
    return high

"""The simulations, small: the engine keeps its promises, and rules that do not are caught."""

from pathlib import Path

import numpy as np
import pytest

from bioimg_jax.statistics import verdict
from bioimg_jax.statistics.calibrate import (
    SETS,
    Check,
    Engine,
    _family,
    calibrate,
    draw,
    main,
    page,
    rotation,
)
from bioimg_jax.statistics.resampling import Paired, n_resamples

SMALL = {
    "sets": 400,
    "units": (5, 20, 40),
    "floors": (1, 5),
    "shapes": ("normal", "t3", "exponential"),
}


class MaximumInsideResample:
    """Score minus the best floor, the maximum taken in each bootstrap resample: biased."""

    sees_the_family = True

    def interval(self, paired: Paired) -> tuple[np.ndarray, np.ndarray]:
        d = paired.differences  # encoder minus floor, so the best floor has the least
        g = d.shape[-1]
        counts = np.random.default_rng(0).multinomial(g, np.full(g, 1 / g), 400) / g
        gains = np.stack([(d @ row).min(axis=-1) for row in counts])
        low, high = np.quantile(gains, [0.025, 0.975], axis=0)
        return low, high

    def above(self, paired: Paired) -> np.ndarray:
        return self.interval(paired)[0] > 0

    def below(self, paired: Paired) -> np.ndarray:
        return self.interval(paired)[1] < 0

    def same(self, paired: Paired) -> np.ndarray:
        low, high = self.interval(paired)
        return (low > -0.03) & (high < 0.03)

    def covers(self, paired: Paired, gain: float) -> np.ndarray:
        low, high = self.interval(paired)
        return (low <= gain) & (gain <= high)


class Abstain:
    """Never says anything, and is never wrong."""

    def above(self, paired: Paired) -> np.ndarray:
        return np.zeros(paired.mean.shape[:-1], bool)

    below = same = above

    def covers(self, paired: Paired, gain: float) -> np.ndarray:
        return np.ones(paired.mean.shape[:-1], bool)


def broken(checks: list[Check]) -> list[Check]:
    return [check for check in checks if not check.holds]


def test_the_engine_keeps_its_promises() -> None:
    checks = list(calibrate(**SMALL))
    assert len(checks) > 100
    assert {check.what for check in checks} >= {
        "coverage", "false above", "false below", "false same", "power: above", "power: same",
    }  # fmt: skip
    assert not broken(checks)


@pytest.mark.parametrize("shape", ["exponential", "mirrored exponential"])
def test_a_family_of_skewed_effects_keeps_its_promise_at_20_units(shape: str) -> None:
    # The small simulations above are too few to see it.
    rng = np.random.default_rng(0)
    assert not broken(list(_family(Engine(), rng, SETS, 20, 1, shape, True)))


def test_a_family_keeps_its_promise_at_40_units() -> None:
    rng = np.random.default_rng(0)
    for shape in ("normal", "exponential", "mirrored exponential"):
        checks = list(_family(Engine(), rng, SETS, 40, 1, shape, True))
        assert len(checks) == 2 and not broken(checks)


def test_the_maximum_inside_a_resample_is_caught() -> None:
    found = broken(list(calibrate(MaximumInsideResample(), **SMALL)))
    assert any(
        check.what == "false below" and "near-tied members" in check.where for check in found
    )
    assert any(check.what == "coverage" for check in found)


def test_a_rule_that_always_abstains_is_caught() -> None:
    found = broken(list(calibrate(Abstain(), **SMALL)))
    assert {check.what for check in found} == {"power: above", "power: same"}


def test_the_least_of_many_skewed_means_is_not_taken_for_below() -> None:
    # 20 tied floors, 20 units: chosen by its low mean, a sample without its tail shows no skewness.
    d = draw(np.random.default_rng(0), 1_000, 20, 20, "exponential", unequal=True)
    paired = Paired.of(d, resamples=n_resamples(20, 1), sparing=True)
    unguarded = verdict.p_below(paired, guard=None) < verdict.ALPHA
    guarded = verdict.p_below(paired) < verdict.ALPHA
    assert unguarded.mean() > 0.05 and guarded.mean() < 0.03
    assert not (guarded & ~unguarded).any()
    better = Paired.of(d[:200] - 0.2, resamples=n_resamples(20, 1), sparing=True)
    assert (verdict.p_below(better) < verdict.ALPHA).mean() > 0.95  # and it is found where it is


def test_drawn_differences_are_what_they_are_said_to_be() -> None:
    for shape in ("normal", "exponential"):
        d = draw(np.random.default_rng(0), 4_000, 3, 20, shape)
        assert abs(d.mean()) < 0.001
        assert abs(d.std() - 0.06) < 0.001
        first, second = d[:, 0].ravel(), d[:, 1].ravel()
        assert abs(np.corrcoef(first, second)[0, 1] - 0.5) < 0.02
    assert np.mean(d**3) > 0
    mirrored = draw(np.random.default_rng(0), 4_000, 3, 20, "mirrored exponential")
    assert np.mean(mirrored**3) < 0


def test_unequal_sizes_give_unequal_errors() -> None:
    d = draw(np.random.default_rng(0), 20_000, 1, 8, "normal", unequal=True)
    assert abs(d.std() - 0.06) < 0.002
    kurtosis = np.mean(d**4) / np.mean(d**2) ** 2
    assert kurtosis > 3.2


@pytest.mark.parametrize("folds", [3, 5])
def test_under_rotating_folds_a_member_is_chosen_fold_by_fold_or_it_flatters_the_floor(
    folds: int,
) -> None:
    scores, truth, chosen = rotation(np.random.default_rng(folds), 400, folds, 4)
    assert scores.shape == (400, 100, folds, 4)
    errors = {}
    for how, member in chosen.items():
        off = [
            scores[s, member[s, f], f].mean() - truth[s, member[s, f], f]
            for s in range(400)
            for f in range(folds)
        ]
        errors[how] = np.reshape(off, (400, folds)).mean(axis=1)
    error = {how: e.std(ddof=1) / np.sqrt(400) for how, e in errors.items()}
    fair, flattering = errors["fold by fold"], errors["on the average"]
    assert abs(fair.mean()) < 3 * error["fold by fold"]
    assert flattering.mean() > 10 * error["on the average"] and flattering.mean() > 0.01
    # It is a choice that is made: on the group that it was made on, the member looks far better.
    own = np.arange(400)[:, None], chosen["fold by fold"], (np.arange(folds) + 1) % folds
    assert scores[own].mean() > 0.03


def test_a_check_holds_by_what_its_rate_may_be() -> None:
    assert Check("false above", 0.04, 400, 0.025, "at most", "").holds  # 16 of 400: within chance
    assert not Check("false above", 0.08, 400, 0.025, "at most", "").holds
    assert not Check("power: above", 0.69, 4_000, 0.70, "at least", "").holds
    assert Check("coverage", 0.1, 400, 0.93, "shown", "").holds
    assert Check("bias", 2.9, 400, 3.0, "within", "").holds
    assert not Check("bias", 3.1, 400, 3.0, "within", "").holds
    assert Check("bias", 3.1, 400, 3.0, "beyond", "").holds
    assert not Check("bias", -9.0, 400, 3.0, "beyond", "").holds


def test_the_page_tells_what_is_not_kept(tmp_path: Path) -> None:
    checks = [
        Check("coverage", 0.95, 4_000, 0.93, "at least", "20 units"),
        Check("false above", 0.06, 4_000, 0.025, "at most", "5 units"),
    ]
    text = page(checks, 60.0, 4_000)
    assert "**1 of 2 hold.**" in text and "## Not kept" in text and "5 units" in text
    assert "## More careful than asked" in text


def test_the_command_refuses_what_it_cannot_do() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--sets=5"])

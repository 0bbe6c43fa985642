"""Times several sides of a claim in turn: a machine that slows down slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 5
PAUSE_S = 0.2  # lets the other side's idle threads go to sleep


def alternate(
    sides: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds a call of each side, `rounds` of them, after one uncounted round.

    A side is a function that returns when its work is done. In each round it is called `calls`
    times in a row.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for counted in range(-1, rounds):
        for name, side in sides.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            for _ in range(calls):
                side()
            if counted >= 0:
                seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def show(seconds: Mapping[str, list[float]], *, ours: str, images: int) -> float:
    """Prints images/s of every side and the ratio of ours to the fastest other; returns it.

    The ratio is the median over the rounds of the ratio within a round.
    """
    for name, values in seconds.items():
        print(
            f"{name:<20} {images / statistics.median(values):8.2f} images/s "
            f"(of {images / max(values):.2f} to {images / min(values):.2f})"
        )
    others = [name for name in seconds if name != ours]
    best = min(others, key=lambda name: statistics.median(seconds[name]))
    ratios = [a / b for a, b in zip(seconds[best], seconds[ours], strict=True)]
    ratio = statistics.median(ratios)
    print(f"ratio {ours} / {best}: {ratio:.2f} (of {min(ratios):.2f} to {max(ratios):.2f})")
    return ratio

"""Generated cells: images/s of one core, and the memory that a larger experiment takes.

    python -m speed.synthetic_cells

Crops of 64 x 64 and fields of 256 x 256 px, 5 channels of 16 bits, of the usual dials, optics and
noise included, drawn as a preparation draws them in each of its processes. Bars: 300 crops/s and 10
fields/s on one core. There is no peer: nothing else draws these images. Then one well of 100 and of
2,000 images is drawn, in a process each: their peaks of resident memory must be the same.
"""

import os
import statistics
import subprocess
import sys
import time

from bioimg_jax.data.builders import find_builder
from bioimg_jax.memory import keep_memory

ROUNDS = 5
WORK = {"crop": (64, 600, 300.0), "field": (256, 24, 10.0)}  # view -> px, images a round, bar
WELLS = (100, 2000)
DRAW = """
import resource, sys
from bioimg_jax.data.builders import find_builder
builder = find_builder("synthetic_cells")
plan = builder.plan_resolved(
    "", "custom", {"view": "field", "image_px": 128, "images_per_site": int(sys.argv[1]) // 4,
                   "sites_per_well": 4}
)
n = sum(1 for _ in builder.examples(plan.units[0], plan.shared))
print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""


def rates() -> dict[str, list[float]]:
    """Images a second of each kind, round by round, of this process alone."""
    builder = find_builder("synthetic_cells")
    found: dict[str, list[float]] = {view: [] for view in WORK}
    for i in range(ROUNDS + 1):
        for view, (px, count, _) in WORK.items():
            options = {"view": view, "image_px": px, "sites_per_well": 1, "images_per_site": count}
            plan = builder.plan_resolved("", "custom", options)
            start = time.perf_counter()
            n = sum(1 for _ in builder.examples(plan.units[i], plan.shared))
            if i:  # the first round is warm-up
                found[view].append(n / (time.perf_counter() - start))
    return found


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    keep_memory()  # as the processes of a preparation do
    for view, found in rates().items():
        bar = WORK[view][2]
        middle = statistics.median(found)
        print(
            f"{view}s: {middle:.1f} a second ({min(found):.1f} to {max(found):.1f}), bar {bar:g}, "
            f"ratio {middle / bar:.2f}"
        )
    peaks = []
    for n in WELLS:
        command = [sys.executable, "-c", DRAW, str(n)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        drawn, peak = done.stdout.split()
        peaks.append(float(peak))
        print(f"a well of {drawn} images: peak {float(peak):.0f} MiB")
    print(f"ratio of the peaks {peaks[1] / peaks[0]:.2f}, bar 1")


if __name__ == "__main__":
    main()

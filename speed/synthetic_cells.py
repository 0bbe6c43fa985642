"""Generated cells: images/s of one core, and the memory that a larger experiment takes.

    python -m speed.synthetic_cells

Crops of 64 x 64 and fields of 256 x 256 px, 5 channels of 16 bits, of the usual dials, optics and
noise included, drawn as a preparation draws them in each of its processes. Bars: 300 crops/s and 10
fields/s on one core. There is no peer: nothing else draws these images. Then one well of 100 and of
2,000 images is drawn, and a section of tissue of 32 and of 640 spots, in a process each: the peaks
of resident memory of few and of many must be the same. Ends with status 1 where a bar is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from bioimg_jax.data.builders import find_builder
from bioimg_jax.memory import keep_memory

ROUNDS = 5
WORK = {"crop": (64, 600, 300.0), "field": (256, 24, 10.0)}  # view -> px, images a round, bar
MEMORY_BAR = 1.05  # peak of many images over that of few
# Builder, config, options, and numbers of images of a well or section: few and many.
GROWN = (
    ("synthetic_cells", "custom", {"view": "field", "image_px": 128, "sites_per_well": 4},
     "images_per_site", (25, 500)),
    ("synthetic_tissue", "default", {"n_centres": 1, "n_patients": 3, "sections_per_patient": 1},
     "spots_per_section", (32, 640)),
)  # fmt: skip
DRAW = """
import json, resource, sys
from bioimg_jax.data.builders import find_builder
name, config, options = json.loads(sys.argv[1])
builder = find_builder(name)
plan = builder.plan_resolved("", config, options)
first = plan.units[0].key.rpartition("-")[0]
group = plan.units[:1] if name == "synthetic_cells" else [
    unit for unit in plan.units if unit.key.startswith(first)]
n = sum(1 for unit in group for _ in builder.examples(unit, plan.shared))
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


def peaks() -> dict[str, float]:
    """Peak of many images over that of few, of each builder."""
    found = {}
    for name, config, options, key, numbers in GROWN:
        measured = []
        for number in numbers:
            asked = json.dumps([name, config, {**options, key: number}])
            command = [sys.executable, "-c", DRAW, asked]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            drawn, peak = done.stdout.split()
            measured.append(float(peak))
            print(f"{name}, {drawn} images: peak {float(peak):.0f} MiB")
        found[name] = measured[1] / measured[0]
        print(f"{name}: ratio of the peaks {found[name]:.2f}, bar {MEMORY_BAR}")
    return found


def main() -> int:
    held = []
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
        held.append(middle >= bar)
    held += [ratio <= MEMORY_BAR for ratio in peaks().values()]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())

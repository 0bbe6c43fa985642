"""Average precisions against copairs: seconds for one screen, of the same numbers.

    python -m speed.retrieval
    python -m speed.retrieval --memory --rows=200000

500 treatments of 8 wells and 1,000 controls, 384 features, float32: every treated well ranks the
other 7 among the controls. The peer is `copairs.map.average_precision` on all cores, without its
progress bar. Ours is `average_precision` as an evaluation calls it; its first call, which compiles,
is shown apart, and so are p-values by 1,000 permutations and by 10,000.

Memory: what a fresh process grows by during its second call, over the size of the features, where
as many treated wells, 8 a treatment, meet a fifth of controls.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import copairs.map
import numpy as np
import pandas as pd

from bioimg_jax.data.workers import available_cores
from bioimg_jax.probes.average_precision import AveragePrecision, average_precision
from bioimg_jax.probes.pairs import PairRules
from bioimg_jax.statistics.map_null import permutation_p
from speed.alternating import alternate
from speed.linear_probe import growth_mib, seconds_of

TREATED, CONTROLS, REPLICATES, WIDTH = 4_000, 1_000, 8, 384
RULES = (["treatment", "control"], [], [], ["treatment", "control"])
ROUNDS = 3
BAR, MEMORY_BAR = 20.0, 4.0


def screen(treated: int, controls: int, *, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Weak effects, so that average precisions are of every size; one replicate a plate."""
    rng = np.random.default_rng(seed)
    treatment = np.arange(treated) // REPLICATES
    features = rng.standard_normal((treated + controls, WIDTH), np.float32)
    effects = rng.standard_normal((treatment[-1] + 1, WIDTH), np.float32)
    effects *= rng.uniform(0, 0.6, (len(effects), 1)).astype(np.float32)
    features[:treated] += effects[treatment]
    metadata = pd.DataFrame(
        {
            "treatment": np.concatenate([treatment, np.full(controls, -1)]),
            # As copairs wants it: two controls differ in it, a treated well and a control too.
            "control": np.concatenate([np.full(treated, -1), np.arange(controls)]),
            "plate": np.arange(treated + controls) % REPLICATES,
        }
    )
    return features, metadata


def memory(rows: int) -> float:
    """What a call grows this process by, over the size of the features."""
    features, metadata = screen(rows * 4 // 5 // REPLICATES * REPLICATES, rows // 5)
    size = features.nbytes / 2**20
    is_control = (metadata["treatment"] < 0).to_numpy()

    def call() -> None:
        average_precision(features, metadata, PairRules(*RULES), queries=~is_control)

    start = time.perf_counter()
    first, second = growth_mib(call), growth_mib(call)
    print(
        f"memory: {len(features):,} x {WIDTH} float32 ({size:.0f} MiB): grows by "
        f"{second / size:.2f} times the features; {first:.0f} MiB the first time; "
        f"{(time.perf_counter() - start) / 2:.0f} s a call",
        flush=True,
    )
    return second / size


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", action="store_true", help="only that, in this process")
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    if options.memory:
        return int(memory(options.rows) > MEMORY_BAR)

    child = [sys.executable, "-m", "speed.retrieval", "--memory"]
    over = subprocess.run(child, env={**os.environ, "JAX_PLATFORMS": "cpu"}).returncode

    features, metadata = screen(TREATED, CONTROLS)

    def ours() -> AveragePrecision:
        return average_precision(features, metadata, PairRules(*RULES))

    def peer() -> pd.DataFrame:
        return copairs.map.average_precision(metadata, features, *RULES, progress_bar=False)

    first = seconds_of(ours)
    expected = peer()["average_precision"].to_numpy()[:TREATED]
    beyond = np.abs(ours().values - expected)
    same = np.mean(beyond <= 1e-6)
    print(f"average precisions equal to 1e-6: {same:.2%}; largest difference {beyond.max():.1e}")
    seconds = alternate({"ours": ours, "copairs": peer}, rounds=ROUNDS)
    for name, values in seconds.items():
        low, high = min(values), max(values)
        print(f"{name:<28} {statistics.median(values):8.3f} s (of {low:.3f} to {high:.3f})")
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["copairs"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"{'ours, first call':<28} {first:8.3f} s, compiling included")
    is_control = (metadata["treatment"] < 0).to_numpy()
    for number in (1_000, 10_000):
        taken = seconds_of(
            lambda number=number: permutation_p(
                features, metadata, "treatment", controls=is_control, within=["plate"],
                permutations=number,
            )
        )  # fmt: skip
        print(f"{f'ours, {number:,} permutations':<28} {taken:8.3f} s, once")
    print(f"{available_cores()} cores; ratio ours / copairs: {ratio:.1f}", end=" ")
    print(f"(of {min(ratios):.1f} to {max(ratios):.1f}); bar {BAR:g}; memory bar {MEMORY_BAR:g}")
    return int(ratio < BAR or over != 0)


if __name__ == "__main__":
    sys.exit(main())

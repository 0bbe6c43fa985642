"""Seconds from process start to the first finished step of configs/mae_cells.py.

    python -m speed.first_step

The data are prepared before the clock starts. Each round is a new process in a new work directory;
it is stopped when its logbook has the loss of step 1.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bioimg_jax.logbook import read_logbook
from bioimg_jax.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
LIMIT_S = 120


def seconds_to_first_step(out: Path, workdir: Path) -> float:
    command = [
        sys.executable,
        "-m",
        "bioimg_jax.main",
        "--config=configs/mae_cells.py",
        f"--config.data.out={out}",
        "--config.train.log_every_steps=1",
        f"--workdir={workdir}",
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - start < LIMIT_S:
            if any("loss" in entry for entry in read_logbook(workdir / "logbook.jsonl")):
                return time.perf_counter() - start
            if process.poll() is not None:
                break
            time.sleep(0.01)
        raise SystemExit(f"no step was logged; exit status {process.poll()}")
    finally:
        process.kill()
        process.wait()


def main() -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prepared"
        prepare(name="synthetic_cells", out=out)
        seconds = [seconds_to_first_step(out, Path(folder) / f"run{i}") for i in range(ROUNDS + 1)][
            1:
        ]  # the first one reads the libraries from disk
    median = statistics.median(seconds)
    print(
        f"first step after {median:.1f} s (of {min(seconds):.1f} to {max(seconds):.1f}), "
        f"{os.cpu_count()} cores"
    )
    return median


if __name__ == "__main__":
    main()

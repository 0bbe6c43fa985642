"""Large arrays used in turn get the same pages: counted, not timed."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from bioimg_jax.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(21):
    if round == 1:  # the first round has to ask for the memory
        before = faults()
    np.ones(2**24, np.uint8)
print(faults() - before)
"""


def faults(how: str) -> int:
    out = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
    )
    return int(out.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is on Linux")
def test_memory_is_kept() -> None:
    assert faults("keep") < 100 < faults("plain")

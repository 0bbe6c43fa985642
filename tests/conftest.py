"""Every test runs on eight simulated CPU devices, with rank promotion an error."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bioimg_jax.data.workers import keep_to_cores  # brings no JAX with it
from tests.tiny import QUICKLY_COMPILED

# Before JAX starts. Flags of a user's environment come later and win.
os.environ["XLA_FLAGS"] = " ".join(
    [
        QUICKLY_COMPILED,
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if _WORKER := os.environ.get("PYTEST_XDIST_WORKER"):
    keep_to_cores(int(_WORKER.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
# Compiling takes most of the time, and many tests compile the same: it is kept for the session, for
# processes that tests start, and for the other workers of pytest-xdist, which inherit the setting.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="bioimg_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parent.parent
LONG = ("test_main", "test_evaluate", "test_train")  # files whose tests take minutes
MOST_MAPPINGS = 20_000  # of memory, before compiled programs are forgotten


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> object:
    """Under `BIOIMG_NO_SKIP` a skipped test is a failed one, whatever it skips for."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("BIOIMG_NO_SKIP"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: one that begins last keeps a single process busy at the end."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real image sets."""
    path = Path(os.environ.get("BIOIMG_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"BIOIMG_DATA: no image sets at {path}")
    return path


@pytest.fixture(scope="session")
def prepared_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """672 synthetic images of three targets, prepared: the folder to give as `data.out`."""
    from bioimg_jax.command_line import options
    from bioimg_jax.prepare import prepare
    from tests import tiny

    out = tmp_path_factory.mktemp("prepared")
    prepare(name="synthetic_cells", out=out, options=options(tiny.OVERRIDES["data.options"]))
    return out


@pytest.fixture(autouse=True)
def _room_for_compiled_programs() -> Iterator[None]:
    """Forgets what was compiled before the process has too many memory mappings.

    Every program that XLA compiles on CPU keeps a few. Linux allows a process 65,530, and the
    compiler then ends in a segmentation fault, which the whole suite in one process comes near.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()

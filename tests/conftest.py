"""Every test runs on eight simulated CPU devices, with rank promotion an error."""

import os
from pathlib import Path

# Before JAX starts; the flag of a user's environment is kept.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real image sets. Without them a test skips; under `BIOIMG_NO_SKIP` it fails."""
    path = Path(os.environ.get("BIOIMG_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        message = f"BIOIMG_DATA: no image sets at {path}"
        if os.environ.get("BIOIMG_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def prepared_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1008 synthetic images, prepared: the folder to give as `data.out`."""
    from bioimg_jax.prepare import prepare

    out = tmp_path_factory.mktemp("prepared")
    prepare(name="synthetic_cells", out=out, options={"images_per_site": 1})
    return out

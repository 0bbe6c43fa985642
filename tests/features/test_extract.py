from pathlib import Path
from typing import Any

import anndata
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax import sources
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.features import extract
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.mesh import make_mesh
from tests import tiny


class Means:
    """The mean of every channel."""

    name, kind, dtype = "means", "pixels", "float32"
    layers = {"mean": 5}  # noqa: RUF012

    def features(self, batch: Any) -> dict[str, jax.Array]:
        return {"mean": batch["image"].astype(jnp.float32).mean(axis=(1, 2))}


class Extraction:
    """Asks for one table again and again, and counts how often it was made."""

    def __init__(self, prepared_cells: Path, folder: Path) -> None:
        self.dataset = open_dataset(next(prepared_cells.glob("synthetic_cells-*")))
        self.path, self.made = folder / "means.h5ad", 0

    def make(self) -> Means:
        self.made += 1
        return Means()

    def __call__(self) -> FeatureTable:
        return extract.feature_table(
            self.path,
            self.make,
            self.dataset,
            np.arange(6),
            identity={"name": "means"},
            crop_px=64,
            batch_size=4,
            mesh=make_mesh(model=1, devices=1),
            provenance={},
        )


@pytest.fixture
def extraction(prepared_cells: Path, tmp_path: Path) -> Extraction:
    return Extraction(prepared_cells, tmp_path)


def test_a_finished_table_is_used_again_and_a_damaged_one_made_again(
    extraction: Extraction,
) -> None:
    assert extraction().layer("mean").shape == (6, 5) and extraction.made == 1
    extraction()
    assert extraction.made == 1
    with h5py.File(extraction.path, "r+") as file:  # HDF5 that is whole, and JSON that is not
        del file["uns/provenance"]
        anndata.io.write_elem(file, "uns/provenance", '{"key": ')
    assert extraction().layer("mean").shape == (6, 5) and extraction.made == 2


@pytest.mark.parametrize("folder", ["data", "features", "models", "representations"])
def test_a_table_is_made_again_once_the_code_behind_its_numbers_is_another(
    extraction: Extraction, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extraction()
    package = tmp_path / "package"
    for name in ("data", "features", "models", "representations"):
        (package / name).mkdir(parents=True)
        for path in (tiny.ROOT / "bioimg_jax" / name).glob("*.py"):
            (package / name / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(extract, "sources_digest", sources.sources_digest.__wrapped__)
    extraction()
    assert extraction.made == 1
    (package / folder / "more.py").write_text("")
    extraction()
    assert extraction.made == 2

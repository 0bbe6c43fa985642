"""A small task in HEST-Benchmark's layout, written file by file so that a test can spoil any."""

import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

SIDE = 8
SECTIONS = ("A1", "A2", "B1", "B2", "C1", "C2")
GENES = ("G1", "G2", "G3", "G4")
N = 5  # spots of a section


class HestFolder:
    """Patients A, B and C with two sections each; split k tests patient k."""

    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        self.images = {s: rng.integers(0, 256, (N, SIDE, SIDE, 3), np.uint8) for s in SECTIONS}
        self.counts = {s: rng.poisson(4, (N, len(GENES))) for s in SECTIONS}
        self.barcodes = {s: [f"{s}-{i}" for i in range(N)] for s in SECTIONS}
        for section in SECTIONS:
            self.write_patches(section)
            self.write_counts(section)
        for k, patient in enumerate("ABC"):
            test = [s for s in SECTIONS if s[0] == patient]
            self.write_split(f"train_{k}", [s for s in SECTIONS if s not in test])
            self.write_split(f"test_{k}", test)
        self.write_genes(GENES[:2])

    def write_patches(self, section: str, **changes: Any) -> None:
        """changes: arrays by name; None leaves one out."""
        arrays: dict[str, Any] = {
            "img": self.images[section],
            "barcode": np.array(self.barcodes[section], "S").reshape(-1, 1),
            "coords": np.stack([10 * np.arange(N), 7 + np.arange(N)], axis=1),
            **changes,
        }
        path = self.path(f"patches/{section}.h5")
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                if values is not None:
                    file.create_dataset(name, data=values)

    def write_counts(
        self, section: str, order: Any = slice(None), genes: Any = GENES, x: Any = None, **obs: Any
    ) -> None:
        """order: of the rows; obs: columns of metadata."""
        x = self.counts[section] if x is None else x
        rows = pd.DataFrame(obs, index=self.barcodes[section])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* names are not unique")
            table = anndata.AnnData(x, obs=rows, var=pd.DataFrame(index=list(genes)))
            table[order].copy().write_h5ad(self.path(f"adata/{section}.h5ad"))

    def write_split(self, name: str, sections: Any, **columns: Any) -> None:
        table = {
            "sample_id": sections,
            "patches_path": [f"patches/{s}.h5" for s in sections],
            "expr_path": [f"adata/{s}.h5ad" for s in sections],
            **columns,
        }
        pd.DataFrame({k: v for k, v in table.items() if v is not None}).to_csv(
            self.path(f"splits/{name}.csv"), index=False
        )

    def write_genes(self, genes: Any) -> None:
        self.path("var_50genes.json").write_text(json.dumps({"genes": list(genes)}))

    def path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

"""Real images beside generated ones: do the default presets look like what they stand for?

    python -m bioimg_jax.known_truth.realism --cells=PROJECT --tissue=FOLDER --workdir=OUT

PROJECT is a DeepProfiler project of Cell Painting, FOLDER holds HEST-Benchmark patches (`*.h5`).
Measures intensities, power spectra and the areas of nuclei, plate by plate, and writes
realism.json and realism.html. Real images are shown in that page, so keep it to yourself where
their licence asks for it.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bioimg_jax import command_line
from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.data.transforms import centre_crop
from bioimg_jax.features.hest import read_patches
from bioimg_jax.prepare import prepare
from bioimg_jax.report import write_realism
from bioimg_jax.representations.nuclei import segment_nuclei

CROP_PX = 64
PER_PLATE = 400  # crops that are measured of a real plate; of the generated set a plate fewer
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)  # of the pixels of a channel
AREA_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
BLACK, WHITE = 0.01, 0.995  # quantiles of a plate's pixels that become 0 and 1
RINGS = 8  # of the power spectrum, equal in log frequency, from 1/64 to 1/2 cycle a pixel
SHOWN = 6  # crops of each kind in the page

Measures = dict[str, np.ndarray]


def measures(crops: np.ndarray, channels: Sequence[str]) -> Measures:
    """Curves of images [n, h, w, c] of one plate: name -> values.

    "CHANNEL intensity": `QUANTILES` of its pixels, between the plate's black and white.
    "CHANNEL spectrum": log10 of the share of the power in each ring, under a Hann window.
    "nucleus area": `AREA_QUANTILES` of the nucleus in the centre of each crop, px.
    """
    found: Measures = {}
    values = crops.astype(np.float32)
    h, w = values.shape[1:3]
    window = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1]).astype(np.float32)
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :])
    edges = np.geomspace(1 / 64, 0.5, RINGS + 1)
    edges[0] = 0.25 / max(h, w)  # and what is below, but the mean
    for c, channel in enumerate(channels):
        plane = values[..., c]
        black, white = np.quantile(plane, (BLACK, WHITE))
        relative = (plane - black) / (white - black)
        found[f"{channel} intensity"] = np.quantile(relative, QUANTILES)
        centred = relative - relative.mean(axis=(1, 2), keepdims=True)
        power = np.square(np.abs(np.fft.rfft2(centred * window))).mean(axis=0)
        rings = np.array(
            [power[(radius > a) & (radius <= b)].mean() for a, b in itertools.pairwise(edges)]
        )
        found[f"{channel} spectrum"] = np.log10(rings / rings.sum())
    areas = []
    for crop in crops:
        labels = segment_nuclei(crop, dna_channel=list(channels).index("DNA"))
        centre = labels[h // 2, w // 2]
        if centre:
            areas.append(np.count_nonzero(labels == centre))
    found["nucleus area"] = np.quantile(areas, AREA_QUANTILES)
    return found


def compare(real: Mapping[str, Measures], generated: Measures) -> list[dict[str, Any]]:
    """A row a curve: range over the real plates, the generated values, and which lie outside."""
    rows = []
    for name, values in generated.items():
        plates = np.stack([of[name] for of in real.values()])
        low, high = plates.min(axis=0), plates.max(axis=0)
        outside = (values < low) | (values > high)
        rows.append(
            {
                "curve": name,
                "low": low.tolist(),
                "high": high.tolist(),
                "generated": values.tolist(),
                "outside": np.flatnonzero(outside).tolist(),
            }
        )
    return rows


def crops_of(dataset: Dataset, rows: np.ndarray, n: int) -> np.ndarray:
    """Up to n crops of some rows, spread over all of them: [n, CROP_PX, CROP_PX, c]."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)]
    return np.stack([centre_crop(image, CROP_PX) for image in dataset.source.read(chosen)])


def real_plates(dataset: Dataset) -> dict[str, Measures]:
    """The measures of each plate."""
    column = next(c for c in dataset.metadata if c.lower().endswith("plate"))
    found = {}
    for plate, rows in dataset.metadata.groupby(column).indices.items():
        crops = crops_of(dataset, np.asarray(rows), PER_PLATE)
        found[str(plate)] = measures(crops, dataset.declaration.channels)
    return found


def generated_cells(dataset: Dataset) -> Measures:
    """The measures of the generated set: the mean over its plates."""
    each = []
    for _, rows in dataset.metadata.groupby("plate").indices.items():
        each.append(measures(crops_of(dataset, np.asarray(rows), PER_PLATE // 4),
                             dataset.declaration.channels))  # fmt: skip
    return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bioimg_jax.known_truth.realism", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cells", required=True, help="folder of a DeepProfiler project")
    parser.add_argument("--tissue", default="", help="folder of HEST-Benchmark patches (*.h5)")
    parser.add_argument("--workdir", required=True, help="where the page is written")
    parser.add_argument("--out", default="prepared", help="folder for prepared data sets")
    given = parser.parse_args(arguments)
    return command_line.guarded(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    workdir = Path(given.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    real = open_dataset(prepare(name="deepprofiler", source=given.cells, out=given.out))
    generated = open_dataset(prepare(name="synthetic_cells", out=given.out))
    plates = real_plates(real)
    rows = compare(plates, generated_cells(generated))
    everything = np.arange(len(real)), np.arange(len(generated))
    pictures = {
        "real cells": crops_of(real, everything[0], SHOWN),
        "generated cells": crops_of(generated, everything[1], SHOWN),
    }
    if given.tissue:
        tissue = open_dataset(prepare(name="synthetic_tissue", out=given.out))
        shown = np.linspace(0, len(tissue) - 1, SHOWN).astype(int)
        pictures |= {
            "real tissue": read_patches(Path(given.tissue), SHOWN),
            "generated tissue": np.stack(tissue.source.read(shown)),
        }
    found = {
        "plates": list(plates),
        "quantiles": list(QUANTILES),
        "area_quantiles": list(AREA_QUANTILES),
        "curves": rows,
    }
    command_line.write_json(workdir / "realism.json", found)
    page = write_realism(workdir, found, pictures)
    outside = sum(len(row["outside"]) for row in rows)
    total = sum(len(row["generated"]) for row in rows)
    for row in rows:
        if row["outside"]:
            print(f"outside the real plates: {row['curve']}, points {row['outside']}")
    print(f"{total - outside} of {total} values lie within the range of {len(plates)} real plates")
    print(f"page: {page}")


if __name__ == "__main__":
    sys.exit(main())

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
from bioimg_jax.data.builders import Unit, find_builder
from bioimg_jax.data.transforms import centre_crop
from bioimg_jax.errors import InputError
from bioimg_jax.features.hest import read_patches
from bioimg_jax.report import write_realism
from bioimg_jax.representations.nuclei import segment_nuclei

CROP_PX = 64
PER_PLATE = 400  # crops that are measured of a plate, or all it has
PER_UNIT = 24  # of them from one field or well
# Of a generated plate a few cells of every well: wells differ more than the cells of one do. And
# many plates, or chance alone would decide on what five real ones have in common.
EVERY_WELL = {"sites_per_well": 1, "images_per_site": 4, "n_plates": 56}
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


def inside_of_others(real: Mapping[str, Measures]) -> dict[str, int]:
    """Of each real plate, how many of its values lie within the range of the other real plates.

    What can be asked of a generated one: of k plates alike, one lies outside the others' range at
    either end in 2 / k of values.
    """
    found = {}
    for plate, values in real.items():
        others = {other: of for other, of in real.items() if other != plate}
        rows = compare(others, values)
        found[plate] = sum(len(row["generated"]) - len(row["outside"]) for row in rows)
    return found


def plates_of(
    name: str, source: str, options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], Sequence[str]]:
    """Up to some `PER_PLATE` crops of each plate, [n, CROP_PX, CROP_PX, c], and the channels.

    Drawn from the builder itself, no more fields or wells than it takes: nothing is prepared.
    """
    builder = find_builder(name)
    plan = builder.plan_resolved(source, "", options)
    plates: dict[str, list[np.ndarray]] = {}
    order = np.random.default_rng(0).permutation(len(plan.units))
    for i in order:  # units are of one plate each
        plate = _plate_of(plan.units[i])
        held = plates.setdefault(plate, [])
        if len(held) >= PER_PLATE:
            continue
        images = [image for _, image in builder.examples(plan.units[i], plan.shared)]
        chosen = np.linspace(0, len(images) - 1, min(PER_UNIT, len(images))).astype(int)
        held += [centre_crop(images[k], CROP_PX) for k in chosen]
    found = {plate: np.stack(crops) for plate, crops in sorted(plates.items())}
    return found, plan.declaration.channels


def _plate_of(unit: Unit) -> str:
    """The plate of a field or well, by the only key of what is known of it that says so."""
    about = unit.data.get("metadata", unit.data)
    return str(next(value for key, value in about.items() if key.lower().endswith("plate")))


def tissue(n: int) -> np.ndarray:
    """n spots of the default tissue, of patients from the first to the last, uint8 [n, h, w, 3]."""
    builder = find_builder("synthetic_tissue")
    plan = builder.plan_resolved("", "", {})
    units = [plan.units[i] for i in np.linspace(0, len(plan.units) - 1, n).astype(int)]
    spots = [list(builder.examples(unit, plan.shared)) for unit in units]
    return np.stack([images[i % len(images)][1] for i, images in enumerate(spots)])


def mean_measures(plates: Mapping[str, Measures]) -> Measures:
    """The mean of every curve over plates."""
    first = next(iter(plates.values()))
    return {name: np.mean([of[name] for of in plates.values()], axis=0) for name in first}


def standard_errors(plates: Mapping[str, Measures]) -> Measures:
    """Of the mean of every curve over plates, which is what another seed would change it by."""
    first = next(iter(plates.values()))
    return {
        name: np.std([of[name] for of in plates.values()], axis=0, ddof=1) / np.sqrt(len(plates))
        for name in first
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bioimg_jax.known_truth.realism", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cells", required=True, help="folder of a DeepProfiler project")
    parser.add_argument("--tissue", default="", help="folder of HEST-Benchmark patches (*.h5)")
    parser.add_argument("--seed", type=int, default=0, help="of the generated plates")
    parser.add_argument("--workdir", required=True, help="where the page is written")
    given = parser.parse_args(arguments)
    return command_line.guarded(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    workdir = Path(given.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    patches = read_patches(Path(given.tissue), SHOWN) if given.tissue else None
    real, channels = plates_of("deepprofiler", given.cells, {})
    generated, ours = plates_of("synthetic_cells", "", {**EVERY_WELL, "seed": given.seed})
    if tuple(channels) != tuple(ours):
        raise InputError(f"--cells={given.cells}: channels {', '.join(channels)}, expected "
                         f"{', '.join(ours)}")  # fmt: skip
    plates = {name: measures(crops, channels) for name, crops in real.items()}
    of_generated = {name: measures(crops, ours) for name, crops in generated.items()}
    rows = compare(plates, mean_measures(of_generated))
    error = standard_errors(of_generated)
    for row in rows:
        row["standard_error"] = error[row["curve"]].tolist()

    def some(sets: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.stack([list(sets.values())[i % len(sets)][3 * i] for i in range(SHOWN)])

    pictures = {"real cells": some(real), "generated cells": some(generated)}
    if patches is not None:
        pictures |= {"real tissue": patches, "generated tissue": tissue(SHOWN)}
    inside = inside_of_others(plates)
    found = {
        "plates": list(plates),
        "quantiles": list(QUANTILES),
        "area_quantiles": list(AREA_QUANTILES),
        "curves": rows,
        "inside_of_others": inside,
    }
    command_line.write_json(workdir / "realism.json", found)
    page = write_realism(workdir, found, pictures)
    outside = sum(len(row["outside"]) for row in rows)
    total = sum(len(row["generated"]) for row in rows)
    for row in rows:
        for i in row["outside"]:
            low, high, value = (row[key][i] for key in ("low", "high", "generated"))
            print(
                f"outside the real plates: {row['curve']}, point {i}: {value:.4g} +- "
                f"{row['standard_error'][i]:.2g} where they lie from {low:.4g} to {high:.4g}"
            )
    print(f"{total - outside} of {total} values lie within the range of {len(plates)} real plates")
    each = ", ".join(map(str, inside.values()))
    print(f"of each real plate within the range of the others: {each}")
    print(f"page: {page}")


if __name__ == "__main__":
    sys.exit(main())

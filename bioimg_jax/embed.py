"""Images and a representation in, a feature table out.

    python -m bioimg_jax.embed --config=configs/eval_cells.py --checkpoint=WORKDIR --out=FILE.h5ad

The table is an AnnData file, or with `--out=NAME.parquet` a Parquet file with `Metadata_` columns
as pycytominer and copairs read it.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bioimg_jax import command_line
from bioimg_jax.benchmarks.ladder import CHANCE
from bioimg_jax.candidates import (
    METADATA,
    Candidate,
    Evaluation,
    build_evaluation,
    candidates,
    own_floors,
)
from bioimg_jax.checkpoint import open_checkpoint
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.errors import InputError
from bioimg_jax.evaluate import prepared
from bioimg_jax.features.table import is_parquet_table, read_table, write_parquet
from bioimg_jax.mesh import settle_cpu
from bioimg_jax.representations.floors import UnknownFloor
from bioimg_jax.scoring import table_of

FORMATS = (".h5ad", ".parquet")
HELP = f"""{__doc__}
--checkpoint=PATH      a work directory of a training, or its checkpoints/STEP
--representation=NAME  instead of the trained encoder: pixels, nuclei, layout, NAME_step0,
                       metadata_TARGET ... or a Python file with a function build(channels, width)
--layer=NAME           of a Parquet file; the last block's by default
--config.KEY=VALUE     changes a key of the config file, which explains them
--out=FILE             .h5ad (all layers) or .parquet (one layer)"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (program name first); returns the exit status."""
    if command_line.asks_for_help(arguments):
        print(HELP)
        return 0
    return command_line.guarded(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    config, given = command_line.parse(
        arguments, {"checkpoint": "", "representation": "", "layer": "", "out": ""}
    )
    out, wanted = Path(given["out"]), given["representation"]
    if out.suffix not in FORMATS:
        raise InputError(
            f"--out={given['out']}: expected a name that ends in {' or '.join(FORMATS)}"
        )
    if not (given["checkpoint"] or wanted):
        raise InputError("--checkpoint=PATH or --representation=NAME is missing: embed by what?")
    command_line.check_sections(config, "data", "mesh", "evaluate")
    if out.suffix == ".h5ad" and given["layer"]:
        raise InputError("--layer is for a .parquet file; an .h5ad file has all layers")
    _check_ours(out)
    settle_cpu()
    saved = [open_checkpoint(given["checkpoint"])] if given["checkpoint"] else []
    dataset = prepared(config["data"])
    evaluation = build_evaluation(config, dataset.declaration.channels, saved)
    dataset.check_crop(evaluation.crop_px)
    candidate = _find(evaluation, dataset, wanted)
    if given["layer"] and given["layer"] not in candidate.layers:
        raise InputError(
            f"--layer={given['layer']}: {candidate.name} has {', '.join(candidate.layers)}"
        )
    path = out if out.suffix == ".h5ad" else out.with_suffix(".unfinished.h5ad")
    table = table_of(evaluation, dataset, np.arange(len(dataset)), candidate, path)
    if path != out:
        write_parquet(table, out, given["layer"] or table.default)
        path.unlink()
    print(f"{len(dataset):,} images x {candidate.name}: {', '.join(table.widths)}", file=sys.stderr)
    print(out)


def _check_ours(out: Path) -> None:
    """`InputError` for a file at `out` that no embedding has written: it would be lost."""
    if not out.exists():
        return
    ours = out.suffix == ".parquet" and is_parquet_table(out)
    if out.suffix == ".h5ad":
        with contextlib.suppress(InputError):
            ours = bool(read_table(out).provenance)
    if not ours:
        raise InputError(f"--out={out}: there is a file that is no feature table; move it away")


def _find(evaluation: Evaluation, dataset: Dataset, wanted: str) -> Candidate:
    """The candidate of a name, the trained one by default; it need not be in the config."""
    found = {one.name: one for one in candidates(evaluation, dataset)}
    if not wanted:
        return next(iter(found.values()))
    if wanted in found:
        return found[wanted]

    def showing(representations: str) -> Evaluation:
        settings = {**evaluation.settings, "floors": CHANCE, "representations": representations}
        config = {**evaluation.config, "evaluate": settings}
        return dataclasses.replace(evaluation, config=config)

    alone = showing(METADATA if wanted.startswith(f"{METADATA}_") else wanted)
    try:
        omitted = own_floors(alone).omitted
    except UnknownFloor as error:
        known = ", ".join([*found, *(name for name in error.known if name not in found)])
        raise InputError(f"--representation: {wanted!r}, expected some of {known}") from None
    if omitted:
        raise InputError(f"--representation={wanted}: {next(iter(omitted.values()))}")
    always = {one.name for one in candidates(showing(""), dataset)}
    more = {one.name: one for one in candidates(alone, dataset) if one.name not in always}
    if not more:
        raise InputError(f"--representation={wanted}: there is none of it here")
    return more.get(wanted, next(iter(more.values())))


if __name__ == "__main__":
    sys.exit(main(sys.argv))

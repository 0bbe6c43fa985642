"""A picture of every dial of a generated data set: one row of images from low to high.

Prints the table that docs/dials.md shows them in.

python -m bioimg_jax.known_truth.pictures --name=synthetic_cells --out=docs/dials
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bioimg_jax import command_line
from bioimg_jax.data.builders import find_builder
from bioimg_jax.errors import InputError
from bioimg_jax.report import write_strip

N_STEPS = 6  # images of a row


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bioimg_jax.known_truth.pictures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--name", required=True, help="a data set with dials: synthetic_cells")
    parser.add_argument("--out", required=True, help="folder that the pictures go into")
    given = parser.parse_args(arguments)
    return command_line.guarded(lambda: _run(given.name, Path(given.out)))


def _run(name: str, out: Path) -> None:
    builder = find_builder(name)
    if not hasattr(builder, "sweep"):
        raise InputError(f"--name={name}: this data set has no dials to turn")
    out.mkdir(parents=True, exist_ok=True)
    table = ["| dial | what it turns | usual | from | to | |", "|---|---|---|---|---|---|"]
    for dial in builder.dials():
        path = out / f"{name}-{dial.name}.jpg"
        values = dial.values(N_STEPS)
        write_strip(
            path,
            builder.sweep(dial.name, values),
            dial.channels,
            relative_px=dial.relative_px,
            marks=builder.marks(dial.name, values),
        )
        table.append(
            f"| `{dial.name}` | {dial.meaning} | {dial.usual:.3g} | {dial.values(2)[0]:.3g} | "
            f"{dial.values(2)[1]:.3g} | ![{dial.name}]({out.name}/{path.name}) |"
        )
    print("\n".join(table))
    print(f"{len(table) - 2} pictures in {out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

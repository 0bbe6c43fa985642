"""Writes generated tissue and its gene counts in the layout of HEST-Benchmark.

    python -m bioimg_jax.known_truth.hest --config=tissue_layout --out=DIR

Makes DIR/tissue_layout with patches, counts, splits and the genes that are predicted.
"""

import argparse
import sys
from collections.abc import Sequence

from bioimg_jax import command_line
from bioimg_jax.data.builders import find_builder

NAME = "synthetic_tissue"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bioimg_jax.known_truth.hest", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--config", default="", help="a config of datasets/synthetic_tissue")
    parser.add_argument("--out", required=True, help="folder that the task's folder is made in")
    parser.add_argument("--options", default="", help="of the data set: KEY=VALUE,KEY=VALUE")
    given = parser.parse_args(arguments)
    return command_line.guarded(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    builder = find_builder(NAME)
    task = builder.write_hest(given.out, given.config, command_line.options(given.options))
    print(f"written: {task}")


if __name__ == "__main__":
    sys.exit(main())

"""What protocols on profiles say beyond a confound: `evaluate.beyond` of a config of profiles.

Rows are plain JSON under "conditional" of results.json (docs/results_schema.md), and are kept on
disk: a run that was stopped goes on with the next one.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bioimg_jax import command_line
from bioimg_jax.benchmarks.beyond import beyond
from bioimg_jax.benchmarks.confound import PERMUTATION, Confound, refused_row
from bioimg_jax.benchmarks.protocols import ProfileProtocol, of_metadata
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import AlignedTable
from bioimg_jax.features.table import FeatureTable
from bioimg_jax.kept import digest, kept
from bioimg_jax.representations.representation import ENCODERS

Config = Mapping[str, Any]


def check_beyond(
    text: str, tables: Mapping[str, FeatureTable], kinds: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """The confounds that are there, and of the others, as for `not_run`, that they are not.

    Raises `InputError` before anything is scored for an encoder, or a floor of several numbers.
    """
    obs = next(iter(tables.values())).obs
    found, missing = [], {}
    for name in command_line.names(text):
        if name in tables and kinds[name] not in ENCODERS:
            width = tables[name].widths[tables[name].default]
            if width != 1:
                raise InputError(
                    f"evaluate.beyond: {name!r} has {width} features, expected one: strata are "
                    "bins of one number"
                )
        elif name in tables:
            raise InputError(
                f"evaluate.beyond: {name!r} is an encoder, expected floors of the config and "
                "columns of the metadata"
            )
        elif name not in obs:
            missing[f"beyond {name}"] = (
                f"the metadata have no column {name}, and the config no floor of that name"
            )
            continue
        found.append(name)
    return found, missing


def conditional_rows(
    protocols: Sequence[ProfileProtocol],
    aligned: Mapping[str, AlignedTable],
    tables: Mapping[str, FeatureTable],
    encoders: Sequence[str],
    confounds: Sequence[str],
    workdir: Path,
    *,
    permutations: int,
    benchmark: str,
    seed: int,
    between: Callable[[], None],
) -> list[dict[str, Any]]:
    """What each encoder scores beyond each confound, and the confound beyond itself.

    A row without a value has the reason in "refused".

    Args:
      aligned: by the alignment that `benchmark` names, of encoders and floors.
      confounds: floors of one number, and columns (`check_beyond`).
      between: called after every question, whose rows are then kept; may raise to stop there.
    """
    floors = {name: table for name, table in aligned.items() if name not in encoders}
    first = next(iter(aligned.values()))
    digests = {name: table_digest(table) for name, table in aligned.items()}
    found: list[dict[str, Any]] = []
    for asked in confounds:
        if asked in floors:
            raw, floor = tables[asked].layer(tables[asked].default), floors[asked]
            confound = Confound.of_number(asked, raw, floor.obs)
        else:
            confound, floor = Confound.of_column(first.obs, asked), of_metadata(first, [asked])
        for protocol in protocols:
            for name in (*encoders, *([asked] if asked in floors else [])):
                made_of = [
                    identity_of(protocol), digests[name], digests.get(asked),
                    digest(confound.columns), permutations, seed,
                ]  # fmt: skip
                ask = functools.partial(
                    _rows, protocol, aligned[name], confound, floor,
                    permutations=permutations, seed=seed,
                )  # fmt: skip
                what = f"{name}-{benchmark}-{protocol.name}-{asked}"
                rows = kept(workdir / "beyond", what, made_of, ask)
                about = {
                    "benchmark": benchmark, "target": protocol.name, "beyond": asked,
                    "representation": name,
                }  # fmt: skip
                # Beside itself a confound adds nothing: what is left of it shows how coarse strata
                # are.
                found += [
                    {**about, **row}
                    for row in rows
                    if name in encoders or row["method"] in (PERMUTATION, None)
                ]
                between()
            print(f"{protocol.name} beyond {asked}", file=sys.stderr)
    return found


def _rows(
    protocol: ProfileProtocol,
    table: AlignedTable,
    confound: Confound,
    floor: AlignedTable,
    *,
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    try:
        return beyond(protocol, table, confound, floor, permutations=permutations, seed=seed)
    except InputError as error:
        return [refused_row(None, error)]


def identity_of(protocol: ProfileProtocol) -> list[Any]:
    """What a protocol's scores depend on besides the table, as plain JSON."""
    permuted = [protocol.permuted, protocol.blocks, protocol.within, protocol.once, protocol.only]
    target = dataclasses.asdict(protocol.target)
    return [dict(protocol.benchmark.identity), target, protocol.needs, permuted]


def table_digest(table: AlignedTable) -> list[str]:
    """Of features and metadata."""
    obs = pd.util.hash_pandas_object(table.obs.astype(str), index=False).to_numpy()
    return [digest(table.features), digest(obs), *map(str, table.obs.columns)]

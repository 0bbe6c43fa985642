"""Upstream image files in, a prepared data set out.

    python -m bioimg_jax.prepare --name=deepprofiler --source=PATH --out=DIR

Units (fields, shards) are decoded in parallel worker processes into parts, each with a manifest; a
finished part is never done again. The parts are then copied in order into TFDS's ArrayRecord files.
The directory is named after the hash of everything that decides its contents, so a finished result
is reused for the same source and never for another one.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from bioimg_jax.data import parts, splits
from bioimg_jax.data.builders import (
    METADATA_TYPES,
    SPLIT,
    BadImage,
    ImageDatasetBuilder,
    Plan,
    find_builder,
)
from bioimg_jax.data.parts import Manifest
from bioimg_jax.data.workers import available_cores, run_tasks, worker_pool
from bioimg_jax.errors import InputError

FORMAT_VERSION = 1  # part of the content hash: raise it when the files change their meaning
MAX_PARTS = 512


def prepare(
    *,
    name: str,
    config: str = "",
    source: str = "",
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    on_bad_image: str = "stop",
    workers: int | None = None,
    executor: concurrent.futures.Executor | None = None,
) -> Path:
    """Prepares data set `name` under `out` and returns the directory of the result.

    The directory holds the ArrayRecord shards with `dataset_info.json` and `features.json` (TFDS),
    `metadata.parquet` (row i belongs to example i), `declaration.json`, `splits.npz`,
    `preparation.json` and, if units were quarantined, `bad_images.csv`. It appears whole or not at
    all, with the same bytes for any number of `workers` (None: one a core). `executor` replaces the
    worker processes, by a cluster's for example. Raises `InputError`.
    """
    if on_bad_image not in ("stop", "skip"):
        raise InputError(f"on_bad_image must be 'stop' or 'skip', not {on_bad_image!r}")
    builder = find_builder(name)
    config = builder.resolve_config(config)
    plan = builder.plan_resolved(source, config, options or {})
    _stop_at(plan.bad, on_bad_image)
    if not plan.units:
        raise InputError(f"data set {name!r} has no image to prepare in {source or 'its options'}")
    content_hash = hash_contents(builder, config, plan)
    final = Path(out) / f"{name}-{config}-{content_hash[:16]}"
    try:
        if final.is_dir():
            _stop_at(_read_bad(final), on_bad_image)
            print(f"prepared already: {final}", file=sys.stderr)
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        workers = max(1, min(workers or available_cores(), len(plan.units)))
        with contextlib.ExitStack() as stack:
            stack.enter_context(_one_at_a_time(_parts_folder(final)))
            if final.is_dir():  # another process prepared it while we waited
                with contextlib.suppress(OSError):
                    _parts_folder(final).rmdir()  # made just now, after the other was done with it
                return final
            pool = executor or stack.enter_context(worker_pool(workers))
            job = _Job(builder, config, plan, content_hash, final, on_bad_image, pool, 2 * workers)
            job.finish(job.write_parts())
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror or error}") from error
    except concurrent.futures.BrokenExecutor as error:
        raise InputError(
            f"a worker process died while preparing {name!r} (out of memory?): run again with "
            "fewer workers; finished parts are kept"
        ) from error
    print(f"prepared: {final}", file=sys.stderr)
    return final


def _parts_folder(final: Path) -> Path:
    """Where the parts of a data set are until it is whole."""
    return final.with_name(f".{final.name}.parts")


@contextlib.contextmanager
def _one_at_a_time(parts_folder: Path) -> Iterator[None]:
    """Makes the folder, and waits until no other process prepares the same data set in it.

    It is gone where one did while we waited; then the data set is there.
    """
    descriptor = -1
    while descriptor < 0:
        parts_folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the other one was done with it just now
            descriptor = os.open(parts_folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another preparation in {parts_folder}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def hash_contents(builder: type[ImageDatasetBuilder], config: str, plan: Plan) -> str:
    """SHA-256 over builder, version, config, options, and the name and bytes of every file."""
    root = Path(plan.root)

    def digest(name: str) -> str:
        try:
            with (root / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return "missing"  # the plan has it among the bad ones
        except OSError as error:
            raise InputError(f"cannot read {root / name}: {error.strerror}") from error

    names = sorted(set(plan.files))
    with concurrent.futures.ThreadPoolExecutor(available_cores()) as threads:
        digests = list(threads.map(digest, names))  # hashing releases the GIL
    header = {
        "format": FORMAT_VERSION,
        "builder": builder.name,
        "version": str(builder.VERSION),
        "config": config,
        "options": plan.options,
        "files": list(zip(names, digests, strict=True)),
    }
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass
class _Job:
    builder: type[ImageDatasetBuilder]
    config: str
    plan: Plan
    content_hash: str
    final: Path
    on_bad_image: str
    pool: concurrent.futures.Executor
    ahead: int  # tasks in the pool at a time

    @property
    def parts_folder(self) -> Path:
        return _parts_folder(self.final)

    def write_parts(self) -> list[Manifest]:
        """Decodes the parts that are not there yet; returns all manifests in order."""
        units = self.plan.units
        size = -(-len(units) // MAX_PARTS)
        chunks = [units[i : i + size] for i in range(0, len(units), size)]
        paths = [self.parts_folder / f"part-{i:05d}.array_record" for i in range(len(chunks))]
        todo = [i for i, path in enumerate(paths) if parts.read_manifest(path) is None]
        # A worker gets the plan without its units, which come part by part.
        head = dataclasses.replace(self.plan, units=(), files=(), bad=())
        progress = _Progress(f"preparing {self.builder.name}", len(paths), len(todo))
        tasks = ((self.builder.code_file, head, chunks[i], paths[i]) for i in todo)
        for path in run_tasks(self.pool, parts.write_part, tasks, self.ahead):
            progress.add(self._checked_manifest(path)["n_examples"])
        progress.close()
        return [self._checked_manifest(path) for path in paths]

    def finish(self, manifests: list[Manifest]) -> None:
        """Copies the parts into shards, writes the rest beside them, and renames the whole."""
        metadata = _join_metadata(self.plan, manifests)
        if not len(metadata):
            raise InputError(f"data set {self.builder.name!r}: its images hold no example")
        folds = {t.name: splits.make_folds(metadata, t) for t in self.plan.declaration.targets}
        bad = [*self.plan.bad, *(BadImage(*b) for manifest in manifests for b in manifest["bad"])]
        preparation = {
            "format_version": FORMAT_VERSION,
            "content_hash": self.content_hash,
            "name": self.builder.name,
            "version": str(self.builder.VERSION),
            "config": self.config,
            "options": self.plan.options,
            "n_examples": len(metadata),
            "n_bad": len(bad),
        }
        work = self.final.with_name(f".{self.final.name}.{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir()
            self._write_shards(work, manifests)
            metadata.to_parquet(work / "metadata.parquet", index=False)
            (work / "declaration.json").write_text(self.plan.declaration.to_json())
            splits.write_folds(work / "splits.npz", folds)
            (work / "preparation.json").write_text(json.dumps(preparation, indent=1) + "\n")
            _write_bad(work, bad)
            try:
                work.rename(self.final)
            except OSError:
                if not self.final.is_dir():  # else another process finished the same set first
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(self.parts_folder, ignore_errors=True)

    def _write_shards(self, work: Path, manifests: list[Manifest]) -> None:
        shards = parts.group_into_shards(manifests)
        paths = [
            work / f"{self.builder.name}-{SPLIT}.array_record-{i:05d}-of-{len(shards):05d}"
            for i in range(len(shards))
        ]
        tasks = (
            ([manifest["path"] for manifest in shard], path)
            for shard, path in zip(shards, paths, strict=True)
        )
        for _ in run_tasks(self.pool, parts.write_shard, tasks, self.ahead):
            pass
        split = tfds.core.SplitInfo(
            name=SPLIT,
            shard_lengths=[sum(m["n_examples"] for m in shard) for shard in shards],
            num_bytes=sum(path.stat().st_size for path in paths),
            filename_template=None,
        )
        about = self.builder.get_metadata()
        tfds.folder_dataset.write_metadata(
            data_dir=work,
            features=self.plan.features(),
            split_infos=[split],
            version=str(self.builder.VERSION),
            check_data=False,  # the check would read with TensorFlow
            description=about.description,
            citation=about.citation,
        )

    def _checked_manifest(self, part: Path) -> Manifest:
        manifest = parts.read_manifest(part)
        if manifest is None:
            raise OSError(f"{part} vanished while it was in use")
        _stop_at([BadImage(*bad) for bad in manifest["bad"]], self.on_bad_image)
        return manifest


def _join_metadata(plan: Plan, manifests: list[Manifest]) -> pd.DataFrame:
    columns = {}
    for column, kind in plan.metadata.items():
        values = [value for manifest in manifests for value in manifest["metadata"][column]]
        columns[column] = np.array(values, dtype=object if kind == "text" else METADATA_TYPES[kind])
    return pd.DataFrame(columns)


def _stop_at(bad: Sequence[BadImage], on_bad_image: str) -> None:
    if bad and on_bad_image == "stop":
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InputError(f"{bad[0]}{more}; on_bad_image=skip leaves bad images out")


def _write_bad(folder: Path, bad: Iterable[BadImage]) -> None:
    rows = sorted((b.row, b.file, b.why) for b in bad)
    if not rows:
        return
    with (folder / "bad_images.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "row", "why"])
        writer.writerows((file_name, row, why) for row, file_name, why in rows)
    print(f"left out {len(rows)} bad images, listed in bad_images.csv", file=sys.stderr)


def _read_bad(folder: Path) -> list[BadImage]:
    path = folder / "bad_images.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [BadImage(r["file"], int(r["row"]), r["why"]) for r in csv.DictReader(file)]


class _Progress:
    """A line on stderr: parts, examples, rate, time left."""

    def __init__(self, what: str, n_parts: int, n_todo: int):
        self._what, self._n_parts, self._n_todo = what, n_parts, n_todo
        self._done, self._examples = 0, 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def add(self, n_examples: int) -> None:
        self._done += 1
        self._examples += n_examples
        if time.monotonic() - self._shown > (0.2 if self._terminal else 10.0):
            self._show()

    def close(self) -> None:
        self._show()
        if self._terminal:
            print(file=sys.stderr)

    def _show(self) -> None:
        self._shown = time.monotonic()
        elapsed = max(self._shown - self._start, 1e-3)
        finished = self._n_parts - self._n_todo + self._done
        left = (self._n_todo - self._done) * elapsed / max(self._done, 1)
        filled = 20 * finished // self._n_parts
        line = (
            f"{self._what} [{'#' * filled}{'.' * (20 - filled)}] {finished}/{self._n_parts} parts, "
            f"{self._examples:,} examples, {self._examples / elapsed:,.0f}/s, "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )
        start, end = ("\r", "\x1b[K") if self._terminal else ("", "\n")
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bioimg_jax.prepare", description="Prepares a data set without training."
    )
    parser.add_argument("--name", required=True, help="a folder of datasets/, as deepprofiler")
    parser.add_argument("--config", default="", help="one of the builder's configs, as cells")
    parser.add_argument("--source", default="", help="folder of the upstream files")
    parser.add_argument("--out", required=True, help="folder for prepared data sets")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--on_bad_image", default="stop", choices=("stop", "skip"))
    parser.add_argument("--workers", type=int, help="worker processes; one a core by default")
    given = parser.parse_args(arguments)
    try:
        options = {}
        for option in given.option:
            key, separator, value = option.partition("=")
            if not separator:
                raise InputError(f"--option={option}: expected KEY=VALUE")
            options[key] = value
        directory = prepare(
            name=given.name,
            config=given.config,
            source=given.source,
            out=given.out,
            options=options,
            on_bad_image=given.on_bad_image,
            workers=given.workers,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished parts are kept", file=sys.stderr)
        return 130
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())

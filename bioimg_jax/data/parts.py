"""Parts and shards: what the worker processes of a preparation write. No JAX here."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from bioimg_jax.data.builders import METADATA_TYPES, BadImage, Plan, Unit, load_builder

Manifest = dict[str, Any]  # n_examples, n_bytes, bad: [file, row, why], metadata: column -> values
SHARD_BYTES = 256 * 2**20


def write_part(code_file: Path, plan: Plan, units: tuple[Unit, ...], path: Path) -> Path:
    """Decodes units into one ArrayRecord file with a manifest beside it.

    The manifest is written last: a part without one is not finished. Units with a bad image are
    left out and listed in it. Returns `path`.
    """
    builder = load_builder(code_file)
    features = plan.features()
    serializer = ExampleSerializer(features.get_serialized_info())
    columns: dict[str, list[Any]] = {column: [] for column in plan.metadata}
    bad: list[tuple[str, int, str]] = []
    with _record_writer(path) as writer:
        for unit in units:
            try:
                examples = builder.examples(unit, plan.shared)
            except BadImage as error:
                bad.append((error.file, error.row, error.why))
                continue
            for metadata, image in examples:
                encoded = features.encode_example({"image": image, **metadata})
                example = serializer.get_tf_example(encoded)
                # The fields of a tf.Example are a hash map: unsorted in every process in its way.
                writer.write(example.SerializeToString(deterministic=True))
                for column, kind in plan.metadata.items():
                    value = METADATA_TYPES[kind](metadata[column])
                    columns[column].append(value if kind == "text" else value.item())
    manifest: Manifest = {
        "n_examples": writer.n_records,
        "n_bytes": path.stat().st_size,
        "bad": bad,
        "metadata": columns,
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.json")
    temporary.write_text(json.dumps(manifest))
    os.replace(temporary, _manifest_path(path))
    return path


def read_manifest(part: Path) -> Manifest | None:
    """A finished part's manifest with its path under "path"; None if the part is not finished."""
    try:
        manifest: Manifest = json.loads(_manifest_path(part).read_text())
        return {**manifest, "path": part} if part.stat().st_size == manifest["n_bytes"] else None
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def group_into_shards(manifests: list[Manifest]) -> list[list[Manifest]]:
    """Consecutive parts put together into files of about `SHARD_BYTES`; empty parts left out."""
    shards: list[list[Manifest]] = []
    size = SHARD_BYTES
    for manifest in manifests:
        if not manifest["n_examples"]:
            continue
        if size >= SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(manifest)
        size += manifest["n_bytes"]
    return shards


def write_shard(parts: list[Path], path: Path) -> None:
    """Copies the records of some parts, in order, into one file."""
    with _record_writer(path) as writer:
        for part in parts:
            reader = array_record_module.ArrayRecordReader(str(part))
            n = reader.num_records()
            for start in range(0, n, 64):
                for record in reader.read(list(range(start, min(start + 64, n)))):
                    writer.write(record)
            reader.close()


class _RecordWriter:
    """TFDS's kind of ArrayRecord file; a full disk comes as the `OSError` it is."""

    def __init__(self, path: Path):
        with path.open("wb"):
            pass  # fails with a clear OSError where the library's own message is opaque
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        self.n_records = 0

    def write(self, record: bytes) -> None:
        with _as_os_error():
            self._writer.write(record)
        self.n_records += 1

    def close(self) -> None:
        with _as_os_error():
            self._writer.close()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


@contextlib.contextmanager
def _record_writer(path: Path) -> Iterator[_RecordWriter]:
    """A file that appears under its name only when it is whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        writer = _RecordWriter(temporary)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                writer.close()
            raise
        writer.close()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _manifest_path(part: Path) -> Path:
    return part.with_suffix(".json")

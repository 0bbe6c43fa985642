"""A prepared data set on disk, opened for reading."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from bioimg_jax.data import splits
from bioimg_jax.data.builders import SPLIT
from bioimg_jax.data.declaration import Declaration
from bioimg_jax.data.splits import Fold
from bioimg_jax.data.transforms import centre_crop
from bioimg_jax.errors import InputError


class ImageSource:
    """Random access to the images: `source[i]` -> {"image": [h, w, c], "index": i}.

    Parses the tf.Example itself: TFDS decodes every metadata field of every example, which
    metadata.parquet already holds, and takes several times as long.
    """

    def __init__(self, directory: Path, n_channels: int):
        builder = tfds.builder_from_directory(directory)
        self._records = builder.as_data_source(
            SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self.dtype: np.dtype = np.dtype(builder.info.features["image"].np_dtype)
        self.n_channels = n_channels
        self.directory = directory

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.read([index])[0], "index": int(index)}

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The images of `indices` in their order: read-only [h, w, c] of the storage dtype."""
        records = self._records.__getitems__([int(index) for index in indices])
        return [self._decode(record, index) for record, index in zip(records, indices, strict=True)]

    def _decode(self, record: bytes, index: int) -> np.ndarray:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        shape = tuple(feature["image/shape"].int64_list.value)
        pixels = np.frombuffer(feature["image/value"].bytes_list.value[0], self.dtype)
        if len(shape) != 3 or shape[2] != self.n_channels or pixels.size != np.prod(shape):
            raise InputError(
                f"{self.directory}: example {index} has shape {shape} and {pixels.size} values; "
                f"expected [h, w, {self.n_channels}]"
            )
        return pixels.reshape(shape)


class Dataset:
    """Images, metadata (row i belongs to example i), declaration and folds of a prepared set."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.declaration = Declaration.from_json((directory / "declaration.json").read_text())
        self.metadata: pd.DataFrame = pd.read_parquet(directory / "metadata.parquet")
        self.preparation: dict[str, Any] = json.loads((directory / "preparation.json").read_text())
        self.content_hash: str = self.preparation["content_hash"]
        self.source = ImageSource(directory, len(self.declaration.channels))
        if len(self.source) != len(self.metadata):
            raise InputError(
                f"{directory}: {len(self.source)} images but {len(self.metadata)} metadata rows"
            )

    def __len__(self) -> int:
        return len(self.source)

    def has_room(self, crop_px: int) -> bool:
        """Whether a crop is a part of an image only, going by the first one."""
        return max(self.source[0]["image"].shape[:2]) > crop_px

    def check_crop(self, crop_px: int) -> None:
        """`InputError` if the first image has no crop of this size."""
        if crop_px < 1:
            raise InputError(f"data.crop_px: {crop_px}, expected at least 1")
        centre_crop(self.source[0]["image"], crop_px)

    def folds(self, target_name: str) -> list[Fold]:
        """The stored folds of a target; `InputError` where there is no such target."""
        self.declaration.target(target_name)
        return splits.read_folds(self.directory / "splits.npz", target_name)

    def pretraining_indices(self, hold_out: Fold | None = None, labels_of: str = "") -> np.ndarray:
        """Example indices that pre-training may see, int64; see `splits.pretraining_indices`.

        With `labels_of`, those that it may see with the labels of this target
        (`splits.labelled_indices`).
        """
        if not labels_of:
            return splits.pretraining_indices(self.metadata, self.declaration, hold_out)
        target = self.declaration.target(labels_of)
        folds = self.folds(labels_of)
        return splits.labelled_indices(self.metadata, self.declaration, target, folds, hold_out)

    def labels(self, target_name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """A target's classes as numbers, int32 [n], and as names; see `splits.class_labels`."""
        return splits.class_labels(self.metadata, self.declaration.target(target_name))


def open_dataset(directory: str | Path) -> Dataset:
    """Opens what `bioimg_jax.prepare` wrote; `InputError` where a file of it is missing."""
    directory = Path(directory)
    needed = ("dataset_info.json", "features.json", "preparation.json", "declaration.json")
    for name in (*needed, "metadata.parquet", "splits.npz"):
        if not (directory / name).is_file():
            raise InputError(f"{directory} is not a prepared data set: it has no {name}")
    return Dataset(directory)

"""Finds the builders in `datasets/` and says what a builder is.

`datasets/` is not a package and is never imported as one (Hugging Face owns the top-level name
`datasets`): builders are loaded by file path, here and nowhere else.

A data set is one file, `datasets/<name>/<name>_dataset_builder.py`, with one subclass of
`ImageDatasetBuilder` that defines `VERSION`, `BUILDER_CONFIGS`, `DEFAULT_OPTIONS`, `plan` and
`examples`. `bioimg_jax.prepare` calls `plan` once and `examples` in parallel worker processes;
TFDS's own methods follow from the two.
"""

import dataclasses
import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from bioimg_jax.data.declaration import Declaration
from bioimg_jax.errors import InputError

# A metadata value's type by its name in `Plan.metadata`. Floats have 32 bits, as in a tf.Example.
METADATA_TYPES: dict[str, Any] = {
    "text": str,
    "int": np.int64,
    "float": np.float32,
    "bool": np.bool_,
}

SPLIT = "images"  # the one TFDS split of a prepared set; "all" is reserved there

Example = tuple[dict[str, Any], np.ndarray]


class BadImage(Exception):
    """An image that cannot be used. Under on_bad_image="skip" its unit is quarantined."""

    def __init__(self, file: str, row: int, why: str):
        super().__init__(file, row, why)  # all arguments, so that it survives pickling
        self.file = file
        self.row = row  # 1: first after the header of the file that lists the images; 0: none
        self.why = why

    def __str__(self) -> str:
        row = f" (row {self.row} of the index)" if self.row else ""
        return f"{self.file}{row}: {self.why}"


@dataclasses.dataclass(frozen=True)
class Dial:
    """One property that a generated data set can turn, as its builder's `dials` tells of it."""

    name: str
    meaning: str  # with its unit
    usual: float  # where nothing turns it
    low: float  # what a row of pictures begins with,
    high: float  # and ends with
    log: bool = False  # steps of a row are equal in the logarithm
    channels: tuple[int, ...] = (0, 1, 2)  # that show it best: grey, or red, green, blue
    relative_px: float = 0.0  # ... relative to the light around, sigma of a Gaussian; 0: as it is

    def values(self, n: int) -> np.ndarray:
        """n values from `low` to `high`, float64."""
        space = np.geomspace if self.log else np.linspace
        return space(self.low, self.high, n)


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one call of `examples` decodes: a field, a well, a shard."""

    key: str  # unique; the order of units is the order of examples
    data: dict[str, Any]  # what `examples` needs to know about this unit; picklable


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is known of a data set before a pixel is decoded."""

    declaration: Declaration
    metadata: dict[str, str]  # metadata column -> "text" | "int" | "float" | "bool"
    dtype: str  # of the images: "uint8", "uint16", "float32"
    units: tuple[Unit, ...]
    options: dict[str, Any]  # resolved; they are part of the content hash
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)  # given to every `examples`
    root: str = ""  # folder the files are named relative to
    files: tuple[str, ...] = ()  # relative to root; their contents are part of the content hash
    bad: tuple[BadImage, ...] = ()  # found while planning; their units are not in `units`

    def features(self) -> tfds.features.FeaturesDict:
        """`image` [h, w, c] and one scalar per metadata column.

        `bytes` leaves compression to ArrayRecord, which is several times faster than zlib or PNG;
        `tfds.features.Image` needs TensorFlow and has no 5 channels of 16 bits.
        """
        image = tfds.features.Tensor(
            shape=(None, None, len(self.declaration.channels)),
            dtype=np.dtype(self.dtype),
            encoding="bytes",
        )
        scalars = {
            column: tfds.features.Text()
            if kind == "text"
            else tfds.features.Scalar(METADATA_TYPES[kind])
            for column, kind in self.metadata.items()
        }
        return tfds.features.FeaturesDict({"image": image, **scalars})


class ImageDatasetBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """A TFDS builder whose substance is two class methods, `plan` and `examples`.

    Constructed with the `source`, `config` and `options` of a preparation it is an ordinary TFDS
    builder; `bioimg_jax.prepare` needs no instance.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="default")
    ]
    # Option -> default. The default's type is the option's type; a "" default is a text that may
    # stay empty.
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {}
    code_file: ClassVar[Path]  # set by `load_builder`; worker processes load the class from it

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        """Reads and checks the metadata of `source` ("" for generated data); decodes nothing.

        `options` are complete and of the right types (`resolve_options` went over them). Raises
        `InputError` for metadata that cannot be used.
        """
        raise NotImplementedError

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> Iterable[Example]:
        """The examples of one unit: (metadata, image [h, w, c] of the plan's dtype).

        A pure function of its arguments, called in worker processes. `metadata` has exactly the
        columns of `Plan.metadata`. Raises `BadImage`: the call itself, not what it returns, which
        may draw images one by one.
        """
        raise NotImplementedError

    @classmethod
    def resolve_config(cls, config: str) -> str:
        """`config`, or the first one for ""; `InputError` with the closest match."""
        names = [c.name for c in cls.BUILDER_CONFIGS]
        if config and config not in names:
            raise InputError(
                f"data set {cls.name!r} has no config {config!r}{_closest(config, names)}"
            )
        return config or names[0]

    @classmethod
    def resolve_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with `options` over them, texts from a command line turned into numbers."""
        resolved = dict(cls.DEFAULT_OPTIONS)
        for key, value in options.items():
            if key not in resolved:
                raise InputError(
                    f"data set {cls.name!r} has no option {key!r}{_closest(key, list(resolved))}"
                )
            resolved[key] = _as_type_of(resolved[key], value, f"{cls.name} option {key}")
        return resolved

    @classmethod
    def plan_resolved(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        """`plan` after `resolve_config` and `resolve_options`."""
        return cls.plan(source, cls.resolve_config(config), cls.resolve_options(options))

    def __init__(
        self,
        *,
        source: str = "",
        options: Mapping[str, Any] | None = None,
        config: str = "",
        **kwargs: Any,
    ):
        config = self.resolve_config(config)
        self._plan = self.plan_resolved(source, config, options or {})
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=self._plan.features(), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        key = 0
        for unit in self._plan.units:
            for metadata, image in self.examples(unit, self._plan.shared):
                yield key, {"image": image, **metadata}
                key += 1


def builder_folders() -> list[Path]:
    """Where builders are looked for: `BIOIMG_DATASETS` (a path list), then the repository's."""
    extra = [Path(p) for p in os.environ.get("BIOIMG_DATASETS", "").split(os.pathsep) if p]
    return [*extra, Path(__file__).resolve().parents[2] / "datasets"]


def find_builder(name: str) -> type[ImageDatasetBuilder]:
    """The builder class of data set `name`; `InputError` with the closest match."""
    known = set()
    for folder in builder_folders():
        path = folder / name / f"{name}_dataset_builder.py"
        if name and path.is_file():
            return load_builder(path)
        known |= {p.parent.name for p in folder.glob("*/*_dataset_builder.py")}
    where = ", ".join(map(str, builder_folders()))
    raise InputError(f"no data set {name!r} in {where}{_closest(name, sorted(known))}")


@functools.cache
def load_builder(path: Path) -> type[ImageDatasetBuilder]:
    """The one `ImageDatasetBuilder` of a file, under a module name that no package can have."""
    module_name = f"bioimg_jax:{path.stem}"
    # Loaded as a package of its folder, so that `from .rendering import render` finds a file there.
    spec = importlib.util.spec_from_file_location(
        module_name, path, submodule_search_locations=[str(path.parent)]
    )
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and TFDS look their module up by name
    with registered.skip_registration():  # TFDS allows a name once in a process
        spec.loader.exec_module(module)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, ImageDatasetBuilder)
        and value.__module__ == module_name
    ]
    if len(classes) != 1:
        raise InputError(f"{path} must define one ImageDatasetBuilder, not {len(classes)}")
    builder = classes[0]
    builder.name = path.parent.name
    builder.code_file = path
    builder.pkg_dir_path = tfds.core.Path(path.parent)  # README.md and CITATIONS.bib lie here
    return builder


def _closest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


def _as_type_of(default: Any, value: Any, what: str) -> Any:
    if isinstance(default, tuple | list) and isinstance(value, str):
        value = [part for part in value.split(",") if part]
    if isinstance(default, tuple | list):
        return tuple(str(part) for part in value)
    if isinstance(default, bool):
        if str(value).lower() in ("true", "1", "false", "0"):
            return str(value).lower() in ("true", "1")
        raise InputError(f"{what} must be true or false, not {value!r}")
    try:
        converted = type(default)(value)
        if isinstance(default, int) and converted != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"{what} must be of type {type(default).__name__}, not {value!r}"
        ) from None
    return converted

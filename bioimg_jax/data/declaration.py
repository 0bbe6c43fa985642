"""What a data set says about itself: channels, targets, units of independence, nuisance columns."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from bioimg_jax.errors import InputError

SPLITS = ("leave_one_out", "k_fold", "fixed")
SYMMETRIES = ("flip", "rot90")
ERASERS = ("crop", "intensity")  # a part of the image; other intensities
PRETRAINING = ("all", "train")


@dataclasses.dataclass(frozen=True)
class Target:
    """One label to predict from images, with the split that makes the score mean something.

    The split is declared per target, because the held-out unit must leave every class in training:
    a compound is tested on held-out plates, but the plate itself on held-out fields.
    """

    name: str  # as it stands in results: "compound", "position_control", "plate"
    column: str  # metadata column that holds the class label
    unit: tuple[str, ...]  # columns whose joint value is the unit of independence of the test side
    split: str  # "leave_one_out": a fold a unit (test that unit, validation the next, train the
    # rest); "k_fold": units dealt into n_folds folds, stratified by label; "fixed": the metadata
    # column split_column says train, validation or test
    n_folds: int = 0  # for "k_fold"
    split_column: str = ""  # for "fixed"
    nuisance: bool = False  # a nuisance column: scores, no verdict
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()  # keep rows whose value is among these
    audit: tuple[str, ...] = ()  # metadata columns that may give this target away
    metric: str = "balanced_accuracy"  # inside each test unit; "accuracy" where it has one class
    truth: tuple[str, ...] = ()  # numeric or bool metadata columns that the label was drawn from:
    # what the same probe makes of them is the ceiling of every score
    aggregate: tuple[str, ...] = ()  # columns whose joint value is one example of the probe, with
    # the mean features of its rows: a well of cells. It has one label, one unit, and one part of a
    # fold; in the audit its metadata are those of its first row

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"target {self.name!r}: split {self.split!r} is none of {SPLITS}")
        if not self.unit:
            raise InputError(f"target {self.name!r}: no unit of independence declared")
        if self.split == "k_fold" and self.n_folds < 2:
            raise InputError(f"target {self.name!r}: k_fold needs n_folds >= 2, not {self.n_folds}")
        if self.split == "fixed" and not self.split_column:
            raise InputError(f"target {self.name!r}: a fixed split needs a split_column")


@dataclasses.dataclass(frozen=True)
class Declaration:
    """A data set's own account of itself. The first target is the primary one."""

    name: str
    channels: tuple[str, ...]
    pixel_um: float | None  # side of a pixel in micrometres, None where it is not known
    targets: tuple[Target, ...]
    nuisance: tuple[str, ...]  # metadata columns that are technique, not biology
    symmetries: tuple[str, ...]  # augmentations that keep every target: "flip", "rot90"
    pretraining: str  # "all": every image, without labels; "train": rows of the split's train part
    pretraining_column: str = ""  # metadata column whose rows "train" those are; else the column of
    # the first target with a fixed split
    erased_by: tuple[str, ...] = ()  # of `ERASERS`, what takes a target out of an image

    def __post_init__(self) -> None:
        unknown = set(self.erased_by) - set(ERASERS)
        if unknown:
            raise InputError(f"{self.name}: erased_by {sorted(unknown)} are none of {ERASERS}")
        unknown = set(self.symmetries) - set(SYMMETRIES)
        if unknown:
            raise InputError(f"{self.name}: symmetries {sorted(unknown)} are none of {SYMMETRIES}")
        if self.pretraining not in PRETRAINING:
            raise InputError(
                f"{self.name}: pretraining {self.pretraining!r} is none of {PRETRAINING}"
            )
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise InputError(f"{self.name}: two targets have the same name: {names}")
        fixed = self.pretraining_column or any(t.split == "fixed" for t in self.targets)
        if self.pretraining == "train" and not fixed:
            raise InputError(f"{self.name}: pretraining 'train' needs a target with a fixed split")

    def target(self, name: str) -> Target:
        """The target of this name; `InputError` with the names that exist."""
        for target in self.targets:
            if target.name == name:
                return target
        names = ", ".join(target.name for target in self.targets)
        raise InputError(f"data set {self.name!r} has no target {name!r}; it has: {names}")

    def check_augmentations(self, used: Iterable[str]) -> None:
        """`InputError` for an augmentation (`SYMMETRIES`, `ERASERS`) that would erase a target."""
        for name in used:
            if name in self.erased_by or name in set(SYMMETRIES) - set(self.symmetries):
                raise InputError(
                    f"augmentation {name!r} would erase a target of data set {self.name!r}, whose "
                    f"targets survive {(*self.symmetries, *self._harmless())}"
                )

    def _harmless(self) -> list[str]:
        return [name for name in ERASERS if name not in self.erased_by]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Declaration":
        fields: dict[str, Any] = json.loads(text)
        fields["targets"] = tuple(
            Target(
                **{
                    **target,
                    "unit": tuple(target["unit"]),
                    "audit": tuple(target["audit"]),
                    "where": tuple((column, tuple(values)) for column, values in target["where"]),
                    "truth": tuple(target.get("truth", ())),  # older sets know of neither
                    "aggregate": tuple(target.get("aggregate", ())),
                }
            )
            for target in fields["targets"]
        )
        for name in ("channels", "nuisance", "symmetries", "erased_by"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)

"""The symmetry audit: does mirroring or turning an image keep what is to be predicted?

A data set declares the symmetries of its targets, and training refuses an augmentation that is not
declared (`data/pipeline.py`). Here the declaration itself is tried: a probe fitted on images as
they are scores the test images, and the same images transformed.

The features must be able to see a handedness. Those that do not change when the image is mirrored
or turned (spectra, intensities, counts) keep any score and show nothing. The "downsampled" layer of
`PixelRepresentation` can, where the handedness is that of the field, and it transforms as the image
does, so that `turned_grids` has the transformed features without another pass over the images. What
no linear probe on an 8 x 8 grid can see, the chirality of a cell say, stays undecided.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bioimg_jax.data.declaration import SYMMETRIES, Declaration, Target
from bioimg_jax.data.splits import Fold, unit_names
from bioimg_jax.data.transforms import flip, rot90
from bioimg_jax.errors import InputError
from bioimg_jax.probes.linear import fit_linear
from bioimg_jax.statistics.comparisons import drawn_rows
from bioimg_jax.statistics.intervals import MIN_UNITS, t_interval, train_overlap
from bioimg_jax.statistics.unit_metric import metric_value, unit_metric
from bioimg_jax.statistics.verdict import DELTA

STRENGTHS = (1e-1, 1e-2, 1e-3)
MAX_TRAIN = 4_000


def symmetry(
    declaration: Declaration,
    metadata: pd.DataFrame,
    folds_by_target: Mapping[str, Sequence[Fold]],
    features: np.ndarray,
    transformed: Mapping[str, np.ndarray],
    ids: np.ndarray,
    *,
    flips: bool | None,
    rotations: bool | None,
    delta: float = DELTA,
    max_train: int = MAX_TRAIN,
) -> list[dict[str, Any]]:
    """What each augmentation does to each target, a row for every pair of them.

    A linear probe is fitted on at most `max_train` training rows of a fold, its strength chosen on
    the validation rows. Test rows are scored as they are and transformed, and the difference is
    taken unit by unit. The transformed features are given the mean that the others have in
    training: an uneven illumination, the same in all images, is not a handedness.

    Args:
      metadata: [n], the rows that the folds index.
      features: [n, d] of the images as they are.
      transformed: augmentation ("flip", "rot90") -> features [n, d] of the transformed images; one
        that is missing is not tried.
      ids: [n], of the rows, all different: they alone decide which are fitted on.
      flips, rotations: whether training used them; None where it is not known.
      delta: a smaller loss of the score does not matter.

    Returns:
      [{"target", "augmentation", "declared", "used_in_training" (None: not known), "preserves":
      False where the 95 % interval of the loss lies above `delta`, True where it lies below, else
      None, "score", "score_transformed", "loss", "interval" (of the loss; None for fewer than 4
      units), "chance", "n_units", "reason": one sentence}]. "preserves" is None too where the probe
      is not better than chance: then it says nothing. The scores are None where an augmentation is
      not tried.

    Raises:
      InputError: features of another shape, or that are not finite, or a target without folds.
    """
    for name, values in transformed.items():
        if name not in SYMMETRIES or values.shape != features.shape:
            raise InputError(
                f"symmetry: {name!r} with features of shape {values.shape}, expected one of "
                f"{', '.join(SYMMETRIES)} and shape {features.shape}"
            )
    used = {"flip": flips, "rot90": rotations}
    rows = []
    for target in declaration.targets:
        if not folds_by_target.get(target.name):
            raise InputError(f"symmetry: no folds for target {target.name!r}")
        folds = folds_by_target[target.name]
        tried = _tried(metadata, folds, target, features, transformed, ids, max_train)
        for augmentation in SYMMETRIES:
            row: dict[str, Any] = {
                "target": target.name,
                "augmentation": augmentation,
                "declared": augmentation in declaration.symmetries,
                "used_in_training": used[augmentation],
                "preserves": None,
                "score": tried.mean,
                "score_transformed": None,
                "loss": None,
                "interval": None,
                "chance": tried.chance,
                "n_units": len(tried.per_unit),
            }
            found = "it was not tried: there are no features of transformed images"
            if augmentation in transformed:
                found = tried.compare(row, augmentation, delta)
            row["reason"] = _said(row) + found
            rows.append(row)
    return rows


def turned_grids(features: np.ndarray, n_channels: int) -> dict[str, np.ndarray]:
    """Images mirrored and turned, "flip" and "rot90", from their tiles [n, g g c] in that layout.

    A tile mean of the mirrored image is the mirrored tile mean. The images must be square.
    """
    side = math.isqrt(features.shape[1] // n_channels)
    if side * side * n_channels != features.shape[1]:
        raise InputError(
            f"symmetry: {features.shape[1]} features are no square grid of {n_channels} channels"
        )
    grids = features.reshape(len(features), side, side, n_channels)
    return {
        "flip": np.stack([flip(grid) for grid in grids]).reshape(features.shape),
        "rot90": np.stack([rot90(grid, 1) for grid in grids]).reshape(features.shape),
    }


@dataclasses.dataclass(frozen=True)
class _Tried:
    """Scores of one target: unit -> score, of the images as they are and of each augmentation."""

    per_unit: dict[int, float]
    transformed: dict[str, dict[int, float]]
    chance: float
    overlap: float

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.per_unit.values())))

    def compare(self, row: dict[str, Any], augmentation: str, delta: float) -> str:
        """Completes the row; returns what was found, in words."""
        after = self.transformed[augmentation]
        losses = [value - after[unit] for unit, value in self.per_unit.items()]
        sees = t_interval(list(self.per_unit.values()), train_overlap=self.overlap)
        interval = t_interval(losses, train_overlap=self.overlap)
        row["score_transformed"] = float(np.mean(list(after.values())))
        row["loss"] = float(np.mean(losses))
        row["interval"] = None if interval is None else list(interval)
        if interval is None or sees is None:
            return f"{len(losses)} units are too few to tell, {MIN_UNITS} are needed"
        if sees[0] <= self.chance:
            return f"the probe is not better than chance ({self.chance:.2f}) and cannot tell"
        text = f"the probe's score goes from {self.mean:.2f} to {row['score_transformed']:.2f}"
        if interval[0] > delta:
            row["preserves"] = False
            return f"{text}: what it sees of the target is erased"
        if interval[1] < delta:
            row["preserves"] = True
            return f"{text}: within {delta:g}"
        return f"{text}, a loss between {interval[0]:.2f} and {interval[1]:.2f}: undecided"


def _said(row: Mapping[str, Any]) -> str:
    declared = "declared a symmetry" if row["declared"] else "not declared a symmetry"
    if row["used_in_training"] is None:
        and_used = "and whether training used it is not known"
    elif row["used_in_training"]:
        refused = "but used, which training on these data refuses"
        and_used = "and used" if row["declared"] else refused
    else:
        and_used = "and not used"
    return f"{row['augmentation']} is {declared} {and_used}; "


def _tried(
    metadata: pd.DataFrame,
    folds: Sequence[Fold],
    target: Target,
    features: np.ndarray,
    transformed: Mapping[str, np.ndarray],
    ids: np.ndarray,
    max_train: int,
) -> _Tried:
    used = np.unique(np.concatenate([p for f in folds for p in (f.train, f.validation, f.test)]))
    part = metadata.iloc[used]
    labels, units = np.full((2, len(metadata)), -1)
    classes, labels[used] = np.unique(
        part[target.column].astype(str).to_numpy(str), return_inverse=True
    )
    units[used] = pd.factorize(unit_names(part, target.unit), sort=True)[0]
    guesses: dict[str, list[np.ndarray]] = {name: [] for name in ("", *transformed)}
    for fold in folds:
        train = _some(fold.train, labels, ids, max_train)
        probe = fit_linear(features[train], labels[train], len(classes), strengths=STRENGTHS)
        validation = [
            metric_value(labels[fold.validation], guess, units[fold.validation], target.metric)
            for guess in probe.logits(features[fold.validation]).argmax(axis=2)
        ]
        best = int(np.argmax(validation))
        guesses[""].append(probe.logits(features[fold.test], best).argmax(axis=1))
        for name, values in transformed.items():
            shift = features[train].mean(axis=0) - values[train].mean(axis=0)
            logits = probe.logits(values[fold.test] + shift, best)
            guesses[name].append(logits.argmax(axis=1))
    tested = np.concatenate([fold.test for fold in folds])

    def scored(guess: np.ndarray) -> dict[int, float]:
        return unit_metric(labels[tested], guess, units[tested], target.metric)

    constant = [
        metric_value(labels[tested], np.full(len(tested), k), units[tested], target.metric)
        for k in range(len(classes))
    ]
    per_unit = {name: scored(np.concatenate(parts)) for name, parts in guesses.items()}
    return _Tried(
        per_unit=per_unit.pop(""),
        transformed=per_unit,
        chance=max(constant),
        overlap=train_overlap(folds),
    )


def _some(rows: np.ndarray, labels: np.ndarray, ids: np.ndarray, n: int) -> np.ndarray:
    """About n of the rows, drawn by their ids, and at least one of every class."""
    drawn = rows[drawn_rows(ids[rows], len(rows))]
    first = np.unique(labels[drawn], return_index=True)[1]
    return np.union1d(drawn[:n], drawn[first])

"""Alignment: what differs between batches is taken out of the features, as their controls show it.

    fitted = find_alignment("mad_robustise,tvn").fit(features, batch, controls)
    aligned = fitted.transform(features, batch)

Every method is a chain of steps, and every step is an affine map, one for all batches or one for
each: x → (x − centre) · factor, where factor is a number for each feature or a matrix. A fitted
alignment is the list of these maps. Maps of one batch each are fitted on wells of that batch,
which are then also transformed, so they are marked transductive; the others could be fitted on
other screens.

* `standardise`: per batch, all of its wells: (x − mean) / sd.
* `centerscale_on_controls`: per batch, the same of its controls.
* `mad_robustise`: per batch, on its controls: (x − median) / (1.4826 MAD).
* `pca_cs`: principal components of all controls, then `centerscale_on_controls`; the recipe of the
  OpenPhenom model card.
* `tvn`: typical variation normalisation (Ando et al., bioRxiv 161422) as in
  efaar_benchmarking/efaar.py: standardised on all controls, their principal components,
  standardised again, then per batch times (C + I/2)^(−1/2), C the covariance of its controls. The
  half keeps the result from being white, and the means of batches stay apart: chain it after
  `centerscale_on_controls` to have them together.
* `tvn_deepprofiler`: centred on all controls, rotated to the eigenvectors of their covariance and
  divided by √(eigenvalue + 1), not rotated back; then `coral`.
* `coral`: per batch times (C + λI)^(−1/2) (C_all + λI)^(1/2), λ = 1 (Sun et al., AAAI 2016,
  algorithm 1), C of its controls and C_all of all; around the mean of all controls. λ is in units
  of the features: chain it after something that gives them a scale.
* `sphering`: ZCA-cor (Kessy et al., arXiv 1512.00809): standardised on all controls, then times the
  inverse root of their correlation, so all controls together are white.
* `combat`: Johnson, Li and Rabinovic (Biostatistics 2007), parametric, no covariates. Fitted on
  controls, although the paper fits it on everything: what treatments do is not a batch effect, and
  a batch of strong treatments would lose it. With all wells as controls it is the paper's.

Features that hardly vary (`NEAR_CONSTANT`) where a step would divide by how much they do leave the
table, in all batches; components without variance (`NULL_COMPONENT`) leave it too. Both are
counted, and nothing is divided by a rounding error: with as many features as controls, null
components would blow treatments up by 10^14 and leave controls as they are.

Controls that an alignment was fitted on are no negatives for a test of treatments: they sit closer
together than any other well. `cross_fit` keeps the two apart.

Everything is float64, whatever the features are.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from bioimg_jax.errors import InputError
from bioimg_jax.probes.inputs import check_finite

# A feature leaves if its spread is at most this share of its centre or of its spread elsewhere:
# float32 has few or no values in between.
NEAR_CONSTANT = 1e-6
NULL_COMPONENT = 1e-8  # of the largest eigenvalue
MAD_TO_SD = 1.4826  # of a normal distribution
TVN_RIDGE = 0.5
CORAL_RIDGE = 1.0
COMBAT_CHANGE = 1e-10  # of a shift or variance, in standard deviations, that ends the iteration
COMBAT_ITERATIONS = 1_000  # a few dozen are usual
ROW_BLOCK = 4096  # rows on the device at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One step, fitted: x → (x[columns] − centre) · factor for each of g batches, or for all.

    columns: int [k], the features it takes.
    centre: float64 [g, k]; factor: float64 [g, k], or matrices [g, k, m]; g is 1 for all batches.
    transductive: a map for each batch, fitted on wells of that batch.
    dropped: features or components left out.
    """

    step: str
    columns: np.ndarray
    centre: np.ndarray
    factor: np.ndarray
    transductive: bool
    dropped: int = 0
    fitted_on: str = "controls"
    method: str = ""

    def of(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns, centre and factor of the batch of a position."""
        g = batch if self.transductive else 0
        return self.columns, self.centre[g], self.factor[g]

    def describe(self) -> dict[str, Any]:
        """What provenance keeps of it."""
        names = ("method", "step", "fitted_on", "transductive", "dropped")
        facts = {name: getattr(self, name) for name in names}
        return facts | {"features": self.factor.shape[-1]}


@dataclasses.dataclass(frozen=True, eq=False)
class FittedAlignment:
    """Maps that are ready to be applied.

    batches: as in fitting, sorted; width: features d that it takes; n_controls: rows fitted on.
    """

    methods: tuple[str, ...]
    batches: tuple[str, ...]
    width: int
    n_controls: int
    stages: tuple[Stage, ...]

    @property
    def transductive(self) -> bool:
        """Whether some part was fitted on wells of the batch that it transforms."""
        return any(stage.transductive for stage in self.stages)

    def transform(self, features: np.ndarray, batch: Sequence[Any]) -> np.ndarray:
        """Aligned features [n, k] of raw ones [n, d]; float32 of float16 and float32, else float64.

        Raises:
          InputError: a value that is not finite, another number of features, no rows, or a row of
            a batch that was not fitted and needs to be.
        """
        features, names = _checked(features, batch)
        if features.shape[1] != self.width:
            raise InputError(
                f"the alignment was fitted to {self.width} features, not {features.shape[1]}"
            )
        codes = np.zeros(len(features), np.int64)
        if self.transductive:
            codes = pd.Index(self.batches).get_indexer(names)
            strange = np.flatnonzero(codes < 0)
            if len(strange):
                row = strange[0]
                raise InputError(f"row {row}: the alignment has not seen batch {names[row]!r}")
        return _applied(self.stages, features, codes)

    def describe(self) -> dict[str, Any]:
        """JSON-able facts, for provenance."""
        return {
            "alignment": ",".join(self.methods) or "none",
            "transductive": self.transductive,
            "batches": len(self.batches),
            "controls": self.n_controls,
            "features_in": self.width,
            "stages": [stage.describe() for stage in self.stages],
        }


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A chain of methods, each fitted on what the one before it made. None: features stay."""

    methods: tuple[str, ...]

    def fit(
        self, features: np.ndarray, batch: Sequence[Any], controls: np.ndarray
    ) -> FittedAlignment:
        """Fit every step.

        Args:
          features: [n, d], any number type; a float64 copy is made of the controls' rows (of all
            rows for `standardise`).
          batch: [n], the plate, experiment or week of each row; compared as text.
          controls: bool [n].

        Raises:
          InputError: a value that is not finite, arrays of other lengths, no rows, no controls, a
            batch with fewer than two where each needs its own, or nothing that varies.
        """
        features, names = _checked(features, batch)
        controls = _checked_controls(controls, len(features))
        batches, codes = np.unique(names, return_inverse=True)
        used = np.full(len(features), True) if "standardise" in self.methods else controls
        rows = features[used].astype(np.float64)
        wells = _Wells(rows, codes[used], controls[used], tuple(batches))
        stages: list[Stage] = []
        for method in self.methods:
            for step in METHODS[method]:
                if stages:
                    moved = _applied(stages[-1:], wells.rows, wells.batch)
                    wells = dataclasses.replace(wells, rows=moved)
                try:
                    stages.append(dataclasses.replace(step(wells), method=method))
                except InputError as error:
                    raise InputError(f"alignment {method!r}: {error}") from None
        return FittedAlignment(
            methods=self.methods,
            batches=wells.names,
            width=features.shape[1],
            n_controls=int(controls.sum()),
            stages=tuple(stages),
        )


def find_alignment(text: str) -> Alignment:
    """The alignment of a config: names of methods with commas between; "" or "none": none.

    Raises:
      InputError: a name that is not one of `METHODS`.
    """
    names = tuple(name.strip() for name in text.split(","))
    if names in (("",), ("none",)):
        return Alignment(())
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, list(METHODS), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"no alignment {name!r}; {hint}there are: none, {', '.join(METHODS)}")
    return Alignment(names)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """An alignment and the controls that it has not seen.

    aligned: [n, k], all rows; negatives: bool [n], controls that the fit was without.
    """

    aligned: np.ndarray
    negatives: np.ndarray
    fitted: FittedAlignment


def cross_fit(
    alignment: Alignment,
    features: np.ndarray,
    batch: Sequence[Any],
    controls: np.ndarray,
    positions: Sequence[Any],
    *,
    parts: int = 2,
    seed: int = 0,
) -> Iterator[Part]:
    """Hold out each part of the control positions in turn; fit on the controls of the others.

    Within a batch, a well of a treatment without effect is then exchangeable with the negatives:
    the fit has seen neither, or in `standardise` both alike. Features of two parts are in different
    coordinates, so whatever is compared is compared within a part. One part is in memory at a time.

    Args:
      features, batch, controls: as for `Alignment.fit`.
      positions: [n], the well of each row on its plate, as "B07"; read where `controls` is true.
      parts: how many, at least 2.
      seed: of the split (`split_positions`).

    Raises:
      InputError: as `Alignment.fit`, and `split_positions`.
    """
    part_of = split_positions(batch, controls, positions, parts=parts, seed=seed)

    def fit_part(part: int) -> Part:
        negatives = part_of == part
        try:
            fitted = alignment.fit(features, batch, (part_of >= 0) & ~negatives)
        except InputError as error:
            raise InputError(f"without the controls of part {part} of {parts}: {error}") from None
        return Part(fitted.transform(features, batch), negatives, fitted)

    return (fit_part(part) for part in range(parts))


def split_positions(
    batch: Sequence[Any],
    controls: np.ndarray,
    positions: Sequence[Any],
    *,
    parts: int = 2,
    seed: int = 0,
) -> np.ndarray:
    """The part 0 ... parts − 1 of each control, int [n]; −1 for other wells.

    All controls at a position, on whatever plate, are in one part: a position has an effect of its
    own, which every plate repeats. Positions come in the seed's order and each goes where its
    batches have the fewest controls yet, so that every batch has some in every part if it can.

    Raises:
      InputError: arrays of other lengths, a control without a position, fewer positions than
        parts, fewer than two parts.
    """
    names = _labels(batch, len(batch), "batch")
    controls = _checked_controls(controls, len(names))
    if parts < 2:
        raise InputError(f"controls are split in at least 2 parts, not {parts}")
    if len(positions) != len(names):
        raise InputError(f"{len(positions)} positions for {len(names)} rows")
    (rows,) = np.nonzero(controls)
    wells = _labels(np.asarray(positions, object)[rows], len(rows), "position", rows)
    known, position = np.unique(wells, return_inverse=True)
    if len(known) < parts:
        raise InputError(f"controls are at {len(known)} well positions, too few for {parts} parts")
    batches, code = np.unique(names[rows], return_inverse=True)
    counts = np.zeros((len(known), len(batches)), np.int64)
    np.add.at(counts, (position, code), 1)
    total = np.zeros((parts, len(batches)), np.int64)  # controls of each part and batch
    part_of = np.empty(len(known), np.int64)
    for i in np.random.default_rng(seed).permutation(len(known)):
        crowded = total @ counts[i]
        part = min(range(parts), key=lambda p: (crowded[p], total[p].sum()))
        part_of[i] = part
        total[part] += counts[i]
    result = np.full(len(names), -1)
    result[rows] = part_of[position]
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class _Wells:
    """What a step is fitted on: rows float64 [n, d], their batch int [n] in names, controls."""

    rows: np.ndarray
    batch: np.ndarray
    controls: np.ndarray
    names: tuple[str, ...]

    def pooled(self) -> np.ndarray:
        """Rows of all controls."""
        rows = self.rows[self.controls]
        if len(rows) < 2:
            raise InputError(f"too few wells are controls: {len(rows)}, expected at least 2")
        return rows

    def by_batch(self, *, everyone: bool = False) -> list[np.ndarray]:
        """Rows of each batch's controls, or of all its wells."""
        chosen = np.full(len(self.rows), True) if everyone else self.controls
        if not chosen.any():
            raise InputError("no well is a control")
        code = self.batch[chosen]
        counts = np.bincount(code, minlength=len(self.names))
        for name, count in zip(self.names, counts, strict=True):
            if count < 2:
                kind = "well" if everyone else "control well"
                raise InputError(
                    f"batch {name!r} has too few {kind}s: {count}, expected at least 2"
                )
        order = np.flatnonzero(chosen)[np.argsort(code, kind="stable")]
        return np.split(self.rows[order], np.cumsum(counts)[:-1])


def _standardise_batches(wells: _Wells) -> Stage:
    groups = wells.by_batch(everyone=True)
    stage = _moments("standardise", groups, transductive=True)
    return dataclasses.replace(stage, fitted_on="all wells")


def _standardise_batches_on_controls(wells: _Wells) -> Stage:
    return _moments("standardise", wells.by_batch(), transductive=True)


def _standardise_on_controls(wells: _Wells) -> Stage:
    return _moments("standardise", [wells.pooled()], transductive=False)


def _moments(step: str, groups: list[np.ndarray], *, transductive: bool) -> Stage:
    centre = np.stack([rows.mean(axis=0) for rows in groups])
    spread = np.stack([rows.std(axis=0) for rows in groups])
    return _divided(step, centre, spread, transductive=transductive)


def _robustise_batches(wells: _Wells) -> Stage:
    groups = wells.by_batch()
    centre = np.stack([np.median(rows, axis=0) for rows in groups])
    deviation = [np.median(np.abs(g - c), axis=0) for g, c in zip(groups, centre, strict=True)]
    return _divided("median and MAD", centre, MAD_TO_SD * np.stack(deviation), transductive=True)


def _divided(step: str, centre: np.ndarray, spread: np.ndarray, *, transductive: bool) -> Stage:
    """(x − centre) / spread, both [g, d], of the features that vary."""
    kept = _varying(centre, spread)
    dropped = centre.shape[1] - len(kept)
    return Stage(step, kept, centre[:, kept], 1 / spread[:, kept], transductive, dropped)


def _varying(centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Which features are near-constant in no batch, int [k], by their centre and spread [g, d]."""
    least = NEAR_CONSTANT * np.maximum(np.abs(centre), spread.max(axis=0)[None])
    (kept,) = np.nonzero((spread > least).all(axis=0))
    if not len(kept):
        raise InputError("each of the features is near-constant in some batch")
    return kept


def _principal_components(wells: _Wells) -> Stage:
    rows = wells.pooled()
    _varying(rows.mean(axis=0)[None], rows.std(axis=0)[None])  # or all is rounding
    eigenvalues, basis = _eigen(_covariance(rows, ddof=1))
    kept = eigenvalues > NULL_COMPONENT * eigenvalues[0]
    return _matrices("principal components", rows, basis[:, kept], dropped=int(np.sum(~kept)))


def _whiten_softly(wells: _Wells) -> Stage:
    rows = wells.pooled()
    eigenvalues, basis = _eigen(_covariance(rows, ddof=0))
    return _matrices("whiten softly", rows, basis / np.sqrt(eigenvalues + 1.0))


def _sphere(wells: _Wells) -> Stage:
    rows = wells.pooled()
    eigenvalues, basis = _eigen(_covariance(rows, ddof=1))
    kept = eigenvalues > NULL_COMPONENT * eigenvalues[0]
    basis, root = basis[:, kept], np.sqrt(eigenvalues[kept])
    return _matrices("sphere", rows, basis / root @ basis.T, dropped=int(np.sum(~kept)))


def _match_covariances(wells: _Wells, *, ridge: float, recolour: bool) -> Stage:
    """Per batch times (C + ridge I)^(−1/2), and then times the same of all controls, to +1/2."""
    rows = wells.pooled()
    target = _power(_covariance(rows, ddof=1), ridge, 0.5) if recolour else None
    groups = wells.by_batch()
    maps = np.empty((len(groups), rows.shape[1], rows.shape[1]))
    for i, group in enumerate(groups):
        root = _power(_covariance(group, ddof=1), ridge, -0.5)
        maps[i] = root if target is None else root @ target
    step = "match covariances" if recolour else "whiten batches softly"
    return _matrices(step, rows, maps)


def _combat(wells: _Wells) -> Stage:
    """Empirical Bayes shifts and scales (Johnson 2007, section 3.1).

    Of standardised values Z, batch b of n wells: means γ̂ and variances δ̂² of features have the
    priors N(γ̄, τ²) and inverse gamma(λ, θ), whose parameters are the moments of γ̂ and δ̂² over
    features. The posterior means depend on each other and are iterated. With V̄ and S² the mean
    and variance of δ̂², λ = V̄²/S² + 2 and θ = V̄³/S² + V̄; multiplied by S², no spread is divided by.
    """
    groups = wells.by_batch()
    mean = wells.pooled().mean(axis=0)  # [d]
    within = [rows - rows.mean(axis=0) for rows in groups]
    squares = np.stack([np.square(rows).sum(axis=0) for rows in within])  # [g, d]
    counts = np.array([[len(rows)] for rows in groups])  # [g, 1]
    sd = np.sqrt(squares.sum(axis=0) / counts.sum())
    kept = _varying(mean[None], sd[None])
    mean, sd, squares = mean[kept], sd[kept], squares[:, kept] / np.square(sd[kept])
    shift = np.stack([rows.mean(axis=0)[kept] - mean for rows in groups]) / sd  # γ̂ [g, k]
    variance = squares / (counts - 1)  # δ̂²
    ddof = min(1, len(kept) - 1)

    def moments(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return of.mean(axis=1, keepdims=True), of.var(axis=1, ddof=ddof, keepdims=True)

    (shift_mean, shift_var), (var_mean, var_var) = moments(shift), moments(variance)
    if var_mean.min() <= NEAR_CONSTANT**2:
        name = wells.names[int(var_mean.argmin())]
        raise InputError(f"the controls of batch {name!r} are all the same")
    new_shift, new_variance = shift, np.broadcast_to(var_mean, variance.shape)
    for _ in range(COMBAT_ITERATIONS):
        before = new_shift, new_variance
        weight = counts * shift_var
        new_shift = (weight * shift + new_variance * shift_mean) / (weight + new_variance)
        half = (squares + counts * np.square(shift - new_shift)) / 2  # Σ (Z − γ*)² / 2
        new_variance = (var_mean**3 + var_mean * var_var + half * var_var) / (
            var_var * (counts / 2 + 1) + var_mean**2
        )
        if all(
            np.allclose(old, new, rtol=COMBAT_CHANGE, atol=COMBAT_CHANGE)
            for old, new in zip(before, (new_shift, new_variance), strict=True)
        ):
            break
    scale = np.sqrt(new_variance)
    # (x − mean − sd γ*) / δ* + mean, with the last term moved into the centre.
    centre = mean + sd * new_shift - mean * scale
    dropped = wells.rows.shape[1] - len(kept)
    return Stage("empirical Bayes", kept, centre, 1 / scale, True, dropped)


Step = Callable[[_Wells], Stage]
_CORAL = partial(_match_covariances, ridge=CORAL_RIDGE, recolour=True)
_TVN = partial(_match_covariances, ridge=TVN_RIDGE, recolour=False)
METHODS: dict[str, tuple[Step, ...]] = {
    "standardise": (_standardise_batches,),
    "centerscale_on_controls": (_standardise_batches_on_controls,),
    "mad_robustise": (_robustise_batches,),
    "pca_cs": (_principal_components, _standardise_batches_on_controls),
    "tvn": (_standardise_on_controls, _principal_components, _standardise_on_controls, _TVN),
    "tvn_deepprofiler": (_whiten_softly, _CORAL),
    "coral": (_CORAL,),
    "sphering": (_standardise_on_controls, _sphere),
    "combat": (_combat,),
}


def _matrices(step: str, rows: np.ndarray, maps: np.ndarray, *, dropped: int = 0) -> Stage:
    """(x − mean of rows) times the map of all batches [d, m], or of each [g, d, m]."""
    transductive = maps.ndim == 3
    maps = maps if transductive else maps[None]
    centre = np.broadcast_to(rows.mean(axis=0), maps.shape[:2])
    return Stage(step, np.arange(rows.shape[1]), centre, maps, transductive, dropped)


def _covariance(rows: np.ndarray, *, ddof: int) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / (len(rows) - ddof)


def _eigen(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, none below 0, and eigenvectors in columns.

    The largest entry of an eigenvector is positive, so that no order of rows turns one around.
    """
    eigenvalues, basis = np.linalg.eigh(covariance)
    eigenvalues, basis = np.maximum(eigenvalues[::-1], 0.0), basis[:, ::-1]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    return eigenvalues, basis * np.sign(largest)


def _power(covariance: np.ndarray, ridge: float, power: float) -> np.ndarray:
    eigenvalues, basis = _eigen(covariance)
    return basis * (eigenvalues + ridge) ** power @ basis.T


def _applied(stages: Sequence[Stage], features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Rows [n, d] of batches int [n] through all stages, [n, k]; blocks of one batch at a time."""
    dtype = np.result_type(features.dtype, np.float32)
    if not stages:
        return features.astype(dtype)
    if not any(stage.transductive for stage in stages):
        codes = np.zeros_like(codes)
    n, d = features.shape
    result = np.empty((n, stages[-1].factor.shape[-1]), dtype)
    order = np.argsort(codes, kind="stable")
    (ends,) = np.nonzero(np.diff(codes[order]))
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for rows in np.split(order, ends + 1):
            maps = tuple(stage.of(codes[rows[0]]) for stage in stages)
            for first in range(0, len(rows), ROW_BLOCK):
                here = rows[first : first + ROW_BLOCK]
                # Few sizes, few compiled programs.
                block = np.zeros((max(64, 1 << (len(here) - 1).bit_length()), d))
                block[: len(here)] = features[here]
                result[here] = np.asarray(_affine(block, maps))[: len(here)]
    return result


@jax.jit
def _affine(
    rows: jax.Array,  # [r, d]
    maps: tuple[tuple[jax.Array, jax.Array, jax.Array], ...],  # columns, centre, factor
) -> jax.Array:
    for columns, centre, factor in maps:
        rows = jnp.take(rows, columns, axis=1) - centre[None]
        rows = rows @ factor if factor.ndim == 2 else rows * factor[None]
    return rows


def _checked(features: np.ndarray, batch: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] and the batches' names, object [n]."""
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise InputError(
            f"features to align: {features.dtype} {features.shape}, expected numbers [n, d]"
        )
    names = _labels(batch, len(features), "batch")
    check_finite(features, "row")
    return features, names


def _checked_controls(controls: np.ndarray, n: int) -> np.ndarray:
    controls = np.asarray(controls)
    if controls.shape != (n,) or controls.dtype != bool:
        raise InputError(f"controls: {controls.dtype} {controls.shape}, expected bool ({n},)")
    return controls


def _labels(values: Any, n: int, what: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Values as text, object [n]; rows: what to call them in a message."""
    labels = np.asarray(values, object)
    if labels.shape != (n,):
        raise InputError(f"{what} of rows: shape {labels.shape}, expected ({n},)")
    missing = np.flatnonzero(pd.isna(labels))
    if len(missing):
        row = missing[0] if rows is None else rows[missing[0]]
        raise InputError(f"row {row} has no {what}")
    return pd.Series(labels, dtype=object).astype(str).to_numpy(object)

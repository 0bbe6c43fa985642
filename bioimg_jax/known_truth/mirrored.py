"""A handedness under random flips: the positive control of the symmetry audit.

Training refuses flips where a data set does not declare them. Here they are made all the same,
on the images that a trained encoder is shown: a probe has nothing left to find.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bioimg_jax.benchmarks.score import headline_rows
from bioimg_jax.candidates import Candidate, Evaluation, candidates
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.design import chosen_benchmarks, subset
from bioimg_jax.representations.representation import ENCODERS, Batch, Representation
from bioimg_jax.scoring import scores_of, table_of
from bioimg_jax.statistics.symmetry import symmetry

SUFFIXES = {"flipped": "_randomly_flipped", "mirrored": "_mirrored"}


class Flipped:
    """A representation that is shown images turned left to right: all of them, or by a coin.

    The coin of an example is a function of its index.
    """

    def __init__(self, inner: Representation, name: str, *, always: bool) -> None:
        self._inner, self._always = inner, always
        self.name, self.kind = name, inner.kind
        self.layers, self.dtype = inner.layers, inner.dtype

    def features(self, batch: Batch) -> dict[str, jax.Array]:
        images = np.array(batch["image"])
        index = np.asarray(batch["index"])
        turned = np.ones(len(index), bool)
        if not self._always:
            coins = [np.random.default_rng([int(i)]).random() for i in index.clip(0)]
            turned = np.array(coins) < 0.5
        images[turned] = images[turned, :, ::-1]
        return self._inner.features({**batch, "image": images})


def flipped_scores(
    evaluation: Evaluation, dataset: Dataset, folder: Path
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], dict[str, Any]]:
    """What the trained encoders make of the first target when images are flipped at random.

    Returns (rows of `Score.to_row`, one an encoder; those of every layer; the symmetry audit's row
    for the flip, by the last encoder's own features). Feature tables and scores are kept in
    `folder`.
    """
    target = dataset.declaration.targets[0]
    rows, folds = subset(evaluation.config, dataset, [target], "max_examples")
    benchmark = chosen_benchmarks(evaluation.settings)[0]
    found: list[Mapping[str, Any]] = []
    layers: list[Mapping[str, Any]] = []
    row: dict[str, Any] = {}
    for candidate in candidates(evaluation, dataset):
        if candidate.kind not in ENCODERS:
            continue

        def table(one: Candidate) -> Any:
            path = folder / "features" / f"{one.name}.h5ad"
            return table_of(evaluation, dataset, rows, one, path)

        flipped, mirrored = _turned(candidate, False), _turned(candidate, True)
        scores = scores_of(
            evaluation, dataset, rows, table(flipped), flipped, benchmark, target,
            folds[target.name], folder,
        )  # fmt: skip
        own = [score.to_row() for score in scores]
        layers += own
        found += headline_rows(own, target.name, benchmark.name)
        as_it_is, turned = table(candidate), table(mirrored)
        audited = symmetry(
            dataclasses.replace(dataset.declaration, targets=(target,)),
            dataset.metadata.iloc[rows].reset_index(drop=True),
            {target.name: folds[target.name]},
            as_it_is.layer(as_it_is.default),
            {"flip": turned.layer(turned.default)},
            rows,
            flips=False,
            rotations=None,
            delta=evaluation.settings["delta"],
        )
        row = next(one for one in audited if one["augmentation"] == "flip")
    return found, layers, row


def _turned(candidate: Candidate, always: bool) -> Candidate:
    way = "mirrored" if always else "flipped"
    name = candidate.name + SUFFIXES[way]

    def make() -> Representation:
        return Flipped(candidate.make(), name, always=always)

    return dataclasses.replace(
        candidate, name=name, make=make, identity={**candidate.identity, "shown": way}
    )

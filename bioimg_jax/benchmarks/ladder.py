"""The ladder: which scores are the floors of a benchmark, and what each encoder is judged by.

A floor has an id in the config (`evaluate.floors`), named before the run, and one number a unit:

    chance     what guessing scores
    twin       the encoder's own step-0 weights, searched over block, pooling and strength alike
    selected   one member of the untrained family, chosen on validation units only
    NAME       any other representation of the run by its name: "pixels"
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.score import SELECTED, Score
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.verdict import Case

CHANCE, TWIN, FAMILY = "chance", "twin", "selected"


def floor_ids(text: str) -> tuple[str, ...]:
    """The ids of a config's "pixels,twin"; `InputError` for none, or one that is there twice."""
    ids = tuple(part.strip() for part in text.split(",") if part.strip())
    if not ids or len(set(ids)) < len(ids):
        raise InputError(f"evaluate.floors: {text!r}, expected different floors, for example "
                         f"{CHANCE},pixels,{TWIN},{FAMILY}")  # fmt: skip
    return ids


def cases(
    scores: Sequence[Score],
    targets: Sequence[Mapping[str, Any]],
    floors: Sequence[str],
    *,
    delta: float,
    overlap: Mapping[str, float],
) -> list[Case]:
    """One case for each target and each encoder that was trained or imported, on all its units.

    Args:
      targets: "name", "nuisance" and "audit" (`statistics.audit.audit`) of each.
      overlap: of each target's cross-validation folds (`intervals.train_overlap`), else 0.
    """
    found = []
    for target in targets:
        mine = _chosen([score for score in scores if score.target == target["name"]])
        for encoder in mine:
            if encoder.kind not in ("trained", "imported") or "held_out" in encoder.settings:
                continue
            audited = target["audit"]
            found.append(
                Case(
                    benchmark=target["name"],
                    encoder=encoder.representation,
                    values=[encoder.per_unit],
                    floors={floor: _floor(floor, encoder, mine) for floor in floors},
                    higher_is_better=encoder.higher_is_better,
                    confounded=audited["reason"] if audited["verdict"] else "",
                    metadata=audited["per_unit"] or None,
                    nuisance=target["nuisance"],
                    delta=delta,
                    ceiling=encoder.ceiling,
                    overlap=overlap[target["name"]],
                    rows=encoder.unit_rows or None,
                )
            )
    return found


def _chosen(scores: Sequence[Score]) -> list[Score]:
    """One score a representation and seed: of the layer that validation chose, or the only one."""
    by_name: dict[tuple[str, int | None], Score] = {}
    for score in scores:
        key = (score.representation, score.seed)
        if key not in by_name or by_name[key].block != SELECTED:
            by_name[key] = score
    return list(by_name.values())


def _floor(floor: str, encoder: Score, scores: Sequence[Score]) -> Mapping[str, float] | None:
    """The floor's values on the encoder's units; None if it has not been run."""
    if floor == CHANCE:
        return None if encoder.chance is None else dict.fromkeys(encoder.per_unit, encoder.chance)
    untrained = [s for s in scores if s.kind == "untrained" and s.seed is not None]
    twins = [s for s in untrained if s.representation == f"{encoder.representation}_step0"]
    if floor == TWIN:
        return twins[0].per_unit if twins else None
    if floor == FAMILY:
        family = [s for s in untrained if s not in twins]
        return max(family, key=_on_validation).per_unit if family else None
    named = [s for s in scores if s.representation == floor]
    return named[0].per_unit if named else None


def _on_validation(score: Score) -> float:
    return float(np.mean([fold["validation"] for fold in score.settings["folds"]]))

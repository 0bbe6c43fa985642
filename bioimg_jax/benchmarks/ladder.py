"""The ladder: which scores are the floors of a benchmark, and what each encoder is judged by.

A floor has an id in the config (`evaluate.floors`), named before the run, and one number a unit:

    chance     what guessing scores
    twin       the encoder's own step-0 weights, searched over block, pooling and strength alike
    layout_trained  the encoder itself, shown the mask of the nuclei instead of the image
    selected   in every fold the member of the untrained family that its validation units chose
    NAME       any other representation of the run by its name: "pixels"
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bioimg_jax.benchmarks.score import SELECTED, Score
from bioimg_jax.errors import InputError
from bioimg_jax.representations.representation import ENCODERS
from bioimg_jax.statistics.unit_metric import unit_values
from bioimg_jax.statistics.verdict import CHANCE, Case

TWIN, FAMILY, ON_LAYOUT = "twin", "selected", "layout_trained"
TRUTH = "truth"  # kind of what the ceiling is measured by, and how its name begins
STEP0 = "_step0"  # ends the name of a twin
# Floors that every encoder has one of its own of, by the end of their names.
OWN = {TWIN: STEP0, ON_LAYOUT: "_on_layout"}
NOT_OURS = "it was imported, and what it started from is not known"


def truth_name(target: str) -> str:
    """Of the representation of a target's latent factors: "truth_treatment"."""
    return f"{TRUTH}_{target}"


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
    omitted: Mapping[str, str] | None = None,
    method: bool = False,
) -> list[Case]:
    """One case for each benchmark, target and encoder that was trained or imported.

    Training seeds of one recipe (`settings["group"]`) are one case, each judged on all units. Where
    a target's latent factors were scored, they are the ceiling, unit by unit.

    Args:
      targets: "name", "nuisance" and "audit" (`statistics.audit.audit`) of each.
      overlap: of each target's cross-validation folds (`intervals.train_overlap`), else 0.
      omitted: floors of the list that cannot apply, with the reason. An imported encoder has no
        floors of its own (`OWN`): nobody kept its step 0.
      method: the claims are about the recipes of several seeds, not about these checkpoints.
    """
    omitted = dict(omitted or {})
    found = []
    for benchmark in dict.fromkeys(score.benchmark for score in scores):
        for target in targets:
            mine = _chosen(
                [s for s in scores if (s.benchmark, s.target) == (benchmark, target["name"])]
            )
            truth = _truth(mine, target["name"])
            for name, encoders in _judged(mine).items():
                audited, first = target["audit"], encoders[0]
                absent = {k: v for k, v in omitted.items() if k in floors}
                if first.kind == "imported":
                    absent |= {k: NOT_OURS for k in OWN if k in floors}
                found.append(
                    Case(
                        benchmark=benchmark,
                        target=target["name"],
                        encoder=name,
                        values=[encoder.per_unit for encoder in encoders],
                        floors={
                            floor: _floor(floor, encoders, mine)
                            for floor in floors
                            if floor not in absent
                        },
                        omitted=absent,
                        higher_is_better=first.higher_is_better,
                        confounded=audited["reason"] if audited["verdict"] else "",
                        metadata=audited["rivals"],
                        nuisance=target["nuisance"],
                        delta=delta,
                        ceiling=first.ceiling if truth is None else truth.per_unit,
                        overlap=overlap[target["name"]],
                        rows=first.unit_rows or None,
                        method=method,
                    )
                )
    return found


def with_ceilings(scores: Sequence[Score]) -> list[Score]:
    """The scores, with what the truth of their target scores as the ceiling, where it is known."""
    ceilings = {}
    for benchmark, target in dict.fromkeys((s.benchmark, s.target) for s in scores):
        mine = _chosen([s for s in scores if (s.benchmark, s.target) == (benchmark, target)])
        if (truth := _truth(mine, target)) is not None:
            ceilings[benchmark, target] = truth.value
    return [
        dataclasses.replace(s, ceiling=ceilings.get((s.benchmark, s.target), s.ceiling))
        for s in scores
    ]


def _truth(scores: Sequence[Score], target: str) -> Score | None:
    """Of one score a representation on a target, that of its latent factors."""
    named = (s for s in scores if s.representation == truth_name(target) and s.kind == TRUTH)
    return next(named, None)


def _judged(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Name -> its seeds, of everything that was trained or imported and scored on all units."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        judged = score.kind in ENCODERS and score.seed is not None
        if judged and "held_out" not in score.settings:
            name = score.settings.get("group") or score.representation
            found.setdefault(name, []).append(score)
    return found


@dataclasses.dataclass(frozen=True)
class Selected:
    """The floor "selected" of one encoder on one benchmark and target.

    members: fold -> the member of the family that its validation units chose.
    n_members, search_budget: how many there were, and how many settings of all of them together.
    per_unit: each test unit by the member of its fold.
    """

    members: dict[str, str]
    n_members: int
    search_budget: int
    per_unit: dict[str, float]


def selected_members(
    scores: Sequence[Score], benchmark: str, target: str, encoder: str
) -> Selected | None:
    """What the floor "selected" of an encoder is; None where there is no family."""
    mine = _chosen([s for s in scores if (s.benchmark, s.target) == (benchmark, target)])
    return _selected(mine) if encoder in _judged(mine) else None


def untrained_distribution(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """How each family of untrained encoders spreads over its seeds; shown, decides nothing.

    One row a benchmark, target and family: "benchmark", "target", "family" (the members'
    `settings["group"]`, else the representation; "all" of them where there are several), "n"
    members, their "median", "p95" (interpolated) and "max", and "share_beaten": encoder -> share of
    the members that the mean of its seeds is strictly better than. Where lower is better, "p95" and
    "max" are those of the better side; "share_beaten" is empty where neither is.
    """
    rows = []
    for benchmark, target in dict.fromkeys((s.benchmark, s.target) for s in scores):
        mine = _chosen([s for s in scores if (s.benchmark, s.target) == (benchmark, target)])
        families: dict[str, list[Score]] = {}
        for score in mine:
            if _is_member(score):
                family = score.settings.get("group") or score.representation
                families.setdefault(family, []).append(score)
        if len(families) > 1:
            families["all"] = [score for members in families.values() for score in members]
        encoders = {
            name: float(np.mean([seed.value for seed in seeds]))
            for name, seeds in _judged(mine).items()
        }
        for family, members in families.items():
            up = members[0].higher_is_better
            sign = -1.0 if up is False else 1.0
            values = sign * np.array([member.value for member in members])
            rows.append(
                {
                    "benchmark": benchmark,
                    "target": target,
                    "family": family,
                    "n": len(members),
                    "median": sign * float(np.median(values)),
                    "p95": sign * float(np.quantile(values, 0.95)),
                    "max": sign * float(values.max()),
                    "share_beaten": {}
                    if up is None
                    else {k: float(np.mean(values < sign * v)) for k, v in encoders.items()},
                }
            )
    return rows


def _chosen(scores: Sequence[Score]) -> list[Score]:
    """One score a representation and seed: of the layer that validation chose, or the only one."""
    by_name: dict[tuple[str, int | None], Score] = {}
    for score in scores:
        key = (score.representation, score.seed)
        if key not in by_name or by_name[key].block != SELECTED:
            by_name[key] = score
    return list(by_name.values())


def _floor(
    floor: str, encoders: Sequence[Score], scores: Sequence[Score]
) -> Mapping[str, float] | None:
    """The floor's values on the encoder's units, seeds averaged; None if it has not been run."""
    first = encoders[0]
    if floor == CHANCE:
        return None if first.chance is None else dict.fromkeys(first.per_unit, first.chance)
    if floor in OWN:
        own = _own(floor, encoders, scores)
        if len(own) < len(encoders):
            return None
        return {u: float(np.mean([one.per_unit[u] for one in own])) for u in first.per_unit}
    if floor == FAMILY:
        selected = _selected(scores)
        return None if selected is None else selected.per_unit
    named = [s for s in scores if s.representation == floor]
    return named[0].per_unit if named else None


def _own(floor: str, encoders: Sequence[Score], scores: Sequence[Score]) -> list[Score]:
    names = {encoder.representation + OWN[floor] for encoder in encoders}
    return [s for s in scores if s.representation in names]


def _selected(scores: Sequence[Score]) -> Selected | None:
    """Fold by fold: the validation units of one fold are test units of another, so a choice by all
    folds together would have seen the test side.
    """
    family = sorted(
        (score for score in scores if _is_member(score) and _tells_folds(score)),
        key=lambda score: score.representation,  # of equals the first
    )
    if not family:
        return None
    members: dict[str, str] = {}
    per_unit: dict[str, float] = {}
    answers: dict[str, Mapping[str, Sequence[float]]] = {}
    for i, fold in enumerate(family[0].settings["folds"]):
        best = max(family, key=lambda score: score.settings["folds"][i]["validation"])
        members[fold["fold"]] = best.representation
        units = fold.get("units", best.per_unit)
        per_unit |= {unit: best.per_unit[unit] for unit in units}
        answers |= best.settings["folds"][i].get("answers", {})
    if set(answers) == set(per_unit):  # pseudo-values are of all these answers together
        per_unit = _pseudo_values(answers, family[0].metric)
    budget = sum(member.search_budget for member in family)
    return Selected(members, len(family), budget, per_unit)


def _is_member(score: Score) -> bool:
    """Whether it is of the untrained family. Twins (step 0 of an encoder) are not: the family of
    one encoder would depend on which others are evaluated beside it.
    """
    twin = score.representation.endswith(STEP0)
    return score.kind == "untrained" and score.seed is not None and not twin


def _pseudo_values(
    answers: Mapping[str, Mapping[str, Sequence[float]]], metric: str
) -> dict[str, float]:
    """Pseudo-value by unit, of unit -> class -> weights of right answers and of rows."""
    classes = sorted({name for of in answers.values() for name in of})
    units = sorted(answers)
    weights = np.array([[answers[u].get(c, (0.0, 0.0)) for c in classes] for u in units])
    values = unit_values(weights[..., 0], weights[..., 1], metric)
    return dict(zip(units, values.tolist(), strict=True))


def _tells_folds(score: Score) -> bool:
    """Whether it says what validation said, and whose units are whose; a user's may not."""
    folds = score.settings.get("folds") or []
    return bool(folds) and (len(folds) == 1 or all("units" in fold for fold in folds))

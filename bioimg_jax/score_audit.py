"""The metadata audit of a protocol that can be asked itself: what columns alone score by it.

(`statistics/audit.py` audits targets that are classes with folds.)
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bioimg_jax import command_line
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.errors import InputError

JOINT = " and "  # between the columns of a name
KEY = "evaluate.audit"


def audited_groups(
    text: str, present: Collection[str], *, also: Sequence[str] = ()
) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Columns that are asked together, of "batch; batch,well"; and why others are not asked.

    Without a ";" each of the columns, and then all of them that are there: "batch,well" is "batch;
    well; batch,well". With one there are no other groups than those named.

    present: columns of the metadata. also: columns that are asked wherever something is.
    Raises `InputError` for a column that a group has twice, or a group given twice.
    """
    asked = [tuple(command_line.names(part)) for part in text.split(";")]
    asked = [group for group in asked if group]
    for i, group in enumerate(asked):
        if len(set(group)) < len(group) or set(group) in map(set, asked[:i]):
            raise InputError(
                f"{KEY}: {text!r} names {JOINT.join(group)!r} twice, or a column of it"
            )
    one_by_one = ";" not in text
    if one_by_one:
        asked = [(column,) for group in asked for column in group]
    found, missing = [], {}
    for group in asked:
        if absent := [column for column in group if column not in present]:
            reason = f"the metadata have no column {' and no column '.join(absent)}"
            missing[f"audit of {JOINT.join(group)}"] = reason
        else:
            found.append(group)
    if found:
        found += [(c,) for c in also if c in present and (c,) not in found]
    if one_by_one and len(found) > 1:
        found.append(tuple(column for group in found for column in group))
    return found, missing


def audit_of_scores(
    found: Mapping[str, Score], rows: Sequence[str], *, name: str, metric: str, delta: float
) -> dict[str, Any]:
    """The audit of a target as a results file has it, with what verdicts need in "rivals".

    found: columns, joined by `JOINT`, -> what they score. rows: those of them that are shown one by
    one ("per_column"); the one of most columns is the "score".
    Confounded is what a lower confidence limit within delta of the ceiling settles.
    """
    result: dict[str, Any] = {
        "verdict": "", "reason": "no nuisance column is declared for this target", "columns": [],
        "score": None, "interval": None, "per_unit": {}, "per_column": {}, "best": None,
        "rivals": {}, "metric": metric, "delta": delta,
    }  # fmt: skip
    if not found:
        return result
    best = max(found, key=lambda key: found[key].value)
    result["per_column"] = {
        row: {"score": found[row].value, "interval": found[row].interval} for row in rows
    }
    everything = found[max(found, key=lambda key: len(key.split(JOINT)))]
    result |= {
        "score": everything.value,
        "interval": everything.interval,
        "per_unit": everything.per_unit,
        "best": {"columns": best, "score": found[best].value, "interval": found[best].interval},
        "rivals": {key: score.per_unit for key, score in found.items()},
    }
    for key, score in found.items():
        ceiling = 1.0 if score.ceiling is None else score.ceiling
        if score.interval is not None and score.interval[0] >= ceiling - delta:
            return result | {
                "verdict": "confounded",
                "columns": key.split(JOINT),
                "reason": f"{key} alone is within {delta:g} of the ceiling of {name}",
            }
    shown = found[best].interval
    words = "" if shown is None else f" [{shown[0]:.2f}, {shown[1]:.2f}]"
    return result | {
        "reason": f"metadata alone does not settle {name}: at best {found[best].value:.2f}"
        f"{words}, from {best}"
    }

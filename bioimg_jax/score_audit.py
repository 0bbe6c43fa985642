"""The metadata audit of a protocol that can be asked itself: what columns alone score by it.

(`statistics/audit.py` audits targets that are classes with folds.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bioimg_jax.benchmarks.score import Score

JOINT = " and "  # between the columns of a name


def audit_of_scores(
    found: Mapping[str, Score], columns: Sequence[str], *, name: str, metric: str, delta: float
) -> dict[str, Any]:
    """The audit of a target as a results file has it, with what verdicts need in "rivals".

    found: columns, joined by `JOINT`, -> what they score; each column alone and all together.
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
        column: {"score": found[column].value, "interval": found[column].interval}
        for column in columns
    }
    everything = found[JOINT.join(columns)]
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

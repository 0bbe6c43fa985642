"""The plan of protocols that can be asked themselves: which verdicts their units can reach.

From units, floors and the metadata audit, before any encoder is scored. (`design.py` plans targets
of images.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bioimg_jax.statistics.plan import Design, plan_table, settled_row
from bioimg_jax.statistics.verdict import CONFOUNDED, UNIT_SD


def plan_of_scores(
    benchmark: str,
    units: Mapping[str, int],
    audits: Mapping[str, Mapping[str, Any]],
    *,
    floors: int,
    encoders: int,
    delta: float,
    sds: Mapping[str, float] | None = None,
    overlap: float = 0.0,
) -> list[dict[str, Any]]:
    """Rows of `statistics.plan.plan_table` for the targets of one family of tests.

    Args:
      units: target -> units that its score has.
      audits: of each target (`score_audit.py`). One that the metadata settle is in no family.
      floors: that can be run, of those that the config names.
      sds: target -> sd of a difference over units; `UNIT_SD` without.
      overlap: of cross-validation folds (`intervals.train_overlap`).
    """
    designs, settled = [], []
    for target, n_units in units.items():
        sentence = ""
        if not floors or not encoders:
            sentence = f"no verdict: there is no {'encoder' if floors else 'floor that can be run'}"
        if audits[target]["verdict"]:
            sentence = f"always {CONFOUNDED}: {audits[target]['reason']}"
        if sentence:
            settled.append(settled_row(target, benchmark, n_units, sentence))
            continue
        sd = UNIT_SD if sds is None else sds[target]
        designs.append(Design(target, benchmark, n_units, floors, delta, sd, overlap))
    return settled + (plan_table(designs, encoders=encoders) if designs else [])


def print_plan_of_scores(rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """As `--plan` prints it; note: what else holds of all of them."""
    print("verdicts that the design can reach:")
    for row in rows:
        print(f"  {row['target']}: {row['sentence']}")
    if note:
        print(f"  {note}")

"""One JSON object a line: what happened at each logged step."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Logbook:
    """`logbook.jsonl`, appended to as training goes.

    A line is written whole and flushed, so a killed run loses at most its last line. After a
    restore `rewind` drops what lies beyond the restored step: that part is trained, and written,
    again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
            file.flush()

    def rewind(self, step: int) -> None:
        """Keep the lines up to and including `step`; a torn last line goes too."""
        kept = [json.dumps(entry) + "\n" for entry in read_logbook(self.path)
                if entry["step"] <= step]  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)


def read_logbook(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a logbook, in order; none if there is no file."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            # Only a line cut off by a kill can be unreadable, and it is the last one written.
            break
    return entries


def plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scalars as Python floats; what is not finite becomes text: JSON has no word for it."""
    values = {name: float(value) for name, value in metrics.items()}
    return {k: v if math.isfinite(v) else str(v) for k, v in values.items()}  # type: ignore[misc]

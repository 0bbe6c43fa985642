"""What a run says about its own data, beside the scores."""

from pathlib import Path
from typing import Any

import pytest

from bioimg_jax.candidates import Trained
from bioimg_jax.checkpoint import Saved
from bioimg_jax.image_audits import used_in_training

FLIPPED, PLAIN = {"recipe": {"flips": True}}, {"recipe": {"flips": False}}
OLDER: dict[str, Any] = {}  # before checkpoints kept their recipe


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([FLIPPED], True),
        ([PLAIN, PLAIN], False),
        ([PLAIN, FLIPPED, OLDER], True),
        ([PLAIN, OLDER], None),
        ([], None),
    ],
)
def test_checkpoints_say_what_they_were_trained_with(
    records: list[dict[str, Any]], expected: bool | None
) -> None:
    trained: list[Any] = [
        Trained(f"mae_{i}", "", Saved(Path(f"run{i}"), 12, meta), None)
        for i, meta in enumerate(records)
    ]
    assert used_in_training(trained, "flips") is expected

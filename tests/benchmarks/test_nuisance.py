"""Features that know the plate say so, and say less once they are aligned."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.nuisance import nuisance_rows
from tests.benchmarks import screens


def _raw_and_centred() -> list[tuple[list[dict[str, Any]], dict[str, str]]]:
    """Rows and what is missing, of features that know their plate and of those that do not."""
    obs = screens.wells(plates=6, compounds=24)
    obs["batch"] = "B" + (pd.factorize(obs["plate"])[0] // 2).astype(str)
    rng = np.random.default_rng(0)
    number, plate = pd.factorize(obs["moa"])[0], pd.factorize(obs["plate"])[0]
    biology = rng.normal(size=(number.max() + 2, 8))[number]
    shift = 2.0 * rng.normal(size=(plate.max() + 1, 8))[plate]
    noise = rng.normal(size=(len(obs), 8))
    count = rng.poisson(100, len(obs)).astype(float)
    ids = (obs["plate"] + obs["well"]).tolist()
    return [
        nuisance_rows(screens.table(x, obs), {"count": count}, ids)
        for x in (biology + shift + noise, biology + noise)
    ]


def _by_measure(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["column"], row["metric"]): row for row in rows}


def test_what_knows_the_plate_says_so_and_less_when_centred() -> None:
    raw, centred = _raw_and_centred()
    found = [_by_measure(rows) for rows, _ in (raw, centred)]
    probe = ("plate", "probe, balanced_accuracy")
    assert found[0][probe]["value"] > 0.9 > 0.4 > found[1][probe]["value"]
    assert found[0][probe]["chance"] == pytest.approx(1 / 6)
    explained = ("plate", "explained variance")
    assert found[0][explained]["value"] > 0.5 > 0.15 > found[1][explained]["value"]
    assert abs(found[0]["count", "probe, r2"]["value"]) < 0.2
    index = next(key for key in found[0] if key[1].startswith("robustness index"))
    assert found[0][index]["value"] < found[1][index]["value"]
    assert "no training example" in raw[1].pop("probe of batch")  # too few plates of a batch
    raw[1].pop("mixing of batches", None)  # where scib-metrics is not installed
    assert raw[1] == {
        "probe of site": "the metadata have no column 'site'",
        "probe of intensity": "the metadata have no column 'intensity'",
    }


@pytest.mark.peers
def test_batches_mix_less_where_the_plate_is_known() -> None:
    found = [_by_measure(rows) for rows, _ in _raw_and_centred()]
    assert found[0]["batch", "ilisi"]["value"] < found[1]["batch", "ilisi"]["value"]


def test_without_plate_and_batch_it_says_what_is_missing() -> None:
    obs = screens.wells()[["compound", "moa", "control"]]
    features = np.random.default_rng(0).normal(size=(len(obs), 4))
    rows, missing = nuisance_rows(screens.table(features, obs), {}, [str(i) for i in obs.index])
    assert rows == []
    assert missing["batches"] == "the metadata have no column batch or plate"
    assert "no column 'plate'" in missing["probe of plate"]

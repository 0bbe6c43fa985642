"""Scores of images beyond a confound: what is asked, kept on disk, and refused."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax import image_beyond
from bioimg_jax.benchmarks.beyond_probe import Probed
from bioimg_jax.benchmarks.confound import Confound
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.budget import budget
from bioimg_jax.candidates import Candidate
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError, Preempted
from bioimg_jax.features.aggregate import aggregate
from bioimg_jax.features.table import FeatureTable, read_table, write_table
from bioimg_jax.image_beyond import check_beyond, conditional_rows, n_asked
from bioimg_jax.representations.nuclei import FEATURE_NAMES
from bioimg_jax.stop_signal import StopSignal

SETTINGS = {
    "beyond": "count,a b", "beyond_blocks": "", "beyond_permutations": 49, "permute_labels": False,
}  # fmt: skip
TARGET = Target(name="drug", column="drug", unit=("plate",), split="leave_one_out")
BY_WELL = Target(
    name="wells", column="drug", unit=("plate",), split="leave_one_out", aggregate=("plate", "well")
)
NUISANCE = Target(name="plate", column="drug", unit=("well",), split="leave_one_out", nuisance=True)


def tables(folder: Path) -> dict[str, FeatureTable]:
    """An encoder of the drug, with two layers, and nuclei whose number says nothing."""
    rng = np.random.default_rng(0)
    rows = [(f"P{p}", f"W{w:02d}") for p in range(5) for w in range(24) for _ in range(2)]
    obs = pd.DataFrame(rows, columns=["plate", "well"])
    well = np.arange(len(obs)) // 2
    obs["drug"] = np.where(well % 2, "A", "B")
    obs["a b"] = np.where(well % 24 < 12, "left", "right")
    obs["number"] = rng.normal(size=len(obs))
    obs["image"] = np.where(np.arange(len(obs)) % 2, "first", "second")
    count = rng.poisson(30, len(obs))
    found = {}
    for name in ("encoder", "nuclei"):
        own = (well % 2)[:, None] + rng.normal(0, 0.7, (len(obs), 3))
        nuclei = np.zeros((len(obs), len(FEATURE_NAMES)))
        nuclei[:, FEATURE_NAMES.index("count")] = count
        layers = {"nuclei": nuclei} if name == "nuclei" else {"0/mean": own[:, :1], "1/mean": own}
        widths = {layer: values.shape[1] for layer, values in layers.items()}
        whole = [(np.arange(len(obs)), layers)]
        path, last = folder / f"{name}.h5ad", next(reversed(widths))
        write_table(path, obs, widths, last, whole, {"key": name}, dtype="float32")
        found[name] = read_table(path)
    return found


def scored(table: FeatureTable, target: Target, kind: str = "trained") -> Score:
    profiles, folds = aggregate(table, make_folds(table.obs, target), target)
    return Ridge().scores(
        profiles, folds, target, representation="encoder", kind=kind, seed=0, exposure="none",
        settings={}, permute_labels_seed=None,
    )[-1]  # fmt: skip


def asked(
    folder: Path,
    held: dict[str, FeatureTable],
    between: Callable[[], None] = lambda: None,
    **changes: Any,
) -> list[dict[str, Any]]:
    targets = (TARGET, BY_WELL, NUISANCE)
    scores = [scored(held["encoder"], target) for target in targets]
    scores.append(scored(held["nuclei"], TARGET, kind="count"))
    folds = {target.name: make_folds(held["encoder"].obs, target) for target in targets}
    return conditional_rows(
        SETTINGS | changes, [Ridge()], targets, folds, scores, held.__getitem__, folder, seed=0,
        between=between,
    )  # fmt: skip


def test_encoders_are_asked_about_every_confound_and_target(tmp_path: Path) -> None:
    rows = asked(tmp_path / "out", tables(tmp_path))
    assert {(row["target"], row["beyond"]) for row in rows} == {
        (target, beyond) for target in ("drug", "wells") for beyond in ("count", "a b")
    }
    assert {row["representation"] for row in rows} == {"encoder", "count", "a b"}
    assert {row["blocks"] for row in rows if row["target"] == "drug"} == {"plate/well"}
    found = {
        (row["target"], row["beyond"], row["representation"], row["method"]): row for row in rows
    }
    own = found["drug", "count", "encoder", "conditional permutation"]
    assert own["p"] == 0.02 and own["value"] > 0.15 and own["n"] == 240
    profiles = found["wells", "count", "encoder", "conditional permutation"]
    assert profiles["n"] == 120 and profiles["observed"] > own["observed"]  # means of two images
    assert found["drug", "count", "encoder", "added value"]["value"] > 0.15
    nothing = found["drug", "a b", "a b", "conditional permutation"]
    assert nothing["value"] == pytest.approx(0.0, abs=0.02)
    assert not [row for row in rows if row["refused"]]
    assert sum(path.suffix == ".json" for path in (tmp_path / "out" / "beyond").iterdir()) == 8


def test_a_block_of_several_names_is_refused_with_the_key_that_makes_smaller_ones(
    tmp_path: Path,
) -> None:
    rows = asked(tmp_path / "out", tables(tmp_path), beyond="image")
    told = "drug: labels were given to plate/well, of which 'P0/W00' has several values of image; "
    mine = [row for row in rows if row["target"] == "drug"]
    assert mine and all(row["refused"].startswith(told) for row in mine)
    assert mine[0]["refused"].count("evaluate.beyond_blocks") == 1
    rows = asked(
        tmp_path / "out", tables(tmp_path), beyond="image", beyond_blocks="plate,well,image"
    )
    assert not any(row["refused"] for row in rows if row["target"] == "drug")


def test_a_profile_has_the_mean_of_a_number_and_no_name_that_its_images_differ_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def keep(probed: Probed, confound: Confound, **_: Any) -> list[dict[str, Any]]:
        given.append((len(probed.table.obs), confound))
        return []

    monkeypatch.setattr("bioimg_jax.image_beyond.beyond_probe", keep)
    monkeypatch.setattr("bioimg_jax.image_beyond.beyond_itself", keep)
    held = tables(tmp_path)
    asked(tmp_path / "out", held, beyond="number")
    number = held["encoder"].obs["number"].to_numpy()
    confounds = dict(given)
    assert confounds[240].values.tolist() == number.tolist()
    assert np.allclose(confounds[120].values, number.reshape(-1, 2).mean(axis=1))
    assert all(confound.is_number for _, confound in given)
    for changes in ({"beyond": "image"}, {"beyond": "number", "beyond_blocks": "image"}):
        rows = asked(tmp_path / changes["beyond"], held, **changes)
        mine = [row for row in rows if row["target"] == "wells"]  # each of them one reason
        assert mine
        for row in mine:
            assert row["refused"].startswith("image: the rows of profile 0 have 'second' and 'fi")
            assert row["value"] is None


def test_what_was_asked_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tables(tmp_path)
    before = asked(tmp_path / "out", held)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    for name in ("beyond_probe", "beyond_itself"):
        monkeypatch.setattr(f"bioimg_jax.image_beyond.{name}", again)
    assert asked(tmp_path / "out", held) == before
    with pytest.raises(AssertionError, match="made again"):
        asked(tmp_path / "out", held, beyond_permutations=48)


def test_a_signal_stops_between_questions_and_the_next_run_asks_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, folder = tables(tmp_path), tmp_path / "out"
    whole = asked(tmp_path / "whole", held)
    original, calls = image_beyond.beyond_probe, []

    def counted(*given: Any, **about: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **about)

    monkeypatch.setattr(image_beyond, "beyond_probe", counted)
    with StopSignal() as stop, pytest.raises(Preempted, match="what is finished is kept"):
        asked(folder, held, between=stop.leave)
    assert len(calls) == 2 and len(list((folder / "beyond").iterdir())) == 3  # one is of itself
    assert asked(folder, held) == whole
    assert len(calls) == 4  # two targets, two confounds: none of them twice


def test_the_budget_counts_the_probes_of_what_is_asked(tmp_path: Path) -> None:
    target = dataclasses.replace(TARGET, name="other")
    asked_of = n_asked(SETTINGS, (TARGET, target, NUISANCE))
    assert asked_of == {"drug": 2, "other": 2, "plate": 0}
    assert set(n_asked(SETTINGS | {"permute_labels": True}, (TARGET,)).values()) == {0}
    held = tables(tmp_path)["encoder"]
    folds = {"drug": make_folds(held.obs, TARGET)}  # five, of each of the two layers
    candidate = Candidate(
        name="encoder", kind="trained", seed=0, saw=None, make=lambda: None, layers=held.widths,
        identity={},
    )  # fmt: skip
    said = [
        budget([Ridge()], [candidate], folds, {"drug": 2}, n_images=240, crop_px=64, beyond=of)
        for of in ({"drug": 0}, {"drug": 2})
    ]
    fits = Ridge().fits * 5
    assert f"{2 * fits} probe fits" in said[0]
    assert f"{(2 + 2 + 2) * fits} probe fits" in said[1]  # residuals and confounds


def test_nothing_is_asked_of_permuted_labels_or_without_a_confound(tmp_path: Path) -> None:
    held = tables(tmp_path)
    assert asked(tmp_path, held, permute_labels=True) == []
    assert asked(tmp_path, held, beyond="") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beyond": "cells"}, "evaluate.beyond: 'cells', expected count or a column"),
        ({"beyond_blocks": "wel"}, "evaluate.beyond_blocks: 'wel', expected columns of the meta"),
        ({"beyond_permutations": 0}, "evaluate.beyond_permutations: 0, expected 1 or more"),
        ({"beyond": "count"}, "'count' is the number of nuclei; add 'nuclei' to"),
    ],
)
def test_a_mistake_is_told_before_anything_is_scored(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_beyond(SETTINGS | {"beyond": ""} | changes, ["plate", "well"], ["encoder"])


def test_a_config_without_the_keys_is_told_so() -> None:
    with pytest.raises(
        InputError, match="evaluate: no key 'beyond_blocks', which the configs of configs/"
    ):
        check_beyond({"beyond": "", "beyond_permutations": 9}, ["plate"], [])

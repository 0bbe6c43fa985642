"""What is left of a probe's score beyond a confound: where it is all there is, and where not."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.answers import Answers
from bioimg_jax.benchmarks.benchmark import Benchmark
from bioimg_jax.benchmarks.beyond_probe import Probed, beyond_itself, beyond_probe, label_blocks
from bioimg_jax.benchmarks.confound import ADDED, PERMUTATION, RESIDUALISED, Confound
from bioimg_jax.benchmarks.knn import Knn
from bioimg_jax.benchmarks.ridge import Ridge
from bioimg_jax.benchmarks.score import Score
from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.features.table import MemoryTable

PLATES, WELLS, IMAGES = 6, 32, 2
TARGET = Target(name="drug", column="drug", unit=("plate",), split="leave_one_out")


def screen(seed: int, *, own: float, counted: float) -> tuple[MemoryTable, pd.Series]:
    """A drug a well, whose number of cells leans on it; features of the drug (own) and of the
    number (counted).
    """
    rng = np.random.default_rng(seed)
    wells = [(f"P{p}", f"W{w:02d}") for p in range(PLATES) for w in range(WELLS)]
    drug = np.tile(np.arange(WELLS) % 2, PLATES)
    obs = pd.DataFrame(wells, columns=["plate", "well"]).assign(drug=np.array(["A", "B"])[drug])
    obs = obs.loc[np.repeat(obs.index, IMAGES)].reset_index(drop=True)
    label = np.repeat(drug, IMAGES)
    count = np.round(np.repeat(rng.normal(0, 6, len(wells)) + 8 * drug, IMAGES) + 60)
    obs["count"] = count
    centres = rng.normal(size=(2, 4))
    bends = np.stack([np.sin(count * f) for f in (0.05, 0.11, 0.2)] + [count / 10], axis=1)
    noise = rng.normal(0, 0.6, (len(obs), 4))
    features = np.hstack([own * centres[label] + noise, counted * bends])
    table = MemoryTable(
        path=Path("memory"), obs=obs, widths={"last": 8}, default="last",
        provenance={"key": str(seed)}, features=features,
    )  # fmt: skip
    return table, obs["count"]


def scored(benchmark: Benchmark, table: MemoryTable, target: Target = TARGET) -> Score:
    about: dict[str, Any] = {"representation": "x", "kind": "trained", "seed": 0, "exposure": ""}
    return benchmark.scores(
        table, make_folds(table.obs, target), target, settings={}, permute_labels_seed=None, **about
    )[-1]


def asked(
    benchmark: Benchmark, table: MemoryTable, confound: Confound, target: Target = TARGET
) -> dict[str, dict[str, Any]]:
    folds = make_folds(table.obs, target)
    probed = Probed(benchmark, table, folds, target, label_blocks(table.obs, folds, target)[1])
    answers = scored(benchmark, table, target).answers
    rows = beyond_probe(probed, confound, answers=answers, permutations=99, seed=0)
    return {row["method"]: row for row in rows}


class NeverRun(Ridge):
    def scores(self, *_: Any, **__: Any) -> list[Score]:
        raise AssertionError("it was run in vain")


def of_count(table: MemoryTable) -> Confound:
    return Confound.of_number("count", table.obs["count"].to_numpy(), table.obs)


@pytest.mark.parametrize("benchmark", [Ridge(), Knn()])
def test_a_score_of_the_count_is_none_beyond_it(benchmark: Benchmark) -> None:
    found = []
    for seed in range(5):
        table, _ = screen(seed, own=0.0, counted=1.0)
        assert scored(benchmark, table).value > 0.62  # the count tells the drugs apart
        found.append(asked(benchmark, table, of_count(table)))
    assert sum(rows[PERMUTATION]["p"] <= 0.05 for rows in found) <= 1
    assert np.mean([rows[PERMUTATION]["value"] for rows in found]) < 0.04
    assert np.mean([rows[ADDED]["value"] for rows in found]) < 0.02
    for rows in found:
        assert rows[PERMUTATION]["alone"] > 0.55


def test_a_score_of_its_own_is_there_beyond_the_count() -> None:
    table, _ = screen(1, own=1.0, counted=0.0)
    whole = scored(Ridge(), table)
    found = asked(Ridge(), table, of_count(table))
    assert found[PERMUTATION]["p"] == 0.01 and found[PERMUTATION]["value"] > 0.15
    assert found[ADDED]["value"] > 0.1 and found[ADDED]["p"] < 0.01
    assert found[RESIDUALISED]["value"] == pytest.approx(whole.value, abs=0.1)
    for row in found.values():
        assert not row["refused"] and row["n"] == PLATES * WELLS * IMAGES
        assert 0.5 * row["n"] < row["n_retained"] <= row["n"]
        assert row["lower"] < row["value"] < row["upper"]


def test_on_all_rows_the_observed_score_is_the_score_itself() -> None:
    table, _ = screen(2, own=1.0, counted=0.0)
    # Of no drug, and the same number of wells of each: every row is retained.
    half = pd.Series(np.where(table.obs["well"] < "W16", "left", "right"), name="half")
    confound = Confound.of_column(table.obs.assign(half=half), "half")
    for benchmark in (Ridge(), Knn(ks=(2,))):  # two neighbours tie often: votes are split
        whole = scored(benchmark, table)
        found = asked(benchmark, table, confound)
        assert found[PERMUTATION]["n_retained"] == len(table.obs)
        assert found[PERMUTATION]["observed"] == pytest.approx(whole.value, abs=1e-12)
        assert found[PERMUTATION]["alone"] == pytest.approx(0.5, abs=0.02)


def test_residuals_are_of_each_folds_own_training_rows() -> None:
    """Against the benchmark on features that were residualised by scikit-learn, fold by fold."""
    from sklearn.linear_model import LinearRegression

    table, _ = screen(3, own=1.0, counted=1.0)
    z = np.repeat(np.random.default_rng(0).normal(size=PLATES * WELLS), IMAGES)[:, None]
    table.features[:] += z  # of no drug: every stratum holds both
    found = asked(Ridge(), table, Confound.of_number("z", z, table.obs))[RESIDUALISED]
    values = {}
    assert found["n_retained"] == found["n"]
    for fold in make_folds(table.obs, TARGET):
        fit = LinearRegression().fit(z[fold.train], table.features[fold.train])
        left = MemoryTable(**{**vars(table), "features": table.features - fit.predict(z)})
        about: dict[str, Any] = {"representation": "", "kind": "", "seed": 0, "exposure": ""}
        (score,) = Ridge().scores(
            left, [fold], TARGET, settings={}, permute_labels_seed=None, **about
        )
        values |= score.per_unit
    assert found["value"] == pytest.approx(np.mean(list(values.values())), abs=1e-9)


def test_what_does_not_overlap_has_a_reason() -> None:
    table, _ = screen(0, own=1.0, counted=0.0)
    week = Confound.of_column(table.obs.assign(week="w" + table.obs["drug"]), "week")
    for row in asked(Ridge(), table, week).values():
        assert row["value"] is None
        assert "nothing can be said beyond week: labels do not overlap" in row["refused"]


def test_a_benchmark_that_keeps_no_answers_has_a_reason() -> None:
    table, _ = screen(0, own=1.0, counted=0.0)
    folds = make_folds(table.obs, TARGET)
    probed = Probed(Ridge(), table, folds, TARGET, label_blocks(table.obs, folds, TARGET)[1])
    rows = beyond_probe(probed, of_count(table), answers=None, permutations=9, seed=0)
    assert [row["refused"] for row in rows] == [
        "the benchmark keeps no answers to its test rows"
    ] * 3
    (itself,) = beyond_itself(
        dataclasses.replace(probed, benchmark=NeverRun()), of_count(table), answers=None,
        permutations=9, seed=0,
    )  # fmt: skip
    assert itself["refused"] == rows[0]["refused"] and itself["value"] is None


def test_rows_without_the_confound_are_left_out_and_counted() -> None:
    table, count = screen(1, own=1.0, counted=0.0)
    values = count.where(np.arange(len(count)) >= 10)
    found = asked(Ridge(), table, Confound("count", values, True))
    for row in found.values():
        assert not row["refused"] and row["n_retained"] <= row["n"] - 10


def test_the_confound_beyond_itself_shows_how_coarse_its_strata_are() -> None:
    table, count = screen(4, own=0.0, counted=0.0)
    folds = make_folds(table.obs, TARGET)
    probed = Probed(Knn(), table, folds, TARGET, label_blocks(table.obs, folds, TARGET)[1])
    answers = scored(Knn(), table).answers
    (row,) = beyond_itself(probed, of_count(table), answers=answers, permutations=99, seed=0)
    assert row["observed"] > 0.6 and abs(row["value"]) < 0.08
    (lacking,) = beyond_itself(
        probed, Confound("count", count.where(count > 60), True), answers=answers,
        permutations=9, seed=0,
    )  # fmt: skip
    assert lacking["n_retained"] < row["n_retained"]
    (nothing,) = beyond_itself(
        probed, Confound("count", count * np.nan, True), answers=answers,
        permutations=9, seed=0,
    )  # fmt: skip
    assert nothing["value"] is None and "has no row left" in nothing["refused"]


def test_labels_are_given_to_the_widest_groups_that_have_one() -> None:
    table, _ = screen(0, own=1.0, counted=0.0)
    folds = make_folds(table.obs, TARGET)
    assert label_blocks(table.obs, folds, TARGET)[0] == "plate/well"
    obs = table.obs.assign(site=np.tile([0, 1], len(table.obs) // 2))
    obs["drug"] = np.where(obs["site"] == 1, "A", "B")
    assert label_blocks(obs, folds, TARGET)[0] == "plate/well/site"
    obs["site"] = 0
    words, names = label_blocks(obs, folds, TARGET)
    assert words == "row" and len(set(names)) == len(obs)
    patients = obs.assign(patient=np.arange(len(obs)) // 16)
    patients["drug"] = np.where(patients["patient"] % 2, "A", "B")
    by_patient = Target(name="drug", column="drug", unit=("patient",), split="k_fold", n_folds=3)
    words, names = label_blocks(patients, make_folds(patients, by_patient), by_patient)
    assert words == "patient" and len(set(names)) == patients["patient"].nunique()
    assert label_blocks(obs, folds, TARGET, ["plate"])[0] == "plate"
    with pytest.raises(InputError, match="no column 'week' among plate, well"):
        label_blocks(obs, folds, TARGET, ["week"])


def test_answers_are_kept_and_read_by_their_key(tmp_path: Path) -> None:
    votes = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    answers = Answers.of_votes(np.array([4, 7, 9]), votes, ["A", "B"], ["one", "two"])
    assert answers.rows.tolist() == [4, 7, 7, 9] and answers.predictions.tolist() == [0, 0, 1, 1]
    path = tmp_path / "answers.npz"
    assert Answers.read(path, "k") is None
    answers.write(path, "k")
    again = Answers.read(path, "k")
    assert again is not None and Answers.read(path, "other") is None
    assert again.classes == ("A", "B") and again.layers == ("one", "two")
    np.testing.assert_array_equal(again.weights, [1.0, 0.5, 0.5, 1.0])
    path.write_bytes(path.read_bytes()[:100])
    assert Answers.read(path, "k") is None
    path.write_bytes(b"")
    assert Answers.read(path, "k") is None

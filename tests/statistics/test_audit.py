import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from bioimg_jax.data.declaration import Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.statistics import audit as audit_module
from bioimg_jax.statistics.audit import audit


def target(**changes):
    fields = {
        "name": "compound",
        "column": "treatment",
        "unit": ("plate",),
        "split": "leave_one_out",
        "audit": ("plate", "well", "site"),
    }
    return Target(**{**fields, **changes})


def rows(treatment_of, *, plates=5, wells=12, sites=2, cells=3):
    """A row a cell; `treatment_of(plate, well)` names the treatment."""
    return pd.DataFrame(
        [
            {
                "plate": f"P{p}",
                "well": f"{'ABC'[w // 4 % 3]}{w % 4 + 1:02d}",
                "row": "ABC"[w // 4 % 3],
                "column": w % 4 + 1,
                "site": s,
                "acquired": 100.0 * p + w + 0.01 * s,
                "treatment": f"drug {treatment_of(p, w)}",
            }
            for p, w, s, _ in itertools.product(
                range(plates), range(wells), range(sites), range(cells)
            )
        ]
    )


def randomised(seed, *, plates=5, wells=12, treatments=3):
    rng = np.random.default_rng(seed)
    layout = [rng.permutation(np.arange(wells) % treatments) for _ in range(plates)]
    return rows(lambda p, w: layout[p][w], plates=plates, wells=wells)


def run(metadata, target):
    return audit(metadata, make_folds(metadata, target), target)


def test_same_map_on_every_plate_is_confounded_by_the_well():
    result = run(rows(lambda p, w: w % 3, wells=4), target())
    assert result["verdict"] == "confounded"
    assert result["columns"] == ["well"]
    assert result["reason"].startswith("well determines compound")
    assert result["per_column"]["well"]["score"] == 1.0
    assert result["per_column"]["plate"]["score"] == pytest.approx(1 / 3)
    assert result["score"] == 1.0 and set(result["per_unit"]) == {f"P{i}" for i in range(5)}


def test_verdict_does_not_depend_on_how_many_columns_are_audited():
    result = run(rows(lambda p, w: w % 3, wells=4), target(audit=("well",)))
    assert result["reason"].startswith("well determines compound")


def test_row_and_column_together_can_determine_the_target():
    metadata = rows(lambda p, w: (w // 4 + w % 4) % 3)
    result = run(metadata, target(audit=("plate", "row", "column")))
    assert result["verdict"] == "confounded"
    assert result["columns"] == ["row", "column"]


def test_every_set_of_columns_is_a_rival_and_the_best_of_them_is_said():
    # The parity of row and column, and noise: no single column and no sum of columns says it.
    rng = np.random.default_rng(0)
    noise = rng.random((8, 12)) < 0.12
    metadata = rows(lambda p, w: (w // 4 + w % 4 + noise[p, w]) % 2, plates=8)
    result = run(metadata, target(audit=("plate", "row", "column")))
    assert result["verdict"] == "" and result["score"] < 0.7
    assert result["best"]["columns"] == "row and column" and result["best"]["score"] > 0.8
    assert "from row and column" in result["reason"]
    rivals = {name: np.mean(list(values.values())) for name, values in result["rivals"].items()}
    assert rivals["row and column"] == pytest.approx(result["best"]["score"])
    assert rivals["all audited columns"] == pytest.approx(result["score"])
    assert all(set(values) == set(result["per_unit"]) for values in result["rivals"].values())


@pytest.mark.parametrize("start", range(0, 50, 10))
def test_randomised_layout_is_never_confounded(start):
    columns = ("plate", "well", "row", "column", "site", "acquired")
    for seed in range(start, start + 10):
        result = run(randomised(seed), target(audit=columns))
        assert result["verdict"] == "", (seed, result["reason"])
        assert result["reason"].startswith("metadata alone does not settle compound")
        assert result["score"] < 0.9


def test_a_whole_number_is_audited_as_an_order_and_as_a_name():
    # Drugs one after the other: the order tells them, though no value of it comes twice.
    n = 300
    drugs = [f"drug {i // 150}" for i in range(n)]
    ordered = pd.DataFrame({"order": range(n), "plate": np.arange(n) % 5, "treatment": drugs})
    result = run(ordered, target(audit=("order",)))
    assert result["columns"] == ["order"] and result["best"]["score"] == 1.0
    # The number of a well says everything, and its neighbours nothing.
    wells = rows(lambda p, w: (7 * w) % 3, wells=60, sites=1, cells=1)
    wells["well"] = np.tile(np.arange(60), 5)
    result = run(wells, target(audit=("well",)))
    assert result["columns"] == ["well (each value)"]
    assert result["reason"].startswith("well (each value) determines compound")


def test_well_that_is_also_in_training_gives_the_target_away():
    by_field = target(unit=("plate", "well", "site"), split="k_fold", n_folds=3, metric="accuracy")
    rng = np.random.default_rng(0)
    layout = [rng.permutation(np.arange(9) % 3) for _ in range(5)]
    result = run(rows(lambda p, w: layout[p][w], wells=9, sites=30, cells=1), by_field)
    assert result["verdict"] == "confounded"
    assert result["columns"] == ["plate", "well"]


def test_nearly_perfect_metadata_is_confounded_by_its_score():
    def treatment(p, w):  # one well of every third plate breaks the rule
        return 1 if p % 3 == 0 and w == 0 else w % 3

    metadata = rows(treatment, plates=12, wells=9, sites=1)
    strict = run(metadata, target(audit=("well",)))
    assert strict["verdict"] == ""
    folds = make_folds(metadata, target(audit=("well",)))
    lenient = audit(metadata, folds, target(audit=("well",)), delta=0.2)
    assert lenient["verdict"] == "confounded"
    assert "well alone predicts compound" in lenient["reason"]


def test_nuisance_target_has_scores_and_no_verdict():
    nuisance = target(
        name="plate",
        column="plate",
        unit=("plate", "well", "site"),
        split="k_fold",
        n_folds=3,
        nuisance=True,
        metric="accuracy",
        audit=("well",),
    )
    result = run(rows(lambda p, w: w % 3), nuisance)
    assert result["verdict"] == ""
    assert result["reason"] == "nuisance target: scores and no verdict"
    assert result["per_column"]["well"]["score"] < 0.5


def test_target_without_audit_columns_says_so():
    result = run(randomised(0), target(audit=()))
    assert result["verdict"] == "" and result["score"] is None
    assert result["reason"] == "no nuisance column is declared for this target"


def test_unknown_audit_column_is_named():
    with pytest.raises(InputError, match="audit column 'scanner' of target 'compound'"):
        run(randomised(0), target(audit=("scanner",)))


def test_order_of_rows_does_not_matter():
    metadata = randomised(3)
    shuffled = metadata.sample(frac=1.0, random_state=0).reset_index(drop=True)
    assert run(metadata, target()) == run(shuffled, target())


def test_memory_grows_with_the_rows_and_not_with_their_levels_too():
    rng = np.random.default_rng(0)
    n = 6_000
    metadata = pd.DataFrame(
        {
            "plate": [f"P{i % 4}" for i in range(n)],
            "batch": [f"B{i // 2}" for i in range(n)],  # n / 2 levels: 144 MB if zeros were kept
            "treatment": rng.choice(["drug 0", "drug 1"], n),
        }
    )
    folds = make_folds(metadata, target(audit=("plate", "batch")))
    tracemalloc.start()
    result = audit(metadata, folds, target(audit=("plate", "batch")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6 and 0.4 < result["score"] < 0.6


def test_a_probe_that_goes_on_from_a_stronger_penalty_says_what_one_from_zero_says(monkeypatch):
    rng = np.random.default_rng(0)
    drug = rng.integers(0, 3, (5, 12))
    table = rows(lambda p, w: drug[p, w] if (p + w) % 3 else w % 3, cells=1)
    folds = make_folds(table, target())
    warm = audit(table, folds, target())
    monkeypatch.setattr(
        audit_module, "LogisticRegression", lambda **_: LogisticRegression(max_iter=2_000)
    )
    cold = audit(table, folds, target())
    assert warm["per_unit"] == cold["per_unit"] and len(set(warm["per_unit"].values())) > 1

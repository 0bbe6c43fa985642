import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats.contingency import association

from bioimg_jax.data.declaration import Target
from bioimg_jax.errors import InputError
from bioimg_jax.statistics.identifiability import cramers_v, identifiability

COMPOUND = Target(
    "compound", "treatment", ("well",), "leave_one_out", audit=("plate", "treatment", "row")
)


def table(a, b):
    counts = np.zeros((a.max() + 1, b.max() + 1), int)
    np.add.at(counts, (a, b), 1)
    return counts


def wells(n=240, *, seed=0):
    """Treatments that are half a function of the row, and not of the plate."""
    rng = np.random.default_rng(seed)
    row = rng.integers(4, size=n)
    treatment = np.where(rng.random(n) < 0.5, row, rng.integers(4, size=n))
    return pd.DataFrame(
        {
            "well": [f"W{i}" for i in range(n)],
            "plate": rng.integers(6, size=n).astype(str),
            "row": row,
            "scanner": "one",
            "acquired": row + rng.normal(0, 0.1, n),
            "treatment": [f"drug {t}" for t in treatment],
        }
    )


def by_column(rows):
    return {row["column"]: row["cramers_v"] for row in rows}


def test_is_scipys_statistic_less_its_bias():
    rng = np.random.default_rng(0)
    a = rng.integers(3, size=50_000)
    b = np.where(rng.random(len(a)) < 0.3, a, rng.integers(5, size=len(a)))
    plain = association(table(a, b), method="cramer")
    assert cramers_v(a, b) == pytest.approx(plain, rel=1e-3)
    few = slice(0, 200)
    n, r, c = 200, 3, 5
    phi2 = association(table(a[few], b[few]), method="cramer") ** 2 * (r - 1)
    corrected = (phi2 - (r - 1) * (c - 1) / (n - 1)) / (r - 1 - (r - 1) ** 2 / (n - 1))
    assert cramers_v(a[few], b[few]) == pytest.approx(np.sqrt(corrected), rel=1e-9)


def test_analytic_cases():
    a = np.arange(120) % 4
    assert cramers_v(a, (a + 1) % 4) == pytest.approx(1.0)
    assert cramers_v(a, np.arange(120) // 4 % 3) == 0.0  # every pair as often
    # A binary symmetric channel with a share e of errors has V = |1 - 2 e|.
    x = np.repeat([0, 1], 20_000)
    assert cramers_v(x, np.where(np.arange(40_000) % 10 == 0, 1 - x, x)) == pytest.approx(
        0.8, abs=1e-4
    )
    assert np.isnan(cramers_v(a, np.zeros(120, int))) and np.isnan(cramers_v(a, np.arange(120)))


def test_independent_columns_of_many_values_are_not_associated():
    rng = np.random.default_rng(1)
    draws = [(rng.integers(20, size=300), rng.integers(20, size=300)) for _ in range(20)]
    plain = [association(table(a, b), method="cramer") for a, b in draws]
    assert np.mean(plain) > 0.2 and np.mean([cramers_v(a, b) for a, b in draws]) < 0.05


def test_every_target_meets_every_column_but_its_own():
    plate = Target("plate", "plate", ("well",), "k_fold", n_folds=3, nuisance=True)
    rows = identifiability(wells(), [COMPOUND, plate], ("plate", "scanner", "acquired"))
    assert [(row["target"], row["column"]) for row in rows] == [
        ("compound", "plate"), ("compound", "row"), ("compound", "scanner"),
        ("compound", "acquired"), ("plate", "scanner"), ("plate", "acquired"),
    ]  # fmt: skip
    found = by_column(rows[:4])
    assert found["plate"] < 0.15 < 0.4 < found["row"] < 0.65 and found["scanner"] is None
    assert found["acquired"] == pytest.approx(found["row"], abs=0.1)  # cut at quantiles
    assert all(row["n"] == 240 for row in rows)
    json.dumps(rows, allow_nan=False)


def test_cells_of_a_well_are_one_row_and_their_order_does_not_matter():
    once = wells()
    cells = once.loc[np.repeat(once.index, np.arange(len(once)) % 7 + 1)]
    cells = cells.sample(frac=1.0, random_state=0).reset_index(drop=True)
    # Without "acquired", whose quantiles are of cells.
    assert identifiability(cells, [COMPOUND]) == identifiability(once, [COMPOUND])


def test_only_rows_that_the_target_is_about_count():
    metadata = wells()
    part = Target(
        **{**vars(COMPOUND), "where": (("treatment", ("drug 0", "drug 1")),), "name": "two"}
    )
    rows = identifiability(metadata, [part])
    assert rows[0]["n"] == metadata["treatment"].isin(["drug 0", "drug 1"]).sum()


def test_unknown_column_is_named():
    with pytest.raises(InputError, match="audit column 'laser' of target 'compound'"):
        identifiability(wells(), [COMPOUND], ("laser",))

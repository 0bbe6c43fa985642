import json

import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.comparisons import drawn_rows, geometry_rows, similarity_rows
from bioimg_jax.statistics.geometry import rankme
from bioimg_jax.statistics.similarity import cka

ROWS = 600


def tables():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(ROWS, 10))
    return {
        "mae": np.tanh(latent @ rng.normal(size=(10, 32))).astype(np.float32),
        "step0": rng.normal(size=(ROWS, 32)).astype(np.float32),
        "wide": rng.normal(size=(ROWS, 48)).astype(np.float32),
        "wide_step0": rng.normal(size=(ROWS, 48)).astype(np.float32),
        "pixels": (latent @ rng.normal(size=(10, 6)) * [1e-3, 1, 1, 1, 1, 1e3]).astype(np.float32),
    }


TWINS = {"mae": "step0", "wide": "wide_step0"}
IDS = np.arange(ROWS) * 7
GROUPS = np.arange(ROWS) % 20


def by_name(rows):
    return {row["representation"]: row for row in rows}


def test_encoders_and_twins_are_measured_at_equal_n_and_d():
    rows = by_name(geometry_rows(tables(), TWINS, IDS, GROUPS, n=300))
    assert list(rows) == list(tables())
    assert {name: (row["n"], row["d"], row["width"]) for name, row in rows.items()} == {
        "mae": (300, 32, 32), "step0": (300, 32, 32), "wide": (300, 32, 48),
        "wide_step0": (300, 32, 48), "pixels": (300, 6, 6),
    }  # fmt: skip
    mae, twin = rows["mae"], rows["step0"]
    assert mae["twin"] == "step0" and twin["twin"] is None and twin["minus_twin"] is None
    assert mae["rankme"] < twin["rankme"]
    assert mae["minus_twin"]["rankme"] == mae["rankme"] - twin["rankme"]
    assert "n" not in mae["minus_twin"] and mae["n_groups"] == 20
    json.dumps(list(rows.values()), allow_nan=False)


def test_columns_of_other_units_are_standardised_where_asked():
    x = tables()["pixels"]
    rows = by_name(geometry_rows(tables(), {}, IDS, standardise=["pixels"]))
    assert rows["pixels"]["rankme"] == pytest.approx(rankme(x / x.std(axis=0)), rel=1e-4)
    assert by_name(geometry_rows(tables(), {}, IDS))["pixels"]["rankme"] < 1.1


def test_order_of_rows_changes_nothing():
    order = np.random.default_rng(1).permutation(ROWS)
    shuffled = {name: x[order] for name, x in tables().items()}
    assert geometry_rows(tables(), TWINS, IDS, GROUPS, n=200) == geometry_rows(
        shuffled, TWINS, IDS[order], GROUPS[order], n=200
    )
    assert similarity_rows(tables(), TWINS, IDS, n=200) == similarity_rows(
        shuffled, TWINS, IDS[order], n=200
    )


def test_every_encoder_meets_its_twin_and_both_meet_pixels():
    rows = similarity_rows(tables(), TWINS, IDS, standardise=["pixels"])
    assert [(row["x"], row["y"]) for row in rows] == [
        ("mae", "step0"), ("mae", "pixels"), ("step0", "pixels"),
        ("wide", "wide_step0"), ("wide", "pixels"), ("wide_step0", "pixels"),
    ]  # fmt: skip
    x, y = tables()["mae"], tables()["pixels"]
    assert rows[1]["cka_unbiased"] == pytest.approx(cka(x, y / y.std(axis=0), unbiased=True))
    assert rows[1]["cka_unbiased"] > 0.3 > abs(rows[2]["cka_unbiased"])
    assert rows[1]["x_width"] == 32 and rows[1]["y_width"] == 6 and rows[1]["n"] == ROWS
    assert [len(similarity_rows(tables(), TWINS, IDS, against=()))] == [2]
    json.dumps(rows, allow_nan=False)


def test_a_drawn_row_depends_on_its_id_and_not_on_the_others_order():
    rows = drawn_rows(IDS, 100)
    assert len(set(rows)) == 100
    # The draw is uniform: its ids lie anywhere among all of them.
    assert abs(np.mean(rows) - ROWS / 2) < 4 * ROWS / np.sqrt(12 * 100)
    more = drawn_rows(IDS[:-100], 100)
    assert set(IDS[more]) >= set(IDS[rows]) - set(IDS[-100:])


def test_bad_input_is_named():
    with pytest.raises(InputError, match="no features of 'step1'; there are mae"):
        geometry_rows(tables(), {"mae": "step1"}, IDS)
    with pytest.raises(InputError, match="no features of 'step1'"):
        similarity_rows(tables(), {"mae": "step1"}, IDS)
    with pytest.raises(InputError, match="600 rows of 'mae' for 599 ids"):
        geometry_rows(tables(), TWINS, IDS[1:])
    with pytest.raises(InputError, match="two rows have the same id"):
        geometry_rows(tables(), TWINS, np.zeros(ROWS))

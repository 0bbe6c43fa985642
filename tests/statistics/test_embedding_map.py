import numpy as np
import pytest

from bioimg_jax.statistics.embedding_map import embedding_map


def test_groups_that_are_apart_stay_apart():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 40)
    features = 8 * rng.normal(size=(3, 10))[group] + rng.normal(size=(120, 10))
    positions = embedding_map(features)
    assert positions.shape == (120, 2) and positions.dtype == np.float32
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).all()
    np.testing.assert_array_equal(positions, embedding_map(features))


def test_a_constant_column_and_the_scale_of_another_change_nothing():
    x = np.random.default_rng(1).normal(size=(60, 5))
    scaled = np.column_stack([x * [1, 2, 4, 8, 16], np.full(60, 0.1)])
    np.testing.assert_allclose(embedding_map(scaled), embedding_map(x), atol=1e-3)


# t-SNE divided by zero here and ended the process.
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_rows_that_are_all_alike_lie_on_one_point(value):
    features = np.full((200, 7), value, np.float32)
    np.testing.assert_array_equal(embedding_map(features), np.zeros((200, 2), np.float32))


@pytest.mark.parametrize("shape", [(3, 5), (40, 1), (40, 2)])
def test_few_rows_and_few_columns_have_positions(shape):
    positions = embedding_map(np.random.default_rng(2).normal(size=shape))
    assert positions.shape == (shape[0], 2) and np.isfinite(positions).all()


def test_many_copies_of_one_row_have_positions():
    features = np.zeros((100, 6))
    features[:5] = np.random.default_rng(3).normal(size=(5, 6))
    assert np.isfinite(embedding_map(features)).all()

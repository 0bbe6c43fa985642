import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from bioimg_jax.statistics import neighbours
from bioimg_jax.statistics.neighbours import nearest, neighbour_shares, unit_rows


@pytest.fixture(params=[1 << 24, 1_000], ids=["one_block", "many_blocks"], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_NUMBERS", request.param)


def test_nearest_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(70, 6)), rng.normal(size=(90, 6))
    expected = NearestNeighbors(n_neighbors=5).fit(gallery).kneighbors(queries)
    distances, rows = nearest(queries, gallery, 5)
    np.testing.assert_allclose(distances, expected[0])
    np.testing.assert_array_equal(rows, expected[1])


def test_nearest_leaves_the_query_itself_out():
    points = np.random.default_rng(1).normal(size=(60, 3))
    _, rows = nearest(points[10:30], points, 4, itself=np.arange(10, 30))
    expected = NearestNeighbors(n_neighbors=5).fit(points).kneighbors(points[10:30])[1][:, 1:]
    np.testing.assert_array_equal(rows, expected)


def test_small_distances_far_from_the_origin_keep_their_digits():
    gallery = np.random.default_rng(2).normal(size=(50, 4)) + 1e6
    queries = gallery[:5] + 1e-7
    distances, rows = nearest(queries, gallery, 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(5))
    np.testing.assert_allclose(distances[:, 0], np.linalg.norm(queries - gallery[:5], axis=1))


def graph(points, k):
    return np.concatenate([shares for _, shares in neighbour_shares(points, k)])


def test_shares_are_the_neighbour_graph():
    points = np.random.default_rng(3).normal(size=(80, 5))
    expected = NearestNeighbors(n_neighbors=7).fit(points).kneighbors_graph().toarray()
    np.testing.assert_array_equal(graph(points, 7), expected)


def test_tied_neighbours_share_the_places_that_are_left():
    points = np.array([[0.0], [1.0], [-2.0], [2.0], [2.0]])
    np.testing.assert_allclose(graph(points, 2)[0], [0, 1, 1 / 3, 1 / 3, 1 / 3])
    order = np.array([4, 2, 0, 3, 1])
    np.testing.assert_allclose(graph(points[order], 2), graph(points, 2)[np.ix_(order, order)])


def test_a_row_of_zeros_has_no_direction():
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])

import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.representations.layout import (
    FEATURE_NAMES,
    RADII_PX,
    LayoutRepresentation,
    centroids,
    delaunay_edges,
    density_variance,
    layout_statistics,
    nearest_distances,
    render_mask,
    ripley_k,
)
from bioimg_jax.representations.nuclei import Segmenter, segment_nuclei


def scattered(n=25, shape=(160, 160), seed=0):
    """Instance labels of n ellipses that do not touch, and their centres."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    while labels.max() < n:
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        a, b = rng.uniform(3, 9, 2)
        mask = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1
        grown = ((y - cy) / (a + 3)) ** 2 + ((x - cx) / (b + 3)) ** 2 <= 1
        if mask.any() and not labels[grown].any():
            labels[mask] = labels.max() + 1
    return labels


def by_name(labels):
    values = layout_statistics(labels)
    assert values.shape == (len(FEATURE_NAMES),) and np.isfinite(values).all()
    return dict(zip(FEATURE_NAMES, values, strict=True))


def triangular(rows, columns, side):
    """Points of a lattice of equilateral triangles."""
    return np.array(
        [
            (r * side * np.sqrt(3) / 2, (c + (r % 2) / 2) * side)
            for r in range(rows)
            for c in range(columns)
        ]
    )


def test_ripley_of_a_poisson_pattern_is_the_area_of_the_disc():
    rng = np.random.default_rng(0)
    radii = np.array([5.0, 15.0, 40.0, 80.0])
    shape = (200, 300)
    found = np.array(
        [ripley_k(rng.uniform(0, shape, (rng.poisson(150), 2)), shape, radii) for _ in range(400)]
    )
    error = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - np.pi * radii**2) < 3 * error).all()
    assert (error / (np.pi * radii**2) < 0.02).all()  # or the line above says nothing
    # Without the correction of the edge the largest would be far off.
    assert (1 - 4 * 80 / (3 * np.pi) * 2 * (1 / 200 + 1 / 300) / 2) < 0.8


def test_ripley_of_a_lattice_counts_its_neighbours():
    side, n = 10, 40
    y, x = np.mgrid[:n, :n]
    points = np.stack([y.ravel(), x.ravel()], axis=1) * side + side / 2
    # Of the infinite lattice: 0, 4, 8 (with the diagonals), 12 (with those two steps away)
    # neighbours, each standing for side ** 2.
    radii = np.array([9.9, 10.1, 14.3, 20.1])
    found = ripley_k(points, (n * side, n * side), radii)
    np.testing.assert_allclose(found, np.array([0, 4, 8, 12]) * side**2, rtol=2e-3)


def test_ripley_of_two_points_by_hand():
    points = np.array([[10.0, 10.0], [13.0, 14.0]])
    # One pair at distance 5, seen from both ends; the window of 20 x 40 overlaps itself in 17 x 36.
    expected = (20 * 40) ** 2 / 2 * 2 / (17 * 36)
    np.testing.assert_allclose(ripley_k(points, (20, 40), (4.9, 5.1)), [0, expected])
    assert (ripley_k(points[:1], (20, 40), (5.0,)) == 0).all()


def test_delaunay_of_a_triangular_lattice():
    rows, columns, side = 12, 14, 8.0
    points = triangular(rows, columns, side)
    edges = delaunay_edges(points)
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    degree = np.bincount(edges.ravel(), minlength=len(points)).reshape(rows, columns)
    assert (degree[2:-2, 2:-2] == 6).all()
    inner = np.isin(edges, np.arange(len(points)).reshape(rows, columns)[2:-2, 2:-2]).all(1)
    np.testing.assert_allclose(lengths[inner], side)
    np.testing.assert_allclose(nearest_distances(points), side)


def test_delaunay_of_few_points_and_of_a_line():
    assert delaunay_edges(np.zeros((0, 2))).shape == (0, 2)
    assert delaunay_edges(np.array([[1.0, 2.0]])).shape == (0, 2)
    assert delaunay_edges(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[0, 1]]
    line = np.array([[2.0, 2.0], [0.0, 0.0], [3.0, 3.0], [1.0, 1.0]])
    found = {frozenset(edge) for edge in delaunay_edges(line).tolist()}
    assert found == {frozenset(edge) for edge in ((1, 3), (3, 0), (0, 2))}
    triangle = np.array([[0.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    assert len(delaunay_edges(triangle)) == 3


def test_density_variance_of_a_poisson_pattern_is_its_mean():
    rng = np.random.default_rng(0)
    patterns = [rng.uniform(0, (90, 120), (200, 2)) for _ in range(500)]
    for tiles in (2, 4):
        found = [density_variance(points, (90, 120), tiles) for points in patterns]
        assert np.mean(found) == pytest.approx(1.0, abs=3 * np.std(found) / np.sqrt(500))
    clustered = rng.uniform(0, (45, 60), (200, 2))
    assert density_variance(clustered, (90, 120), 2) == 200  # all in one of four tiles
    y, x = np.mgrid[:8, :8] + 0.5
    assert density_variance(np.stack([y.ravel(), x.ravel()], 1), (8, 8), 4) == 0


def test_a_known_arrangement():
    labels = np.zeros((100, 100), np.int32)
    for label, (y, x) in enumerate([(10, 10), (10, 40), (50, 10)], start=1):
        labels[y : y + 5, x : x + 5] = label
    np.testing.assert_array_equal(centroids(labels), [[12.5, 12.5], [12.5, 42.5], [52.5, 12.5]])
    found = by_name(labels)
    assert found["count"] == 3 and found["density"] == pytest.approx(3.0)
    assert found["foreground"] == pytest.approx(75 / 1e4)
    assert found["area:mean"] == 25 and found["area:sd"] == 0
    assert found["nearest_distance:mean"] == pytest.approx((30 + 30 + 40) / 3)
    assert found["edge_length:mean"] == pytest.approx((30 + 40 + 50) / 3)
    assert found["degree:mean"] == 2 and found["degree:sd"] == 0
    assert found["clark_evans"] == pytest.approx(2 * np.sqrt(3e-4) * 100 / 3)


def test_regular_random_and_clustered_are_in_order():
    """Clark and Evans: 2.149 for a triangular lattice, 1 for Poisson, less for clusters."""

    def place(points):
        labels = np.zeros((320, 320), np.int32)
        for label, (y, x) in enumerate(np.unique(points.astype(int), axis=0), start=1):
            labels[y, x] = label
        return by_name(labels)

    rng = np.random.default_rng(0)
    lattice = place(triangular(21, 18, 17.0) + 5)
    poisson = place(rng.uniform(0, 320, (400, 2)))
    centres = rng.uniform(30, 290, (12, 1, 2))
    clusters = place((centres + rng.normal(scale=8, size=(12, 30, 2))).reshape(-1, 2).clip(0, 319))
    assert lattice["clark_evans"] == pytest.approx(2.149, rel=0.1)
    assert poisson["clark_evans"] == pytest.approx(1.0, abs=0.1)
    assert clusters["clark_evans"] < 0.8
    assert abs(poisson["ripley:20"]) < 2 < clusters["ripley:20"]
    assert lattice["ripley:10"] == pytest.approx(-10)
    assert lattice["density_variance:4"] < poisson["density_variance:4"] / 2
    assert clusters["density_variance:4"] > 2 * poisson["density_variance:4"]


@pytest.mark.parametrize(
    "turn", [np.rot90, np.fliplr, np.flipud, np.transpose], ids=lambda turn: turn.__name__
)
def test_turning_the_mask_changes_nothing(turn):
    labels = scattered()
    np.testing.assert_allclose(
        layout_statistics(np.ascontiguousarray(turn(labels))),
        layout_statistics(labels),
        rtol=1e-7,
        atol=1e-7,
    )


def test_the_numbering_of_the_nuclei_does_not_matter():
    labels = scattered()
    other = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(labels.max())])
    np.testing.assert_allclose(
        layout_statistics(other[labels].astype(np.int32)), layout_statistics(labels), atol=1e-9
    )


def test_only_the_mask_is_looked_at():
    image = 20.0 + 100 * (scattered() > 0) + np.random.default_rng(0).normal(size=(160, 160))
    images = np.stack([image, 2 * image, 0.25 * image]).astype(np.float32)[..., None]
    layout = LayoutRepresentation(Segmenter(("DNA",), workers=1))
    batch = {"image": jnp.asarray(images), "index": np.arange(3), "mask": np.ones(3, bool)}
    found = np.asarray(layout.features(batch)["layout"])
    assert found.dtype == np.float32 and found.shape == (3, layout.layers["layout"])
    np.testing.assert_array_equal(found[1:], found[[0, 0]])
    assert found[0, 0] == 25
    expected = layout_statistics(segment_nuclei(images[0, ..., 0])).astype(np.float32)
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_nuclei_give_finite_numbers(n):
    labels = np.zeros((50, 70), np.int32)
    for label in range(1, n + 1):
        labels[10 * label : 10 * label + 4, 20:26] = label
    found = by_name(labels)
    assert found["count"] == n and found["edge_length:mean"] == (10 if n > 1 else 0)
    if n < 2:
        assert found["clark_evans"] == 1 and not any(found[f"ripley:{r}"] for r in RADII_PX)
    everywhere = by_name(np.ones((50, 70), np.int32))
    assert everywhere["foreground"] == 1 and everywhere["solidity:mean"] == pytest.approx(1.0)


def test_rendered_mask_keeps_touching_nuclei_apart():
    labels = np.zeros((20, 30), np.int32)
    labels[5:14, 5:14], labels[5:14, 14:23], labels[18:, :2] = 1, 2, 3
    image = render_mask(labels)
    assert image.dtype == np.float32 and image.shape == (20, 30, 2)
    np.testing.assert_array_equal(image[..., 0], labels > 0)
    # A square of 9 pixels: 5 deep in its middle, 1 at its sides, where it touches the other too.
    assert image[9, 9, 1] == 5 and image[9, 18, 1] == 5
    assert image[9, 13, 1] == 1 and image[9, 14, 1] == 1
    assert image[19, 0, 1] == 1  # outside the image there is nothing
    assert (image[..., 1][labels == 0] == 0).all()
    assert not render_mask(np.zeros((4, 4), np.int32)).any()

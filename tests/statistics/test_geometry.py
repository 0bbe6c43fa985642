import json
import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn.neighbors import NearestNeighbors

from bioimg_jax.errors import InputError
from bioimg_jax.statistics.geometry import (
    alignment,
    alpha_req,
    geometry,
    hubness,
    lidar,
    mean_pairwise_cosine,
    participation_ratio,
    rankme,
    two_nn,
    uniformity,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def orthogonal(d, seed=0):
    return np.linalg.qr(normal(d, d, seed=seed)).Q


@pytest.mark.parametrize(("n", "expected"), [(384, 308), (3_840, 379)])
@pytest.mark.parametrize("centre", [True, False])
def test_rankme_of_a_normal_cloud(n, expected, centre):
    assert rankme(normal(n, 384), centre=centre) == pytest.approx(expected, rel=0.01)


def test_rankme_is_the_entropy_of_the_singular_values():
    x = normal(40, 60) + 0.3
    for centre in (True, False):
        values = np.linalg.svd(x - centre * x.mean(axis=0), compute_uv=False)
        expected = np.exp(stats.entropy(values / values.sum()))
        assert rankme(x, centre=centre) == pytest.approx(expected, rel=1e-6)


def test_a_common_mean_hides_the_other_directions_only_without_centring():
    x = normal(500, 20) + 100.0
    assert rankme(x, centre=False) < 2.0 < 19.0 < rankme(x)


def test_rank_of_a_collapsed_cloud():
    line = normal(200, 1) @ normal(1, 30, seed=1)
    assert rankme(line) == pytest.approx(1.0)
    assert participation_ratio(line) == pytest.approx(1.0)
    constant = np.full((50, 8), 0.1)
    assert rankme(constant) == participation_ratio(constant) == 0.0
    assert rankme(constant, centre=False) == pytest.approx(1.0)


def test_participation_ratio_of_an_isotropic_cloud_is_its_dimension():
    white = np.sqrt(300) * np.linalg.qr(normal(300, 25) - normal(300, 25).mean(axis=0)).Q
    assert participation_ratio(white) == pytest.approx(25.0)
    # A finite sample of it: d / (1 + d/n).
    assert participation_ratio(normal(2_000, 100)) == pytest.approx(100 / 1.05, rel=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_alpha_req_recovers_the_exponent(alpha):
    sd = np.arange(1, 201) ** (-alpha / 2)
    white = np.linalg.qr(normal(600, 200) - normal(600, 200).mean(axis=0)).Q
    exact = white * sd @ orthogonal(200)
    assert alpha_req(exact) == pytest.approx(alpha, abs=1e-6)
    assert alpha_req(normal(4_000, 200) * sd) == pytest.approx(alpha, abs=0.05)


def test_alpha_req_needs_a_spectrum():
    assert math.isnan(alpha_req(normal(100, 10)))
    assert alpha_req(normal(100, 10), fit=(1, 5)) > 0.0


@pytest.mark.parametrize(("d", "tolerance"), [(2, 0.15), (5, 0.4)])
def test_two_nn_of_a_cube_in_a_wide_space(d, tolerance):
    cube = np.random.default_rng(0).uniform(size=(2_500, d)) @ orthogonal(40)[:d]
    assert two_nn(cube) == pytest.approx(d, abs=tolerance)


def test_two_nn_counts_equal_rows_once():
    x = np.random.default_rng(1).uniform(size=(400, 3))
    assert two_nn(np.concatenate([x, x[:100], x[:100]])) == pytest.approx(two_nn(x))


def test_two_nn_does_not_exist_for_a_lattice_or_a_handful_of_points():
    lattice = np.stack(np.meshgrid(*[np.arange(12.0)] * 2), axis=-1).reshape(-1, 2)
    assert math.isnan(two_nn(lattice))
    assert math.isnan(two_nn(np.ones((100, 4))))


def test_uniformity_of_the_circle():
    angle = 2 * np.pi * np.arange(3_000) / 3_000
    circle = 7.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert uniformity(circle) == pytest.approx(math.log(special.ive(0, 4.0)), abs=2e-3)


def test_uniformity_agrees_with_a_loop_over_pairs():
    x = normal(1_500, 3)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = np.exp(-2 * np.square(u[:, None] - u[None]).sum(axis=2))[np.triu_indices(1_500, 1)]
    assert uniformity(x) == pytest.approx(np.log(pairs.mean()))
    assert uniformity(np.ones((30, 4))) == pytest.approx(0.0)


def test_alignment_of_identical_pairs_is_zero():
    x = normal(50, 6)
    assert alignment(np.repeat(x, 2, axis=0), np.repeat(np.arange(50), 2)) == 0.0


def test_alignment_agrees_with_a_loop_and_groups_weigh_the_same():
    x, groups = normal(9, 4), np.array(["a", "b", "b", "a", "a", "lone", None, "a", None], object)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    per_group = []
    for rows in ([0, 3, 4, 7], [1, 2]):
        pairs = [np.square(u[i] - u[j]).sum() for i in rows for j in rows if i < j]
        per_group.append(np.mean(pairs))
    assert alignment(x, groups) == pytest.approx(np.mean(per_group))
    assert math.isnan(alignment(x, np.arange(9)))


def test_mean_pairwise_cosine_agrees_with_a_loop():
    x = normal(30, 5) + 0.5
    cosines = [
        x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
        for i in range(30)
        for j in range(30)
        if i != j
    ]
    assert mean_pairwise_cosine(x) == pytest.approx(np.mean(cosines))


def test_hubness_of_a_ring_is_zero():
    angle = 2 * np.pi * np.arange(60) / 60
    assert hubness(np.stack([np.cos(angle), np.sin(angle)], axis=1)) == 0.0


def test_hubness_is_the_skewness_of_the_neighbour_graph():
    x = normal(300, 40)
    graph = NearestNeighbors(n_neighbors=10, metric="cosine").fit(x).kneighbors_graph()
    expected = stats.skew(np.asarray(graph.sum(axis=0)).ravel())
    assert hubness(x) == pytest.approx(expected)


def test_hubness_of_a_star():
    rays = np.eye(21)[0] + np.eye(21)  # twenty rays around the direction of the first row
    p = 1 / 21  # share of rows that are the hub; a two-point distribution has this skewness
    assert hubness(rays, k=1) == pytest.approx((1 - 2 * p) / math.sqrt(p * (1 - p)))


def test_hubness_does_not_depend_on_the_order_of_equal_rows():
    x = np.repeat(normal(12, 4), np.arange(3, 15), axis=0)
    order = np.random.default_rng(0).permutation(len(x))
    assert hubness(x) == pytest.approx(hubness(x[order]))


def test_lidar_counts_the_directions_that_tell_objects_apart():
    means = np.zeros((400, 16))
    means[:, :4] = 100.0 * normal(400, 4)
    x = np.repeat(means, 8, axis=0) + normal(3_200, 16, seed=1)
    groups = np.repeat(np.arange(400), 8)
    assert lidar(x, groups) == pytest.approx(4.0, abs=0.1)
    # RankMe cannot tell directions of noise; LiDAR does not see a change of scale or basis.
    stretched = 1e-3 * (x * np.where(np.arange(16) < 4, 1.0, 300.0)) @ orthogonal(16)
    assert lidar(stretched, groups) == pytest.approx(4.0, abs=0.1)
    assert rankme(stretched) > 12.0


def test_lidar_agrees_with_the_whitened_matrix():
    x, groups = normal(120, 5) + np.repeat(normal(30, 5, seed=1), 4, axis=0), np.arange(120) // 4
    stacked = x.reshape(30, 4, 5)
    within = sum((s - s.mean(axis=0)).T @ (s - s.mean(axis=0)) for s in stacked)
    within = within / 90
    within += 1e-4 * np.trace(within) / 5 * np.eye(5)
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    matrix = root @ np.cov(stacked.mean(axis=1).T, ddof=0) @ root
    shares = np.linalg.eigvalsh(matrix)
    assert lidar(x, groups) == pytest.approx(np.exp(stats.entropy(shares / shares.sum())))


def test_lidar_does_not_exist_where_the_ridge_would_decide():
    assert math.isnan(lidar(normal(20, 30), np.arange(20) // 2))
    assert math.isnan(lidar(normal(20, 3), np.zeros(20)))
    assert math.isnan(lidar(np.repeat(normal(10, 3), 4, axis=0), np.repeat(np.arange(10), 4)))


@pytest.mark.parametrize(
    "statistic", [rankme, participation_ratio, alpha_req, two_nn, uniformity, hubness]
)
def test_a_rotation_changes_nothing(statistic):
    x = normal(300, 24) * np.linspace(1, 3, 24) + 0.5
    assert statistic(x @ orthogonal(24)) == pytest.approx(statistic(x), rel=1e-6)


def test_geometry_has_every_statistic_and_is_json():
    x = normal(600, 16).astype(np.float16)
    found = geometry(x, np.arange(600) // 6, n=400)
    assert found["n"] == 400.0 and found["d"] == 16.0
    assert found["n_groups"] == 100.0 and found["n_grouped"] == 400.0
    assert all(isinstance(value, float) for value in found.values())
    json.dumps(found, allow_nan=False)


def test_geometry_measures_the_same_rows_of_every_representation():
    x, groups = normal(500, 16), np.arange(500) // 5
    wide = np.concatenate([x, np.zeros((500, 5))], axis=1) @ orthogonal(21)
    a, b = (geometry(features, groups, n=200, seed=3) for features in (x, wide))
    assert a.pop("d") == 16.0 and b.pop("d") == 21.0
    # The ridge of LiDAR is relative to the mean variance over all features, empty ones included.
    assert a.pop("lidar") == pytest.approx(b.pop("lidar"), rel=1e-3)
    assert a == pytest.approx(b, rel=1e-6)
    assert a != geometry(x, n=200, seed=4)
    all_rows = geometry(x, n=500)
    assert all_rows["rankme"] == pytest.approx(rankme(x))


def test_geometry_at_equal_d():
    x = normal(600, 64)
    found = geometry(x, n=500, d=16)
    assert found["d"] == 16.0 and 15.0 < found["rankme"] <= 16.0
    assert geometry(x, n=500, d=64) == geometry(x, n=500)


def test_geometry_without_groups_or_variance_says_none():
    found = geometry(np.ones((40, 3)), n=30)
    assert found["n_groups"] is found["lidar"] is found["alignment"] is None
    assert found["two_nn"] is found["alpha_req"] is None
    assert found["rankme"] == 0.0 and found["uniformity"] == 0.0 and found["hubness"] == 0.0
    lonely = geometry(normal(40, 3), np.arange(40), n=30)
    assert lonely["alignment"] is None and lonely["n_groups"] == 0.0


def test_grouped_rows_stay_within_n_whatever_the_sizes_of_the_groups():
    sizes = np.random.default_rng(0).integers(1, 9, 300)
    groups = np.repeat(np.arange(300), sizes)
    found = geometry(normal(len(groups), 4), groups, n=200)
    assert found["n_groups"] == 100.0 and found["n_grouped"] == 200.0
    controls = np.where(np.arange(len(groups)) < 900, "DMSO", groups.astype(str))
    found = geometry(normal(len(groups), 4), controls, n=1_000)
    assert found["n_grouped"] <= found["n_groups"] * (1_000 // found["n_groups"]) < 1_000


def test_bad_input_is_named():
    x = normal(50, 4)
    with pytest.raises(InputError, match="n = 60 rows asked for, the features have 50"):
        geometry(x, n=60)
    with pytest.raises(InputError, match="d = 5 asked for, the features have 4"):
        geometry(x, n=20, d=5)
    with pytest.raises(InputError, match="49 groups for 50 rows"):
        geometry(x, np.arange(49), n=20)
    x[7, 2] = np.inf
    with pytest.raises(InputError, match="row 7 of the features is not finite"):
        geometry(x, n=20)

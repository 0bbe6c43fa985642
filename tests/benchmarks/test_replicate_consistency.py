import dataclasses
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from bioimg_jax.benchmarks import replicate_consistency as consistency
from bioimg_jax.benchmarks.replicate_consistency import replicate_consistency
from bioimg_jax.errors import InputError


def screen(sizes, controls, d=5, *, shift=0.0, seed=0):
    """Names T0, T1 ... of the given numbers of replicates, shifted from controls."""
    rng = np.random.default_rng(seed)
    names = np.array([f"T{i}" for i, n in enumerate(sizes) for _ in range(n)] + [""] * controls)
    is_control = names == ""
    features = rng.normal(size=(len(names), d))
    features[~is_control] += shift
    return features, names.astype(object), is_control


def mean_cosine(rows):
    cosines = cosine_similarity(rows)
    return cosines[np.triu_indices(len(rows), 1)].mean()


def energy(x, y):
    return 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()


@pytest.mark.parametrize("block", [1 << 21, 50])
def test_statistics_are_their_definitions(block, monkeypatch):
    monkeypatch.setattr(consistency, "BLOCK_NUMBERS", block)
    features, names, is_control = screen([3, 5, 2], 20, shift=0.5)
    features[0] = features[1]
    features[4, 2] = features[15, 2]  # a value that a replicate and a control share
    found = replicate_consistency(features, names, is_control, permutations=9)
    assert found.perturbations.tolist() == ["T0", "T1", "T2"]
    assert found.replicates.tolist() == [3, 5, 2] and found.controls.tolist() == [20] * 3
    y = features[is_control]
    for i, name in enumerate(found.perturbations):
        x = features[names == name]
        assert found.cosine[i] == pytest.approx(mean_cosine(x))
        assert found.energy[i] == pytest.approx(energy(x, y))
        ks = [stats.ks_2samp(x[:, j], y[:, j], method="asymp").statistic for j in range(5)]
        assert found.ks_max[i] == pytest.approx(max(ks))
        assert found.ks_mean[i] == pytest.approx(np.mean(ks))


def test_energy_of_one_feature_is_scipys_squared():
    features, names, is_control = screen([6], 15, d=1, shift=1.0)
    found = replicate_consistency(features, names, is_control, permutations=1)
    peer = stats.energy_distance(features[:6, 0], features[6:, 0]) ** 2
    assert found.energy[0] == pytest.approx(peer)


@pytest.mark.parametrize("kind", ["rounded", "constant", "zeros"])
def test_equal_values_are_counted_exactly(kind):
    features, names, is_control = screen([4, 7], 12)
    features = {"rounded": np.round(features), "constant": features * 0 + 3, "zeros": features * 0}
    x = features[kind]
    found = replicate_consistency(x, names, is_control, permutations=99)
    for i, name in enumerate(found.perturbations):
        mine = x[names == name]
        ks = [stats.ks_2samp(mine[:, j], x[11:, j], method="asymp").statistic for j in range(5)]
        assert found.ks_max[i] == pytest.approx(max(ks), abs=1e-15)
    if kind != "rounded":
        assert (found.cosine_p == 1.0).all() and (found.energy_p == 1.0).all()
        assert (found.energy == 0.0).all()
        assert found.cosine == pytest.approx(1.0 if kind == "constant" else 0.0)


def exact_p(statistic, own, groups):
    """Over all groups as large as the own one, which is among them."""
    values = np.array([statistic(np.array(group)) for group in groups])
    return np.mean(values >= statistic(own) - 1e-9)


def test_p_values_approach_the_permutation_test():
    features, names, is_control = screen([3], 6, shift=0.6, seed=1)
    found = replicate_consistency(features, names, is_control, permutations=20_000)
    groups = list(combinations(range(9), 3))
    own = np.array([0, 1, 2])

    def distance(group):
        return energy(features[group], np.delete(features, group, axis=0))

    for p, statistic in (
        (found.cosine_p[0], lambda group: mean_cosine(features[group])),
        (found.energy_p[0], distance),
    ):
        expected = exact_p(statistic, own, groups)
        assert p == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 20_000))


def test_strata_are_kept_apart():
    """Replicates and controls of two plates; a plate's shift is in both and tells nothing."""
    rng = np.random.default_rng(2)
    plate = np.array(["a"] * 14 + ["b"] * 20, object)
    features = rng.normal(size=(34, 4)) + np.where(plate == "a", 4.0, -4.0)[:, None]
    names = ["one"] * 4 + ["none"] * 10 + ["two"] * 9 + ["one"] + ["none"] * 10
    names, is_control = np.array(names, object), np.array(names) == "none"
    options = {"permutations": 999}
    apart = replicate_consistency(features, names, is_control, strata=plate, **options)
    mixed = replicate_consistency(features, names, is_control, **options)
    assert apart.perturbations.tolist() == ["one", "two"]
    assert apart.controls.tolist() == [20, 10] and mixed.controls.tolist() == [20, 20]
    assert (apart.energy_p > 0.05).all() and (apart.cosine_p > 0.05).all()
    assert mixed.energy_p[1] < 0.05 and mixed.cosine_p[1] < 0.05
    y = features[is_control & (plate == "b")]
    assert apart.energy[1] == pytest.approx(energy(features[names == "two"], y))


def test_a_perturbation_that_does_something_is_seen():
    features, names, is_control = screen([4, 4, 4], 40, d=10)
    features[names == "T1"] += 2.0
    found = replicate_consistency(features, names, is_control, permutations=999)
    assert found.cosine_p[1] == 0.001 and found.energy_p[1] == 0.001
    assert found.cosine_p[[0, 2]].min() > 0.01 and found.energy_p[[0, 2]].min() > 0.01
    assert found.ks_max.argmax() == 1 and found.ks_mean.argmax() == 1


def test_p_values_are_super_uniform_with_few_controls_and_controls_alone_are_not():
    n, cut = 300, 0.05
    groups = np.array(list(combinations(range(6, 14), 6)))  # of the controls
    first, second = np.triu_indices(6, 1)
    p = np.empty((3, n))
    for i in range(n):
        features, names, is_control = screen([6], 8, seed=i)
        found = replicate_consistency(features, names, is_control, permutations=199)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        null = (unit @ unit.T)[groups[:, first], groups[:, second]].mean(axis=1)
        as_high = (1 + np.sum(null >= found.cosine[0])) / (1 + len(groups))
        p[:, i] = found.cosine_p[0], found.energy_p[0], as_high
    share = (p <= cut).mean(axis=1)
    assert (share[:2] <= cut + 3 * np.sqrt(cut * (1 - cut) / n)).all()
    assert share[2] > 0.1


def test_order_and_other_perturbations_leave_no_trace():
    features, names, is_control = screen([3, 4], 12)
    plate = np.array([f"p{i % 2}" for i in range(len(names))], object)
    options = {"permutations": 50}
    found = replicate_consistency(features, names, is_control, strata=plate, **options)
    order = np.random.default_rng(0).permutation(len(names))
    again = replicate_consistency(
        features[order], names[order], is_control[order], strata=plate[order], **options
    )
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    alone = names != "T0"
    one = replicate_consistency(
        features[alone], names[alone], is_control[alone], strata=plate[alone], **options
    )
    assert one.cosine_p == found.cosine_p[1:] and one.energy_p == found.energy_p[1:]


def test_what_cannot_be_compared_is_left_out_and_counted():
    features, names, is_control = screen([1, 2, 3], 10)
    plate = np.array(["a"] * len(names), object)
    plate[1] = "b"  # of T1, beside no control
    found = replicate_consistency(features, names, is_control, strata=plate, permutations=9)
    assert found.perturbations.tolist() == ["T2"]
    assert found.single == ("T0", "T1") and found.rows_alone == 1


def test_many_controls_are_sampled_by_stratum(monkeypatch):
    monkeypatch.setattr(consistency, "MOST_CONTROLS", 20)
    features, names, is_control = screen([4], 90)
    plate = np.array(["a", "a", "b", "b"] + ["a"] * 30 + ["b"] * 60, object)
    found = replicate_consistency(features, names, is_control, strata=plate, permutations=99)
    assert found.controls.tolist() == [7 + 14]
    order = np.random.default_rng(0).permutation(94)
    again = replicate_consistency(
        features[order], names[order], is_control[order], strata=plate[order], permutations=99
    )
    assert again.energy == found.energy and again.energy_p == found.energy_p


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((15, 5), np.inf)}, "feature 0 of row 0 is not finite"),
        ({"features": np.zeros((15, 0))}, r"features \(15, 0\)"),
        ({"features": np.zeros((14, 5))}, "15 values of perturbations for 14 rows"),
        ({"is_control": np.zeros(14, bool)}, "14 values of is_control for 15 rows"),
        ({"is_control": np.zeros(15)}, "is_control holds float64, expected true or false"),
        ({"is_control": np.zeros(15, bool)}, "none of the 15 rows is control"),
        ({"is_control": np.ones(15, bool)}, "none of the 15 rows is treated"),
        ({"perturbations": np.array(["T0", None] + ["T1"] * 13, object)}, "row 1 has no pert"),
        ({"strata": np.array(["a"] * 14 + [None], object)}, "row 14 has no stratum"),
        ({"strata": np.array(["a"] * 14, object)}, "14 values of strata for 15 rows"),
        ({"strata": np.array(["a"] * 5 + ["b"] * 10, object)}, "none of 2 perturbations has two"),
        ({"perturbations": np.arange(15)}, "none of 5 perturbations has two replicates"),
        ({"permutations": 0}, "0 permutations, expected 1 or more"),
    ],
)
def test_a_wrong_screen_is_refused(change, message):
    features, names, is_control = screen([2, 3], 10)
    given = {"features": features, "perturbations": names, "is_control": is_control} | change
    with pytest.raises(InputError, match=message) as raised:
        replicate_consistency(**given)
    assert "\n" not in str(raised.value)

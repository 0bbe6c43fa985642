"""Alignments against scikit-learn, SciPy and the papers; and on screens without effects."""

import json

import numpy as np
import pytest
from scipy.linalg import fractional_matrix_power
from scipy.stats import median_abs_deviation
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from bioimg_jax.errors import InputError
from bioimg_jax.features import alignment
from bioimg_jax.features.alignment import METHODS, cross_fit, find_alignment, split_positions


def screen(controls=40, treated=30, d=12, batches=4, seed=0):
    """Correlated features float64 [n, d] in batches that differ in mean and covariance."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.arange(1, d + 1) ** -0.5
    parts = []
    for _ in range(batches):
        own = mixing @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d))
        wells = rng.normal(size=(controls + treated, d)) @ own + 0.5 * rng.normal(size=d)
        wells[controls:] += rng.normal(size=d)
        parts.append(2.0 * wells + 5.0)
    batch = np.repeat([f"P{b}" for b in range(batches)], controls + treated)
    is_control = np.tile(np.arange(controls + treated) < controls, batches)
    return np.concatenate(parts), batch, is_control


def aligned(name, features, batch, controls):
    return find_alignment(name).fit(features, batch, controls).transform(features, batch)


def by_batch(features, batch, fit):
    """Each batch's rows through what `fit` makes of (the batch's mask)."""
    result = np.empty_like(features)
    for name in np.unique(batch):
        here = batch == name
        result[here] = fit(here)(features[here])
    return result


def scaled(features, fitted_on):
    return StandardScaler().fit(features[fitted_on]).transform(features)


def scaled_by_batch(features, batch, among):
    return by_batch(
        features, batch, lambda here: StandardScaler().fit(features[here & among]).transform
    )


def components(features, controls):
    return PCA().fit(features[controls]).transform(features)


def times_power(features, covariance, power):
    return features @ np.real(fractional_matrix_power(covariance, power))


def by_hand(name, x, batch, controls):
    """The definitions in NumPy and scikit-learn, for controls many times the features."""
    d = x.shape[1]
    everyone = np.full(len(x), True)
    if name == "standardise":
        return scaled_by_batch(x, batch, everyone)
    if name == "centerscale_on_controls":
        return scaled_by_batch(x, batch, controls)
    if name == "pca_cs":
        return scaled_by_batch(components(x, controls), batch, controls)
    if name == "tvn":
        x = scaled(components(scaled(x, controls), controls), controls)

        def soft(here):
            covariance = np.cov(x[here & controls], rowvar=False, ddof=1) + 0.5 * np.eye(d)
            return lambda rows: times_power(rows, covariance, -0.5)

        return by_batch(x, batch, soft)
    if name == "tvn_deepprofiler":
        x = x - x[controls].mean(axis=0)
        eigenvalues, basis = np.linalg.eigh(x[controls].T @ x[controls] / controls.sum())
        x = x @ basis[:, ::-1] @ np.diag(1 / np.sqrt(eigenvalues[::-1] + 1))
    if name == "coral":
        x = x - x[controls].mean(axis=0)
    target = np.cov(x[controls], rowvar=False) + np.eye(d)

    def coral(here):
        source = np.cov(x[here & controls], rowvar=False) + np.eye(d)
        return lambda rows: times_power(times_power(rows, source, -0.5), target, 0.5)

    return by_batch(x, batch, coral)


def same_signs(found, expected):
    return found * np.sign(np.sum(found * expected, axis=0))


@pytest.mark.parametrize(
    "name",
    ["standardise", "centerscale_on_controls", "pca_cs", "tvn", "tvn_deepprofiler", "coral"],
)
def test_agrees_with_its_definition(name):
    features, batch, controls = screen()
    with np.errstate(all="raise"):
        found = aligned(name, features, batch, controls)
    expected = by_hand(name, features, batch, controls)
    np.testing.assert_allclose(same_signs(found, expected), expected, atol=1e-8, rtol=1e-8)


def test_mad_robustise_agrees_with_scipy():
    features, batch, controls = screen(controls=17)

    def fit(here):
        own = features[here & controls]
        spread = median_abs_deviation(own, axis=0, scale=1 / 1.4826)
        return lambda rows: (rows - np.median(own, axis=0)) / spread

    found = aligned("mad_robustise", features, batch, controls)
    np.testing.assert_allclose(found, by_batch(features, batch, fit), rtol=1e-12, atol=1e-12)


def test_sphering_is_white_and_as_near_to_its_input_as_that_can_be():
    features, batch, controls = screen(d=30)
    features *= 10.0 ** np.linspace(-4, 4, 30)
    found = aligned("sphering", features, batch, controls)
    covariance = np.cov(found[controls], rowvar=False)
    assert np.abs(covariance - np.eye(30)).max() < 1e-9
    assert np.abs(found[controls].mean(axis=0)).max() < 1e-9
    # ZCA-cor is the whitening whose cross-covariance with the standardised features is symmetric
    # and positive (Kessy et al.).
    standard = scaled(features, controls)[controls]
    cross = standard.T @ found[controls] / controls.sum()
    np.testing.assert_allclose(cross, cross.T, atol=1e-9)
    assert np.linalg.eigvalsh(cross).min() > 0


def test_coral_makes_covariances_of_batches_equal():
    features, batch, controls = screen()
    large = 1e4 * features  # λ = 1 is then next to nothing
    found = aligned("coral", large, batch, controls)
    target = np.cov(large[controls], rowvar=False)
    for name in np.unique(batch):
        own = np.cov(found[controls & (batch == name)], rowvar=False)
        np.testing.assert_allclose(own, target, atol=1e-6 * np.abs(target).max())
    # At any scale, mapping M of a batch: Mᵀ (C + λI) M = C_all + λI.
    stage = find_alignment("coral").fit(features, batch, controls).stages[0]
    target = np.cov(features[controls], rowvar=False) + np.eye(12)
    for name, m in zip(np.unique(batch), stage.factor, strict=True):
        own = np.cov(features[controls & (batch == name)], rowvar=False) + np.eye(12)
        np.testing.assert_allclose(m.T @ own @ m, target, atol=1e-10)


def combat_by_hand(x, batch):
    """The paper's formulas, one feature and one batch at a time."""
    names, n, d = np.unique(batch), len(x), x.shape[1]
    mean = x.mean(axis=0)
    residuals = np.concatenate([x[batch == b] - x[batch == b].mean(axis=0) for b in names])
    sd = np.sqrt(np.square(residuals).sum(axis=0) / n)
    z = (x - mean) / sd
    result = np.empty_like(x)
    for b in names:
        rows = z[batch == b]
        gammas, deltas = rows.mean(axis=0), rows.var(axis=0, ddof=1)
        gamma_bar, tau2 = gammas.mean(), gammas.var(ddof=1)
        v, s2 = deltas.mean(), deltas.var(ddof=1)
        shape, scale = (v**2 + 2 * s2) / s2, (v**3 + v * s2) / s2
        for g in range(d):
            gamma, delta = gammas[g], deltas[g]
            for _ in range(200):
                gamma = (len(rows) * tau2 * gammas[g] + delta * gamma_bar) / (
                    len(rows) * tau2 + delta
                )
                squares = sum((value - gamma) ** 2 for value in rows[:, g])
                delta = (scale + squares / 2) / (len(rows) / 2 + shape - 1)
            result[batch == b, g] = (rows[:, g] - gamma) / np.sqrt(delta) * sd[g] + mean[g]
    return result


def test_combat_agrees_with_the_paper():
    features, batch, controls = screen(controls=9, treated=8, d=8)
    everyone = np.full(len(features), True)
    found = aligned("combat", features, batch, everyone)
    np.testing.assert_allclose(found, combat_by_hand(features, batch), rtol=1e-8, atol=1e-8)
    on_controls = aligned("combat", features, batch, controls)
    expected = combat_by_hand(features[controls], batch[controls])
    np.testing.assert_allclose(on_controls[controls], expected, rtol=1e-8, atol=1e-8)


def test_combat_of_one_feature_or_of_equal_features_has_nothing_to_learn_between_them():
    features, batch, controls = screen(d=3)
    one = features[:, :1]
    found = aligned("combat", one, batch, controls)
    for name in np.unique(batch):
        own = found[controls & (batch == name)]
        assert own.mean() == pytest.approx(one[controls].mean())
    twice = aligned("combat", np.hstack([one, one]), batch, controls)
    np.testing.assert_allclose(twice, np.hstack([found, found]), rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_as_many_features_as_controls_stay_bounded(name):
    features, batch, controls = screen(controls=10, treated=20, d=64)
    fitted = find_alignment(name).fit(features, batch, controls)
    found = fitted.transform(features, batch)
    assert np.isfinite(found).all() and np.abs(found).max() < 1e4
    if name in ("pca_cs", "tvn"):
        assert found.shape[1] == 39  # one less than the controls
    if name in ("pca_cs", "tvn", "sphering"):
        assert sum(stage["dropped"] for stage in fitted.describe()["stages"]) == 64 - 39


def test_methods_in_a_chain_are_fitted_one_after_the_other():
    features, batch, controls = screen(d=10)
    names = ("mad_robustise", "tvn", "combat", "standardise")
    expected = features
    for name in names:
        expected = aligned(name, expected, batch, controls)
    found = aligned(" , ".join(names), features, batch, controls)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_rows_does_not_matter(name):
    features, batch, controls = screen(controls=12, treated=5, d=9)
    order = np.random.default_rng(1).permutation(len(features))
    found = aligned(name, features, batch, controls)
    shuffled = aligned(name, features[order], batch[order], controls[order])
    np.testing.assert_allclose(shuffled, found[order], rtol=1e-8, atol=1e-8)


def test_rows_come_in_blocks_of_few_sizes(monkeypatch):
    features, batch, controls = screen(controls=150, treated=70, d=5)
    fitted = find_alignment("tvn").fit(features, batch, controls)
    whole = fitted.transform(features, batch)
    monkeypatch.setattr(alignment, "ROW_BLOCK", 64)
    before = alignment._affine._cache_size()
    for n in range(1, 200, 7):
        rows = np.random.default_rng(n).permutation(len(features))[:n]
        some = fitted.transform(features[rows], batch[rows])
        np.testing.assert_allclose(some, whole[rows], rtol=1e-12, atol=1e-12)
    assert alignment._affine._cache_size() - before <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_whatever_the_features_are_fitting_is_float64(dtype):
    features, batch, controls = screen()
    features = (8 * features).astype(dtype)
    found = aligned("tvn", features, batch, controls)
    wide = aligned("tvn", features.astype(np.float64), batch, controls)
    assert found.dtype == (np.float32 if features.dtype.kind == "f" and dtype != np.float64
                           else np.float64)  # fmt: skip
    np.testing.assert_array_equal(found, wide.astype(found.dtype))


def test_without_a_method_features_stay_and_need_no_controls():
    features, batch, controls = screen()
    for name in ("", "none", " none "):
        fitted = find_alignment(name).fit(features, batch, np.zeros_like(controls))
        np.testing.assert_array_equal(fitted.transform(features, batch), features)
        assert not fitted.transductive and fitted.describe()["alignment"] == "none"


def test_what_was_done_is_told():
    features, batch, controls = screen(d=6)
    features = np.hstack([features, np.full((len(features), 1), 0.1), features[:, :1] * 3])
    fitted = find_alignment("centerscale_on_controls,tvn").fit(features, batch, controls)
    facts = json.loads(json.dumps(fitted.describe()))
    stages = facts.pop("stages")
    assert facts == {
        "alignment": "centerscale_on_controls,tvn",
        "transductive": True,
        "batches": 4,
        "controls": 160,
        "features_in": 8,
    }
    assert [(s["step"], s["transductive"], s["dropped"], s["features"]) for s in stages] == [
        ("standardise", True, 1, 7),
        ("standardise", False, 0, 7),
        ("principal components", False, 1, 6),
        ("standardise", False, 0, 6),
        ("whiten batches softly", True, 0, 6),
    ]
    assert {s["fitted_on"] for s in stages} == {"controls"}
    of_all = find_alignment("standardise").fit(features, batch, controls).describe()
    assert of_all["stages"][0]["fitted_on"] == "all wells"


@pytest.mark.parametrize("name", ["standardise", "centerscale_on_controls", "mad_robustise", "tvn",
                                  "sphering", "combat"])  # fmt: skip
def test_near_constant_features_leave_every_batch(name):
    features, batch, controls = screen(d=6)
    expected = aligned(name, features, batch, controls)
    noise = np.random.default_rng(0).normal(size=len(features))
    rounding = (100 + 1e-6 * noise).astype(np.float32)
    constant = np.where(controls, 7.0, noise)[:, None]
    bad = [rounding[:, None], np.zeros((len(features), 1))]
    if name != "standardise":
        bad.append(constant)
    wide = np.hstack([*bad, features])
    fitted = find_alignment(name).fit(wide, batch, controls)
    assert fitted.stages[0].dropped == len(bad)
    np.testing.assert_allclose(fitted.transform(wide, batch), expected, rtol=1e-9, atol=1e-9)


def test_a_feature_that_is_constant_in_one_batch_leaves_where_batches_are_scaled():
    features, batch, controls = screen(d=5)
    features[(batch == "P2") & controls, 3] = 4.0
    per_batch = find_alignment("mad_robustise").fit(features, batch, controls)
    assert per_batch.stages[0].columns.tolist() == [0, 1, 2, 4]
    assert find_alignment("sphering").fit(features, batch, controls).stages[0].dropped == 0


def test_a_map_for_all_batches_takes_new_batches_and_one_for_each_does_not():
    features, batch, controls = screen()
    elsewhere = np.where(batch == "P3", "P9", batch)
    pooled = find_alignment("sphering").fit(features, batch, controls)
    assert not pooled.transductive
    np.testing.assert_array_equal(
        pooled.transform(features, elsewhere), pooled.transform(features, batch)
    )
    fitted = find_alignment("tvn").fit(features, batch, controls)
    assert fitted.transductive
    with pytest.raises(InputError, match="row 210: the alignment has not seen batch 'P9'"):
        fitted.transform(features, elsewhere)


def test_batches_are_compared_as_text():
    features, batch, controls = screen()
    number = np.array([int(name[1:]) for name in batch])
    fitted = find_alignment("coral").fit(features, number, controls)
    np.testing.assert_array_equal(
        fitted.transform(features, [str(value) for value in number]),
        fitted.transform(features, number),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tvm", "no alignment 'tvm'; did you mean 'tvn'[?] there are: none, standardise, "),
        ("mad_robustise,quantum", "no alignment 'quantum'; there are: none, standardise, "),
        ("tvn,", "no alignment ''; there are"),
    ],
)
def test_an_unknown_method_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        find_alignment(name)


def spoiled(features, batch, controls, how):
    if how == "nan":
        features[7, 3] = np.nan
    elif how == "flat":
        features = features[:, 0]
    elif how == "text":
        features = features.astype(str)
    elif how == "empty":
        features, batch, controls = features[:0], batch[:0], controls[:0]
    elif how == "no features":
        features = features[:, :0]
    elif how == "short batch":
        batch = batch[:-1]
    elif how == "missing batch":
        batch = batch.astype(object)
        batch[5] = None
    elif how == "short controls":
        controls = controls[:-1]
    elif how == "number controls":
        controls = controls.astype(int)
    elif how == "no controls":
        controls = np.zeros_like(controls)
    elif how == "none in a batch":
        controls = controls & (batch != "P2")
    elif how == "one in a batch":
        controls = controls & ((batch != "P2") | (np.arange(len(batch)) == 140))
    elif how == "all the same":
        features[controls] = 0.1
    elif how == "the same in a batch":
        features[controls & (batch == "P2")] = 0.1
    return features, batch, controls


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("tvn", "nan", "feature 3 of row 7 is not finite"),
        ("none", "nan", "feature 3 of row 7 is not finite"),
        ("tvn", "flat", r"features to align: float64 \(280,\), expected numbers \[n, d\]"),
        ("tvn", "text", r"expected numbers \[n, d\]"),
        ("tvn", "empty", r"float64 \(0, 12\), expected numbers"),
        ("tvn", "no features", r"float64 \(280, 0\), expected numbers"),
        ("tvn", "short batch", r"batch of rows: shape \(279,\), expected \(280,\)"),
        ("tvn", "missing batch", "row 5 has no batch"),
        ("tvn", "short controls", r"controls: bool \(279,\), expected bool \(280,\)"),
        ("tvn", "number controls", r"controls: int64 \(280,\), expected bool"),
        ("tvn", "no controls", "'tvn': too few wells are controls: 0, expected at least 2"),
        ("pca_cs", "no controls", "'pca_cs': too few wells are controls: 0"),
        ("mad_robustise", "no controls", "'mad_robustise': no well is a control"),
        (
            "combat",
            "none in a batch",
            "batch 'P2' has too few control wells: 0, expected at least 2",
        ),
        ("tvn", "one in a batch", "'tvn': batch 'P2' has too few control wells: 1, expected"),
        ("coral", "one in a batch", "'coral': batch 'P2' has too few control wells: 1"),
        ("tvn", "all the same", "each of the features is near-constant in some batch"),
        ("pca_cs", "all the same", "'pca_cs': each of the features is near-constant in some batch"),
        ("combat", "the same in a batch", "the controls of batch 'P2' are all the same"),
    ],
)
def test_bad_input_is_named(name, how, message):
    features, batch, controls = spoiled(*screen(), how)
    with pytest.raises(InputError, match=message) as caught:
        find_alignment(name).fit(features, batch, controls)
    assert "\n" not in str(caught.value)


def test_a_batch_of_one_well_has_no_spread():
    features, batch, controls = screen()
    batch = batch.astype(object)
    batch[-1] = "alone"
    with pytest.raises(InputError, match="batch 'alone' has too few wells: 1, expected at least 2"):
        find_alignment("standardise").fit(features, batch, controls)


def test_bad_rows_to_transform_are_named():
    features, batch, controls = screen()
    fitted = find_alignment("tvn").fit(features, batch, controls)
    with pytest.raises(InputError, match="fitted to 12 features, not 11"):
        fitted.transform(features[:, 1:], batch)
    with pytest.raises(InputError, match=r"batch of rows: shape \(4,\), expected \(280,\)"):
        fitted.transform(features, batch[:4])
    with pytest.raises(InputError, match="expected numbers"):
        fitted.transform(features[:0], batch[:0])
    features[2, 1] = np.inf
    with pytest.raises(InputError, match="feature 1 of row 2 is not finite"):
        fitted.transform(features, batch)


def layout(plates, controls, treated, *, scattered, seed=0):
    """Plate, whether a control, and position of wells; the same map on all plates or one each."""
    rng = np.random.default_rng(seed)
    names = np.array([f"{row}{column:02}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)])
    wells = controls + treated
    maps = [rng.permutation(384)[:wells] for _ in range(plates)] if scattered else None
    positions = np.concatenate(
        [names[maps[p] if maps else np.arange(wells)] for p in range(plates)]
    )
    return (
        np.repeat(np.arange(plates), wells),
        np.tile(np.arange(wells) < controls, plates),
        positions,
    )


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("parts", [2, 3])
def test_positions_of_controls_are_split_within_every_batch(scattered, parts):
    for seed in range(20):
        batch, controls, positions = layout(20, 8, 40, scattered=scattered, seed=seed)
        part = split_positions(batch, controls, positions, parts=parts, seed=seed)
        assert (part[~controls] == -1).all() and set(part[controls]) == set(range(parts))
        for position in np.unique(positions[controls]):
            assert len(set(part[controls & (positions == position)])) == 1
        for plate in range(20):
            counts = np.bincount(part[controls & (batch == plate)], minlength=parts)
            assert counts.min() >= (2 if scattered or parts == 3 else 4) - scattered


def test_a_split_is_the_seed_s_whatever_the_order_of_rows():
    batch, controls, positions = layout(6, 10, 20, scattered=True)
    part = split_positions(batch, controls, positions, seed=3)
    order = np.random.default_rng(0).permutation(len(part))
    shuffled = split_positions(batch[order], controls[order], positions[order], seed=3)
    np.testing.assert_array_equal(shuffled, part[order])
    assert (split_positions(batch, controls, positions, seed=4) != part).any()


def test_each_part_of_the_controls_is_negative_once():
    features, batch, controls = screen(controls=12, treated=4)
    positions = np.tile([f"A{i:02}" for i in range(16)], 4)
    chain = find_alignment("mad_robustise,tvn")
    parts = list(cross_fit(chain, features, batch, controls, positions, parts=3, seed=1))
    np.testing.assert_array_equal(sum(part.negatives.astype(int) for part in parts), controls)
    for part in parts:
        fitted = chain.fit(features, batch, controls & ~part.negatives)
        np.testing.assert_array_equal(part.aligned, fitted.transform(features, batch))
        assert part.fitted.describe() == fitted.describe()


def test_controls_that_cannot_be_split_are_named():
    features, batch, controls = screen(controls=3, treated=4)
    positions = np.tile(np.array([f"A{i:02}" for i in range(7)], object), 4)
    chain = find_alignment("tvn")
    with pytest.raises(InputError, match="in at least 2 parts, not 1"):
        cross_fit(chain, features, batch, controls, positions, parts=1)
    with pytest.raises(InputError, match="at 3 well positions, too few for 4 parts"):
        cross_fit(chain, features, batch, controls, positions, parts=4)
    with pytest.raises(InputError, match="27 positions for 28 rows"):
        cross_fit(chain, features, batch, controls, positions[1:])
    with pytest.raises(InputError, match="of 2: alignment 'tvn': batch 'P0' has too few control"):
        list(cross_fit(chain, features, batch, controls, positions))
    positions[3] = None  # no control
    split_positions(batch, controls, positions)
    positions[8] = None
    with pytest.raises(InputError, match="row 8 has no position"):
        split_positions(batch, controls, positions)


# A screen in which no treatment does anything: experiments of plates, the same map on all.
EXPERIMENTS, PLATES, CONTROLS, TREATED = 8, 4, 12, 24
WHITENING = ["sphering", "tvn", "mad_robustise,tvn", "tvn_deepprofiler"]


def null_screen(d, seed):
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(d, d)))[0] * (30 * np.arange(1, d + 1) ** -0.7)
    experiment, _, position = np.indices((EXPERIMENTS, PLATES, CONTROLS + TREATED))
    features = rng.normal(size=(*experiment.shape, d)) @ mixing.T
    features += 5 * rng.normal(size=(EXPERIMENTS, PLATES, 1, d))
    features *= np.exp(0.2 * rng.normal(size=(EXPERIMENTS, 1, 1, d)))
    return features.reshape(-1, d), experiment.ravel(), position.ravel()


def share_active(aligned, negatives, position, draws=199):
    """Share of treatments with p ≤ 0.05, exact if they are exchangeable with the negatives.

    The statistic is the length of a treatment's mean over the plates of its experiment; the null
    takes on each plate one of the treatment's well and the negatives.
    """
    rng = np.random.default_rng(0)
    wells = aligned.reshape(EXPERIMENTS, PLATES, CONTROLS + TREATED, -1)
    mine = np.flatnonzero(negatives[: CONTROLS + TREATED])
    active = []
    for plates in wells:
        gram = np.einsum("pid,qjd->piqj", plates, plates)
        for treatment in range(CONTROLS, CONTROLS + TREATED):
            choice = np.append(mine, treatment)[rng.integers(0, len(mine) + 1, (draws, PLATES))]
            choice = np.vstack([np.full(PLATES, treatment), choice])
            p = np.arange(PLATES)
            length = gram[p[:, None], choice[:, :, None], p[None, :], choice[:, None, :]].sum(
                axis=(1, 2)
            )
            active.append(np.mean(length >= length[0] * (1 - 1e-9)) <= 0.05)
    return np.mean(active)


@pytest.mark.parametrize("d", [24, 200])  # of 192 controls in the fit
@pytest.mark.parametrize("name", [*METHODS, "mad_robustise,tvn"])
def test_treatments_without_effect_are_not_active(name, d):
    shares = []
    for seed in range(6):
        features, batch, position = null_screen(d, seed)
        controls = position < CONTROLS
        for part in cross_fit(find_alignment(name), features, batch, controls, position):
            shares.append(share_active(part.aligned, part.negatives, position))
    assert np.mean(shares) <= 0.07


@pytest.mark.parametrize("name", WHITENING)
def test_with_the_controls_of_the_fit_as_negatives_they_are(name):
    features, batch, position = null_screen(200, 0)
    controls = position < CONTROLS
    found = aligned(name, features, batch, controls)
    assert share_active(found, controls, position) > 0.2


@pytest.mark.parametrize("name", WHITENING)
def test_treatments_with_an_effect_are_found_by_controls_that_were_held_out(name):
    features, batch, position = null_screen(24, 0)
    controls = position < CONTROLS
    spread = features[controls].std(axis=0)
    direction = np.random.default_rng(1).normal(size=(CONTROLS + TREATED, 24))
    features += ~controls[:, None] * 2 * spread * direction[position]
    for part in cross_fit(find_alignment(name), features, batch, controls, position):
        assert share_active(part.aligned, part.negatives, position) > 0.9

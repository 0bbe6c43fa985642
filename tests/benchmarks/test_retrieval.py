"""Activity and consistency: average precisions by plain loops, units, and controls held out."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.moa import Treatments
from bioimg_jax.benchmarks.protocols import find_protocols
from bioimg_jax.benchmarks.retrieval import METRIC, Activity, _class_p
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import align
from bioimg_jax.features.alignment import METHODS, find_alignment
from bioimg_jax.features.table import FeatureTable, read_table, write_table
from bioimg_jax.probes.average_precision import chance
from tests.benchmarks import screens

OPTIONS = {
    "average": "mean",
    "permutations": 9,
    "pair_lists": "",
    "activities": "",
    "retrieval": {},
}
ABOUT = {"representation": "x", "kind": "imported", "seed": 0, "exposure": "unknown"}


def wells(*, plates: int = 3, compounds: int = 6, controls: int = 4) -> pd.DataFrame:
    rows = [
        {"plate": f"P{p}", "well": f"A{w:02d}", "compound": name, "dose": 1.0, "moa": moa}
        for p in range(plates)
        for w, (name, moa) in enumerate(
            [(f"c{i}", f"m{i % 2}") for i in range(compounds)] + [("DMSO", None)] * controls
        )
    ]
    return pd.DataFrame(rows).assign(control=lambda obs: obs["compound"] == "DMSO")


def table(folder: Path, obs: pd.DataFrame, features: np.ndarray) -> FeatureTable:
    path = folder / "table.h5ad"
    batches = [(np.arange(len(obs)), {"features": features})]
    write_table(
        path, obs, {"features": features.shape[1]}, "features", batches, {}, dtype="float32"
    )
    return dataclasses.replace(read_table(path), obs=obs)


def normalised_ap(query: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> float:
    """By sorting; without ties."""

    def cosine(rows: np.ndarray) -> np.ndarray:
        return rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)

    similar = np.concatenate([cosine(positives), cosine(negatives)])
    right = (np.arange(len(similar)) < len(positives))[np.argsort(-similar)]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    expected = chance(np.array([len(positives)]), np.array([len(similar)]))[0]
    return float((precision[right].mean() - expected) / (1 - expected))


def test_activity_is_replicates_among_the_controls_of_their_plate(tmp_path: Path) -> None:
    obs = wells()
    features = np.random.default_rng(0).normal(size=(len(obs), 16)).astype(np.float32)
    aligned = align(table(tmp_path, obs, features), find_alignment("none"), batch="plate")
    (protocol,), _ = find_protocols("activity", list(obs.columns), OPTIONS, seed=0)
    plain = dataclasses.replace(protocol.benchmark, permutations=0)
    protocol = dataclasses.replace(protocol, benchmark=plain)
    (score,) = protocol.benchmark.scores(aligned, [protocol.fold(obs)], protocol.target, **ABOUT)
    expected = {}
    for compound, of in obs[~obs["control"]].groupby("compound"):
        found = []
        for i in of.index:
            same_plate = obs["control"] & (obs["plate"] == obs["plate"][i])
            others = of.index.drop(i)
            found.append(normalised_ap(features[i], features[others], features[same_plate]))
        expected[compound] = np.mean(found)
    assert score.per_unit == pytest.approx(expected, abs=1e-6)
    assert score.value == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert score.metric == METRIC and score.n_units == 6
    assert score.settings["n_treatments"] == 6 and score.settings["n_tested"] == 0
    tested = dataclasses.replace(plain, permutations=49)
    (score,) = tested.scores(aligned, [protocol.fold(obs)], protocol.target, **ABOUT)
    assert score.settings["n_tested"] == 6
    # What its own null makes of it is another number; by random rankings it is still there.
    assert score.value != pytest.approx(np.mean(list(expected.values())), abs=1e-3)
    by_rankings = score.other_metrics["normalised_map_by_rankings"]
    assert by_rankings == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_chance_of_activity_knows_what_wells_of_a_plate_share() -> None:
    obs = screens.wells(plates=4, compounds=24, controls=8)
    (protocol,), _ = find_protocols("activity", list(obs.columns), OPTIONS, seed=0)
    found: dict[int, list[float]] = {0: [], 199: []}
    for seed in range(3):
        features = np.random.default_rng(seed).normal(size=(len(obs), 32))
        held = screens.table(features, obs)
        aligned = align(held, find_alignment("centerscale_on_controls"), batch="plate")
        for permutations, values in found.items():
            benchmark = dataclasses.replace(protocol.benchmark, permutations=permutations)
            asked = dataclasses.replace(protocol, benchmark=benchmark)
            values.append(asked.score(aligned, representation="", kind="", seed=0).value)
    assert np.mean(found[0]) < -0.25  # random rankings are not what these wells are
    assert abs(np.mean(found[199])) < 0.08
    # Asked again and again, as beyond a confound and of fewer replicates, it is the same metric.
    whole = protocol.with_settings(permutations=1_000)
    again = whole.untested().score(aligned, representation="", kind="", seed=0)
    assert again.settings["chance_by"] == "permuted labels"
    assert again.settings["permutations"] == 99
    reported = whole.score(aligned, representation="", kind="", seed=0)
    assert again.value == pytest.approx(reported.value, abs=0.02)
    assert protocol.untested().benchmark == protocol.benchmark  # it has fewer
    (moa,), _ = find_protocols("consistency", list(obs.columns), OPTIONS, seed=0)
    assert moa.untested().benchmark == dataclasses.replace(moa.benchmark, permutations=0)


def test_negatives_are_controls_that_the_alignment_has_not_seen(tmp_path: Path) -> None:
    obs = wells(controls=6)
    features = np.random.default_rng(0).normal(size=(len(obs), 16)).astype(np.float32)
    found = align(
        table(tmp_path, obs, features), find_alignment("centerscale_on_controls"), batch="plate"
    )
    parts = list(found.parts())
    assert len(parts) == 2 and not found.facts["controls_shared"]
    assert not (parts[0].negatives & parts[1].negatives).any()
    np.testing.assert_array_equal(parts[0].negatives | parts[1].negatives, obs["control"])
    for features_of_part, negatives in parts:
        for plate in obs["plate"].unique():  # fitted on the others: they are centred
            seen = obs["control"].to_numpy() & ~negatives & (obs["plate"] == plate).to_numpy()
            np.testing.assert_allclose(features_of_part[seen].mean(axis=0), 0, atol=1e-6)
    at_one = align(
        table(tmp_path, obs.assign(well="A01"), features),
        find_alignment("centerscale_on_controls"),
        batch="plate",
    )
    assert at_one.facts["controls_shared"] and len(list(at_one.parts())) == 1


def nothing(seed: int, *, positions: bool) -> FeatureTable:
    """A screen in which no treatment does anything, on plates that differ; 60 features."""
    obs = screens.wells(plates=4, compounds=48, controls=24, seed=seed).drop(columns="batch")
    rng = np.random.default_rng(seed)
    # The same map on every plate, as plates have: a control's place is one on all of them.
    order = obs.groupby("plate")["compound"].transform(lambda names: names.argsort().argsort())
    obs["well"] = [f"W{place:02d}" for place in order]
    plate = pd.factorize(obs["plate"])[0]
    mixing = np.linalg.qr(rng.normal(size=(60, 60)))[0] * (30 * np.arange(1, 61) ** -0.7)
    features = rng.normal(size=(len(obs), 60)) @ mixing.T + 5 * rng.normal(size=(4, 60))[plate]
    return screens.table(features, obs if positions else obs.drop(columns="well"))


def share_at_005(alignment: str, *, positions: bool, seeds: int) -> float:
    """Share of the treatments with p ≤ 0.05, mean over screens."""
    found = []
    for seed in range(seeds):
        table = nothing(seed, positions=positions)
        aligned = align(table, find_alignment(alignment), batch="plate")
        activity = find_protocols(
            "activity", list(table.obs.columns),
            OPTIONS | {"permutations": 199}, seed=seed,
        )[0][0]  # fmt: skip
        score = activity.score(aligned, representation="x", kind="imported", seed=0)
        assert score.settings["parts"] == (2 if positions and alignment != "none" else 1)
        found.append(score.other_metrics["fraction_p05"])
    return float(np.mean(found))


@pytest.mark.parametrize("alignment", ["none", *METHODS])
def test_after_every_alignment_treatments_without_effect_are_not_active(alignment: str) -> None:
    assert share_at_005(alignment, positions=True, seeds=4) <= 0.07


@pytest.mark.parametrize("alignment", ["sphering", "tvn"])
def test_with_controls_that_the_alignment_has_seen_they_are(alignment: str) -> None:
    assert share_at_005(alignment, positions=False, seeds=1) > 0.15


def test_consistency_is_classes_among_other_compounds(tmp_path: Path) -> None:
    obs = wells(controls=0)
    features = np.random.default_rng(1).normal(size=(len(obs), 16)).astype(np.float32)
    held = table(tmp_path, obs, features)
    (protocol,), _ = find_protocols("consistency", list(obs.columns), OPTIONS, seed=0)

    def value(kept: pd.DataFrame) -> float:
        profiles = kept.groupby("compound").apply(
            lambda of: features[of.index].mean(axis=0), include_groups=False
        )
        moa = kept.groupby("compound")["moa"].first()
        found = []
        for name, profile in profiles.items():
            same = [p for n, p in profiles.items() if n != name and moa[n] == moa[name]]
            others = [p for n, p in profiles.items() if moa[n] != moa[name]]
            found.append(normalised_ap(profile, np.stack(same), np.stack(others)))
        return float(np.mean(found))

    (score,) = protocol.benchmark.scores(held, [protocol.fold(obs)], protocol.target, **ABOUT)
    assert score.value == pytest.approx(value(obs), abs=1e-6)
    names = sorted(set(obs["compound"]))
    without = np.array([value(obs[obs["compound"] != name]) for name in names])
    expected = score.value + (len(names) - 1) * (without.mean() - without)
    assert score.per_unit == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-5)


def test_the_p_of_a_class_is_the_share_of_all_ways_to_deal_out_the_classes(
    tmp_path: Path,
) -> None:
    obs = wells(controls=0)
    features = np.random.default_rng(3).normal(size=(len(obs), 16)).astype(np.float32)
    profiles = features.reshape(3, 6, 16).mean(axis=0)

    def means(members: tuple[int, ...]) -> list[float]:
        """Of both classes, where these compounds are the first one."""
        classes = [list(members), [i for i in range(6) if i not in members]]
        return [
            float(np.mean([
                normalised_ap(profiles[i], profiles[[j for j in own if j != i]], profiles[others])
                for i in own
            ]))
            for own, others in (classes, classes[::-1])
        ]  # fmt: skip

    every = np.array([means(members) for members in itertools.combinations(range(6), 3)])
    own = np.array(means((0, 2, 4)))
    expected = np.mean(every >= own - 1e-9, axis=0)
    options = OPTIONS | {"permutations": 4_000}
    (protocol,), _ = find_protocols("consistency", list(obs.columns), options, seed=0)
    treatments = Treatments.of(
        obs, np.arange(len(obs)), treatment=("compound", "dose"), compound=("compound",),
        label="moa",
    )  # fmt: skip
    p = _class_p(treatments.profiles(features, "mean"), treatments, 4_000, 0)
    assert p == pytest.approx(expected, abs=0.03) and 0.05 < p.min() < p.max()
    (score,) = protocol.benchmark.scores(
        table(tmp_path, obs, features), [protocol.fold(obs)], protocol.target, **ABOUT
    )
    assert score.other_metrics["fraction_consistent"] == 0.0
    assert score.settings["n_classes_tested"] == 2


def test_classes_are_consistent_where_they_are_and_seldom_by_chance() -> None:
    found = {}
    for own in (0.0, 1.5):
        p = []
        for seed in range(20):
            obs = screens.wells(compounds=24, plates=2, controls=0, doses=2, seed=seed)
            rng = np.random.default_rng(seed)
            number, label = (
                pd.factorize(obs[column], sort=True)[0] for column in ("compound", "moa")
            )
            # Doses of one compound are alike, which says nothing about its class.
            x = 3.0 * rng.normal(size=(24, 16))[number] + own * rng.normal(size=(4, 16))[label]
            treatments = Treatments.of(
                obs, np.arange(len(obs)), treatment=("compound", "dose"),
                compound=("compound",), label="moa",
            )  # fmt: skip
            p.append(_class_p(treatments.profiles(x, "mean"), treatments, 199, seed))
        found[own] = np.concatenate(p)
    for level in (0.05, 0.2):
        error = np.sqrt(level * (1 - level) / 80)
        assert np.mean(found[0.0] <= level) < level + 3 * error
    assert np.mean(found[1.5] <= 0.05) > 0.5


def test_what_they_cannot_score_is_one_line(tmp_path: Path) -> None:
    obs = wells()
    features = np.random.default_rng(0).normal(size=(len(obs), 16)).astype(np.float32)
    held = table(tmp_path, obs, features)
    (protocol,), _ = find_protocols("activity", list(obs.columns), OPTIONS, seed=0)
    fold = protocol.fold(obs)
    with pytest.raises(InputError, match="activity needs a table with controls"):
        Activity().scores(held, [fold], protocol.target, **ABOUT)
    wrong = dataclasses.replace(protocol.target, metric="accuracy")
    with pytest.raises(InputError, match="metric 'accuracy'; activity is normalised_map"):
        Activity().scores(held, [fold], wrong, **ABOUT)
    none = align(table(tmp_path, obs.assign(control=False), features), find_alignment(""), batch="")
    with pytest.raises(InputError, match="no well is a control"):
        Activity().scores(none, [fold], protocol.target, **ABOUT)
    with pytest.raises(InputError, match="alignment over column 'week', which does not exist"):
        align(held, find_alignment("standardise"), batch="week")
    with pytest.raises(InputError, match="no well that is no control has a 'compound'"):
        protocol.fold(obs.assign(control=True))

"""Every protocol on one screen of compounds and genes whose truth is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bioimg_jax.benchmarks.ladder import cases
from bioimg_jax.benchmarks.protocols import ProfileProtocol, find_protocols, of_metadata
from bioimg_jax.errors import InputError
from bioimg_jax.features.aligned import CONTROL, AlignedTable
from bioimg_jax.statistics.verdict import ABOVE, judge
from tests.benchmarks import screens

PATHWAYS, COMPLEXES, GENES, COMPOUNDS, PLATES = 6, 24, 48, 24, 4
NAMES = (
    "nsc,nscb_deepprofiler,nscb_unidino,activity,consistency,relationships,compound_gene,retrieval"
)
SAME_CLASS = {
    "pos_sameby": "moa", "pos_diffby": "compound", "neg_sameby": "", "neg_diffby": "moa",
    "multilabel": "", "null": "permuted", "within": "", "unit": "compound",
}  # fmt: skip


def obs_and_truth() -> tuple[pd.DataFrame, np.ndarray]:
    """Wells of compounds, genes and controls, and the pathway that each acts on, -1 for none."""
    rows, pathway = [], []

    def add(plate: int, acts_on: int, **columns: object) -> None:
        held = {"compound": None, "dose": 0.0, "moa": None, "gene": None, CONTROL: False}
        rows.append({"plate": f"P{plate}", "batch": f"B{plate % 2}"} | held | columns)
        pathway.append(acts_on)

    for plate in range(PLATES):
        for i in range(COMPOUNDS):  # half of them in each batch, every pathway in both
            if i // (COMPOUNDS // 2) == plate % 2:
                name, acts_on = f"c{i:02d}", i % PATHWAYS
                add(plate, acts_on, compound=name, dose=0.5, moa=f"m{acts_on}")
        for i in range(GENES):
            add(plate, i % PATHWAYS, gene=f"g{i:02d}")
        for _ in range(12):
            add(plate, -1, compound="DMSO", **{CONTROL: True})
    found = pd.DataFrame(rows)
    place = found.groupby("plate").cumcount()
    found["well"] = [f"{chr(65 + i // 12)}{i % 12 + 1:02d}" for i in place]
    return found, np.array(pathway)


@pytest.fixture(scope="module")
def protocols(tmp_path_factory: pytest.TempPathFactory) -> list[ProfileProtocol]:
    folder: Path = tmp_path_factory.mktemp("lists")
    genes = [f"g{i:02d}" for i in range(GENES)]
    pairs = [f"{a},{b}" for i, a in enumerate(genes) for j, b in enumerate(genes[:i])
             if (i - j) % COMPLEXES == 0]  # fmt: skip
    (folder / "known.csv").write_text("\n".join(["gene1,gene2", *pairs]))
    acts = [f"c{i:02d},{gene},{0.1 if (i - j) % PATHWAYS == 0 else 50.0}"
            for i in range(COMPOUNDS) for j, gene in enumerate(genes)]  # fmt: skip
    (folder / "acts.csv").write_text("\n".join(["compound,gene,concentration_um", *acts]))
    options = {"average": "mean", "permutations": 99, "pair_lists": str(folder / "known.csv"),
               "activities": str(folder / "acts.csv"),
               "retrieval": {"class": SAME_CLASS}}  # fmt: skip
    obs, _ = obs_and_truth()
    found, missing = find_protocols(NAMES, list(obs.columns), options, seed=0)
    assert not missing and [protocol.name for protocol in found] == [
        "nsc", "nscb_deepprofiler", "nscb_unidino", "activity", "consistency", "recall_known",
        "compound_gene", "retrieval_class",
    ]  # fmt: skip
    return found


def representation(noise: float, *, signal: float = 1.0, seed: int = 0) -> AlignedTable:
    obs, pathway = obs_and_truth()
    rng = np.random.default_rng(seed)
    directions = np.vstack([rng.normal(size=(PATHWAYS, 16)), np.zeros((1, 16))])
    # Genes have a partner that they resemble more than the others of their pathway.
    complexes = np.vstack([rng.normal(size=(COMPLEXES, 16)), np.zeros((1, 16))])
    pair = [-1 if gene is None else int(gene[1:]) % COMPLEXES for gene in obs["gene"]]
    features = signal * (directions[pathway] + complexes[pair])
    features = features + noise * rng.normal(size=features.shape)
    return screens.table(features, obs)


def test_more_signal_scores_more_and_none_is_at_chance(protocols: list[ProfileProtocol]) -> None:
    tables = {"clear": representation(0.5), "weak": representation(3.0),
              "noise": representation(1.0, signal=0.0)}  # fmt: skip
    for protocol in protocols:
        found = {
            name: protocol.score(table, representation=name, kind="imported", seed=0)
            for name, table in tables.items()
        }
        values = {name: score.value for name, score in found.items()}
        assert values["clear"] > values["weak"] > values["noise"], protocol.name
        noise = found["noise"]
        assert noise.value == pytest.approx(noise.chance, abs=0.14), protocol.name
        assert found["clear"].value > 0.75, protocol.name
        assert found["clear"].n_units == len(found["clear"].per_unit) >= 20
        assert np.mean(list(noise.per_unit.values())) == pytest.approx(noise.value, abs=1e-9)


def test_the_clear_one_is_above_noise_and_noise_is_not(protocols: list[ProfileProtocol]) -> None:
    for protocol in protocols:
        # Not so clear that every unit scores 1: differences without variance settle nothing.
        clear = representation(2.0 if protocol.name == "recall_known" else 1.0)
        for encoder, above in ((clear, True), (representation(1.0, signal=0.0, seed=1), False)):
            score = protocol.score(encoder, representation="e", kind="imported", seed=0)
            noise = representation(1.0, signal=0.0, seed=2)
            floor = protocol.score(noise, representation="count", kind="count", seed=0)
            target = {"name": protocol.name, "nuisance": False,
                      "audit": {"verdict": "", "reason": "", "rivals": {}}}  # fmt: skip
            (found,) = judge(
                cases([score, floor], [target], ["chance", "count"], delta=0.03,
                      overlap={protocol.name: 0.0})
            )  # fmt: skip
            assert (found.word == ABOVE) == above, (protocol.name, found.why)


def test_the_plate_as_a_representation_is_no_better_than_chance_where_plates_are_alike(
    protocols: list[ProfileProtocol],
) -> None:
    obs, _ = obs_and_truth()
    held = of_metadata(screens.table(np.zeros((len(obs), 1)), obs), ["plate"])
    for protocol in protocols:
        score = protocol.score(held, representation="plate", kind="metadata", seed=0)
        if protocol.name in ("compound_gene", "recall_known"):
            assert score.value == pytest.approx(score.chance, abs=0.1), protocol.name
        elif protocol.name == "activity":  # replicates lie on other plates, so controls come first
            assert score.value < 0.0


def test_order_of_rows_changes_nothing(protocols: list[ProfileProtocol]) -> None:
    table = representation(2.0)
    order = np.random.default_rng(5).permutation(len(table.obs))
    turned = screens.table(table.features[order], table.obs.iloc[order].reset_index(drop=True))
    for protocol in protocols:
        first, second = (
            protocol.score(one, representation="x", kind="imported", seed=0)
            for one in (table, turned)
        )
        assert first.value == pytest.approx(second.value, abs=1e-9), protocol.name
        assert first.per_unit == pytest.approx(second.per_unit, abs=1e-7), protocol.name


def test_a_well_of_a_compound_and_a_gene_is_one_line(protocols: list[ProfileProtocol]) -> None:
    table = representation(1.0)
    obs = table.obs.copy()
    obs.loc[0, "gene"] = "g00"
    protocol = next(p for p in protocols if p.name == "compound_gene")
    with pytest.raises(InputError, match="row 0 has the gene 'g00' and the compound 'c00'"):
        protocol.score(screens.table(table.features, obs), representation="", kind="", seed=0)


def test_a_gene_on_two_arms_is_one_line(protocols: list[ProfileProtocol]) -> None:
    table = representation(1.0)
    arms = [f"{i % 5}p" for i in range(len(table.obs))]
    held = screens.table(table.features, table.obs.assign(chromosome_arm=arms))
    protocol = next(p for p in protocols if p.name == "recall_known")
    with pytest.raises(InputError, match="gene 'g00' is on the arms"):
        protocol.score(held, representation="", kind="", seed=0)
    arm = table.obs["gene"].map(lambda g: None if g is None else f"{int(g[1:]) % COMPLEXES}q")
    held = screens.table(table.features, table.obs.assign(chromosome_arm=arm))
    score = protocol.score(held, representation="", kind="", seed=0)
    assert score.settings["arms"]["within"] == 1.0  # every known pair is on one arm
    assert score.settings["arms"]["recall"] > 0.3


def test_the_percentiles_of_recall_are_the_configs(tmp_path: Path) -> None:
    pairs = tmp_path / "known.csv"
    pairs.write_text("gene1,gene2\n" + "\n".join(f"g{i:02d},g{i + 24:02d}" for i in range(24)))
    table, found = representation(4.0), {}
    for text in ("", "0.05,0.95", "0.2,0.8"):
        options = {"average": "mean", "permutations": 0, "pair_lists": str(pairs),
                   "activities": "", "retrieval": {}, "percentiles": text}  # fmt: skip
        (one,), _ = find_protocols("relationships", list(table.obs.columns), options, seed=0)
        found[text] = one.score(table, representation="e", kind="imported", seed=0)
    assert found[""].value == found["0.05,0.95"].value < found["0.2,0.8"].value
    assert found["0.2,0.8"].chance == pytest.approx(0.4, abs=0.01)
    assert found["0.2,0.8"].settings["percentiles"] == [0.2, 0.8]
    for text in ("0.8,0.2", "0.05", "low,high", "0,1"):
        wrong = {"average": "mean", "permutations": 0, "pair_lists": str(pairs),
                 "activities": "", "retrieval": {}, "percentiles": text}  # fmt: skip
        with pytest.raises(InputError, match=f"evaluate.percentiles: '{text}', expected two"):
            find_protocols("relationships", list(table.obs.columns), wrong, seed=0)

"""Files of features through the protocols: from a csv to verdicts, and what cannot be run."""

import json
import os
import runpy
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bioimg_jax import profile_beyond, profiles
from bioimg_jax.benchmarks.protocols import find_protocols
from bioimg_jax.errors import InputError, Preempted
from bioimg_jax.results import summary
from bioimg_jax.score_audit import audited_groups
from bioimg_jax.statistics import plan as statistics_plan
from tests import tiny

CONFIG = tiny.ROOT / "configs" / "eval_profiles.py"
PLATES, CLASSES, COMPOUNDS = 4, 4, 16


def screen(folder: Path, *, signal: float, seed: int = 0) -> Path:
    """A csv of wells: compounds of four classes, a well a plate, and controls; features and count.

    signal: how far apart classes are, in standard deviations of a feature.
    """
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, signal, (CLASSES, 12))
    rows = []
    for plate in range(PLATES):
        order = rng.permutation(COMPOUNDS + 8)  # of wells, new on every plate
        shift = rng.normal(0, 1.0, 12)
        for place, number in enumerate(order):
            control = number >= COMPOUNDS
            features = rng.normal(0, 1, 12) + shift
            if not control:
                features = features + centre[number % CLASSES]
            rows.append(
                {
                    "Metadata_plate": f"P{plate}",
                    "Metadata_well": f"{'AB'[place // 12]}{place % 12 + 1:02d}",
                    "Metadata_compound": "DMSO" if control else f"c{number:02d}",
                    "Metadata_moa": "" if control else f"m{number % CLASSES}",
                    "Metadata_batch": f"P{plate}",
                    "Count": float(rng.poisson(100)),
                    **{f"f{i}": value for i, value in enumerate(features)},
                }
            )
    path = folder / "wells.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def config(path: Path, **changes: Any) -> dict[str, Any]:
    found = runpy.run_path(str(CONFIG))["get_config"]().to_dict()
    table = {"source": str(path), "ignore": ""}
    found["profiles"] |= {
        "tables": {
            "encoder": table | {"kind": "imported", "only": "^f"},
            "count": table | {"kind": "count", "only": "^Count$"},
        },
        "metadata": {}, "extract": {}, "joins": {}, "unique": "plate,well",
        "control": {"column": "compound", "values": "DMSO"},
        "positive": {"column": "compound", "values": "c00"},
        "rollup": {"levels": "", "average": "mean", "equal": 0},
    }  # fmt: skip
    found["evaluate"] |= {
        "alignments": "none; centerscale_on_controls", "floors": "chance,count,twin",
        "permutations": 99, "benchmarks": "nsc,activity,consistency", "beyond": "",
        "beyond_permutations": 19, "nuisance": False, "screening": False, **changes,
    }  # fmt: skip
    return found


def of(results: dict[str, Any], target: str, alignment: str, name: str) -> dict[str, Any]:
    return next(
        row
        for row in results["scores"]
        if (row["target"], row["benchmark"], row["representation"]) == (target, alignment, name)
    )


def test_signal_is_found_and_is_above_its_floors(tmp_path: Path) -> None:
    results = profiles.evaluate_profiles(config(screen(tmp_path, signal=2.0)), tmp_path / "out")
    assert set(results["not_run"]) == set()
    assert results["omitted"] == {"twin": profiles.NO_IMAGES}
    for target, alignment in (("nsc", "centerscale_on_controls"), ("activity", "none")):
        assert of(results, target, alignment, "encoder")["value"] > 0.5
        assert of(results, target, alignment, "count")["value"] < 0.4
    words = {(v["target"], v["benchmark"]): v["word"] for v in results["verdicts"]}
    assert words["nsc", "centerscale_on_controls"] == words["activity", "none"] == "above"
    note = "a secondary alignment, not corrected for"
    told = {v["benchmark"] for v in results["verdicts"] if note in v["qualified_by"]}
    assert told == {"centerscale_on_controls"}  # "none" is the first one here
    assert results["benchmarks"][0] == "none"
    printed = [line for line in summary(results).splitlines() if "verdict on" in line]
    assert [note in line for line in printed] == [
        v["benchmark"] != "none" for v in results["verdicts"]
    ]
    apart = of(results, "activity", "centerscale_on_controls", "encoder")["settings"]
    assert apart["parts"] == 2 and apart["n_treatments"] == COMPOUNDS
    assert of(results, "activity", "none", "encoder")["settings"]["parts"] == 1
    # Batches bring classes down to chance where nothing takes them out, and not where it does.
    aligned, raw = (
        of(results, "consistency", a, "encoder")["value"]
        for a in ("centerscale_on_controls", "none")
    )
    assert aligned >= raw - 0.05


def test_groups_of_columns_are_audited_and_are_rivals(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    # Neither the row nor the column of a well tells the class; both together do, on every plate.
    dmso = wells["Metadata_compound"] == "DMSO"
    number = wells["Metadata_compound"].str[1:].where(~dmso, "0").astype(int)
    wells["Metadata_row"] = np.where(dmso, "C", (number % CLASSES // 2).map({0: "A", 1: "B"}))
    wells["Metadata_column"] = np.where(dmso, "9", (number % 2).astype(str))
    wells.to_csv(path, index=False)
    about = {"alignments": "centerscale_on_controls", "benchmarks": "nsc"}
    found = profiles.evaluate_profiles(
        config(path, audit="row; column; row,column", **about), tmp_path / "joint"
    )
    (target,) = found["targets"]
    rows = target["audit"]["per_column"]
    assert list(rows) == ["row", "column", "row and column"]
    assert (
        rows["row"]["score"] == pytest.approx(rows["column"]["score"])
        and rows["row"]["score"] < 0.7
    )
    assert rows["row and column"]["score"] == target["audit"]["score"] == 1.0
    assert target["verdict"] == "confounded" and target["audit"]["columns"] == ["row", "column"]
    assert {v["word"] for v in found["verdicts"]} == {"confounded"}
    alone = profiles.evaluate_profiles(config(path, audit="row; column", **about), tmp_path / "two")
    assert list(alone["targets"][0]["audit"]["per_column"]) == ["row", "column"]
    assert alone["verdicts"][0]["word"] == "above"
    assert alone["verdicts"][0]["holm_metadata"] is not None  # both are rivals


def test_a_list_of_columns_is_each_of_them_and_all_that_are_there() -> None:
    there = ["plate", "well", "batch", "chromosome_arm"]
    assert audited_groups("batch,well", there)[0] == [("batch",), ("well",), ("batch", "well")]
    assert audited_groups("week,plate,well", there) == (
        [("plate",), ("well",), ("plate", "well")],
        {"audit of week": "the metadata have no column week"},
    )
    assert audited_groups("plate;", there)[0] == [("plate",)]
    assert audited_groups("", there) == ([], {})
    assert audited_groups("batch; week,well", there, also=("chromosome_arm",)) == (
        [("batch",), ("chromosome_arm",)],
        {"audit of week and well": "the metadata have no column week"},
    )
    assert audited_groups("batch", there, also=("chromosome_arm",))[0] == [
        ("batch",), ("chromosome_arm",), ("batch", "chromosome_arm"),
    ]  # fmt: skip


def test_a_column_that_only_a_part_of_the_run_reads_does_not_end_it(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    wells.drop(columns="Metadata_batch").to_csv(path, index=False)
    given = config(
        path, alignments="none", benchmarks="nsc,relationships,compound_gene",
        beyond="count,batch", audit="batch; batch,week",
    )  # fmt: skip
    found = profiles.evaluate_profiles(given, tmp_path / "out")
    no = "the metadata have no column "
    assert found["not_run"] == {
        "relationships": f"evaluate.pair_lists names no list of known pairs, and {no}gene",
        "compound_gene": "evaluate.activities names no file of known activities, and "
        f"{no}gene and no column dose",
        "audit of batch": f"{no}batch",
        "audit of batch and week": f"{no}batch and no column week",
        "beyond batch": f"{no}batch, and the config no floor of that name",
    }
    assert {row["beyond"] for row in found["conditional"]} == {"count"}
    (target,) = found["targets"]
    assert target["audit"]["best"] is None and target["audit"]["per_column"] == {}


def test_without_signal_nothing_is_above(tmp_path: Path) -> None:
    results = profiles.evaluate_profiles(config(screen(tmp_path, signal=0.0)), tmp_path / "out")
    assert "above" not in {v["word"] for v in results["verdicts"]}
    for alignment in results["benchmarks"]:
        found = of(results, "activity", alignment, "encoder")
        assert found["other_metrics"]["fraction_active"] == 0.0
        assert abs(of(results, "nsc", alignment, "encoder")["value"] - 0.2) < 0.25


def test_a_treatment_that_stays_in_its_well_is_confounded(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=1.0)
    wells = pd.read_csv(path, keep_default_na=False)
    number = wells["Metadata_compound"].map({n: i for i, n in enumerate(
        sorted(set(wells["Metadata_compound"])))})  # fmt: skip
    dmso = wells["Metadata_compound"] == "DMSO"
    number[dmso] = COMPOUNDS + 1 + wells[dmso].groupby("Metadata_plate").cumcount()
    wells["Metadata_well"] = number.map(lambda i: f"{'ABC'[i // 12]}{i % 12 + 1:02d}")
    wells.to_csv(path, index=False)
    results = profiles.evaluate_profiles(config(path), tmp_path / "out")
    target = next(t for t in results["targets"] if t["name"] == "activity")
    assert target["verdict"] == "confounded" and "well" in target["reason"]
    assert {v["word"] for v in results["verdicts"] if v["target"] == "activity"} == {"confounded"}


def test_the_command_writes_a_report_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = screen(tmp_path, signal=1.0)
    pd.read_csv(path, keep_default_na=False).drop(columns="Metadata_batch").to_csv(
        path, index=False
    )
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps(config(path, benchmarks="nsc,nscb_unidino")))
    written = tmp_path / "config.py"
    written.write_text(
        "import json, ml_collections, pathlib\n"
        "def get_config():\n"
        f"    text = pathlib.Path({str(settings)!r}).read_text()\n"
        "    return ml_collections.ConfigDict(json.loads(text))\n"
    )
    command = ["profiles", f"--config={written}", f"--workdir={tmp_path / 'out'}"]
    assert profiles.main(command) == 0
    said = capsys.readouterr()
    assert "not run: nscb_unidino, because the metadata have no column batch" in said.err
    assert "verdict on encoder" in said.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "rows of features" in page and "nscb_unidino was not run" in page


def test_the_plan_is_told_before_anything_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(screen(tmp_path, signal=2.0), benchmarks="nsc,activity,nscb_unidino")
    results = profiles.evaluate_profiles(given, tmp_path / "out")
    plan = {row["target"]: row for row in results["plan"]}
    (missing,) = results["not_run"]  # a compound is in every batch here
    assert set(plan) == {"nsc", "activity"} and missing == "nscb_unidino"
    assert {row["benchmark"] for row in results["plan"]} == {results["benchmarks"][0]}
    # Two floors (the twin is omitted), a family of two protocols and one encoder; a compound is one
    # treatment, right or wrong.
    expected = statistics_plan.plan(
        COMPOUNDS, floors=2, family=2, delta=0.03, sd=float(np.sqrt(0.06**2 + 0.25))
    )
    for row in plan.values():
        assert row["n_units"] == COMPOUNDS
        assert row["sentence"] == expected.sentence(0.03)
    for score in results["scores"]:
        assert score["n_units"] == plan[score["target"]]["n_units"]
    written = tmp_path / "config.py"
    written.write_text(
        "import json, ml_collections\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(given)!r}))\n"
    )

    def scored(*_: Any, **__: Any) -> None:
        raise AssertionError("an encoder is scored")

    monkeypatch.setattr("bioimg_jax.profiles.ProfileProtocol.score", _only_metadata(scored))
    assert profiles.main(["profiles", f"--config={written}", "--plan"]) == 0
    said = capsys.readouterr()
    for name, row in plan.items():
        assert f"  {name}: {row['sentence']}\n" in said.out
    assert "after centerscale_on_controls: the same, and not corrected for" in said.out
    assert "not run: nscb_unidino" in said.err


def test_what_stands_beside_the_scores_is_in_results_report_and_files(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    workdir = tmp_path / "out"
    settings = config(
        path, alignments="centerscale_on_controls", benchmarks="nsc,activity,relationships",
        beyond="count,batch", nuisance=True, screening=True,
    )  # fmt: skip
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(settings))
    results = profiles.evaluate_profiles(settings, workdir)
    assert results["not_run"]["relationships"].startswith("evaluate.pair_lists names no list")
    rows = {(r["target"], r["beyond"], r["representation"], r["method"]): r
            for r in results["conditional"]}  # fmt: skip
    nsc = rows["nsc", "count", "encoder", "conditional permutation"]
    assert nsc["p"] == 0.05 and nsc["value"] > 0.2 and nsc["refused"] == ""
    assert ("nsc", "count", "count", "conditional permutation") in rows
    assert ("nsc", "count", "count", "added value") not in rows
    assert "expected one a block" in rows["nsc", "batch", "encoder", None]["refused"]
    assert {row["representation"] for row in results["nuisance"]} == {"encoder"}
    hits = pd.read_csv(workdir / "screening" / "hits.csv")
    assert len(hits) == 2 * COMPOUNDS
    assert hits["hit"][hits["representation"] == "encoder"].sum() >= COMPOUNDS / 2
    shown = {row["representation"]: row["hits"] for row in results["screening"]["hits"]}
    assert shown == hits.groupby("representation")["hit"].sum().to_dict()
    documented = (tiny.ROOT / "docs" / "results_schema.md").read_text()
    for key in results:
        assert f"`{key}`" in documented, key
    profiles.publish(
        workdir, profiles.about_run(seed=0, n_devices=8, command="", start=0.0, kind="profiles"),
        results,
    )  # fmt: skip
    page = (workdir / "report.html").read_text()
    for heading in ("Beyond a confound", "Nuisance", "Screening: hits", "Plate maps"):
        assert f">{heading}</h2>" in page, heading


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = screen(tmp_path, signal=2.0)
    settings = config(
        path, alignments="none", benchmarks="nsc,nscb_unidino", beyond="count", nuisance=True
    )
    workdir = tmp_path / "out"
    before = profiles.evaluate_profiles(settings, workdir)

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched:
        for name in ("profiles.nuisance_rows", "profile_beyond.beyond"):
            patched.setattr(f"bioimg_jax.{name}", again)
        patched.setattr("bioimg_jax.profiles.ProfileProtocol.score", _only_metadata(again))
        assert profiles.evaluate_profiles(settings, workdir) == before
    wells = pd.read_csv(path, keep_default_na=False)
    wells.loc[3, "f0"] += 1.0  # another table: nothing is used again
    wells.to_csv(path, index=False)
    changed = profiles.evaluate_profiles(settings, workdir)
    assert changed["nuisance"] != before["nuisance"]
    count = [of(results, "nsc", "none", "count")["value"] for results in (before, changed)]
    assert count[0] == count[1]


def test_consistency_of_active_treatments_is_of_one_set_for_all_tables(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=3.0)
    wells = pd.read_csv(path, keep_default_na=False)
    idle = [f"c{i:02d}" for i in range(12, COMPOUNDS)]  # one of each class does nothing
    counted = {"c04", "c05", "c06", "c07"}
    rng = np.random.default_rng(1)
    features = [column for column in wells if column.startswith("f")]
    for _, plate in wells.groupby("Metadata_plate"):
        usual = plate.loc[plate["Metadata_compound"] == "DMSO", features].mean().to_numpy()
        rows = plate.index[plate["Metadata_compound"].isin([*idle, *counted])]
        wells.loc[rows, features] = usual + rng.normal(size=(len(rows), len(features)))
    wells.loc[wells["Metadata_compound"].isin(counted), "Count"] = 400.0  # found by it alone
    wells.to_csv(path, index=False)
    given = config(path, alignments="centerscale_on_controls", permutations=999, beyond="count")
    whole = profiles.evaluate_profiles(given, tmp_path / "all")
    given["evaluate"]["consistency_of"] = "active"
    found = profiles.evaluate_profiles(given, tmp_path / "active")
    words = "centerscale_on_controls"
    active = {
        name: set(of(found, "activity", words, name)["settings"]["active"])
        for name in ("encoder", "count")
    }
    assert active["count"] == counted and not active["encoder"] & counted
    assert {"c00", "c01", "c02", "c03"} <= active["encoder"] and not active["encoder"] & set(idle)
    union = set.union(*active.values())
    for name in ("encoder", "count"):
        mine, before = (of(results, "consistency", words, name) for results in (found, whole))
        assert mine["settings"]["n_active_asked"] == len(union)
        assert mine["settings"]["n_treatments"] == len(union) < before["settings"]["n_treatments"]
        assert set(mine["per_unit"]) == union
    target = next(row for row in found["targets"] if row["name"] == "consistency")
    assert target["n_examples"] == len(union) * PLATES  # and so are its audit's
    asked = [row["n"] for row in found["conditional"] if row["target"] == "consistency"]
    assert asked and set(asked) == {len(union) * PLATES}
    lone = config(path, alignments="none", benchmarks="nsc,consistency", consistency_of="active")
    missing = profiles.evaluate_profiles(lone, tmp_path / "lone")["not_run"]["consistency"]
    assert missing == "the benchmark activity, which finds active treatments, is not run"


def test_treatments_of_few_replicates_are_counted_and_not_asked(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    few = (wells["Metadata_compound"] == "c03") & (wells["Metadata_plate"] > "P1")  # two are left
    wells[~few].to_csv(path, index=False)
    given = config(path, alignments="none", benchmarks="activity", least_replicates=3)
    found = profiles.evaluate_profiles(given, tmp_path / "three")
    row = of(found, "activity", "none", "encoder")
    assert "c03" not in row["per_unit"] and row["n_units"] == COMPOUNDS - 1
    assert row["settings"]["n_few_replicates"] == 1 and row["settings"]["least_replicates"] == 3
    assert set(row["settings"]["n_excluded"].values()) == {0}
    given["evaluate"]["least_replicates"] = 2
    row = of(profiles.evaluate_profiles(given, tmp_path / "two"), "activity", "none", "encoder")
    assert row["n_units"] == COMPOUNDS and row["settings"]["n_few_replicates"] == 0
    given["evaluate"]["least_replicates"] = 5
    with pytest.raises(InputError, match="no treatment has 5 wells, the least that"):
        profiles.evaluate_profiles(given, tmp_path / "five")


def test_a_signal_stops_between_rows_and_the_next_run_makes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        screen(tmp_path, signal=2.0), alignments="none", benchmarks="nsc,consistency",
        beyond="count",
    )  # fmt: skip
    whole = profiles.evaluate_profiles(settings, tmp_path / "whole")
    original, calls = profile_beyond.beyond, []

    def counted(*given: Any, **about: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given, **about)

    monkeypatch.setattr(profile_beyond, "beyond", counted)
    workdir = tmp_path / "out"
    with pytest.raises(Preempted, match="what is finished is kept"):
        profiles.evaluate_profiles(settings, workdir)
    assert len(list((workdir / "beyond").iterdir())) == len(calls) == 1
    assert profiles.evaluate_profiles(settings, workdir) == whole
    assert len(calls) == 4  # two protocols, of the encoder and of the count


def _only_metadata(otherwise: Any) -> Any:
    """`ProfileProtocol.score` for the audit, which is made anew every time, and `otherwise`."""
    original = profiles.ProfileProtocol.score

    def score(self: Any, table: Any, *, kind: str, **about: Any) -> Any:
        return (original if kind == "metadata" else otherwise)(self, table, kind=kind, **about)

    return score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluate": {"beyond": "encoder"}}, "evaluate.beyond: 'encoder' is an encoder"),
        ({"evaluate": {"audit": "plate,plate"}}, "evaluate.audit: 'plate,plate' names 'plate and"),
        ({"evaluate": {"audit": "plate,well; well,plate"}}, "names 'well and plate' twice"),
        ({"evaluate": {"permutations": "many"}}, "evaluate.permutations: 'many', expected int"),
        ({"evaluate": {"permutations": -1}}, "evaluate.permutations: -1, expected 1 or more"),
        ({"evaluate": {"active_q": 0.0}}, "evaluate.active_q: 0.0, expected 0 < q <= 1"),
        ({"evaluate": {"least_replicates": 1}}, "evaluate.least_replicates: 1, expected 2 or mo"),
        ({"evaluate": {"consistency_of": "few"}}, "consistency_of: 'few', expected all or active"),
        ({"evaluate": {"delta": "x"}}, "evaluate.delta: 'x', expected float"),
        ({"evaluate": {"nuisance": 1}}, "evaluate.nuisance: 1, expected bool"),
        (
            {"profiles": {"extract": {"week": {"column": "plate"}}}},
            "extract.week: no key 'pattern'",
        ),
        (
            {
                "profiles": {"control": {"column": "", "values": ""}},
                "evaluate": {"benchmarks": "activity"},
            },
            "no column control",
        ),
        ({"evaluate": {"benchmarks": "relationships"}}, "none of them can be run .relationships: "),
        ({"profiles": {"positive": {"column": "moa", "values": "x"}}}, "positive: no well has"),
        ({"evaluate": {"pair_lists": "none.csv", "benchmarks": "relationships"}}, "none.csv: "),
        ({"evaluate": {"pair_lists": "CORUN", "benchmarks": "relationships"}}, "no pair list"),
        ({"evaluate": {"benchmarks": "nsk"}}, "evaluate.benchmarks: 'nsk', expected some of nsc"),
        ({"evaluate": {"alignments": "tvm"}}, "no alignment 'tvm'; did you mean 'tvn'"),
        ({"evaluate": {"alignments": "tvn;tvn"}}, "names one twice"),
        ({"evaluate": {"align_by": "week"}}, "alignment over column 'week', which does not exist"),
        ({"evaluate": {"floors": "chance,nuclei"}}, "evaluate.floors: 'nuclei' is none of chance"),
        ({"profiles": {"control": {"column": "drug", "values": "DMSO"}}}, "'drug' is no column"),
        ({"profiles": {"control": {"column": "moa", "values": "x"}}}, "no well has 'moa' x"),
        ({"profiles": {"tables": {}}}, "profiles.tables: none"),
        ({"profiles": {"unique": "plate"}}, "both are plate"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings = config(screen(tmp_path, signal=0.0))
    for section, values in change.items():
        settings[section] |= values
    with pytest.raises(InputError, match=message):
        profiles.evaluate_profiles(settings, tmp_path / "out")


def test_cells_are_rolled_up_to_the_wells_that_protocols_score(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    rng = np.random.default_rng(0)
    features = [f"f{i}" for i in range(12)]
    cells = wells.loc[wells.index.repeat(6)].reset_index(drop=True)
    cells["Metadata_site"] = np.tile([1, 1, 1, 1, 2, 2], len(wells))
    cells["Metadata_cell"] = np.arange(len(cells))
    cells[features] += rng.normal(0, 0.5, (len(cells), 12))
    cells.to_csv(path, index=False)
    settings = config(path, benchmarks="nsc", alignments="centerscale_on_controls")
    settings["profiles"] |= {
        "unique": "cell",
        "rollup": {"levels": "plate,well,site; plate,well", "average": "median", "equal": 5},
    }
    results = profiles.evaluate_profiles(settings, tmp_path / "out")
    assert results["data"]["n_examples"] == len(wells)
    assert of(results, "nsc", "centerscale_on_controls", "encoder")["value"] > 0.5


def test_a_control_column_of_true_and_false_is_read_as_such(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    wells["Metadata_control"] = wells["Metadata_compound"] == "DMSO"
    wells.to_csv(path, index=False)
    settings = config(path, benchmarks="nsc,activity", alignments="none")
    with pytest.raises(InputError, match="have a column 'control' of their own"):
        profiles.evaluate_profiles(settings, tmp_path / "out")
    settings["profiles"]["control"]["column"] = ""
    results = profiles.evaluate_profiles(settings, tmp_path / "out")
    assert of(results, "activity", "none", "encoder")["settings"]["n_treatments"] == COMPOUNDS
    wells["Metadata_control"] = "perhaps"
    wells.to_csv(path, index=False)
    with pytest.raises(InputError, match="column 'control' of row 0 is 'perhaps', expected true"):
        profiles.evaluate_profiles(settings, tmp_path / "out")


def test_what_one_protocol_cannot_score_does_not_lose_the_others(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    number = wells.groupby(["Metadata_plate", "Metadata_compound"]).cumcount()
    wells = wells[(wells["Metadata_compound"] != "DMSO") | (number < 3)]
    wells.to_csv(path, index=False)
    results = profiles.evaluate_profiles(
        config(path, alignments="centerscale_on_controls", benchmarks="nsc,activity"),
        tmp_path / "out",
    )
    assert of(results, "nsc", "centerscale_on_controls", "encoder")["value"] > 0.5
    found = [name for name in results["not_run"] if name.startswith("activity of encoder")]
    assert found and "too few control wells" in results["not_run"][found[0]]


def test_a_count_that_sets_treatments_apart_is_a_floor_of_activity(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=0.0)
    wells = pd.read_csv(path, keep_default_na=False)
    rng = np.random.default_rng(0)
    acts = wells["Metadata_compound"] != "DMSO"
    wells["Count"] = np.where(acts, 50.0, 100.0) + rng.normal(0, 1, len(wells))
    for i in range(12):  # features that are the count, bent
        wells[f"f{i}"] = np.tanh((wells["Count"] - 75) / 30) + 0.01 * i
    wells.to_csv(path, index=False)
    results = profiles.evaluate_profiles(
        config(path, alignments="none", benchmarks="activity"), tmp_path / "out"
    )
    assert of(results, "activity", "none", "count")["value"] > 0.5
    (verdict,) = results["verdicts"]
    assert verdict["word"] != "above"


def test_plates_that_are_numbers_are_names(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=1.0)
    wells = pd.read_csv(path, keep_default_na=False)
    wells["Metadata_plate"] = wells["Metadata_plate"].str[1:].astype(int)
    wells["Metadata_batch"] = wells["Metadata_plate"]
    wells.to_csv(path, index=False)
    results = profiles.evaluate_profiles(
        config(path, alignments="none", benchmarks="nsc", nuisance=True), tmp_path / "out"
    )
    shares = {r["column"]: r for r in results["nuisance"] if r["metric"] == "explained variance"}
    assert shares["plate"]["value"] > 0.2 and shares["plate"]["chance"] == pytest.approx(3 / 95)


def test_tables_come_from_files_of_different_kinds_and_column_names(tmp_path: Path) -> None:
    path = screen(tmp_path, signal=2.0)
    wells = pd.read_csv(path, keep_default_na=False)
    given = config(path, alignments="none", benchmarks="nsc,activity", beyond="count")
    whole = profiles.evaluate_profiles(given, tmp_path / "whole")
    # The encoder's features as an .npz whose metadata lie beside it; of the floor a csv that knows
    # plates and wells alone, by names of its own.
    features = wells.filter(regex="^f").to_numpy(np.float32)
    np.savez(tmp_path / "encoder.npz", features=features)
    about = wells.filter(regex="^Metadata_").rename(columns={"Metadata_plate": "Barcode"})
    about.to_csv(tmp_path / "beside.csv", index=False)
    floor = wells[["Metadata_well", "Metadata_plate", "Count"]]
    floor.set_axis(["Position", "PlateName", "Nuclei"], axis=1).to_csv(
        tmp_path / "cells.csv", index=False
    )
    tables = given["profiles"]["tables"]
    tables["encoder"] = {
        "kind": "imported", "source": str(tmp_path / "encoder.npz"), "only": "", "ignore": "",
        "beside": str(tmp_path / "beside.csv"), "metadata": {"Barcode": "plate"},
    }  # fmt: skip
    tables["count"] |= {
        "source": str(tmp_path / "cells.csv"), "only": "^Nuclei$",
        "metadata": {"Position": "well", "PlateName": "plate"},
    }  # fmt: skip
    apart = profiles.evaluate_profiles(given, tmp_path / "apart")
    for target in ("nsc", "activity"):
        for name in ("encoder", "count"):
            mine, before = (of(found, target, "none", name) for found in (apart, whole))
            assert mine["value"] == pytest.approx(before["value"], abs=1e-9), (target, name)
    assert [v["word"] for v in apart["verdicts"]] == [v["word"] for v in whole["verdicts"]]
    swapped = pd.read_csv(tmp_path / "cells.csv")
    swapped.iloc[[3, 4]] = swapped.iloc[[4, 3]].to_numpy()
    swapped.to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(InputError, match="count and encoder have other metadata: 'well' of row 3"):
        profiles.evaluate_profiles(given, tmp_path / "apart")
    tables["count"]["metadata"] = {"Position": "well"}
    with pytest.raises(InputError, match="no column 'plate'"):
        profiles.evaluate_profiles(given, tmp_path / "apart")
    tables["count"]["metadata"] = "plate"
    with pytest.raises(InputError, match=r"tables\.count\.metadata: 'plate', expected dict"):
        profiles.evaluate_profiles(given, tmp_path / "apart")


def test_a_kind_that_is_none_and_tables_of_other_wells_are_refused(tmp_path: Path) -> None:
    settings = config(screen(tmp_path, signal=0.0))
    settings["profiles"]["tables"]["count"]["kind"] = "cells"
    with pytest.raises(InputError, match=r"tables.count.kind: 'cells', expected one of"):
        profiles.evaluate_profiles(settings, tmp_path / "out")
    (tmp_path / "b").mkdir()
    other = screen(tmp_path / "b", signal=0.0, seed=1)
    settings["profiles"]["tables"]["count"] |= {"kind": "count", "source": str(other)}
    with pytest.raises(InputError, match="count and encoder have other metadata"):
        profiles.evaluate_profiles(settings, tmp_path / "out")


def test_what_the_design_cannot_answer_is_not_run(tmp_path: Path) -> None:
    settings = config(screen(tmp_path, signal=1.0), benchmarks="nsc,nscb_deepprofiler")
    results = profiles.evaluate_profiles(settings, tmp_path / "out")
    assert [target["name"] for target in results["targets"]] == ["nsc"]
    assert "0 of 4 classes take part" in results["not_run"]["nscb_deepprofiler"]


def test_protocols_without_their_columns_say_which() -> None:
    options = {
        "average": "mean",
        "permutations": 9,
        "pair_lists": "",
        "activities": "",
        "retrieval": {},
    }
    found, missing = find_protocols("activity,nsc", ["compound", "moa"], options, seed=0)
    assert [protocol.name for protocol in found] == ["nsc"]
    assert missing == {"activity": "the metadata have no column control"}

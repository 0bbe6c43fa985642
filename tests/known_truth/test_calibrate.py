"""A calibration in small: it trains, evaluates, flips, audits, says what holds, and is a page."""

import copy
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from bioimg_jax import command_line
from bioimg_jax.errors import InputError
from bioimg_jax.known_truth.calibrate import calibrate, main
from bioimg_jax.report import write_calibration

VIT = {"width": 16, "depth": 1, "heads": 2}  # a ResNet takes a minute to compile
SMALL = "n_plates=14,wells_per_treatment=1,images_per_site=3"


def config(out: Path) -> dict[str, Any]:
    """Three presets, one of them by two benchmarks and by protocols, and a tissue's genes.

    With encoders that learn nothing.
    """
    found = copy.deepcopy(runpy.run_path("configs/calibrate.py")["get_config"]().to_dict())
    found["mesh"]["devices"] = 1
    keep = ("handedness_only", "position_only", "mixed_screen")
    found["presets"] = {name: found["presets"][name] for name in keep}
    tiny = found["encoders"]["supervised_handedness"]
    tiny["encoder"] = found["presets"]["handedness_only"]["evaluation"]["encoder"] | VIT
    second = copy.deepcopy(tiny) | {"starts_from": "supervised_handedness"}
    found["encoders"] = {"supervised_handedness": tiny, "second": second}
    for encoder in found["encoders"].values():
        encoder["data"] |= {"out": str(out), "options": SMALL}
        encoder["optimizer"]["warmup_steps"] = 0
        encoder["train"] |= {"steps": 2, "batch_size": 8, "log_every_steps": 1}
    for preset in found["presets"].values():
        evaluation = preset["evaluation"]
        evaluation["data"] |= {"out": str(out), "options": SMALL}
        evaluation["encoder"] |= VIT
        evaluation["evaluate"] |= {
            "floors": "chance,pixels", "untrained_seeds": 0, "resnet18": False, "blocks": 1,
            "strengths": "1e-1", "poolings": "mean", "benchmarks": "ridge",
        }  # fmt: skip
    for name in ("position_only", "mixed_screen"):
        found["presets"][name] |= {"encoders": "second"}
    screen = found["presets"]["mixed_screen"]["evaluation"]
    screen["data"]["options"] = "n_plates=5,images_per_site=1"
    protocols = found["screens"]["mixed_screen_profiles"]["evaluate"]
    protocols |= {"permutations": 19, "benchmarks": "nsc,relationships"}
    genes = found["genes"]["tissue_genes"]
    genes |= {
        "encoders": "",
        "drivers": {name: genes["drivers"][name] for name in ("layout", "nothing")},
    }
    genes["tissue"]["options"] = (
        "n_centres=1,n_patients=4,sections_per_patient=1,spots_per_section=12,image_px=96"
    )
    genes["evaluation"]["data"] |= {"out": str(out), "crop_px": 96}
    genes["evaluation"]["encoder"] |= VIT | {"image_px": 96}
    small = {"floors": "chance,pixels,layout", "untrained_seeds": 0}
    genes["evaluation"]["evaluate"] |= small | {"blocks": 1, "poolings": "mean"}
    genes["expression"]["evaluate"] |= {"floors": small["floors"]}
    found["presets"]["position_only"]["evaluation"]["evaluate"]["benchmarks"] = "ridge,knn"
    audits = found["audits"]
    found["audits"] = {name: audits[name] | {"seeds": 2} for name in ("position_only", "default")}
    return found


def test_a_calibration_says_what_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, workdir = config(tmp_path / "prepared"), tmp_path / "run"
    found = calibrate(settings, workdir, command="python -m a_command", processes=1)
    about = {(o["preset"], o["benchmark"]): o for o in found["outcomes"]}
    assert list(about) == [
        ("handedness_only", "ridge"),
        ("handedness_only, flipped", "ridge"),
        ("position_only", "ridge"),
        ("position_only", "knn"),
        ("mixed_screen", "ridge"),
        ("mixed_screen_profiles", "profiles, centerscale_on_controls"),
        ("tissue_genes", "expression"),
    ]
    handed = about["handedness_only", "ridge"]
    assert handed["ceiling"] == 1.0 and handed["chance"] == 0.5  # the truth is the label
    assert handed["n_test"] == 8 * 6
    kinds = {one["kind"] for one in handed["shown"]}
    assert kinds == {"trained", "untrained", "pixels", "metadata", "truth"}
    assert about["position_only", "knn"]["confounded"] == "confounded"

    checks = {(c["preset"], c["expected"]): c["holds"] for c in found["checks"]}
    assert checks["position_only", "every encoder's verdict is confounded"]
    assert checks["position_only", "the metadata audit of treatment says confounded always"]
    assert checks["default", "the metadata audit of treatment says confounded never"]
    assert about["tissue_genes", "expression"]["target"] == "nothing"  # the last of the drivers
    screened = about["mixed_screen_profiles", "profiles, centerscale_on_controls"]
    truth = next(one for one in screened["shown"] if one["kind"] == "truth")
    assert truth["representation"] == "dials" and truth["value"] == screened["ceiling"]
    assert set(screened["verdicts"]) == {"dials", "supervised_vit"}
    assert checks["mixed_screen_profiles, nsc", "nothing scores more than the truth"]
    assert ("tissue_genes, nothing", "nothing is above chance") in checks
    for folder in ("screens/mixed_screen_profiles", "genes/tissue_genes/layout"):
        assert (workdir / folder / "report.html").is_file()
    few = next(v for (_, text), v in checks.items() if text.startswith("pixels is chance"))
    assert not few  # 48 test images are no evidence of equivalence
    assert found == json.loads((workdir / "calibration.json").read_text())

    page = (workdir / "calibration.html").read_text()
    text = (workdir / "calibration.md").read_text()
    for shown in (page, text):
        assert "python -m a_command" in shown
        assert "verdict is confounded" in shown
        assert found["data"][0]["content_hash"][:16] in shown
        assert all(name in shown for name in ("handedness_only, flipped", "pixels", "knn"))
    assert (workdir / "presets" / "position_only" / "report.html").is_file()

    assert not found["resumed"] and "of several calls" not in text + page
    # Of what two benchmarks were tried on, what the best but the truth reaches.
    ridge, knn = (about["position_only", name] for name in ("ridge", "knn"))
    for outcome in (ridge, knn):
        best = max((s for s in outcome["shown"] if s["kind"] != "truth"), key=lambda s: s["value"])
        assert f"{best['share']:.0%} |" in text and f"{best['share']:.0%}</td>" in page

    # What is finished is used again: nothing is trained, no image is looked at.
    def of_images() -> dict[Path, int]:
        found = [*workdir.glob("presets/*/features/*"), *workdir.glob("genes/*/images/features/*")]
        return {path: path.stat().st_mtime_ns for path in found}

    before = of_images()
    assert len(before) > 10
    again = calibrate(settings, workdir, command="python -m a_command", processes=1)
    assert again["checks"] == found["checks"]
    assert again["resumed"] and "of several calls" in (workdir / "calibration.md").read_text()
    assert of_images() == before
    # A command line whose statements do not all hold ends with 1.
    monkeypatch.setattr(
        command_line, "parse", lambda *_: (settings, {"workdir": str(workdir), "processes": "2"})
    )
    assert main(["calibrate"]) == 1


def test_what_it_cannot_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--config=configs/calibrate.py"]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err
    assert main(["calibrate", "--config=configs/mae_cells.py", f"--workdir={tmp_path}"]) == 2
    assert "this file has no section 'encoders'" in capsys.readouterr().err
    for section, key, value, message in (
        ("presets", "position_only", {"encoders": "other"},
         r"presets.position_only.encoders: 'other' is none of supervised_handedness"),
        ("encoders", "second", {"starts_from": "other"},
         r"encoders.second.starts_from: 'other' is none of supervised_handedness"),
        ("encoders", "second", {"train": {"batch_size": 0}},
         r"encoders.second: train.batch_size: 0, expected at least 1"),
        ("audits", "default", {"name": "two_textures"},
         r"audits.default: the design of data set 'two_textures' is not known without its images"),
    ):  # fmt: skip
        settings = config(tmp_path / "prepared")
        settings[section][key] |= value
        with pytest.raises(InputError, match=message):
            calibrate(settings, tmp_path / "run", command="")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="there is no such file"):
        write_calibration(tmp_path)

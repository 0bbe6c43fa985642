"""The rules of the house: who may import what, and that every config is built."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bioimg_jax.benchmarks import ladder
from bioimg_jax.benchmarks.ladder import floor_ids
from bioimg_jax.benchmarks.protocols import find_protocols
from bioimg_jax.candidates import build_evaluation, own_floors
from bioimg_jax.design import chosen_benchmarks
from bioimg_jax.features.alignment import find_alignment
from bioimg_jax.models import build_encoder
from bioimg_jax.train import build_run

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
# Library -> where it may be imported (one door each).
DOORS = {
    "flax": ("bioimg_jax/models/",),
    "optax": ("bioimg_jax/optimizer.py", "bioimg_jax/probes/"),
    "orbax": ("bioimg_jax/checkpoint.py",),
    "grain": ("bioimg_jax/data/",),
    "tensorflow_datasets": ("bioimg_jax/data/", "bioimg_jax/prepare.py", "datasets/"),
    "ml_collections": ("bioimg_jax/command_line.py", "configs/"),
    "absl": ("bioimg_jax/command_line.py",),
    "sklearn": ("bioimg_jax/probes/", "bioimg_jax/benchmarks/", "bioimg_jax/statistics/"),
    "skimage": ("bioimg_jax/representations/",),
    "anndata": ("bioimg_jax/features/", "datasets/"),
    "matplotlib": ("bioimg_jax/report/",),
    "jinja2": ("bioimg_jax/report/",),
    "markupsafe": ("bioimg_jax/report/",),
    "array_record": ("bioimg_jax/data/",),
    "h5py": ("bioimg_jax/features/", "datasets/"),
    "tifffile": ("datasets/",),
    "scib_metrics": ("bioimg_jax/statistics/batch_mixing.py",),
    "PIL": ("datasets/",),
    # Nobody's: no TensorFlow, no pickle, no peers.
    "tensorflow": (),
    "pickle": (),
    "torch": (),
    "transformers": (),
    "copairs": (),
}


def sources() -> list[Path]:
    found = [p for top in ("bioimg_jax", "configs", "datasets") for p in (ROOT / top).rglob("*.py")]
    assert len(found) > 40
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_libraries_come_in_by_their_own_door_only() -> None:
    trespassers = [
        f"{path.relative_to(ROOT)} imports {library}"
        for path in sources()
        for library in imported(path) & set(DOORS)
        if not str(path.relative_to(ROOT)).startswith(DOORS[library])
    ]
    assert not trespassers


def test_no_source_unpickles_or_evaluates_text() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


@pytest.mark.parametrize("name", [ladder.ON_LAYOUT, *ladder.OWN.values()])
def test_a_name_that_ties_floors_to_encoders_is_written_once(name: str) -> None:
    literals = [
        path.name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == name
    ]
    assert literals == ["ladder.py"]


@pytest.mark.parametrize("module", ["bioimg_jax.models", "bioimg_jax.objectives"])
def test_models_bring_neither_data_nor_report_libraries(module: str) -> None:
    code = f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(out.stdout.splitlines()[-1]))
    assert "flax" in loaded
    unwanted = {"grain", "matplotlib", "tensorflow_datasets", "orbax", "anndata", "pandas"}
    assert not loaded & unwanted


CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "common")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_built(path: Path) -> None:
    config = runpy.run_path(str(path))["get_config"]().to_dict()
    assert config["name"] == path.stem
    config["mesh"] = {"devices": 1, "model": 1, "fsdp": False}
    if "profiles" in config:  # of features from files: no encoder, no images
        settings = config["evaluate"]
        assert [find_alignment(text) for text in settings["alignments"].split(";")]
        columns = ["compound", "moa", "batch", "control"]
        found, missing = find_protocols(settings["benchmarks"], columns, settings, seed=0)
        assert found and set(missing) == {
            "relationships", "compound_gene", "retrieval_across_plates",  # no list, no plates
        }  # fmt: skip
        return None
    if "task" in config:  # of spots whose features are there
        assert floor_ids(config["evaluate"]["floors"])
        return None
    if "presets" not in config:
        return built(config)
    shared = {"seed": config["seed"], "mesh": config["mesh"]}
    for encoder in config["encoders"].values():  # a calibration is many experiments
        built({**encoder, **shared})
        assert encoder["starts_from"] in ("", *config["encoders"])
    for preset in config["presets"].values():
        built({**preset["evaluation"], **shared})
        assert set(preset["encoders"].split(",")) <= set(config["encoders"])


def built(config: dict[str, Any]) -> None:
    channels = ("R", "G", "B") if config["data"]["name"] == "synthetic_tissue" else CHANNELS
    if "train" in config:
        run = build_run(config, channels)
        assert run.states.abstract.params["encoder"]
        assert run.encoder.config == build_encoder(run.encoder.config).config
    if "evaluate" in config:
        crop = config["data"]["crop_px"] or 64
        data = {**config["data"], "crop_px": crop}
        evaluation = build_evaluation({**config, "data": data}, channels)
        assert own_floors(evaluation).names and chosen_benchmarks(evaluation.settings)

"""A run small enough for tests: 672 synthetic images and an encoder of two blocks."""

import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "mae_cells.py"
# Nearly every program of a test runs a few times only: compiling it quickly, by the older emitters
# in one piece and without optimising, takes two thirds off the suite's time. Parity with other
# libraries is tested with programs as users have them (Makefile).
QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
OVERRIDES: dict[str, Any] = {
    "data.options": "images_per_site=2,label=nucleus_size",
    "encoder.width": 64,
    "encoder.depth": 2,
    "encoder.patch_px": 16,
    "objective.decoder_width": 32,
    "objective.decoder_depth": 1,
    "optimizer.warmup_steps": 2,
    "train.batch_size": 16,
    "train.steps": 12,
    "train.log_every_steps": 1,
    "train.save_every_steps": 4,
    "train.probe_every_steps": 0,
    "mesh.devices": 1,
    "evaluate.untrained_seeds": 2,
    "evaluate.blocks": 2,
    "evaluate.poolings": "mean",
    "evaluate.benchmarks": "ridge",
    "evaluate.strengths": "1e-1,1e-3",  # where a test asks for the linear probe
    "evaluate.resnet18": False,
    "evaluate.audits": False,
    "evaluate.illustrate": False,
}


def config(**changes: Any) -> dict[str, Any]:
    """The nested config; keys of `changes` have "__" for the dot."""
    nested = runpy.run_path(str(CONFIG))["get_config"]().to_dict()
    for key, value in {
        **OVERRIDES,
        **{k.replace("__", "."): v for k, v in changes.items()},
    }.items():
        section, name = key.split(".")
        assert name in nested[section], key
        nested[section][name] = value
    return nested


def arguments(out: Path, workdir: Path, **changes: Any) -> list[str]:
    """The same as a command line, without the interpreter."""
    return [
        "bioimg_jax.main",
        f"--config={CONFIG}",
        f"--config.data.out={out}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in _changed(changes).items()),
    ]


def _changed(changes: dict[str, Any]) -> dict[str, Any]:
    return {**OVERRIDES, **{key.replace("__", "."): value for key, value in changes.items()}}

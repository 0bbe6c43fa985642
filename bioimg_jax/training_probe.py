"""The curve of a training: a small linear probe of the encoder as it is at a step."""

from pathlib import Path
from typing import Any

from bioimg_jax.benchmarks.registry import find_benchmarks
from bioimg_jax.data.dataset import Dataset
from bioimg_jax.design import subset
from bioimg_jax.features.aggregate import aggregate
from bioimg_jax.features.extract import feature_table
from bioimg_jax.representations.encoder import EncoderRepresentation
from bioimg_jax.train import Probe, Run
from bioimg_jax.train_state import TrainState

PROBE_STRENGTHS = (1e-1, 1e-3, 1e-5)


def make_probe(run: Run, dataset: Dataset, workdir: Path) -> Probe:
    """Scores the encoder on the primary target as it is at a step of the training.

    A small subset and one layer: a curve to watch, beside the results and never in their place.
    """
    target = dataset.declaration.targets[0]
    rows, restricted = subset(run.config, dataset, [target], "probe_examples")
    folds = restricted[target.name]
    benchmark = find_benchmarks("linear", {"strengths": PROBE_STRENGTHS})[0]
    batch_size = -(-run.config["evaluate"]["batch_size"] // run.mesh.shape["data"])

    def probe(step: int, state: TrainState) -> list[dict[str, Any]]:
        variables = {"params": state.params["encoder"], "stats": state.objective["stats"]}
        representation = EncoderRepresentation(
            "probe", "trained", run.encoder, variables, blocks=1, poolings=("mean",)
        )
        path = workdir / "features" / ".probe.h5ad"
        path.unlink(missing_ok=True)
        table = feature_table(
            path,
            lambda: representation,
            dataset,
            rows,
            identity={"step": step},
            crop_px=run.config["data"]["crop_px"],
            batch_size=batch_size * run.mesh.shape["data"],
            mesh=run.mesh,
            provenance={},
        )
        probed, parts = aggregate(table, folds, target)
        scores = benchmark.scores(
            probed,
            parts,
            target,
            representation="probe",
            kind="trained",
            seed=run.config["seed"],
            exposure="",
            settings={},
            permute_labels_seed=None,
        )
        path.unlink()
        score = scores[-1]
        entry = {
            "target": target.name,
            "metric": score.metric,
            "value": score.value,
            "chance": score.chance,
            "layer": "final/mean",
            "n_images": len(rows),
        }
        return [{"step": step, "probe": entry}]

    return probe

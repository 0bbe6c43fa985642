"""The attentive probe as a benchmark: tokens where there are some, else a single one."""

import numpy as np
import pytest

from bioimg_jax.benchmarks.attentive import Attentive
from bioimg_jax.benchmarks.benchmark import layers_for
from bioimg_jax.benchmarks.linear import Linear
from bioimg_jax.data.splits import make_folds
from bioimg_jax.features.table import read_table, write_table
from tests.benchmarks.plates import COMPOUND, features, metadata, table

ABOUT = {"representation": "r", "kind": "trained", "seed": 0, "exposure": "none"}
N_TOKENS, WIDTH = 6, 8


def token_table(path, obs):
    """One token of each image is marked and says the treatment; the others say another one."""
    rng = np.random.default_rng(0)
    n = len(obs)
    treatment = obs["treatment"].astype("category").cat.codes.to_numpy()
    centres = 4 * np.eye(3, WIDTH)
    tokens = centres[rng.integers(0, 3, (n, N_TOKENS))] + rng.normal(size=(n, N_TOKENS, WIDTH))
    marked = rng.integers(0, N_TOKENS, n)
    tokens[np.arange(n), marked] = centres[treatment] + rng.normal(size=(n, WIDTH))
    tokens[..., -1] = -3.0
    tokens[np.arange(n), marked, -1] = 3.0
    layers = {"final/tokens": tokens.reshape(n, -1), "final/mean": tokens.mean(axis=1)}
    widths = {name: values.shape[1] for name, values in layers.items()}
    given = [(np.arange(n), layers)]
    write_table(path, obs, widths, "final/mean", given, {"tokens": N_TOKENS}, dtype="float32")
    return read_table(path)


def test_it_finds_the_token_that_knows_and_no_other_probe_sees_tokens(tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    opened = token_table(tmp_path / "t.h5ad", obs)
    attentive, linear = Attentive(strengths=(1e-2, 1e-3)), Linear((1e-2, 1e-3))
    by_tokens, by_mean = (
        probe.scores(opened.only(layers_for(probe, opened.widths)), folds, COMPOUND, **ABOUT)
        for probe in (attentive, linear)
    )
    assert [(s.block, s.pooling) for s in by_tokens] == [("final", "tokens")]
    assert [(s.block, s.pooling) for s in by_mean] == [("final", "mean")]
    assert by_tokens[0].value > 0.95 and by_mean[0].value < 0.8
    assert by_tokens[0].search_budget == 2 and by_tokens[0].other_metrics["auroc"] > 0.98


def test_without_tokens_it_is_the_linear_probe(tmp_path):
    obs = metadata()
    folds = make_folds(obs, COMPOUND)
    opened = table(tmp_path / "t.h5ad", obs, features(obs))
    attentive, linear = Attentive(strengths=(1e-1, 1e-2)), Linear((1e-1, 1e-2))
    assert layers_for(attentive, opened.widths) == layers_for(linear, opened.widths)
    for one, other in zip(
        attentive.scores(opened, folds, COMPOUND, **ABOUT),
        linear.scores(opened, folds, COMPOUND, **ABOUT),
        strict=True,
    ):
        assert one.per_unit == pytest.approx(other.per_unit, abs=0.03)  # one row of 48
        assert one.other_metrics["auroc"] == pytest.approx(other.other_metrics["auroc"], abs=1e-3)

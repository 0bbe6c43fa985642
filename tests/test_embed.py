"""Feature tables of any representation from the command line."""

import dataclasses
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from bioimg_jax import embed
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.features.table import read_table
from bioimg_jax.train import build_run, train
from tests import readme, tiny


@pytest.fixture(scope="module")
def trained(prepared_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    dataset = open_dataset(next(prepared_cells.glob("synthetic_cells-*")))
    train(build_run(tiny.config(train__steps=4), dataset.declaration.channels), dataset, workdir)
    return workdir


def arguments(prepared: Path, out: Path, **flags: Any) -> list[str]:
    return [
        "bioimg_jax.embed",
        f"--config={tiny.ROOT / 'configs' / 'eval_cells.py'}",
        f"--config.data.out={prepared}",
        f"--config.data.options={tiny.OVERRIDES['data.options']}",
        "--config.evaluate.blocks=2",
        f"--out={out}",
        *(f"--{name}={value}" for name, value in flags.items()),
    ]


def test_a_checkpoint_becomes_a_table_of_every_image(
    prepared_cells: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny.ROOT)  # the README's command is given there
    out = tmp_path / "features.h5ad"
    given = readme.module_arguments(
        "bioimg_jax.embed", WORKDIR=str(trained), FEATURES=str(tmp_path / "features")
    )
    settings = arguments(prepared_cells, out)[2:-1]
    assert embed.main([*given, *settings]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    table = read_table(out)
    assert list(table.widths) == ["block01/cls", "block01/mean", "final/cls", "final/mean"]
    read = anndata.read_h5ad(out)
    assert read.shape == (672, 64) and "plate" in read.obs
    assert table.provenance["step"] == 4

    parquet = tmp_path / "features.parquet"
    assert (
        embed.main(arguments(prepared_cells, parquet, checkpoint=trained, layer="block01/cls")) == 0
    )
    frame = pd.read_parquet(parquet)
    assert list(frame.filter(like="Metadata_plate")) == ["Metadata_plate"]
    features = frame.filter(regex=r"^block01/cls:\d+$")
    np.testing.assert_array_equal(features, table.layer("block01/cls"))
    assert features.dtypes.eq("float32").all()
    np.testing.assert_array_equal(frame["Metadata_plate"], read.obs["plate"].astype(str))
    assert {p.name for p in tmp_path.iterdir()} == {"features.h5ad", "features.parquet"}


def test_floors_and_untrained_twins_are_embedded_the_same_way(
    prepared_cells: Path, trained: Path, tmp_path: Path
) -> None:
    for name, flags in (
        ("texture_bank", {"config.data.crop_px": 64}),
        ("mae_vit_step0", {"checkpoint": trained}),
        ("layout_trained", {"checkpoint": trained}),
        ("metadata_treatment", {"config.data.crop_px": 64}),
    ):
        out = tmp_path / f"{name}.h5ad"
        assert embed.main(arguments(prepared_cells, out, representation=name, **flags)) == 0
        expected = "mae_vit_on_layout" if name == "layout_trained" else name
        assert read_table(out).provenance["representation"] == expected


def test_images_without_a_target_are_embedded(
    prepared_cells: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(next(prepared_cells.glob("synthetic_cells-*")))
    dataset.declaration = dataclasses.replace(dataset.declaration, targets=(), pretraining="all")
    monkeypatch.setattr(embed, "prepared", lambda config: dataset)
    out = tmp_path / "features.h5ad"
    assert embed.main(arguments(prepared_cells, out, checkpoint=trained)) == 0
    assert read_table(out).provenance["representation"] == "mae_vit"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"name": "x.csv"}, "x.csv: expected a name that ends in .h5ad or .parquet"),
        ({}, "--checkpoint=PATH or --representation=NAME is missing"),
        (
            {"representation": "pixel", "config.data.crop_px": 64},
            "--representation: 'pixel', expected some of resnet18_random, pixels",
        ),
        ({"representation": "pixels"}, "for example --config.data.crop_px=64"),
        (
            {"representation": "layout_trained", "config.data.crop_px": 64},
            "there is none of it here",
        ),
        ({"checkpoint": "nowhere"}, "there is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    prepared_cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: dict, message: str
) -> None:
    flags = dict(flags)
    out = tmp_path / flags.pop("name", "x.h5ad")
    assert embed.main(arguments(prepared_cells, out, **flags)) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.iterdir())

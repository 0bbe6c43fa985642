"""Synthetic tissue: reproducible, the labels live where they are said to, and HEST's layout."""

import concurrent.futures
import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from bioimg_jax.data.builders import find_builder
from bioimg_jax.data.dataset import open_dataset
from bioimg_jax.data.declaration import Declaration
from bioimg_jax.errors import InputError
from bioimg_jax.prepare import prepare
from bioimg_jax.representations.nuclei import segment_nuclei

BUILDER = find_builder("synthetic_tissue")
CONFIGS = tuple(config.name for config in BUILDER.BUILDER_CONFIGS)
PRESETS = CONFIGS[1:]
SMALL = {
    "n_centres": 1,
    "n_patients": 3,
    "sections_per_patient": 1,
    "spots_per_section": 4,
    "image_px": 96,
}


def part(name: str) -> Any:
    """A module beside the builder."""
    return importlib.import_module(f"{BUILDER.__module__}.{name}")


def spots(config: str, units: slice = slice(1), **options: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """Metadata and images [n, s, s, 3] of some units."""
    plan = BUILDER.plan_resolved("", config, options)
    drawn = [e for unit in plan.units[units] for e in BUILDER.examples(unit, plan.shared)]
    return pd.DataFrame([metadata for metadata, _ in drawn]), np.stack(
        [image for _, image in drawn]
    )


def sweep(dial: str, values: list[float], **held: float) -> tuple[np.ndarray, Any]:
    """Images and nuclei of the same seed with one dial turned."""
    rngs = [np.random.default_rng(3) for _ in values]
    return part("rendering").draw(rngs, {dial: np.array(values), **held})


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = (spots("default", seed=seed, **SMALL)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 96, 96, 3)
    assert first.dtype == np.uint8
    assert (first != other).any(axis=3).mean() > 0.5


def test_a_spot_does_not_depend_on_what_is_drawn_beside_it() -> None:
    rngs = [np.random.default_rng([9, i]) for i in range(3)]
    dials = {"density": np.array([4000.0, 9000, 6000]), "evenness": np.array([0, 1.0, 0])}
    images, _ = part("rendering").draw(rngs, dials, image_px=96)
    alone = {name: values[1:2] for name, values in dials.items()}
    image, _ = part("rendering").draw([np.random.default_rng([9, 1])], alone, image_px=96)
    np.testing.assert_array_equal(image[0], images[1])


# SHA-256 of the images of `digest`, in the first version, on any machine.
PINNED = "ec5346be23655dc03f4f4d01c377186ea9b32db373e0a1ea52829e089cf2f68e"


def digest(draw: Any) -> str:
    """Of three images that use every part of the renderer."""
    rngs = [np.random.default_rng([0, i]) for i in range(3)]
    dials = {
        "gland_share": np.array([0.4, 0.0, 0.0]),
        "stroma": np.array([0.5, 0.9, 0.1]),
        "infiltrate": np.array([0.2, 0.1, 0.6]),
        "clustering": np.array([0.3, 0.3, 1.0]),
        "evenness": np.array([0.0, 0.0, 1.0]),
    }
    return hashlib.sha256(draw(rngs, dials)[0].tobytes()).hexdigest()


def test_the_bytes_are_the_same_on_a_processor_without_wide_registers() -> None:
    """NumPy's other code paths stand in for another machine."""
    folder = BUILDER.code_file.parent
    script = f"""
import hashlib, sys, types
from typing import Any
import numpy as np
sys.modules["tissue"] = types.ModuleType("tissue")
sys.modules["tissue"].__path__ = [{str(folder)!r}]
from tissue.rendering import draw
{inspect.getsource(digest)}
print(digest(draw))
"""
    features = np._core._multiarray_umath.__cpu_dispatch__  # type: ignore[attr-defined]
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert out.stdout.strip() == digest(part("rendering").draw) == PINNED


@pytest.mark.parametrize("config", CONFIGS)
def test_classes_are_balanced_in_every_section_and_centres_in_every_split(config: str) -> None:
    plan = BUILDER.plan_resolved("", config, {"spots_per_section": 4, "image_px": 96})
    target = plan.declaration.targets[0]
    metadata, _ = spots(config, slice(2), spots_per_section=4, image_px=96)
    assert metadata.groupby("section")[target.column].value_counts().nunique() == 1
    places = [BUILDER_PLACE(patient, 4) for patient in range(1, 25)]
    table = pd.crosstab(*(pd.Series(column) for column in zip(*places, strict=True)))
    assert table.sum(axis=1).to_dict() == {"train": 10, "validation": 4, "test": 10}
    assert (table.max(axis=1) - table.min(axis=1)).max() <= 1
    assert set(table.sum()) == {6}
    assert set(target.truth) <= set(plan.metadata)
    assert Declaration.from_json(plan.declaration.to_json()) == plan.declaration


BUILDER_PLACE = sys.modules[BUILDER.__module__]._place


@pytest.mark.parametrize(
    ("config", "dial", "low", "high"),
    [
        ("tissue_composition", "infiltrate", "low", "high"),
        ("tissue_layout", "clustering", "dispersed", "nested"),
        ("tissue_texture", "chromatin_um", "fine", "coarse"),
    ],
)
def test_a_preset_turns_its_own_dial_and_no_other(
    config: str, dial: str, low: str, high: str
) -> None:
    presets, n = part("presets"), 400
    preset = presets.PRESETS[config]
    rng = np.random.default_rng(0)
    draws = rng.uniform(-1, 1, (2, n, len(part("dials").DIALS)))
    drawn = {
        label: pd.DataFrame([presets.spot_dials(preset, label, *draws[:, i]) for i in range(n)])
        for label in (low, high)
    }
    assert drawn[high][dial].min() > drawn[low][dial].max()
    others = drawn[low].columns.drop(dial)
    pd.testing.assert_frame_equal(drawn[low][others], drawn[high][others])


def test_nests_have_neighbours_and_the_spectrum_of_dispersed_nuclei() -> None:
    n, side = 24, 128
    levels = {**part("presets").PRESETS["tissue_layout"].levels, "pleomorphism": 0.0}
    nearest, power = {}, {}
    for clustering in (0.0, 1.0):
        chance = part("chance").Chance([np.random.default_rng([4, i]) for i in range(n)])
        dials = part("dials").complete({**levels, "clustering": clustering}, n)
        nuclei, _, _ = part("placement").place(
            chance, dials, side, np.zeros(n), np.zeros((n, side, side), np.float32)
        )
        there = nuclei.kind >= 0
        points = [np.stack([nuclei.x[i, there[i]], nuclei.y[i, there[i]]], 1) for i in range(n)]
        trees = [cKDTree(p % side, boxsize=side) for p in points]
        distances = [t.query(t.data, k=2)[0][:, 1].mean() for t in trees]
        nearest[clustering] = np.array(distances)
        # Structure factor of the stain in the rings 3-4, 5-7 and 8-12 waves to an image.
        waves = np.stack(np.meshgrid(np.arange(-12, 13), np.arange(1, 13)), -1).reshape(-1, 2)
        stain = part("placement")._stain(nuclei.kind) * nuclei.radius.astype(float) ** 2
        phase = np.stack([nuclei.x, nuclei.y], 2) @ waves.T
        amplitude = (stain[..., None] * np.exp(-2j * np.pi * phase / side)).sum(axis=1)
        factor = np.abs(amplitude) ** 2 / np.square(stain).sum(axis=1, keepdims=True)
        ring = np.rint(np.hypot(*waves.T))
        rings = ((3, 4), (5, 7), (8, 12))
        power[clustering] = [factor[:, (ring >= a) & (ring <= b)].mean() for a, b in rings]
    assert nearest[0.0].min() > nearest[1.0].max() + 0.5
    np.testing.assert_allclose(power[0.0], power[1.0], rtol=0.3)


def test_arrangement_and_texture_leave_the_mean_stain_alone() -> None:
    for dial, values in (("clustering", [0.0, 1.0]), ("chromatin_um", [1.5, 3.5])):
        images, nuclei = sweep(dial, values, infiltrate=0.5, stroma=0.0, compartments=0.0)
        density = -np.log((images.astype(float) + 1) / 256).mean(axis=(1, 2))
        np.testing.assert_allclose(density[0], density[1], rtol=0.03)
        assert nuclei.count()[0] == nuclei.count()[1]
    np.testing.assert_array_equal(nuclei.x[0], nuclei.x[1])


@pytest.mark.parametrize(
    ("dial", "measure"),
    [
        ("density", lambda image, nuclei, i: nuclei.count()[i]),
        ("nuclear_size", lambda image, nuclei, i: nuclei.radius[i].max()),
        ("infiltrate", lambda image, nuclei, i: nuclei.shares()[i, 2]),
        ("stroma", lambda image, nuclei, i: nuclei.shares()[i, 4]),
        ("gland_share", lambda image, nuclei, i: nuclei.shares()[i, 1]),
        ("pleomorphism", lambda image, nuclei, i: nuclei.radius[i, nuclei.kind[i] == 0].std()),
        ("haematoxylin", lambda image, nuclei, i: -float(image[..., 0].mean())),
        ("eosin", lambda image, nuclei, i: -float(image[..., 1].mean())),
        ("blur_um", lambda image, nuclei, i: -np.abs(np.diff(image[..., 0].astype(float))).mean()),
        ("out_of_focus", lambda image, nuclei, i: -np.quantile(image[..., 0], 0.6)),
    ],
)  # fmt: skip
def test_a_dial_turns_what_it_is_named_after(dial: str, measure: Any) -> None:
    known = part("dials").DIALS[dial]
    images, nuclei = sweep(dial, [known.low, (known.low + known.high) / 2, known.high])
    low, middle, high = (measure(images[i], nuclei, i) for i in range(3))
    assert low < middle < high


def test_the_segmenter_finds_the_nuclei() -> None:
    metadata, images = spots("tissue_layout", slice(0, 1))
    found = []
    for image in images:
        labels = segment_nuclei(image, stain="haematoxylin")
        # A nucleus across the border is found on both sides: count those cut there half.
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        found.append(labels.max() - len(np.unique(edge[edge > 0])) / 2)
    assert np.mean(found) == pytest.approx(metadata["truth_nuclei"].mean(), rel=0.1)


def test_a_prepared_set_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"name": "synthetic_tissue", "config": "tissue_null"}
    settings["options"] = {**SMALL, "spots_per_section": 2}
    one = prepare(**settings, out=tmp_path / "1", workers=1)
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        many = prepare(**settings, out=tmp_path / "3", executor=executor)
    dataset = open_dataset(one)
    assert len(dataset) == 3 * 2
    assert dataset.declaration.name == "tissue_null"
    fold = dataset.folds("lot")[0]
    assert set(dataset.metadata["lot"].iloc[fold.test]) == {"heads", "tails"}
    for a, b in zip(
        sorted(one.rglob("*array_record*")), sorted(many.rglob("*array_record*")), strict=True
    ):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("source", "config", "options", "message"),
    [
        ("/data", "default", {}, "is generated: no source"),
        ("", "default", {"image_px": 64}, "image_px must be from 96 to 512, not 64"),
        ("", "default", {"spots_per_section": 6}, "must be a multiple of 4, .* not 6"),
        ("", "default", {"gene_drivers": "layout,colour"}, "of composition, layout, .*'colour'"),
        ("", "default", {"n_patients": 6}, "each of 4 centres at least 3 patients, not 1: 6 are"),
        ("", "tissue_layuot", {}, "did you mean 'tissue_layout'"),
        ("", "default", {"n_gene": 3}, "did you mean 'n_genes'"),
    ],
)
def test_options_it_does_not_have_are_refused(
    source: str, config: str, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BUILDER.plan_resolved(source, config, options)


HEST = {**SMALL, "n_genes": 12, "sections_per_patient": 2}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDER.write_hest(tmp_path_factory.mktemp("hest"), "default", HEST)


def test_hest_files_hold_the_images_and_the_genes(task: Path) -> None:
    metadata, images = spots("default", slice(None), **HEST)
    assert sorted(p.stem for p in (task / "patches").iterdir()) == sorted(set(metadata["section"]))
    for section, rows in metadata.groupby("section"):
        with h5py.File(task / "patches" / f"{section}.h5") as file:
            np.testing.assert_array_equal(file["img"][:], images[rows.index])
            barcodes = [b.decode() for b in file["barcode"][:, 0]]
            coords = file["coords"][:]
        table = anndata.read_h5ad(task / "adata" / f"{section}.h5ad")
        assert list(table.obs_names) == barcodes
        assert table.shape == (4, 12)
        np.testing.assert_array_equal(table.obsm["spatial"], coords)
        np.testing.assert_array_equal(table.obs["compartment"], rows["compartment"])
        assert (np.rint(table.X) == table.X).all()
        assert set(table.var["driver"]) == {"composition", "layout", "texture", "nothing"}
    genes = json.loads((task / "var_50genes.json").read_text())["genes"]
    assert set(genes) == set(table.var_names)


def test_hest_splits_hold_out_patients(task: Path) -> None:
    tested = []
    for k in range(3):
        train, test = (pd.read_csv(task / "splits" / f"{p}_{k}.csv") for p in ("train", "test"))
        assert list(train.columns) == ["sample_id", "patches_path", "expr_path"]
        patients = [set(names.str[:4]) for names in (train["sample_id"], test["sample_id"])]
        assert not patients[0] & patients[1]
        assert all((task / path).is_file() for path in (*test["patches_path"], *test["expr_path"]))
        tested += list(test["sample_id"])
    assert len(tested) == len(set(tested)) == 6


def test_a_written_task_is_not_overwritten(task: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        BUILDER.write_hest(task.parent, "default", HEST)


def test_genes_follow_their_driver_and_nothing_else() -> None:
    expression, n = part("expression"), 2000
    genes = expression.make_genes(np.random.default_rng(0), 8, expression.DRIVERS)
    rng = np.random.default_rng(1)
    latents = pd.DataFrame(rng.uniform(-1, 1, (n, 3)), columns=list(expression.DRIVERS[:3]))
    latents["nothing"] = 0.0
    counts = np.array(
        [expression.draw_counts(rng, genes, row, 1.0) for row in latents.to_dict("records")]
    )
    assert {gene.driver for gene in genes} == set(expression.DRIVERS)
    for j, gene in enumerate(genes):
        for driver in expression.DRIVERS[:3]:
            r = np.corrcoef(np.log1p(counts[:, j]), latents[driver])[0, 1]
            if driver == gene.driver:
                assert np.sign(gene.effect) * r > 0.3
            else:
                assert abs(r) < 4 / np.sqrt(n)


def test_counts_are_as_dispersed_as_declared() -> None:
    expression, n = part("expression"), 5_000
    gene = expression.Gene("A", "layout", 3.0, 1.0)
    rng = np.random.default_rng(0)
    for latent in (-0.5, 0.5):
        spot = {"layout": latent}
        counts = np.array([expression.draw_counts(rng, [gene], spot, 2.0)[0] for _ in range(n)])
        # Log-normal depth beside the negative binomial: E = m e^(s^2/2), and the variance of the
        # mixture is E + (1 + dispersion) E^2 e^(s^2) - E^2.
        s2 = expression.SPOT_DEPTH**2
        mean = 2.0 * np.exp(3.0 + latent + s2 / 2)
        variance = mean + mean**2 * ((1 + expression.DISPERSION) * np.exp(s2) - 1)
        assert counts.mean() == pytest.approx(mean, rel=0.03)
        assert counts.var() == pytest.approx(variance, rel=0.12)


def test_texture_genes_of_a_written_task_follow_the_chromatin(tmp_path: Path) -> None:
    """The latents that reach the counts are those in the metadata of the images."""
    plan = BUILDER.plan_resolved("", "tissue_texture", SMALL)
    rows = [metadata for metadata, _ in BUILDER.examples(plan.units[0], plan.shared)]
    fine, coarse = (
        [part("expression").latents(row)["texture"] for row in rows if row["chromatin"] == name]
        for name in ("fine", "coarse")
    )
    assert max(fine) < 0 < min(coarse)


def test_a_sweep_turns_one_dial_of_one_tissue() -> None:
    images = BUILDER.sweep("eosin", [1.0, 1.0, 1.5], seed=2, image_px=96)
    np.testing.assert_array_equal(images[0], images[1])
    haematoxylin_only = images[0].min(axis=2) < 70  # nuclei stay where they are
    assert (images[2].min(axis=2)[haematoxylin_only] < 75).all()
    assert images[2][..., 1].mean() < images[0][..., 1].mean() - 10


def test_dials_are_documented() -> None:
    assert [dial.name for dial in BUILDER.dials()] == list(part("dials").DIALS)
    for dial in BUILDER.dials():
        assert dial.low <= dial.usual <= dial.high
        assert dial.meaning
    with pytest.raises(InputError, match="no dial 'size'"):
        BUILDER.sweep("size", [1.0])
    with pytest.raises(KeyError, match="no dial 'size'"):
        part("dials").complete({"size": np.ones(1)}, 1)

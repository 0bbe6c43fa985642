"""Generated H&E-like tissue whose truth is known: what the label lives in is chosen by the config.

The experiment is laid out here: centres, patients, sections, spots. Beside this file, `presets.py`
says what each config asks, `dials.py` what can be turned, `rendering.py` draws, `expression.py`
makes gene counts and `hest.py` writes both in the layout of HEST-Benchmark.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import Dial, Example, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.errors import InputError

from .dials import DIALS
from .expression import DRIVERS, draw_counts, latents, make_genes, patient_depth
from .hest import Section, write_task
from .placement import NAMES, PIXEL_UM, Nuclei
from .presets import PRESETS, Preset, spot_dials
from .rendering import CHANNELS, draw
from .scanner import draw_scanner

# Split of twelve patients, again and again. The patients of each split are dealt to the centres in
# turn, so that no centre is tied to a split.
SPLITS = (
    *("train", "validation", "test", "train", "test", "train"),
    *("test", "train", "validation", "test", "train", "test"),
)
BLOCK = 16  # spots of 128 x 128 px drawn at a time: memory grows with neither section nor image
SECTION_SPREAD = 0.06  # of the logarithm of both stains, between sections: thickness
FOLDS = 3
# What the picture of a dial is of, where usual tissue would not show it: large pale nuclei from
# near by, a mixture of types from afar.
SHOWN_ON = {
    "chromatin_um": {"infiltrate": 0.0, "stroma": 0.0, "nuclear_size": 1.3, "blur_um": 0.25},
    "compartments": {"infiltrate": 0.5, "stroma": 0.0, "clustering": 0.0, "density": 9000.0},
}
SHOWN_PX = {"chromatin_um": 48, "compartments": 256}  # images of others are of 128 px
SHOWN = {"chromatin_um": (0,)}  # red alone, which haematoxylin absorbs, in all the greys there are
# Colours of types where their places are what a dial is about: tumour, immune cells, stroma.
MARKS = {
    "tumour": 2,
    "epithelial": 1,
    "lymphocyte": 3,
    "plasma": 3,
    "fibroblast": 4,
    "endothelial": 4,
}

METADATA = {
    "centre": "text",
    "patient": "text",
    "section": "text",
    "spot": "int",
    "split": "text",
    **{f"truth_{dial}": "float" for dial in DIALS},
    "truth_nuclei": "int",  # in the image
    **{f"truth_share_{name}": "float" for name in NAMES},  # of those
}
NUISANCE = ("centre", "section", "spot")
# What a random stream is for; the first word of its key, so that no two streams are the same.
CENTRE, PATIENT, SECTION, SPOT, DIAL, GENES, DEPTH, COUNTS = range(8)


class Builder(ImageDatasetBuilder):
    """Spots of sections of patients of centres; a unit is up to `BLOCK` spots of a section."""

    VERSION = tfds.core.Version("1.0.1")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.1": "Six digits of what is true of a spot.",
        "1.0.0": "First version.",
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name, description=preset.description)
        for name, preset in PRESETS.items()
    ]
    DEFAULT_OPTIONS: ClassVar[dict[str, Any]] = {
        "seed": 0,
        "n_centres": 4,
        "n_patients": 24,
        "sections_per_patient": 2,
        "spots_per_section": 32,
        "image_px": 128,
        "n_genes": 50,
        "gene_drivers": (),  # of each gene, over and over; none: the preset's own
    }
    LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
        "seed": (0, 2**32 - 1),
        "n_centres": (1, 99),
        "n_patients": (3, 999),  # the first three are one of each split
        "sections_per_patient": (1, 99),
        "spots_per_section": (2, 9999),
        "image_px": (96, 512),
        "n_genes": (1, 20_000),
    }

    @classmethod
    def plan(cls, source: str, config: str, options: Mapping[str, Any]) -> Plan:
        preset = PRESETS[config]
        cls._check(source, preset, options)
        block = min(BLOCK, max(1, BLOCK * 128**2 // options["image_px"] ** 2))
        units = []
        for patient in range(1, options["n_patients"] + 1):
            for section in range(1, options["sections_per_patient"] + 1):
                for first in range(0, options["spots_per_section"], block):
                    data = {"patient": patient, "section": section, "first": first, "n": block}
                    units.append(Unit(f"{patient:03d}-{section:02d}-{first:04d}", data))
        return Plan(
            declaration=_declaration(config, preset, options["n_centres"]),
            metadata={**METADATA, preset.target: "text"},
            dtype="uint8",
            units=tuple(units),
            options=dict(options),
            shared={**options, "config": config},
        )

    @classmethod
    def _check(cls, source: str, preset: Preset, options: Mapping[str, Any]) -> None:
        """Raises `InputError` for the first thing that is wrong."""
        if source:
            raise InputError(f"data set 'synthetic_tissue' is generated: no source, not {source!r}")
        for name, (low, high) in cls.LIMITS.items():
            if not low <= options[name] <= high:
                raise InputError(
                    f"synthetic_tissue option {name} must be from {low} to {high}, "
                    f"not {options[name]}"
                )
        if options["spots_per_section"] % len(preset.classes):
            raise InputError(
                "synthetic_tissue option spots_per_section must be a multiple of "
                f"{len(preset.classes)}, as many spots of each class, "
                f"not {options['spots_per_section']}"
            )
        patients = range(1, options["n_patients"] + 1)
        of_centre = [_place(patient, options["n_centres"])[1] for patient in patients]
        fewest = min(of_centre.count(centre) for centre in range(options["n_centres"]))
        if options["n_centres"] > 1 and fewest < FOLDS:
            raise InputError(
                f"synthetic_tissue option n_patients must give each of {options['n_centres']} "
                f"centres at least {FOLDS} patients, not {fewest}: "
                f"{options['n_patients']} are too few"
            )
        for driver in options["gene_drivers"]:
            if driver not in DRIVERS:
                raise InputError(
                    "synthetic_tissue option gene_drivers must be of "
                    f"{', '.join(DRIVERS)}, not {driver!r}"
                )

    @classmethod
    def examples(cls, unit: Unit, shared: Mapping[str, Any]) -> list[Example]:
        seed, preset = shared["seed"], PRESETS[shared["config"]]
        patient, section, first = (unit.data[name] for name in ("patient", "section", "first"))
        _, centre = _place(patient, shared["n_centres"])
        scanner = draw_scanner(_rng(seed, CENTRE, centre))
        patient_draws = _rng(seed, PATIENT, patient).uniform(-1, 1, len(DIALS))
        labels, thickness = _section(seed, preset, patient, section, shared["spots_per_section"])

        spots = range(first, min(first + unit.data["n"], shared["spots_per_section"]))
        rngs, dials = [], []
        for spot in spots:
            rngs.append(_rng(seed, SPOT, patient, section, spot))
            draws = _rng(seed, DIAL, patient, section, spot).uniform(-1, 1, len(DIALS))
            own = spot_dials(preset, labels[spot], patient_draws, draws)
            for stain in ("haematoxylin", "eosin"):
                own[stain] = DIALS[stain].clip(own[stain] * thickness)
            dials.append(own)
        columns = {name: np.array([own[name] for own in dials]) for name in DIALS}
        images, nuclei = draw(rngs, columns, scanner=scanner, image_px=shared["image_px"])

        shares, counts = nuclei.shares(), nuclei.count()
        examples = []
        for i, known in enumerate(cls._known(unit, shared)):
            metadata = {
                **known,
                # Six digits: the last ones depend on the system's exponential.
                **{f"truth_{name}": float(f"{value:.6g}") for name, value in dials[i].items()},
                "truth_nuclei": int(counts[i]),
                **{f"truth_share_{name}": float(shares[i, k]) for k, name in enumerate(NAMES)},
            }
            examples.append((metadata, images[i]))
        return examples

    @classmethod
    def layout(cls, plan: Plan) -> pd.DataFrame:
        """The metadata that an experiment has before an image is drawn: a row a spot."""
        return pd.DataFrame([row for unit in plan.units for row in cls._known(unit, plan.shared)])

    @classmethod
    def _known(cls, unit: Unit, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is known of the spots of a unit without drawing them."""
        preset = PRESETS[shared["config"]]
        patient, section, first = (unit.data[name] for name in ("patient", "section", "first"))
        split, centre = _place(patient, shared["n_centres"])
        labels, _ = _section(shared["seed"], preset, patient, section, shared["spots_per_section"])
        return [
            {
                "centre": f"C{centre + 1}",
                "patient": f"P{patient:03d}",
                "section": _section_name(patient, section),
                "spot": spot + 1,
                "split": split,
                preset.target: labels[spot],
            }
            for spot in range(first, min(first + unit.data["n"], shared["spots_per_section"]))
        ]

    @classmethod
    def dials(cls) -> list[Dial]:
        """What can be turned spot by spot."""
        return [
            Dial(
                name,
                f"{dial.what}, {dial.unit}",
                dial.default,
                dial.low,
                dial.high,
                channels=SHOWN.get(name, (0, 1, 2)),
            )
            for name, dial in DIALS.items()
        ]

    @classmethod
    def sweep(
        cls,
        dial: str,
        values: Sequence[float],
        *,
        seed: int = 0,
        config: str = "",
        held: Mapping[str, float] | None = None,
        image_px: int = 0,
    ) -> np.ndarray:
        """The same tissue with one dial at each of the values: uint8 [n, image_px, image_px, 3].

        The other dials are as `held`, else at the levels of the config; without `held` and
        `image_px` of 0 they are as shows the dial best.
        """
        return cls._swept(dial, values, seed, config, held, image_px)[0]

    @classmethod
    def marks(cls, dial: str, values: Sequence[float], *, seed: int = 0) -> np.ndarray | None:
        """Discs on the nuclei of `sweep` in the colour of their types (`MARKS`), uint8 [n, h, w].

        0 elsewhere; None for a dial that is seen without.
        """
        if dial != "compartments":
            return None
        images, nuclei = cls._swept(dial, values, seed, "", None, 0)
        marks = np.zeros(images.shape[:3], np.uint8)
        y, x = np.mgrid[: images.shape[1], : images.shape[2]]
        for i, j in zip(*np.nonzero(nuclei.kind >= 0), strict=True):
            distance = np.hypot(y - nuclei.y[i, j], x - nuclei.x[i, j])
            marks[i, distance < nuclei.radius[i, j]] = MARKS[NAMES[nuclei.kind[i, j]]]
        return marks

    @classmethod
    def _swept(
        cls,
        dial: str,
        values: Sequence[float],
        seed: int,
        config: str,
        held: Mapping[str, float] | None,
        image_px: int,
    ) -> tuple[np.ndarray, Nuclei]:
        """Images of `sweep` and their nuclei."""
        unknown = [name for name in (dial, *(held or {})) if name not in DIALS]
        if unknown:
            raise InputError(
                f"synthetic_tissue has no dial {unknown[0]!r}; there are: {', '.join(DIALS)}"
            )
        if held is None and not image_px:
            held = SHOWN_ON.get(dial)
        image_px = image_px or SHOWN_PX.get(dial, 128)
        rngs = [_rng(seed, SPOT, 0, 0, 0) for _ in values]
        levels = PRESETS[cls.resolve_config(config)].levels
        turned = {**levels, **(held or {}), dial: np.asarray(values)}
        return draw(rngs, turned, image_px=image_px)

    @classmethod
    def write_hest(cls, out: str | Path, config: str, options: Mapping[str, Any]) -> Path:
        """Writes images and gene counts as a task of HEST-Benchmark; the folder of the task.

        The images are those of a preparation with this config and these options. The folder is
        `out`/<config>; raises `InputError` where it exists.
        """
        config = cls.resolve_config(config)
        plan = cls.plan_resolved("", config, options)
        task = Path(out) / config
        if task.exists():
            raise InputError(f"{task} exists already: give another folder, or remove it")
        shared = plan.shared
        drivers = shared["gene_drivers"] or PRESETS[config].drivers
        genes = make_genes(_rng(shared["seed"], GENES), shared["n_genes"], drivers)

        def counts_of(patient: int, section: int, metadata: Mapping[str, Any]) -> np.ndarray:
            depth = patient_depth(_rng(shared["seed"], DEPTH, patient))
            rng = _rng(shared["seed"], COUNTS, patient, section, metadata["spot"])
            return draw_counts(rng, genes, latents(metadata), depth)

        def blocks(patient: int, section: int) -> Iterator[tuple]:
            for unit in plan.units:
                if (unit.data["patient"], unit.data["section"]) == (patient, section):
                    metadata, images = zip(*cls.examples(unit, shared), strict=True)
                    counts = [counts_of(patient, section, row) for row in metadata]
                    yield np.stack(images), np.stack(counts), metadata

        places = dict.fromkeys((unit.data["patient"], unit.data["section"]) for unit in plan.units)
        sections = (
            Section(_section_name(patient, section), f"P{patient:03d}", blocks(patient, section))
            for patient, section in places
        )
        partial = task.with_name(f".{config}.partial")  # the task appears whole or not at all
        shutil.rmtree(partial, ignore_errors=True)
        write_task(partial, sections, genes)
        partial.rename(task)
        return task


def _declaration(config: str, preset: Preset, n_centres: int) -> Declaration:
    targets = [
        Target(
            preset.target,
            preset.target,
            unit=("patient",),
            split="fixed",
            split_column="split",
            audit=NUISANCE,
            truth=preset.truth,
        )
    ]
    if n_centres > 1:
        dealt: dict[str, Any] = {"unit": ("patient",), "split": "k_fold", "n_folds": FOLDS}
        targets.append(Target("centre", "centre", **dealt, nuisance=True, metric="accuracy"))
    name = "synthetic_tissue" if config == "default" else config
    return Declaration(
        name=name,
        channels=CHANNELS,
        pixel_um=PIXEL_UM,
        targets=tuple(targets),
        nuisance=NUISANCE,
        symmetries=("flip", "rot90"),  # no label knows a direction
        pretraining="train",
    )


def _rng(seed: int, stream: int, *place: int) -> np.random.Generator:
    """A generator of its own for every use: nothing depends on what was drawn before."""
    return np.random.default_rng([stream, seed, *place])


def _place(patient: int, n_centres: int) -> tuple[str, int]:
    """Split of a patient (from 1) and its centre (from 0)."""
    cycle, position = divmod(patient - 1, len(SPLITS))
    split = SPLITS[position]
    before = cycle * SPLITS.count(split) + SPLITS[:position].count(split)
    # Test starts half-way round: the splits' remainders do not all fall on the first centres.
    return split, (before + (split == "test") * (n_centres // 2)) % n_centres


def _section(
    seed: int, preset: Preset, patient: int, section: int, spots: int
) -> tuple[list[str], float]:
    """The class of each spot, as many of each, and how thick the section is."""
    rng = _rng(seed, SECTION, patient, section)
    classes = list(preset.classes)
    order = rng.permutation(np.arange(spots) % len(classes))
    return [classes[i] for i in order], float(np.exp(rng.normal(0, SECTION_SPREAD)))


def _section_name(patient: int, section: int) -> str:
    return f"P{patient:03d}S{section:02d}"

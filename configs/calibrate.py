"""Every generated experiment through the one evaluation: what does each benchmark respond to?

    python -m bioimg_jax.known_truth.calibrate --config=configs/calibrate.py --workdir=OUT

How to read it: docs/calibration.md. Meant for half an hour on two CPU cores.
"""

import copy
from typing import Any

import ml_collections

from configs import common, eval_expression, eval_profiles, known_truth

CELLS, TISSUE = "mae_cells", "mae_tissue"
BENCHMARKS = "linear,knn,few_shot,ridge"
SCREEN, FIELDS = {"options": "images_per_site=2"}, {"options": "images_per_site=4"}
SPOTS = {"options": "spots_per_section=16"}
# 20,160 test images of 32 plates: a blind floor, however noisy, is hardly ever 0.02 off by chance.
PAIRS = {"options": "n_plates=56"}
# Preset -> encoders that it is evaluated with, beside what known_truth.py says of it.
PRESETS: dict[str, dict[str, Any]] = {
    # As many images as the others, so that programs compiled for them are used again.
    "density_only": {"encoders": f"{CELLS},supervised_density", "data": FIELDS},
    "intensity_only": {"encoders": CELLS},
    # The attentive probe looks at tokens, which are many numbers: here alone.
    "texture_only": {
        "encoders": CELLS,
        "evaluate": {"benchmarks": f"{BENCHMARKS},attentive", "poolings": "cls,mean,tokens"},
    },
    "colocalisation_only": {
        "encoders": CELLS,
        # Shown, and no floor: the pixel floor without what it needs here.
        "evaluate": {"representations": "pixels_no_cross"},
    },
    "handedness_only": {"encoders": "supervised_handedness", "data": PAIRS, "flipped": True},
    "neighbour_agreement_only": {"encoders": "supervised_agreement", "data": PAIRS},
    "position_only": {"encoders": f"{CELLS},supervised_position"},
    "position_withheld": {
        "encoders": f"{CELLS},supervised_position",
        "preset": "position_only",
        "data": {"options": "withhold=true"},
        "evaluate": {"floors": "chance,pixels,twin"},  # the images are those of position_only
    },
    "batch_confounded": {"encoders": CELLS},
    "cells_per_well_only": {"encoders": CELLS},
    # Four factors at once; five targets of all 14,112 images would take as long as half the rest.
    "default": {
        "encoders": CELLS,
        "data": {"options": "images_per_site=2"},
        "evaluate": {"benchmarks": "linear"},
    },
    "mixed_screen": {"encoders": CELLS, "data": SCREEN},
    "tissue_composition": {"encoders": TISSUE, "data": SPOTS},
    "tissue_layout": {"encoders": TISSUE, "data": SPOTS},
    "tissue_texture": {"encoders": TISSUE, "data": SPOTS},
    "tissue_null": {"encoders": TISSUE, "data": SPOTS},
}
# Dials by what they turn: which of them does a protocol respond to?
DIALS = {
    "count": ["cell_density", "clustering"],
    "nuclei": ["nucleus_size", "nucleus_eccentricity", "dna_content", "chromatin_texture"],
    "stains": ["intensity_ER", "intensity_AGP", "intensity_Mito"],
    "organelles": ["texture_frequency", "granularity", "polarity", "cytoplasm_area"],
}
# What drives the genes of a tissue -> the factors of a spot that it follows from.
DRIVERS = {
    "composition": ["truth_share_lymphocyte", "truth_share_plasma"],
    "layout": ["truth_clustering"],
    "texture": ["truth_chromatin_um"],
    "nothing": [],
}
# Designs that the metadata audit is tried on; a preset that is not here has the design of one that
# is, and differs in what the images show. Confounded: the metadata tell the label, always; of the
# others that must never be said.
AUDITS = (
    "position_only",
    "position_withheld",
    "batch_confounded",
    "cells_per_well_only",
    "default",
    "density_only",
    "handedness_only",
    "mixed_screen",
    "tissue_layout",
    "tissue_default",
)
CONFOUNDED = ("position_only", "batch_confounded")
# Name -> data set, config and options, where the name is not that of a config.
OF_CONFIG = {
    "position_withheld": ("synthetic_cells", "position_only", "withhold=true"),
    "tissue_layout": ("synthetic_tissue", "tissue_layout", SPOTS["options"]),
    "tissue_default": ("synthetic_tissue", "default", SPOTS["options"]),
}


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "name": "calibrate",
            "seed": 0,
            "mesh": {"devices": 0, "model": 1, "fsdp": False},  # devices 0: all
            "encoders": {
                CELLS: _mae("synthetic_cells", "mixed_screen", **SCREEN, crop_px=64, steps=160),
                TISSUE: _mae("synthetic_tissue", "default", **SPOTS, crop_px=128, steps=90),
                "supervised_position": _supervised("position_only", "treatment", steps=100),
                "supervised_density": _supervised(
                    "density_only", "treatment", steps=80, crop_px=128, **FIELDS
                ),
                "supervised_handedness": _supervised("handedness_only", "handedness", **PAIRS),
                "supervised_agreement": _supervised(
                    "neighbour_agreement_only",
                    "agreement",
                    **PAIRS,
                    hidden=32,
                    starts_from="supervised_handedness",
                ),
            },
            "presets": {name: _preset(name, **about) for name, about in PRESETS.items()},
            "screens": {"mixed_screen_profiles": _screen("mixed_screen")},
            "genes": {"tissue_genes": _genes("default")},
            "audits": {name: _audit(name) for name in AUDITS},
        }
    )


def _audit(name: str) -> dict[str, Any]:
    """The metadata audit of a preset's design over seeds, and what it must say."""
    data_set, config, options = OF_CONFIG.get(name, ("synthetic_cells", name, ""))
    return {
        "name": data_set,
        "config": config,
        "options": options,
        "seeds": 200,
        "expected": name in CONFOUNDED,
    }


def _screen(preset: str) -> dict[str, Any]:
    """The protocols of eval_profiles.py on the features of a preset, cells rolled up to wells."""
    about = eval_profiles.get_config().to_dict()
    del about["profiles"]["tables"], about["evaluate"]["floors"]  # what the preset has
    return {
        "preset": preset,
        "truth": "truth_mechanism",  # features of the factors
        "factors": ["every dial"],
        "groups": DIALS,  # and what some of them alone would score
        "control": "is_control",
        "class": "mechanism",
        "gene": "compound",
        "profiles": about["profiles"]
        | {
            "metadata": {"mechanism": "moa", "dose_um": "dose"},
            "extract": {"gene": {"column": "compound", "pattern": "^(.*)$"}},
            "joins": {},
            "unique": "",  # a row an image, rolled up to wells
            "rollup": {"levels": "plate,well", "average": "mean", "equal": 0},
            "control": {"column": "is_control", "values": "True"},
            "positive": {"column": "", "values": ""},
        },
        "evaluate": about["evaluate"]
        | {
            "alignments": "centerscale_on_controls",
            "benchmarks": "nsc,activity,consistency,relationships,retrieval",
            "permutations": 199,
            "beyond": "",
            "nuisance": False,
            "screening": False,
        },
    }


def _genes(tissue: str) -> dict[str, Any]:
    """HEST-Benchmark's protocol of eval_expression.py on a tissue written in its layout."""
    about = eval_expression.get_config().to_dict()
    floors = "chance,pixels,stain,nuclei,layout,combined,texture_bank,twin,layout_trained"
    images = known_truth.get_config("tissue_layout").to_dict()
    patient = {"patient_pattern": r"^P\d+"}
    return {
        "encoders": TISSUE,
        # Another seed than the images that the encoder is trained on.
        "tissue": {"config": tissue, "options": f"{SPOTS['options']},seed=1"},
        "drivers": DRIVERS,
        "evaluation": images
        | {
            "data": images["data"]
            | {"name": "hest", "config": "", "options": r"patient_pattern=^P\d+"},
            "evaluate": images["evaluate"]
            | {
                "floors": floors,
                "untrained_seeds": 1,
                "resnet18": False,
                "illustrate": False,
                "benchmarks": "ridge",
            },
        },
        "expression": {
            "task": about["task"] | patient,
            "evaluate": about["evaluate"]
            | {"floors": floors, "variants": "official", "beyond": ""},
        },
    }


def _mae(name: str, config: str, options: str, *, crop_px: int, steps: int) -> dict[str, Any]:
    return {
        "data": common.data(
            name=name,
            config=config,
            options=options,
            crop_px=crop_px,
            flips=True,
            rotations=True,
        ),
        "encoder": common.small_vit(crop_px),
        "objective": common.small_mae(),
        "optimizer": {**common.adamw(), "warmup_steps": steps // 6},
        "train": _train(batch_size=128, steps=steps),
        "starts_from": "",
    }


def _supervised(
    config: str,
    target: str,
    *,
    options: str = "",
    crop_px: int = 64,
    steps: int = 150,
    hidden: int = 0,
    starts_from: str = "",
) -> dict[str, Any]:
    flips = config != "handedness_only"  # which a flip would erase
    return {
        "data": common.data(
            config=config, options=options, crop_px=crop_px, flips=flips, rotations=True
        ),
        "encoder": common.small_resnet(),
        "objective": {
            "name": "supervised",
            "target": target,
            "n_classes": 2,
            "pooling": "mean",
            "hidden": hidden,
            "label_smoothing": 0.0,
            "augment": False,
        },
        "optimizer": {**common.adamw(), "learning_rate": 8e-3, "warmup_steps": steps // 6},
        "train": _train(batch_size=64, steps=steps),
        "starts_from": starts_from,  # another of these encoders, trained before
    }


def _train(**changes: int) -> dict[str, int]:
    return {
        "accumulation": 1,
        "log_every_steps": 50,
        "save_every_steps": 500,
        "probe_every_steps": 0,
        **changes,
    }


def _preset(
    name: str,
    *,
    encoders: str,
    preset: str = "",
    flipped: bool = False,
    data: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `known_truth` says of a preset, with a smaller family of random networks."""
    about = copy.deepcopy(known_truth.get_config(preset or name).to_dict())
    about["data"] |= data or {}
    # Few random networks: the run is about floors that are known.
    about["evaluate"] |= {
        "untrained_seeds": 1,
        "resnet18": False,
        "illustrate": False,
        "benchmarks": BENCHMARKS,
    }
    about["evaluate"] |= evaluate or {}
    if name in known_truth.RELATIONAL:
        about["evaluate"] |= {
            "benchmarks": "linear,ridge",
            # Of 35,280 images the other presets' floor of random directions takes a minute alone.
            "floors": about["evaluate"]["floors"].replace("random_projection,", ""),
            "poolings": "mean",
            "representations": "metadata",
        }
    return {"encoders": encoders, "evaluation": about, "flipped": flipped}

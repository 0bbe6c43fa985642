"""Sections that several configs share; keyword arguments change single keys."""

from typing import Any

from ml_collections.config_dict import placeholder


def data(**changes: Any) -> dict[str, Any]:
    """Which images."""
    return {
        "name": "synthetic_cells",  # a folder of datasets/
        "config": "",  # one of the builder's configs; "" for its first
        "source": "",  # folder of the upstream files; "" for generated data
        "out": "prepared",  # where prepared data sets are kept and found again
        "options": "",  # of the builder: "key=value,key=value"
        "on_bad_image": "stop",  # or "skip": list them in bad_images.csv and go on
        "crop_px": 64,
        **changes,
    }


def small_vit(crop_px: Any, **changes: Any) -> dict[str, Any]:
    """An encoder for minutes on two cores."""
    return {
        "name": "vit",
        "variant": "",  # Ti, S, B or L instead of the three sizes below
        "width": 128,
        "depth": 4,
        "heads": 4,
        "patch_px": 16,
        "image_px": crop_px,
        "positions": "sincos",
        "layerscale": placeholder(float),
        "stochastic_depth": 0.0,
        "dtype": "float32",
        **changes,
    }


def small_resnet(**changes: Any) -> dict[str, Any]:
    """A convolutional encoder for minutes on two cores."""
    return {
        "name": "resnet",
        "depth": 10,
        "width": 16,  # of the first stage; doubled by each of the other three
        "dtype": "float32",
        **changes,
    }


def small_mae() -> dict[str, Any]:
    """A masked autoencoder with a decoder to match `small_vit`."""
    return {
        "name": "mae",
        "mask_ratio": 0.75,
        "decoder_width": 64,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "normalise_targets": True,
        "augment": False,
    }


def adamw() -> dict[str, Any]:
    return {
        "learning_rate": 6e-3,  # for 256 images; scaled with the batch
        "warmup_steps": 100,
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
    }


def evaluation(**changes: Any) -> dict[str, Any]:
    """What is scored, on what, and what it is held against; named before the run."""
    return {
        # Any of linear, knn, few_shot, ridge, attentive (which needs the pooling tokens), or
        # your_own.py.
        "benchmarks": "linear",
        "untrained_seeds": 5,  # other random initialisations, of every variant of the encoder
        "untrained_variants": "",  # of it: "layerscale=1;layerscale=1e-4,dtype=bfloat16"
        "resnet18": True,  # a randomly initialised ResNet-18
        # More to show: nuclei, layout, layout_rendered, layout_trained, texture_bank,
        # texture_bank_mirrored (blind to handedness), metadata, or your_own.py.
        "representations": "",
        "blocks": 4,  # depths to probe, the last one included; 0: all
        "poolings": "cls,mean",  # any of cls, mean, mean_std, tokens
        # lambda of the linear probe
        "strengths": "1e2,1e1,1e0,1e-1,1e-2,1e-3,1e-4,1e-5,1e-6",
        # What a score is held against, listed before the run: benchmarks/ladder.py.
        "floors": "chance,pixels,twin,selected",
        "delta": 0.03,  # differences below it are "the same"
        # What scores are conditioned on: count (of nuclei, where they are a representation), or
        # columns of the metadata. Never "corrected for": a count is often an effect.
        "beyond": "",
        "beyond_blocks": "",  # columns: what a label was given to; "" for the widest that fits
        "beyond_permutations": 199,
        # Verdicts are about these "checkpoints", or about the "method" that several seeds of one
        # recipe stand for, and then pay for the spread of the seeds.
        "claim": "checkpoints",
        "batch_size": 256,
        "max_examples": 0,  # probed at most, drawn at random; 0: all
        "audits": True,  # near-duplicates, symmetries, geometry: bioimg_jax/image_audits.py
        "illustrate": True,  # maps and nearest images in the report
        "permute_labels": False,  # a check: every score must come out at chance
        **changes,
    }

"""Sections that several configs share; keyword arguments change single keys."""

from typing import Any


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


def evaluation(**changes: Any) -> dict[str, Any]:
    """What is scored, on what, and what it is held against; named before the run."""
    return {
        "benchmarks": "linear",  # any of linear, knn, few_shot, ridge, or your_own.py
        "untrained_seeds": 5,  # other random initialisations, of every variant of the encoder
        "untrained_variants": "",  # of it: "layerscale=1;layerscale=1e-4,dtype=bfloat16"
        "resnet18": True,  # a randomly initialised ResNet-18
        "representations": "",  # more to show: nuclei, layout, texture_bank, or your_own.py
        "blocks": 4,  # depths to probe, the last one included; 0: all
        "poolings": "cls,mean",
        # lambda of the linear probe
        "strengths": "1e2,1e1,1e0,1e-1,1e-2,1e-3,1e-4,1e-5,1e-6",
        # What a score is held against, listed before the run: benchmarks/ladder.py.
        "floors": "chance,pixels,twin,selected",
        "delta": 0.03,  # differences below it are "the same"
        "batch_size": 256,
        "max_examples": 0,  # probed at most, drawn at random; 0: all
        "audits": True,  # near-duplicates, symmetries, geometry: bioimg_jax/audits.py
        "illustrate": True,  # maps and nearest images in the report
        "permute_labels": False,  # a check: every score must come out at chance
        **changes,
    }

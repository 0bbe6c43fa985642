"""A data set for tests: generated, or one `<plate>_<well>_<site>.npy` of [n, h, w, 2] a field."""

import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import BadImage, ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target


class Builder(ImageDatasetBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="default", description="")]  # noqa: RUF012
    DEFAULT_OPTIONS = {"plates": 3, "image_px": 6, "symmetries": "flip,rot90"}  # noqa: RUF012

    @classmethod
    def plan(cls, source, config, options):
        if source:
            keys = sorted(path.stem for path in Path(source).glob("*.npy"))
        else:
            keys = [
                f"P{p}_A0{w}_{s}" for p in range(options["plates"]) for w in (1, 2) for s in (1, 2)
            ]
        target = Target("well", "well", ("plate",), "leave_one_out")
        return Plan(
            declaration=Declaration(
                name="toy",
                channels=("DNA", "ER"),
                pixel_um=0.5,
                targets=(target,),
                nuisance=("plate",),
                symmetries=tuple(s for s in options["symmetries"].split(",") if s),
                pretraining="all",
            ),
            metadata={
                "plate": "text",
                "well": "text",
                "number": "int",
                "mean": "float",
                "odd": "bool",
            },
            dtype="uint16",
            units=tuple(Unit(key, {"row": row}) for row, key in enumerate(keys, start=1)),
            options=dict(options),
            shared={"source": source, "image_px": options["image_px"]},
            root=source,
            files=tuple(f"{key}.npy" for key in keys) if source else (),
        )

    @classmethod
    def examples(cls, unit, shared):
        if log := os.environ.get("TOY_LOG"):
            with open(log, "a") as file:
                file.write(unit.key + "\n")
        plate, well, site = unit.key.split("_")
        if shared["source"]:
            images = np.load(Path(shared["source"]) / f"{unit.key}.npy")
            if images.shape[-1] != 2:
                raise BadImage(f"{unit.key}.npy", unit.data["row"], "has no two channels")
        else:
            rng = np.random.default_rng([unit.data["row"]])
            size = (5, shared["image_px"], shared["image_px"], 2)
            images = rng.integers(0, 2**16, size, dtype=np.uint16)
        return [
            (
                {
                    "plate": plate,
                    "well": well,
                    "number": 10 * int(site) + i,
                    "mean": image.mean(),
                    "odd": i % 2 == 1,
                },
                image,
            )
            for i, image in enumerate(images)
        ]

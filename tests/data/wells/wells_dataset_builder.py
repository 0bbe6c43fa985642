"""Cells in wells, generated: the label belongs to the well and was drawn from its brightness."""

import numpy as np
import tensorflow_datasets as tfds

from bioimg_jax.data.builders import ImageDatasetBuilder, Plan, Unit
from bioimg_jax.data.declaration import Declaration, Target

WELL = ("plate", "well")


class Builder(ImageDatasetBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="default", description="")]  # noqa: RUF012
    DEFAULT_OPTIONS = {"plates": 5, "wells": 8, "image_px": 16}  # noqa: RUF012

    @classmethod
    def plan(cls, source, config, options):
        plates, wells = range(options["plates"]), range(options["wells"])
        keys = [f"P{p}_W{w}" for p in plates for w in wells]
        return Plan(
            declaration=Declaration(
                name="wells",
                channels=("DNA",),
                pixel_um=None,
                targets=(
                    Target("dose", "dose", ("plate",), "leave_one_out", audit=("well",),
                           truth=("brightness",), aggregate=WELL),
                    Target("dose_of_cells", "dose", ("plate",), "leave_one_out",
                           truth=("brightness",)),
                    Target("plate", "plate", WELL, "k_fold", n_folds=3, nuisance=True,
                           truth=("brightness",), aggregate=WELL),
                ),
                nuisance=("plate", "well"),
                symmetries=("flip",),
                pretraining="all",
            ),
            metadata={"plate": "text", "well": "text", "dose": "text", "brightness": "float"},
            dtype="uint16",
            units=tuple(Unit(key, {"row": row}) for row, key in enumerate(keys)),
            options=dict(options),
            shared=dict(options),
        )  # fmt: skip

    @classmethod
    def examples(cls, unit, shared):
        rng = np.random.default_rng([unit.data["row"]])
        plate, well = unit.key.split("_")
        # As many of either dose on every plate, and in every well over the plates.
        high = (unit.data["row"] + unit.data["row"] // shared["wells"]) % 2 == 1
        brightness = float(rng.normal(1.0 if high else -1.0, 0.8))
        px, cells = shared["image_px"], 9 if high else 3
        images = 20_000 + 500 * brightness + rng.normal(0, 2_000, (cells, px, px, 1))
        metadata = {
            "plate": plate,
            "well": well,
            "dose": "high" if high else "low",
            "brightness": brightness,
        }
        return [(metadata, image.astype(np.uint16)) for image in images]

import json

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from bioimg_jax.data.declaration import Declaration, Target
from bioimg_jax.data.splits import make_folds
from bioimg_jax.errors import InputError
from bioimg_jax.representations.pixels import downsampled_pixels, pixel_statistics
from bioimg_jax.statistics.symmetry import symmetry, turned_grids

PLATES, PER_PLATE, PX = 6, 40, 32


def target(name, **changes):
    return Target(name, name, ("plate",), "leave_one_out", **changes)


def declaration(*names, symmetries=("flip", "rot90")):
    return Declaration("d", ("A", "B"), None, tuple(map(target, names)), (), symmetries, "all")


@pytest.fixture(scope="module")
def data():
    """Images whose brighter side is "hand", and whose size of a central spot is "size".

    Both with noise, under an illumination that falls off to one side in every image alike.
    """
    rng = np.random.default_rng(0)
    n = PLATES * PER_PLATE
    hand, size = rng.integers(2, size=n), rng.integers(2, size=n)
    y, x = (np.mgrid[:PX, :PX] - (PX - 1) / 2) / PX
    images = rng.normal(100, 20, (n, PX, PX, 2))
    images[..., 0] += 30 * np.where(hand, 1, -1)[:, None, None] * np.sign(x)
    images[..., 1] += 60 * np.exp(
        -(x**2 + y**2) / (2 * np.where(size, 0.3, 0.1)[:, None, None] ** 2)
    )
    images *= (1 + 0.6 * x - 0.3 * y)[..., None]
    metadata = pd.DataFrame(
        {
            "plate": np.arange(n) % PLATES,
            "hand": np.where(hand, "right", "left"),
            "size": np.where(size, "large", "small"),
            "coin": rng.choice(["heads", "tails"], n),
        }
    )
    return images.astype(np.float32), metadata


def run(data, declared, **changes):
    images, metadata = data
    features = np.asarray(downsampled_pixels(jnp.asarray(images)))
    folds = {t.name: make_folds(metadata, t) for t in declared.targets}
    ids = changes.pop("ids", np.arange(len(metadata)))
    settings = {"flips": True, "rotations": False, **changes}
    turned = turned_grids(features, 2)
    return symmetry(declared, metadata, folds, features, turned, ids, **settings)


def test_handedness_is_caught_and_a_symmetric_target_is_not(data):
    rows = run(data, declaration("hand", "size"))
    assert [(r["target"], r["augmentation"], r["preserves"]) for r in rows] == [
        ("hand", "flip", False), ("hand", "rot90", False),
        ("size", "flip", True), ("size", "rot90", True),
    ]  # fmt: skip
    hand = rows[0]
    assert hand["declared"] and hand["used_in_training"] and hand["n_units"] == PLATES
    assert hand["score"] > 0.9 and hand["score_transformed"] < 0.1  # the other hand
    assert hand["loss"] == pytest.approx(hand["score"] - hand["score_transformed"])
    assert hand["interval"][0] > 0.03 and hand["chance"] == pytest.approx(0.5)
    assert hand["reason"].startswith("flip is declared a symmetry and used; the probe's score goes")
    assert hand["reason"].endswith("what it sees of the target is erased")
    assert rows[2]["score"] > 0.9
    json.dumps(rows, allow_nan=False)


def test_an_illumination_that_all_images_share_is_no_handedness(data):
    images, metadata = data
    uneven = images + 400 * np.linspace(-1, 1, PX)[:, None]
    rows = run((uneven.astype(np.float32), metadata), declaration("size"))
    # Without the common mean the score falls to chance: every mirrored image is far off.
    assert [row["preserves"] for row in rows] == [True, True]


def test_what_is_declared_and_used_is_said(data):
    rows = run(data, declaration("hand", symmetries=()), flips=False, rotations=True)
    assert [(r["declared"], r["used_in_training"]) for r in rows] == [(False, False), (False, True)]
    assert rows[0]["reason"].startswith("flip is not declared a symmetry and not used; ")
    assert rows[1]["reason"].startswith("rot90 is not declared a symmetry but used, which training")
    unknown = run(data, declaration("hand"), flips=None)[0]
    assert unknown["used_in_training"] is None
    said = "flip is declared a symmetry and whether training used it is not known; the probe's"
    assert unknown["reason"].startswith(said)


def test_a_probe_that_sees_nothing_of_the_target_cannot_tell(data):
    for row in run(data, declaration("coin")):
        assert row["preserves"] is None and "cannot tell" in row["reason"]


def test_which_rows_are_fitted_on_does_not_depend_on_their_order(data):
    images, metadata = data
    order = np.random.default_rng(0).permutation(len(metadata))
    turned = images[order], metadata.iloc[order].reset_index(drop=True)
    declared = declaration("coin")  # what a probe makes of noise depends on every row
    once = run(data, declared, max_train=60)
    again = run(turned, declared, max_train=60, ids=order)
    for row, other in zip(once, again, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-3)
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-3)


def test_features_that_ignore_orientation_cannot_see_handedness(data):
    images, metadata = data
    declared = declaration("hand")
    folds = {"hand": make_folds(metadata, declared.targets[0])}
    statistics = [
        np.asarray(pixel_statistics(jnp.asarray(i / images.max())))
        for i in (images, images[:, :, ::-1])
    ]
    row = symmetry(
        declared,
        metadata,
        folds,
        statistics[0],
        {"flip": statistics[1]},
        np.arange(len(metadata)),
        flips=True,
        rotations=True,
    )[0]
    assert row["preserves"] is not False and abs(row["loss"]) < 0.02


def test_few_units_and_missing_features_are_said(data):
    images, metadata = data
    declared = declaration("hand")
    features = np.asarray(downsampled_pixels(jnp.asarray(images)))
    few = metadata.assign(plate=metadata["plate"] % 3)
    folds = {"hand": make_folds(few, declared.targets[0])}
    flipped = {"flip": turned_grids(features, 2)["flip"]}
    ids = np.arange(len(few))
    rows = symmetry(declared, few, folds, features, flipped, ids, flips=False, rotations=False)
    assert rows[0]["preserves"] is None and "3 units are too few" in rows[0]["reason"]
    assert rows[1]["score_transformed"] is None and "it was not tried" in rows[1]["reason"]


def test_tiles_of_the_transformed_image_are_the_transformed_tiles(data):
    images = jnp.asarray(data[0][:5])
    turned = turned_grids(np.asarray(downsampled_pixels(images)), 2)
    np.testing.assert_allclose(
        turned["flip"], downsampled_pixels(images[:, :, ::-1]), rtol=1e-5, atol=1e-3
    )
    np.testing.assert_allclose(
        turned["rot90"], downsampled_pixels(jnp.rot90(images, 1, axes=(1, 2))), rtol=1e-5, atol=1e-3
    )


def test_bad_input_is_named(data):
    declared = declaration("hand")
    features, ids = np.zeros((240, 128)), np.arange(240)
    with pytest.raises(InputError, match="'flip' with features of shape \\(240, 3\\)"):
        symmetry(
            declared,
            data[1],
            {},
            features,
            {"flip": features[:, :3]},
            ids,
            flips=True,
            rotations=True,
        )
    with pytest.raises(InputError, match="no folds for target 'hand'"):
        symmetry(declared, data[1], {}, features, {}, ids, flips=True, rotations=True)
    with pytest.raises(InputError, match="128 features are no square grid of 3 channels"):
        turned_grids(features, 3)

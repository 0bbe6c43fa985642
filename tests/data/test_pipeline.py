import copy
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from bioimg_jax.data.dataset import Dataset, open_dataset
from bioimg_jax.data.declaration import Declaration
from bioimg_jax.data.pipeline import evaluation_batches, train_batches
from bioimg_jax.errors import InputError
from bioimg_jax.prepare import prepare

TOYS = Path(__file__).parent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 images of 6 x 6 x 2, uint16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOIMG_DATASETS", str(TOYS))
        return open_dataset(prepare(name="toy", out=tmp_path_factory.mktemp("toy"), workers=1))


def batches(dataset: Dataset, n: int, **changes: object) -> list[dict[str, np.ndarray]]:
    arguments = {"batch_size": 8, "crop_px": 5, "flips": True, "rotations": True, "seed": 3}
    indices = np.arange(5, 55)
    return list(
        itertools.islice(train_batches(dataset, indices, **{**arguments, **changes}), n)  # type: ignore[arg-type]
    )


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_batch_has_storage_dtype_rows_and_positions(dataset: Dataset) -> None:
    batch = batches(dataset, 1)[0]
    assert batch["image"].shape == (8, 5, 5, 2) and batch["image"].dtype == np.uint16
    assert batch["index"].dtype == np.int64 and batch["position"].dtype == np.int32
    np.testing.assert_array_equal(batch["position"], np.arange(8))


def test_images_belong_to_their_rows(dataset: Dataset) -> None:
    batch = batches(dataset, 1, crop_px=6)[0]
    for image, index in zip(batch["image"], batch["index"], strict=True):
        # Flips and turns of a whole image keep its mean.
        assert np.float32(image.mean()) == dataset.metadata["mean"][index]


def test_labels_are_those_of_the_images_and_rows_without_one_are_left_out(
    dataset: Dataset,
) -> None:
    labels = np.where(dataset.metadata["odd"], np.arange(60), -1)
    found = batches(dataset, 6, crop_px=6, labels=labels)
    seen = np.concatenate([batch["index"] for batch in found])
    odd = np.flatnonzero(dataset.metadata["odd"])
    wanted = odd[(odd >= 5) & (odd < 55)]
    assert set(seen[: len(wanted)]) == set(wanted) == set(seen)
    for batch in found:
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["label"], labels[batch["index"]])
        for image, label in zip(batch["image"], batch["label"], strict=True):
            assert np.float32(image.mean()) == dataset.metadata["mean"][int(label)]


def test_labels_change_nothing_else_and_are_shared_and_resumed_like_images(
    dataset: Dataset,
) -> None:
    labels = np.arange(60) % 7
    whole = batches(dataset, 9, labels=labels)
    for a, b in zip(whole, batches(dataset, 9), strict=True):
        assert_same({key: value for key, value in a.items() if key != "label"}, b)
    assert_same(batches(dataset, 1, labels=labels, start_step=8)[0], whole[8])
    shares = [
        batches(dataset, 9, labels=labels, process_index=p, process_count=2) for p in range(2)
    ]
    for step, batch in enumerate(whole):
        joined = {key: np.concatenate([share[step][key] for share in shares]) for key in batch}
        assert_same(joined, batch)


def test_stream_resumes_exactly_at_any_step(dataset: Dataset) -> None:
    all_steps = batches(dataset, 20)
    for start in (1, 6, 13):  # 6 straddles the first epoch's end
        resumed = batches(dataset, 20 - start, start_step=start)
        for a, b in zip(resumed, all_steps[start:], strict=True):
            assert_same(a, b)


def test_stream_does_not_depend_on_threads(dataset: Dataset) -> None:
    for a, b in zip(batches(dataset, 9, threads=4), batches(dataset, 9, threads=0), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_global_batch(dataset: Dataset, process_count: int) -> None:
    shares = [
        batches(dataset, 9, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for step, whole in enumerate(batches(dataset, 9)):
        joined = {key: np.concatenate([share[step][key] for share in shares]) for key in whole}
        assert_same(joined, whole)


def test_every_epoch_has_every_example_in_another_order(dataset: Dataset) -> None:
    stream = np.concatenate([batch["index"] for batch in batches(dataset, 25)])
    epochs = stream.reshape(4, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(5, 55))
    for a, b in itertools.combinations(epochs, 2):
        assert (a != b).mean() > 0.8


def test_seeds_give_unrelated_orders(dataset: Dataset) -> None:
    """Not even one shifted by an epoch, as grain's own seeds would."""
    orders = [
        np.concatenate([b["index"] for b in batches(dataset, 25, seed=seed)]).reshape(4, 50)
        for seed in (3, 4)
    ]
    for a, b in itertools.product(*orders):
        assert (a != b).mean() > 0.8


def test_augmentation_that_erases_a_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIOIMG_DATASETS", str(TOYS))
    path = prepare(name="toy", out=tmp_path, options={"symmetries": "rot90"}, workers=1)
    handed = open_dataset(path)
    assert len(batches(handed, 1, flips=False)) == 1
    with pytest.raises(InputError, match="augmentation 'flip' would erase a target"):
        batches(handed, 1)


@pytest.mark.parametrize(
    ("erased_by", "changes", "harmless"),
    [("crop", {"crop_px": 5}, {"crop_px": 6}), ("intensity", {"views": ("intensity",)}, {})],
)
def test_a_crop_or_other_intensities_that_erase_a_target_are_refused(
    dataset: Dataset, erased_by: str, changes: dict, harmless: dict
) -> None:
    assert len(batches(dataset, 1, **changes)) == 1
    fragile = copy.copy(dataset)
    fragile.declaration = dataclasses.replace(dataset.declaration, erased_by=(erased_by,))
    assert Declaration.from_json(fragile.declaration.to_json()) == fragile.declaration
    with pytest.raises(InputError, match=f"augmentation '{erased_by}' would erase a target"):
        batches(fragile, 1, **changes)
    assert len(batches(fragile, 1, **harmless)) == 1


def test_evaluation_covers_every_example_once(dataset: Dataset) -> None:
    indices = np.random.default_rng(0).permutation(60)[:43]
    seen = []
    for batch in evaluation_batches(dataset, indices, batch_size=8, crop_px=4):
        assert batch["image"].shape == (8, 4, 4, 2)
        seen += list(batch["index"][batch["mask"]])
        assert (batch["index"][~batch["mask"]] == -1).all()
        for image, index in zip(batch["image"], batch["index"], strict=True):
            if index >= 0:
                np.testing.assert_array_equal(image, dataset.source[index]["image"][1:5, 1:5])
            else:
                assert not image.any()
    np.testing.assert_array_equal(seen, indices)


def test_evaluation_by_processes_has_equally_many_batches(dataset: Dataset) -> None:
    indices = np.arange(17)
    shares = [
        list(
            evaluation_batches(
                dataset, indices, batch_size=8, crop_px=4, process_index=p, process_count=4
            )
        )
        for p in range(4)
    ]
    assert [len(share) for share in shares] == [3] * 4
    seen = [
        i
        for step in zip(*shares, strict=True)
        for batch in step
        for i in batch["index"][batch["mask"]]
    ]
    assert seen == list(range(17))


def test_impossible_requests_are_refused(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="no example"):
        train_batches(
            dataset, np.array([]), batch_size=8, crop_px=5, flips=False, rotations=False, seed=0
        )
    with pytest.raises(InputError, match=r"labels of shape \(50,\), expected \(60,\)"):
        batches(dataset, 1, labels=np.zeros(50))
    with pytest.raises(InputError, match="no example"):
        batches(dataset, 1, labels=np.full(60, -1))
    with pytest.raises(InputError, match="multiple of the number of processes"):
        batches(dataset, 1, process_count=3)
    with pytest.raises(InputError, match="index 60 is outside"):
        next(evaluation_batches(dataset, np.array([0, 60]), batch_size=2, crop_px=4))
    with pytest.raises(InputError, match="6 x 6 px has no crop of 7 px"):
        batches(dataset, 1, crop_px=7)

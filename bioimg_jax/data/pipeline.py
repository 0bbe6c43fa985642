"""The input stream: batch k is a pure function of (data set, indices, seed, k).

A grain `MapDataset` over step numbers. Each step's rows are looked up in the globally shuffled
order and read by one call, so that the cost per example is the reading itself. Process p of P takes
the contiguous rows p·b/P ... (p+1)·b/P of the *global* batch, and random draws are made for the
global batch and then sliced: images, order and augmentations do not depend on P.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from bioimg_jax.data.dataset import Dataset
from bioimg_jax.data.transforms import augment_crops, centre_crop
from bioimg_jax.errors import InputError

Batch = dict[str, np.ndarray]

# Streams of random numbers drawn from the run's seed: one number a purpose.
_ORDER, _AUGMENTATION = 0, 1


def train_batches(
    dataset: Dataset,
    indices: np.ndarray,
    *,
    batch_size: int,
    crop_px: int,
    flips: bool,
    rotations: bool,
    seed: int,
    views: Sequence[str] = (),
    labels: np.ndarray | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    worker_processes: int = 0,
) -> Iterator[Batch]:
    """Endless batches from step `start_step` on, each epoch in a new order over all `indices`.

    Yields {"image": [b/P, crop_px, crop_px, c] storage dtype, "index": int64 [b/P] rows of the data
    set, "position": int32 [b/P] in the global batch}, and with `labels` (int [n], one an example of
    the data set, -1 where there is none) "label": int32 [b/P]; examples without one are left out.
    The last batch of an epoch is filled from the next epoch. `worker_processes` > 0 reads in
    processes instead of threads (parsed absl flags needed). `views` are the augmentations that the
    objective will make of these images. Raises `InputError` for an augmentation that would erase
    one of the data set's targets.
    """
    check_augmentations(dataset, crop_px=crop_px, flips=flips, rotations=rotations, views=views)
    rows = _rows_of_process(batch_size, process_index, process_count)
    indices = _checked(indices, dataset)
    if labels is not None:
        labels = np.asarray(labels, np.int32)
        if labels.shape != (len(dataset),):
            raise InputError(f"labels of shape {labels.shape}, expected ({len(dataset)},)")
        indices = _checked(indices[labels[indices] >= 0], dataset)
    order = grain.MapDataset.range(len(indices)).shuffle(seed=_mixed(seed)).repeat()

    def read(step: int) -> Batch:
        chosen = indices[[order[step * batch_size + position] for position in rows]]
        draws = np.random.default_rng([_AUGMENTATION, seed, step]).random((batch_size, 4))
        images = augment_crops(
            dataset.source.read(chosen),
            crop_px,
            draws[rows],
            flips=flips,
            rotations=rotations,
        )
        batch = {"image": images, "index": chosen, "position": rows.astype(np.int32)}
        return batch if labels is None else {**batch, "label": labels[chosen]}

    return _iterate(read, sys.maxsize, start_step, threads, worker_processes)


def check_augmentations(
    dataset: Dataset, *, crop_px: int, flips: bool, rotations: bool, views: Sequence[str]
) -> None:
    """`InputError` where what is made of an image in training would erase one of the targets."""
    made = {"flip": flips, "rot90": rotations, "crop": dataset.has_room(crop_px)}
    dataset.declaration.check_augmentations([*(name for name in made if made[name]), *views])


def evaluation_batches(
    dataset: Dataset,
    indices: np.ndarray,
    *,
    batch_size: int,
    crop_px: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
) -> Iterator[Batch]:
    """Every example of `indices` exactly once, in their order, centre-cropped.

    Yields {"image": [b/P, crop_px, crop_px, c] storage dtype, "index": int64 [b/P], "mask": bool
    [b/P]}. All batches have the same shape: the last one is padded with zero images, index -1 and
    mask False. All processes yield the same number of batches.
    """
    rows = _rows_of_process(batch_size, process_index, process_count)
    indices = _checked(indices, dataset)
    n_channels, dtype = dataset.source.n_channels, dataset.source.dtype

    def read(step: int) -> Batch:
        positions = step * batch_size + rows
        mask = positions < len(indices)
        chosen = np.full(len(rows), -1, dtype=np.int64)
        chosen[mask] = indices[positions[mask]]
        images = np.zeros((len(rows), crop_px, crop_px, n_channels), dtype)
        if mask.any():
            for i, image in enumerate(dataset.source.read(chosen[mask])):
                images[i] = centre_crop(image, crop_px)
        return {"image": images, "index": chosen, "mask": mask}

    return _iterate(read, -(-len(indices) // batch_size), 0, threads, 0)


def _iterate(
    read: Callable[[int], Batch], steps: int, start_step: int, threads: int, worker_processes: int
) -> Iterator[Batch]:
    options = grain.ReadOptions(
        num_threads=0 if worker_processes else threads,
        prefetch_buffer_size=0 if worker_processes else 2 * threads,
    )
    stream: Any = grain.MapDataset.range(steps).map(read)[start_step:].to_iter_dataset(options)
    if worker_processes:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=worker_processes))
    return iter(stream)


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    if batch_size < 1 or batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} cannot be shared by {process_count} processes: the batch "
            "size must be a multiple of the number of processes"
        )
    share = batch_size // process_count
    return np.arange(process_index * share, (process_index + 1) * share)


def _checked(indices: np.ndarray, dataset: Dataset) -> np.ndarray:
    indices = np.asarray(indices, dtype=np.int64)
    if not len(indices):
        raise InputError(f"no example of data set {dataset.declaration.name!r} was selected")
    outside = indices[(indices < 0) | (indices >= len(dataset))]
    if len(outside):
        raise InputError(
            f"example index {outside[0]} is outside data set {dataset.declaration.name!r} of "
            f"{len(dataset)} examples"
        )
    return indices


def _mixed(seed: int) -> int:
    """A 32-bit seed. Grain adds the epoch to its seed: unmixed, epoch 1 of seed 0 is epoch 0 of
    seed 1."""
    return int(np.random.SeedSequence([_ORDER, seed]).generate_state(1)[0])

"""Images of HEST-Benchmark files: `patches/*.h5` with `img` uint8 [n, h, w, 3]."""

from pathlib import Path

import h5py
import numpy as np

from bioimg_jax.errors import InputError


def read_patches(folder: Path, n: int) -> np.ndarray:
    """n patches spread over all files of a folder, uint8 [n, h, w, 3]; `InputError`."""
    paths = sorted(folder.rglob("*.h5"))
    if not paths:
        raise InputError(f"{folder}: no *.h5 in it, expected patches of HEST-Benchmark")
    found = []
    for i in range(n):
        path = paths[i * len(paths) // n]
        try:
            with h5py.File(path) as file:
                images = file["img"]
                found.append(images[(i * 7919) % len(images)])
        except (OSError, KeyError) as error:
            raise InputError(f"{path}: not a patch file ({error})") from error
    return np.stack(found)

"""How this process deals with memory that is used, given back and used again."""

import ctypes
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Lets the main thread keep the memory it has had once; for programs that work in rounds.

    By default glibc gives every large array back to the kernel, which hands out and zeroes all its
    pages anew for the next one: a seventh of the time of drawing cells, a quarter to a half of a
    small model's training step. Other threads' memory cannot be kept this way. Without glibc
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)

"""The one exception a user sees, and the ways in which a machine refuses."""

import errno

# What a disk or a system says no with; other `OSError`s are mistakes of ours.
MACHINE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip


class InputError(Exception):
    """Something the user gave is wrong, or the machine refused it.

    The message is one line that names the file, row, column or key and what was expected. Command
    lines print it without a traceback and exit with code 2 (`bioimg_jax.main.run`).
    """


class BrokenCheckpoint(InputError):
    """A checkpoint whose files cannot be read."""


class Preempted(Exception):
    """A signal asked the run to stop; what is done is saved."""

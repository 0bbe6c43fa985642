"""The one exception a user sees."""


class InputError(Exception):
    """Something the user gave is wrong, or the machine refused it.

    The message is one line that names the file, row, column or key and what was expected. Command
    lines print it without a traceback and exit with code 2 (`bioimg_jax.main.run`).
    """

"""The exceptions that end a command with one line on stderr, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can correct; the command exits with code 2.

    The message is one line: what is wrong, and what to do.
    """


class Interrupted(Exception):  # noqa: N818
    """A run that a signal has stopped.

    Args:
        message: one line that says how to resume the run.
        code: the exit code: 128 + the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def summarize(error: BaseException) -> str:
    """Return an error of a compiler or a device in one line of at most 200 characters."""
    error = getattr(error, "inner_exception", None) or error  # that of a backend of torch.compile
    first, *_ = [*str(error).strip().splitlines(), ""]
    return f"{type(error).__name__}: {first}"[:200]

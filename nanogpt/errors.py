"""The exceptions that end a command in one line, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: its text is one line that says what is wrong and how.

    The command line prints it without a traceback and exits with code 2.
    """


class Interrupted(Exception):  # noqa: N818
    """A run that a signal has stopped: its text is one line that says how to go on.

    Args:
        message: that line.
        code: what the process ends with: 128 and the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

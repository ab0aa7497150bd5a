"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake that the user can mend: its text is one line that says what is wrong and how.

    The command line prints it without a traceback and exits with code 2.
    """

"""Turns the exceptions that Lightning raises for a user's mistake into one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessRaisedException

from nanogpt.errors import Interrupted, UserError
from nanogpt.training.several_processes import from_spawned

LIGHTNING = Path(L.__file__).parent


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Replace exceptions by those of ``nanogpt.errors``, whose message is one line.

    Raises:
        UserError: for a mistake that the user can correct.
        Interrupted: after Ctrl-C or SIGTERM, when the current step is saved.
        KeyboardInterrupt: after a second Ctrl-C, when Lightning has cleaned up.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except SIGTERMException as end:  # handled by Lightning: before training
        raise Interrupted("stopped by SIGTERM; the last checkpoint is kept", 143) from end
    except SystemExit as end:
        if end.code == 1:  # how Lightning ends the process after Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except ProcessRaisedException as error:  # in a process that ddp_spawn has started
        raise from_spawned(str(error)) or error from error
    except Exception as error:
        if isinstance(error, OSError) or not is_from_lightning(error):
            raise
        kind = "" if isinstance(error, MisconfigurationException) else f"{type(error).__name__}: "
        raise UserError(kind + " ".join(str(error).split())) from error


def is_from_lightning(error: Exception) -> bool:
    """Return whether Lightning itself has raised an exception, or code that it has imported.

    An exception of the user's code, or of this project's, has its last frame there.
    """
    if isinstance(error, MisconfigurationException):
        return True
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    outside_torch = [file for file in files if "torch" not in file.parts]
    return bool(outside_torch) and outside_torch[-1].is_relative_to(LIGHTNING)

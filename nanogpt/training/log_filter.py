"""Lightning's own announcements, kept back while this project says what there is to say."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt.notices import notice


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's own announcements back, and show warnings as notices."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
    warnings.showwarning = lambda message, *_args, **_kwargs: notice(str(message))
    # what goes wrong in TensorBoard's writing thread is raised again in the main thread
    hook = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

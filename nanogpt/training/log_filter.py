"""Hides Lightning's own announcements and shows warnings as one-line notices."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt.notices import notice


@contextmanager
def filtered_logs() -> Iterator[None]:
    """Hide Lightning's announcements and show warnings as notices."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
    warnings.showwarning = lambda message, *_args, **_kwargs: notice(str(message))
    # TensorBoard re-raises an OSError of its writer thread in the main thread
    hook = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

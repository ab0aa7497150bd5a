"""Hides Lightning's announcements of what is usual, and shows warnings as one-line notices."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt.notices import notice, print_message

# Reports that a user asked for, such as those of a profiler, are not among them.
ANNOUNCEMENTS = re.compile(
    r"(?:\[rank: \d+\] )?(?:GPU available|TPU available|HPU available|IPU available|.*\bTip: "
    r"|`Trainer\.fit` stopped|LOCAL_RANK|Restor|Loaded model weights|Seed set to"
    r"|Using .* Automatic Mixed Precision|You are using a CUDA device|`weights_only` was not set"
    r"|`Trainer\((?:val_check_interval|limit_\w+)=|You have turned on"
    r"|\nDetected KeyboardInterrupt|Received SIGTERM"
    r"|Initializing distributed|-{20,}\ndistributed_backend|Running in `fast_dev_run`)"
)
LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
WARNINGS = (
    "LightningCLI's args parameter",
    ".*isinstance.treespec, LeafSpec.",
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    ".*configure_model",
    ".*`.fit\\(ckpt_path=None\\)` was called without a model",
    ".*is set, but there is no last checkpoint available",
    "The number of training batches .* is smaller than the logging interval",
)


class ReportHandler(logging.Handler):
    """Prints the messages of Lightning on stderr, except announcements."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        if record.levelno >= logging.WARNING or not ANNOUNCEMENTS.match(record.getMessage()):
            print_message(record.getMessage())


def filter_logs() -> None:
    """Hide Lightning's announcements and show warnings as notices, in this process."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "lightning"
    logging.getLogger("lightning").handlers = [ReportHandler()]
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.showwarning = lambda message, *_args, **_kwargs: notice(str(message))
    # TensorBoard re-raises an OSError of its writer thread in the main thread
    hook = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)


@contextmanager
def filtered_logs() -> Iterator[None]:
    """Filter logs and warnings within a block."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    states = [(logger.handlers, logger.propagate) for logger in loggers]
    hook = threading.excepthook
    try:
        with warnings.catch_warnings():
            filter_logs()
            yield
    finally:
        threading.excepthook = hook
        for logger, (handlers, propagate) in zip(loggers, states, strict=True):
            logger.handlers, logger.propagate = handlers, propagate

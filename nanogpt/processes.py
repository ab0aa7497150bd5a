"""The processes of a run: which one this is, and how the others are kept silent."""

import os
import signal
import sys


def process_rank() -> int:
    """Return the number of this process in a run, as Lightning or torchrun has set it."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def silence() -> None:
    """Discard the output of this process and ignore signals: the first process handles both."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123

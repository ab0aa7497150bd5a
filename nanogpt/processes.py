"""The processes of a run: which one this is, and how the others are kept silent."""

import os
import signal
import sys
import threading
import time


def process_rank() -> int:
    """Return the number of this process in a run, as Lightning, torchrun or SLURM has set it."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), 0))


def is_first_on_machine() -> bool:
    """Return whether this is the first process of a run on its machine."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0


def silence() -> None:
    """Discard the output of this process and ignore signals: the first process handles both.

    The process ends with the one that started it, even while it waits for others.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)

"""Stop after the current step on Ctrl-C or SIGTERM."""

import signal
import threading
from types import FrameType


class GracefulStop:
    """Records the first SIGINT or SIGTERM; a Ctrl-C after it stops at once.

    Lightning's own SIGTERM handler would stop between two micro-batches of a step. SIGUSR1, its
    signal for requeueing SLURM jobs, is left to Lightning.
    """

    def __init__(self) -> None:
        self.requested_by: signal.Signals | None = None

    def install_handlers(self) -> None:
        """Replace the handlers of both signals; Lightning restores the previous ones at the end."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested_by = self.requested_by or signal.Signals(number)

"""Ctrl-C and SIGTERM: a wish to stop, which a run grants as soon as it can be saved."""

import signal
import threading
from types import FrameType


class Signals:
    """Notes the first signal; a Ctrl-C after it stops at once.

    Lightning's own handler of SIGTERM would end the run after a micro-batch, in the midst of a
    step. SIGUSR1, with which it handles SLURM's requeueing, is left to it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def listen(self) -> None:
        """Take over from now on; when its trainer is done, Lightning puts back what was there."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

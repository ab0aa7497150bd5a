"""Runs a command line in a forked process with limited memory, and reports all that it did."""

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from nanogpt.commands import predict, score  # noqa: F401 (imported once, before forking)
from nanogpt.commands.main import main
from nanogpt.training import lightning_cli  # noqa: F401

LIMIT = 2 * 2**30  # of address space, in bytes
SECONDS = 30
STATUS = ("notice: ", "sampling from ", "scoring with ")


@dataclass(frozen=True)
class Report:
    """What a command line did."""

    code: int  # negative for a signal
    out: str
    err: str
    peak: int  # resident memory, in bytes
    seconds: float
    created: list[str]
    imported: list[str]  # modules below the working directory

    @property
    def refused(self) -> bool:
        """Whether it ended with a one-line error."""
        lines = [line for line in self.err.splitlines() if not line.startswith(STATUS)]
        return self.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")


class Forker:
    """A process without the strategies' memory, from which those of the commands are forked."""

    def __init__(self) -> None:
        self.connection, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=serve, args=(other,), daemon=False)
        self.process.start()

    def run(self, argv: list[str], folder: Path, streams: Path) -> Report:
        """Run a command line in a folder; its output is kept in the folder ``streams``."""
        self.connection.send((argv, folder, streams))
        report: Report = self.connection.recv()
        return report

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()


def serve(connection: Connection) -> None:
    """Run the command lines that arrive, until None does."""
    while task := connection.recv():
        connection.send(run_forked(*task))


def files(folder: Path) -> set[str]:
    """Return the names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run_forked(argv: list[str], folder: Path, streams: Path) -> Report:
    """Run a command line in a folder; its output is kept in the folder ``streams``."""
    before, start = files(folder), time.monotonic()
    if not (pid := os.fork()):
        code = 99
        try:
            code = run_here(argv, folder, streams)
        finally:
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    imported = (streams / "imported").read_text().split() if (streams / "imported").exists() else []
    return Report(
        os.waitstatus_to_exitcode(status),
        (streams / "out").read_text(errors="replace"),
        (streams / "err").read_text(errors="replace"),
        usage.ru_maxrss * 1024,
        time.monotonic() - start,
        sorted(files(folder) - before),
        imported,
    )


def run_here(argv: list[str], folder: Path, streams: Path) -> int:
    """Run a command line in this process, which ends afterwards."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    signal.alarm(SECONDS)
    sys.argv = ["cli.py", *argv]
    sys.path.insert(0, str(folder))  # as for ``python -m nanogpt``
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    found = [
        name
        for name, module in list(sys.modules.items())
        if str(getattr(module, "__file__", "")).startswith(str(folder))
    ]
    (streams / "imported").write_text(" ".join(found))
    return code

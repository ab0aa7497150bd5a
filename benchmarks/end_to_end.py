"""Time and peak memory of whole commands, each in a process of its own."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baseline import config_path

from nanogpt.errors import UserError
from nanogpt.text.corpora import FILE, find_tiny_shakespeare

ROOT = Path(__file__).parents[1]
BYTES = 1 if sys.platform == "darwin" else 1024  # in a unit of ru_maxrss


@dataclass
class Command:
    """A command, and what its runs took."""

    name: str
    arguments: list[str]
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes: ru_maxrss of the child process

    def run(self, folder: Path) -> None:
        """Run it once in a folder."""
        found = find_tiny_shakespeare()
        if found is None:
            raise UserError(f"whole runs need tiny Shakespeare: NANOGPT_DATA_DIR/{FILE}")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"NANOGPT_DATA_DIR": str(found.parent.resolve())}
        environment |= {"PYTHONPATH": os.pathsep.join(paths)}
        with (folder / "output.txt").open("w+", encoding="utf-8") as output:
            begin = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=folder,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - begin
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                output.seek(0)
                raise UserError(f"{self.name} failed: {output.read()[-500:]}")
        self.seconds.append(seconds)
        self.memory.append(usage.ru_maxrss * BYTES)


def compare_whole(config: str, runs: int, steps: int | None) -> list[dict[str, Any]]:
    """Run `fit` and the textbook's script from start to end, in turns, and print their medians.

    What a child is charged begins with what this process held when it was forked: so this goes
    first, while that is less than any child takes.
    """
    if not hasattr(os, "wait4"):
        raise UserError("whole runs are measured where there is wait4: on Linux and macOS")
    path = str(config_path(config).resolve())
    fit = [str(ROOT / "cli.py"), "fit", "--config", path]
    script = [str(ROOT / "benchmarks" / "baseline.py"), path]
    if steps is not None:
        fit, script = [*fit, "--trainer.max_steps", str(steps)], [*script, "--steps", str(steps)]
    commands = [
        Command("textbook's script", script),
        Command("fit", fit),
        Command("fit without a card", [*fit, "--card", "false"]),
    ]
    for _ in range(runs):
        for command in commands:
            with tempfile.TemporaryDirectory() as folder:
                command.run(Path(folder))
    print(f"whole runs of {config}, medians of {runs}, in turns")
    print(f"{'command':20} {'seconds':>8} {'MiB':>7}  times the script's")
    rows = []
    for command in commands:
        seconds, memory = statistics.median(command.seconds), statistics.median(command.memory)
        ratio = seconds / statistics.median(commands[0].seconds)
        print(f"{command.name:20} {seconds:8.2f} {memory / 2**20:7.0f} {ratio:17.2f}")
        rows.append(
            {"config": config, "command": command.name, "arguments": command.arguments}
            | {"seconds": seconds, "all_seconds": command.seconds, "peak_bytes": memory}
        )
    return rows

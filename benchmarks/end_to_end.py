"""Wall time and peak memory of whole training commands, each in a separate process."""

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
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


@dataclass
class Command:
    """A command with the time and memory of its runs."""

    name: str
    arguments: list[str]
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes: ru_maxrss of the child process

    def run(self, folder: Path) -> None:
        """Run it once in a folder.

        Raises:
            UserError: if tiny Shakespeare is missing, or the command fails.
        """
        corpus = find_tiny_shakespeare()
        if corpus is None:
            raise UserError(
                f"--end_to_end found no tiny Shakespeare: put {FILE} into NANOGPT_DATA_DIR"
            )
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"NANOGPT_DATA_DIR": str(corpus.parent.resolve())}
        environment |= {"PYTHONPATH": os.pathsep.join(paths)}
        with (folder / "output.txt").open("w+", encoding="utf-8") as output:
            start = time.perf_counter()
            child = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=folder,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - start
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                output.seek(0)
                raise UserError(f"{self.name} failed: {output.read()[-500:]}")
        self.seconds.append(seconds)
        self.memory.append(usage.ru_maxrss * MAXRSS_UNIT)


def compare_end_to_end(config: str, runs: int, steps: int | None) -> list[dict[str, Any]]:
    """Run ``fit`` and the baseline from start to end, in turns, and print their medians.

    ``ru_maxrss`` of a child starts at the memory of this process when it was forked, so call this
    while this process uses less than any child will.

    Args:
        config: name or path of a config.
        runs: of each command.
        steps: of each run; None takes the config's.

    Returns:
        A row for each command.

    Raises:
        UserError: on a system without ``os.wait4``, or if a command fails.
    """
    if not hasattr(os, "wait4"):
        raise UserError("--end_to_end needs os.wait4, which only Linux and macOS have")
    path = str(config_path(config).resolve())
    fit = [str(ROOT / "cli.py"), "fit", "--config", path]
    baseline = [str(ROOT / "benchmarks" / "baseline.py"), path]
    if steps is not None:
        fit += ["--trainer.max_steps", str(steps)]
        baseline += ["--steps", str(steps)]
    commands = [
        Command("baseline", baseline),
        Command("fit", fit),
        Command("fit without a card", [*fit, "--card", "false"]),
    ]
    for _ in range(runs):
        for command in commands:
            with tempfile.TemporaryDirectory() as folder:
                command.run(Path(folder))
    print(f"{config} from start to end, medians of {runs} runs in turns")
    print(f"{'command':20} {'seconds':>8} {'MiB':>7}  relative to the baseline")
    rows = []
    for command in commands:
        seconds, memory = statistics.median(command.seconds), statistics.median(command.memory)
        ratio = seconds / statistics.median(commands[0].seconds)
        print(f"{command.name:20} {seconds:8.2f} {memory / 2**20:7.0f} {ratio:25.2f}")
        rows.append(
            {"config": config, "command": command.name, "arguments": command.arguments}
            | {"seconds": seconds, "all_seconds": command.seconds, "peak_bytes": memory}
        )
    return rows

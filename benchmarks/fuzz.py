"""Run every command that reads a file on hostile files, and count what happens.

PYTHONPATH=. python benchmarks/fuzz.py [--files 1000] [--seed 1] [--commands predict …]

Each file is drawn from the grammars of ``tests/bad_input/fuzzing.py`` and read by a process of its
own with 2 GB of address space. It has to be refused in one line that leaves nothing behind, or to
give a result; the table counts both by command and kind of file. All else is printed in full.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nanogpt.commands.main import main as run_command
from tests.bad_input.conftest import FILES
from tests.bad_input.forked import Forker, Report
from tests.bad_input.fuzzing import Changed, configs, model_files, states

MODEL, STATE, CONFIG = "case.safetensors", "case.ckpt", "given/config.yaml"
FIT = ["fit", "--config=base.yaml", "--trainer.max_steps=3"]
COMMANDS: dict[str, tuple[str, list[str]]] = {  # the file that each reads
    "predict": (MODEL, ["predict", f"--ckpt_path={MODEL}", "--max_new_tokens=20"]),
    "score": (MODEL, ["score", "--text=text.txt", f"--ckpt_path={MODEL}"]),
    "validate": (MODEL, ["validate", "--data.corpus=text.txt", f"--ckpt_path={MODEL}"]),
    "fit --teachers": (MODEL, [*FIT, f"--teachers=[{MODEL}]"]),
    "fit --ckpt_path": (STATE, [*FIT, f"--ckpt_path={STATE}"]),
    "validate FOLDER": (CONFIG, ["validate", "--ckpt_path=given"]),
    "predict FOLDER": (CONFIG, ["predict", "--ckpt_path=given", "--max_new_tokens=20"]),
    "fit FOLDER": (CONFIG, ["fit", "--ckpt_path=given", "--trainer.max_steps=3"]),
}
STRATEGIES = {MODEL: model_files, STATE: states, CONFIG: configs}
HARM = "import pathlib\npathlib.Path('harm').touch()\nclass Callback:\n    pass\n"
SUB_CONFIG = "class_path: evil.Callback\n"
MAX_PEAK, MAX_SECONDS = 2**30, 10.0


@dataclass
class Arena:
    """A folder in which commands read hostile files.

    Args:
        folder: an empty folder.
    """

    folder: Path
    forker: Forker = field(default_factory=Forker)
    good: dict[str, bytes] = field(default_factory=dict)  # valid files by name

    def prepare(self) -> None:
        """Train the valid model, and put a module beside it that must not be imported."""
        given_run, modules = self.folder / "given", {"evil.py": HARM, "lightning_evil.py": HARM}
        for name, content in FILES.items():
            (self.folder / name).write_bytes(content)
        argv = ["fit", f"--config={self.folder / 'base.yaml'}",
                f"--data.corpus={self.folder / 'text.txt'}",
                f"--trainer.default_root_dir={self.folder}"]  # fmt: skip
        assert run_command(argv) == 0
        shutil.move(self.folder / "lightning_logs" / "version_0", given_run)
        (self.folder / "lightning_logs").rmdir()
        for place in (self.folder, given_run):
            for name, text in {
                **modules,
                "evil.yaml": SUB_CONFIG,
                "evil_config": SUB_CONFIG,
            }.items():
                (place / name).write_text(text)
        for name, source in {MODEL: "checkpoints/best.safetensors", STATE: "checkpoints/last.ckpt",
                             CONFIG: "config.yaml"}.items():  # fmt: skip
            self.good[name] = (given_run / source).read_bytes()

    def run(self, command: str, content: bytes) -> Report:
        """Run a command on a file, in a copy of the folder."""
        name, argv = COMMANDS[command]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "work"
            shutil.copytree(self.folder, folder)
            (folder / name).write_bytes(content)
            return self.forker.run(argv, folder, Path(place))


def faults(report: Report) -> list[str]:
    """Return what a command did that it must not do."""
    found = []
    if report.code < 0 or not (report.refused or report.code == 0):
        found.append(f"code {report.code}")
    if report.refused and len(report.err) > 1000:
        found.append("a long error")
    created = [name for name in report.created if report.refused or not is_of_a_run(name)]
    if created:
        found.append(f"created {created[:3]}")
    if report.imported:
        found.append(f"imported {report.imported}")
    if report.peak > MAX_PEAK:
        found.append(f"{report.peak / 2**30:.1f} GiB")
    if report.seconds > MAX_SECONDS:
        found.append(f"{report.seconds:.0f} s")
    return found


def is_of_a_run(name: str) -> bool:
    """Return whether a successful ``fit`` writes such a file."""
    return name.startswith(("lightning_logs", "given/")) and "harm" not in name


def fuzz(
    arena: Arena, command: str, files: int, first_seed: int, check: Callable[[str], None]
) -> Counter[str]:
    """Run a command on files; call ``check`` with a description of each fault."""
    counts: Counter[str] = Counter()
    good = arena.good[COMMANDS[command][0]]
    expected = arena.run(command, good)
    assert expected.code == 0, expected
    phases = settings(
        max_examples=files, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    @seed(first_seed)
    @phases
    @given(st.data())
    def each(data: st.DataObject) -> None:
        changed: Changed = data.draw(STRATEGIES[COMMANDS[command][0]](good))
        kind, content = changed
        report = arena.run(command, content)
        outcome = "refused" if report.refused else "equal" if report.out == expected.out else "used"
        if found := faults(report):
            outcome = "fault"
            path = Path(tempfile.gettempdir(), f"{command.replace(' ', '')}-{len(content)}.fault")
            path.write_bytes(content)
            check(f"{command}, {kind}, {path}: {found}\n{report.err[-1500:]}{report.out[-200:]}")
        counts[f"{kind}: {outcome}"] += 1
        counts["peak MiB"] = max(counts["peak MiB"], report.peak >> 20)
        counts["longest ms"] = max(counts["longest ms"], round(1000 * report.seconds))

    each()
    return counts


def main() -> None:
    """Run the commands and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1000, help="over all commands")
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        arena = Arena(Path(place))
        arena.prepare()
        for command in options.commands:
            each = -(-options.files // len(options.commands))
            counts = fuzz(arena, command, each, options.seed, print)
            print(command, dict(sorted(counts.items())), flush=True)
        arena.forker.close()
    sys.stdout.flush()


if __name__ == "__main__":
    main()

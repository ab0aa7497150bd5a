"""Model files and checkpoints are refused in one line or load the same; code never runs."""

import ast
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.training.training_state import read_training_state
from tests.bad_input.checkpoints import HARM, damaged, model_cases, saved, state_cases
from tests.bad_input.fuzzing import model_files, states
from tests.command_lines import Run, is_one_line

ROOT = Path(__file__).parents[2]
READERS: dict[str, tuple[Callable[[Path], Any], Any, Any]] = {
    ".safetensors": (read_checkpoint, model_cases, model_files),
    ".ckpt": (read_training_state, state_cases, states),
}
fuzzed = settings(
    max_examples=40, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def is_refused(suffix: str, content: bytes, name: str) -> bool:
    """Read a file; check that a refusal is one line, and that nothing else has happened."""
    path = Path(f"case{suffix}")
    path.write_bytes(content)
    try:
        READERS[suffix][0](path)
    except UserError as error:
        message = str(error)
        assert "\n" not in message, (name, message)
        assert message.isprintable(), (name, message)
        assert len(message) < 400, (name, message)
        assert "cannot be read as a nanogpt" in message, (name, message)
        return True
    finally:
        assert not Path(HARM).exists(), name
        assert [found.name for found in Path().iterdir()] == [path.name], name
    return False


def read_all(suffix: str, good: bytes) -> tuple[int, int]:
    """Read all files of a kind; return the numbers of refused and of accepted ones."""
    _, cases, strategy = READERS[suffix]
    made = cases(good)
    warnings.simplefilter("ignore")  # torch warns about some of the tensors
    accepted = [name for name, make in made.items() if not is_refused(suffix, make(), name)]
    assert not accepted, accepted
    assert not is_refused(suffix, good, "unchanged")
    outcomes = [is_refused(suffix, raw, name) for name, raw in damaged(good).items()]

    @fuzzed
    @given(st.data())
    def read_generated(data: st.DataObject) -> None:
        kind, content = data.draw(strategy(good))
        outcomes.append(is_refused(suffix, content, kind))

    read_generated()
    return len(made) + sum(outcomes), len(outcomes) - sum(outcomes)


CODE = """\
import resource, sys
from pathlib import Path
from tests.bad_input import test_checkpoints as tests
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
path = Path(sys.argv[1])
refused, accepted = tests.read_all(path.suffix, path.read_bytes())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{refused} refused, {accepted} accepted, {peak:.2f} GiB")
assert peak < 1, peak
assert refused > 250, refused
"""


@pytest.mark.parametrize("suffix", READERS)
def test_all_files_are_refused_or_valid_in_less_than_a_gigabyte(
    prepared_folder: Path, tmp_path: Path, suffix: str
) -> None:
    """Runs in a separate process with limited memory."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(prepared_folder / f"best{suffix}")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1",
             "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path.parent / "hypothesis")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "refused" in done.stdout


def test_every_torch_load_uses_weights_only() -> None:
    for path in [*(ROOT / "nanogpt").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                only = [k.value for k in node.keywords if k.arg == "weights_only"]
                assert [ast.unparse(value) for value in only] == ["True"], path


def test_only_training_reads_a_pickle() -> None:
    for path in (ROOT / "nanogpt").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text or "training" in path.parts, path


COMMANDS = (
    ["predict", "--ckpt_path"],
    ["validate", "--ckpt_path"],
    ["score", "--text=text.txt", "--ckpt_path"],
    ["fit", "--config=base.yaml", "--ckpt_path"],
    ["fit", "--config=base.yaml", "--teachers"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command[0]} {command[-1]}")
def test_every_command_refuses_a_damaged_file_in_one_line(
    run: Run, workplace: Path, tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / ("case.ckpt" if command[-1] == "--ckpt_path" else "case.safetensors")
    path = path if command[0] == "fit" else path.with_suffix(".safetensors")
    good = (workplace / f"best{path.suffix}").read_bytes()
    for made in (b"", b"PK", good[:-100], saved([1]), saved({"global_step": 1})):
        path.write_bytes(made)
        given = str(path) if command[-1] == "--ckpt_path" else f"[{path}]"
        outcome = run(*command[:-1], f"{command[-1]}={given}")
        assert outcome.code == 2
        assert is_one_line(outcome.err), outcome.err
        assert path.name in outcome.err


def test_optimizer_settings_of_a_file_have_no_effect(
    run: Run, workplace: Path, tmp_path: Path
) -> None:
    content = torch.load(workplace / "best.ckpt", weights_only=True)
    losses = []
    for name in ("as it was", "sabotaged"):
        path = tmp_path / name / "last.ckpt"
        path.parent.mkdir()
        torch.save(content, path)
        root = f"--trainer.default_root_dir={path.parent}"
        outcome = run(
            "fit", "--config=base.yaml", "--trainer.max_steps=4", f"--ckpt_path={path}", root
        )
        assert outcome.code == 0, outcome.err
        losses.append([line for line in outcome.out.splitlines() if line.startswith("step 4")])
        sabotage = {"lr": 1e9, "betas": (0.0, 0.0), "eps": 1e9, "maximize": True,
                    "capturable": True, "amsgrad": True, "weight_decay": 1e9}  # fmt: skip
        content["optimizer_states"][0]["param_groups"][0] |= sabotage
        content["lr_schedulers"] = [{"base_lrs": [1e9], "last_epoch": 10**9}]
        content["loops"] = {"fit_loop": {"epoch_progress": "odd"}}
    assert losses[0] == losses[1] != []

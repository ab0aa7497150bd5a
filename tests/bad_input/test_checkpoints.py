"""A checkpoint is refused in one line or loads the same model; code in it never runs."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.generation import checkpoint as checkpoint_module
from nanogpt.generation.checkpoint import read_checkpoint
from tests.bad_input.checkpoints import HARM, PROGRAMS, SAME, cases, saved
from tests.command_lines import Run, is_one_line

ROOT = Path(__file__).parents[2]
MUST_BE_REFUSED = ["hidden pickle", "weights without net."]
MUST_LOAD = [f"tensor: {name}" for name in SAME if name != "parameter"]


def load_all(good: Path) -> tuple[dict[str, str], set[str]]:
    """Load all cases; return the errors of the refused ones, and the names of the others."""
    expected = read_checkpoint(good)
    refused, loaded = {}, set()
    path = Path("case.ckpt")
    for name, make in cases(good.read_bytes()).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about some of the tensors
            path.write_bytes(make())
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            refused[name] = str(error)
        else:
            loaded.add(name)
            weights, same = checkpoint.model.state_dict(), expected.model.state_dict()
            differ = [n for n in same if not torch.equal(weights[n], same[n])]
            assert differ in ([], ["token_embedding.weight"] * name.startswith("tensor: ")), name
            assert not differ or "expanded" in name, name
            assert checkpoint.tokenizer.vocabulary == expected.tokenizer.vocabulary
        assert not Path(HARM).exists(), name
    return refused, loaded


def test_all_cases_are_refused_or_load_equal_in_less_than_a_gigabyte(prepared_folder: Path) -> None:
    """Runs in a separate process to measure its peak memory."""
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from tests.bad_input import test_checkpoints as tests\n"
        "refused, loaded = tests.load_all(Path(sys.argv[1]))\n"
        "assert len(refused) + len(loaded) >= 400, (len(refused), len(loaded))\n"
        "assert len(refused) >= 300, len(refused)\n"
        "for name, error in refused.items():\n"
        "    assert '\\n' not in error and len(error) < 400, (name, error)\n"
        "    assert 'cannot be read as a nanogpt' in error, (name, error)\n"
        "assert set(tests.MUST_LOAD) <= loaded, loaded\n"
        "assert set(tests.MUST_BE_REFUSED) <= refused.keys(), loaded\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        "print(f'{len(refused)} refused, {len(loaded)} loaded, {peak:.2f} GiB')\n"
        "assert peak < 1, peak\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(prepared_folder / "best.ckpt")],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "refused" in done.stdout


def test_weights_only_blocks_code_without_vetting(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if vetting accepted every file, PyTorch would not run code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint_module, "vet", lambda _: None)
    path, tried = Path("case.ckpt"), 0
    for name, make in cases((workplace / "best.ckpt").read_bytes()).items():
        if "code" not in name:
            continue
        tried += 1
        path.write_bytes(make())
        with pytest.raises(UserError):
            read_checkpoint(path)
        assert not Path(HARM).exists(), name
    assert tried >= 20


def test_every_torch_load_uses_weights_only() -> None:
    for path in [*(ROOT / "nanogpt").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load"):
                only = [k.value for k in node.keywords if k.arg == "weights_only"]
                if ast.unparse(node.func) == "torch.load":
                    assert [ast.unparse(value) for value in only] == ["True"], path


COMMANDS = (["predict"], ["validate"], ["score", "--text=text.txt"], ["fit", "--config=base.yaml"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_refuses_a_damaged_checkpoint_in_one_line(
    run: Run, workplace: Path, tmp_path: Path, command: list[str]
) -> None:
    content = torch.load(workplace / "best.ckpt", weights_only=True)
    content["hyper_parameters"]["n_embd"] = 10**9
    for made in (b"", b"PK", PROGRAMS["os.system"], saved(content), saved([1])):
        path = tmp_path / "case.ckpt"
        path.write_bytes(made)
        outcome = run(*command, f"--ckpt_path={path}")
        assert outcome.code == 2
        assert is_one_line(outcome.err), outcome.err
        assert "case.ckpt" in outcome.err

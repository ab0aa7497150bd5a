"""The entry point: help, dispatch, fit and validate, and one-line errors."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nanogpt
from nanogpt.commands.main import explain_os_error
from nanogpt.notices import program
from nanogpt.resources import CONFIGS, shipped_configs
from nanogpt.text.pastiche import pastiche
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import Run, is_one_line
from tests.model_files import change_weights

ROOT = Path(__file__).parents[2]


def run_in_clone(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository's folder, with additional environment variables."""
    return subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["--help"], 0), (["--version"], 0), (["predcit"], 2), (["fit"], 2), (["fit", "-c", "x"], 2)],
    ids=str,
)
def test_help_and_mistakes_need_no_heavy_import(argv: list[str], code: int) -> None:
    script = (
        f"import sys; sys.argv = ['cli.py', *{argv}]\n"
        "try: import runpy; runpy.run_path('cli.py', run_name='__main__')\n"
        f"except SystemExit as end: assert end.code == {code}\n"
        "assert not {'torch', 'numpy', 'lightning', 'jsonargparse'} & sys.modules.keys()\n"
    )
    done = run_in_clone("-c", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ("cli.py", "python cli.py"),
        ("/a folder/cli.py", "python '/a folder/cli.py'"),
        ("/usr/bin/nanogpt", "nanogpt"),
        ("/usr/lib/nanogpt/__main__.py", "python -m nanogpt"),
        ("", "nanogpt"),
    ],
)
def test_messages_name_the_program_as_it_was_started(
    started: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert program() == expected


def test_help_names_the_program(run: Run) -> None:
    assert "usage: python cli.py COMMAND" in run().out
    assert run("--help").out == run("-h").out == run("help").out == run().out
    assert run_in_clone("cli.py").stdout == run().out
    installed = run_in_clone("-m", "nanogpt").stdout
    assert installed == run().out.replace("python cli.py", "python -m nanogpt")


@pytest.mark.parametrize("command", ["fit", "validate", "predict", "score", "ladder"])
def test_help_of_a_command_names_the_program(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert f"usage: python cli.py {command}" in outcome.out.replace("[options] ", "")


def test_version(run: Run) -> None:
    assert run("--version").out == f"nanogpt {nanogpt.__version__}\n"


def test_fit_without_a_config_lists_the_configs(run: Run) -> None:
    outcome = run("fit")
    assert outcome.code == 2
    for name, path in shipped_configs().items():
        first_line = path.read_text(encoding="utf-8").splitlines()[0]
        assert f"  {name} " in outcome.err
        assert first_line.removeprefix("# ") in outcome.err


@pytest.mark.parametrize(
    "given",
    [
        ("--config", "ladder/01_bigram"),
        ("--config=01_bigram",),
        ("-c", "configs/ladder/01_bigram.yaml"),
        ("--config", str(CONFIGS / "ladder" / "01_bigram.yaml")),
    ],
    ids=str,
)
def test_config_by_name_or_path(run: Run, text: str, given: tuple[str, ...]) -> None:
    outcome = run("fit", *given, f"--data.corpus={text}", "--print_config")
    assert outcome.code == 0, outcome.err
    assert "architecture: bigram" in outcome.out
    assert "max_steps: 5000" in outcome.out


def test_configs_are_merged_in_order(run: Run, text: str) -> None:
    Path("my.yaml").write_text("trainer: {max_steps: 7}")
    outcome = run("fit", "--config", "quickstart", "--config=my.yaml", "--print_config")
    assert outcome.code == 0, outcome.err
    assert "architecture: modern" in outcome.out
    assert "max_steps: 7" in outcome.out


def test_fit_writes_a_run_folder_and_prints_its_path(fit: Run, tmp_path: Path) -> None:
    outcome = fit()
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    steps = [line.split(":")[0] for line in lines if line.startswith("step ")]
    assert steps == ["step 0", "step 4", "step 6"]  # the last step too
    assert "M parameters" in outcome.out
    run_folder = tmp_path / "lightning_logs" / "version_0"
    kept = {path.name for path in (run_folder / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "best.safetensors", "last.ckpt", "last.safetensors"}
    assert (run_folder / "config.yaml").is_file()
    assert list(run_folder.glob("events.out.tfevents.*"))
    assert "lightning_logs/version_0" in outcome.out.replace("\\", "/")


def test_second_fit_does_not_change_the_first_run(fit: Run, tmp_path: Path) -> None:
    fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    fit("--seed_everything=1")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (tmp_path / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt").is_file()


def test_predict_prints_only_text(fit: Run, run: Run, text: str, tmp_path: Path) -> None:
    fit()
    (tmp_path / text).unlink()  # predict does not need the corpus
    outcome = run("predict", "--max_new_tokens=20")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out) == 20 + 1  # and a line break
    assert set(outcome.out) <= set(pastiche())
    again = run("predict", "--max_new_tokens=20")
    assert again.out == outcome.out
    assert run("predict", "--max_new_tokens=20", "--seed=7").out != outcome.out


def test_predict_uses_the_run_with_the_highest_number(fit: Run, run: Run, tmp_path: Path) -> None:
    fit()
    logs = tmp_path / "lightning_logs"
    (logs / "version_0").rename(logs / "version_9")
    fit()
    (logs / "version_10" / "checkpoints" / "best.safetensors").rename("away.safetensors")
    (logs / "version_11").mkdir()  # newer, but without a checkpoint
    assert "version_10" in run("predict", "--max_new_tokens=1").err
    for path in ("away.safetensors", str(logs / "version_9"), "last"):
        assert run("predict", "--max_new_tokens=1", f"--ckpt_path={path}").code == 0


def test_validate_prints_the_losses_that_fit_printed(fit: Run, run: Run) -> None:
    printed = fit("--trainer.max_steps=4").out
    train, val = next(
        line.split(": ")[1].split(", ") for line in printed.splitlines() if "step 4:" in line
    )
    outcome = run("validate")
    assert outcome.code == 0, outcome.err
    assert val.removeprefix("val loss ") in outcome.out
    assert train.removeprefix("train loss ") in outcome.out
    assert "bits per character" in outcome.out


def test_validate_in_overlapping_windows(fit: Run, run: Run) -> None:
    # 512 targets of val: as many whole windows of 8 characters
    Path("long.txt").write_text(pastiche()[: 10 * 513], encoding="utf-8")
    fit("--data.corpus=long.txt", "--model.learning_rate=0.03", "--trainer.max_steps=40")
    outcomes = {stride: run("validate", f"--stride={stride}") for stride in (8, 2)}
    losses = {}
    for stride, outcome in outcomes.items():
        assert outcome.code == 0, outcome.err
        *_, val, overlapping = outcome.out.splitlines()
        end = f"--stride {stride}: each after at least {9 - stride} characters, or all"
        assert overlapping.endswith(end)
        losses[stride] = [float(line.split()[1]) for line in (val, overlapping)]
    assert losses[8][1] == pytest.approx(losses[8][0], abs=1e-4)  # the same windows
    assert losses[2][0] == losses[8][0]
    assert losses[2][1] != losses[2][0]
    for stride in (0, 9):
        outcome = run("validate", f"--stride={stride}")
        assert outcome.code == 2
        assert (
            f"stride must be at least 1 and at most the block_size 8, not {stride}" in outcome.err
        )
    assert run("fit", "--ckpt_path=last", "--stride=2").code == 2


def test_validate_accepts_a_checkpoint_outside_a_run_folder(
    fit: Run, run: Run, tmp_path: Path
) -> None:
    fit()
    before = run("validate").out.splitlines()[1:]
    best = tmp_path / "lightning_logs/version_0/checkpoints/best.safetensors"
    best.rename(tmp_path / "my.safetensors")
    outcome = run("validate", "--ckpt_path", "my.safetensors", "--data.corpus=text.txt")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[1:] == before


def test_long_error_is_cut_off(run: Run) -> None:
    outcome = run("fit", "--config", "x" * 5000)
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert len(outcome.err) < 1000


def test_validate_reports_losses_that_are_not_finite(fit: Run, run: Run) -> None:
    fit()
    best = Path("lightning_logs/version_0/checkpoints/best.safetensors")
    change_weights(best, best, lambda weights: weights["lm_head.weight"].fill_(3e38))
    outcome = run("validate")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "is not finite: its training diverged" in outcome.err


def test_replaced_corpus_is_announced_and_recorded(fit: Run, run: Run, tmp_path: Path) -> None:
    outcome = fit("--data.corpus=tiny_shakespeare", "--reference=bigram", "--trainer.max_steps=2")
    assert outcome.code == 0
    assert "The built-in pastiche replaces it" in outcome.err
    assert "no comparison with the reference" in outcome.out
    hparams = (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text(encoding="utf-8")
    assert "corpus_name: pastiche" in hparams
    assert "corpus_stands_in_for: tiny_shakespeare" in hparams
    assert "on pastiche" in run("validate").out


def test_missing_corpus_without_a_replacement_is_an_error(fit: Run) -> None:
    outcome = fit("--data.corpus=tiny_shakespeare", "--data.offline_corpus=null")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    for needed in ("tinyshakespeare.txt", "https://", "data"):
        assert needed in outcome.err


MISTAKES = [
    # options, expected part of the error
    (["--trainer.max_step=3"], "--trainer.max_steps"),
    (["--model.n_layr", "3"], "--model.n_layer"),
    (["--foo=3"], "--foo"),
    (["surplus"], "surplus"),
    (["--model.n_layer=four"], "model.n_layer cannot be 'four'"),
    (["--model.architecture=gtp"], "bigram, gpt"),
    (["--model.architecture=bigram"], "n_layer"),
    (["--model.n_head=0"], "n_head must be at least 1"),
    (["--model.dropout=1.5"], "dropout"),
    (["--model.block_size=0"], "block_size"),
    (["--model.learning_rate=0"], "learning_rate"),
    (["--data.corpus=missing.txt"], "missing.txt"),
    (["--data.corpus=empty.txt"], "empty"),
    (["--data.corpus=binary.txt"], "byte 3"),
    (["--data.corpus=."], "is not a regular file"),
    (["--data.encoding=utf-9"], "utf-9"),
    (["--data.val_fraction=2"], "val_fraction"),
    (["--data.batch_size=0"], "batch_size"),
    (["--data.batch_size=3", "--trainer.accumulate_grad_batches=2"], "multiple of 2"),
    (["--model.block_size=4000"], "split has"),
    (["--trainer.max_epochs=3"], "max_steps"),
    (["--trainer.max_steps=-1"], "max_steps"),
    (["--trainer.val_check_interval=0.5"], "val_check_interval"),
    (["--trainer.precision=bf17"], "bf16-mixed"),
    (["--trainer.accelerator=abacus"], "abacus"),
    (["--config=missing.yaml"], "missing.yaml"),
    (["--config=typo.yaml"], "model.n_layer"),
    (["--config=broken.yaml"], "config"),
    (["--reference=gpt3"], "gpt10m"),
    (["--trainer.devices=many"], "devices"),
    (["--config=trainer.yaml"], "trainer cannot be 3"),
    (["--config=model.yaml"], "model is a section of settings"),
]


@pytest.mark.parametrize(("options", "expected"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistake_gets_a_one_line_error(
    fit: Run, tmp_path: Path, options: list[str], expected: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"abc\xff")
    (tmp_path / "typo.yaml").write_text("model:\n  n_layr: 3\n")
    (tmp_path / "broken.yaml").write_text("model: [\n")
    (tmp_path / "trainer.yaml").write_text("trainer: 3\n")
    (tmp_path / "model.yaml").write_text("model: 3\n")
    outcome = fit(*options)
    assert outcome.code == 2
    assert is_one_line(outcome.err), outcome.err
    assert expected in outcome.err
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_error_without_a_run_names_the_command_that_trains_one(run: Run, command: str) -> None:
    outcome = run(command)
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "`python cli.py fit --config quickstart`" in outcome.err


def test_unknown_command_gets_a_suggestion(run: Run) -> None:
    assert "did you mean predict?" in run("predcit").err
    assert run().code == 0


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX locales")
@pytest.mark.parametrize("variables", [{}, {"PYTHONIOENCODING": "ascii"}, ASCII], ids=str)
def test_output_is_utf_8_with_escapes_in_any_locale(variables: dict[str, str]) -> None:
    script = (
        "import sys; from nanogpt.commands.main import prepare_streams; prepare_streams()\n"
        r"for stream in (sys.stdout, sys.stderr): print('\xe9\udce9', file=stream)"
    )
    done = run_in_clone("-c", script, LC_ALL="C", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == "é\\udce9\n"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file names")
@pytest.mark.parametrize("variables", [{}, ASCII], ids=str)
def test_argument_that_is_not_utf_8_is_escaped(variables: dict[str, str]) -> None:
    done = run_in_clone("cli.py", "caf\udce9", LC_ALL="C", **variables)
    assert done.returncode == 2
    assert done.stderr == "error: no command 'caf\\udce9'; see python cli.py --help\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "write permission"),
        (errno.ENAMETOOLONG, "pass another path"),
        (errno.EFBIG, "ulimit -f"),
        (errno.ELOOP, "pass another path"),
        (errno.EIO, None),
    ],
)
def test_os_error_gets_one_line_that_says_what_to_do(code: int, expected: str | None) -> None:
    error = OSError(code, os.strerror(code), "my/path")
    if expected is None:
        with pytest.raises(OSError, match="my/path"):
            explain_os_error(error)
    else:
        message = explain_os_error(error)
        assert message.startswith(f"{os.strerror(code)} at my/path: ")
        assert expected in message


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total"),
    RuntimeError("MPS backend out of memory (MPS allocated: 10.00 GB, other allocations: 1 KB)."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
    None,  # that of this CPU
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=ascii)
def test_lack_of_memory_gets_one_line_that_says_what_to_lower(
    fit: Run, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        if error:
            raise error
        return torch.empty(2**50)

    assert fit("--trainer.max_steps=1").code == 0
    monkeypatch.setattr(LanguageModel, "validation_step", fail)
    outcome = run("validate")
    assert outcome.code == 2
    assert outcome.err == "error: out of memory: use a shorter text or a smaller model\n"
    monkeypatch.setattr(LanguageModel, "training_step", fail)
    outcome = fit("--trainer.limit_val_batches=0")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "error: out of memory: set --trainer.accumulate_grad_batches to 2, 4 or more"
    )
    assert is_one_line(outcome.err)
    monkeypatch.setattr("nanogpt.generation.decoding.decode_step", fail)
    outcome = run("predict", "--num_samples=2")
    assert outcome.code == 2
    assert outcome.err.endswith(
        "error: out of memory: lower --num_samples, or use a smaller model\n"
    )


def test_other_errors_keep_their_traceback(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(LanguageModel, "training_step", fail)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        fit("--trainer.limit_val_batches=0")


def test_closed_stdin_is_an_empty_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as after <&-
    outcome = run("score", "--text=-")
    assert outcome.code == 2
    assert "is empty" in outcome.err
    sys.stdin.close()

"""The commands as a user types them, and what a mistake gets."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt.text.pastiche import pastiche
from tests.command_lines import CONFIGS, Run, is_one_line

ROOT = Path(__file__).parents[1]


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; sys.argv = ['cli.py', '--help']\n"
        "try: import runpy; runpy.run_path('cli.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "fit" in done.stdout
    assert "predict" in done.stdout


def test_fit_without_a_config_lists_the_configs(run: Run) -> None:
    outcome = run("fit")
    assert outcome.code == 2
    for config in CONFIGS.glob("*.yaml"):
        assert config.name in outcome.err


def test_fit_leaves_a_run_and_says_where(fit: Run, tmp_path: Path) -> None:
    outcome = fit()
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    steps = [line.split(":")[0] for line in lines if line.startswith("step ")]
    assert steps == ["step 0", "step 4", "step 6"]  # the last step too
    assert "M parameters" in outcome.out
    run_folder = tmp_path / "lightning_logs" / "version_0"
    kept = {path.name for path in (run_folder / "checkpoints").iterdir()}
    assert kept == {"best.ckpt", "last.ckpt"}
    assert (run_folder / "config.yaml").is_file()
    assert list(run_folder.glob("events.out.tfevents.*"))
    assert "lightning_logs/version_0" in outcome.out.replace("\\", "/")


def test_a_second_fit_leaves_the_first_alone(fit: Run, tmp_path: Path) -> None:
    fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    fit("--seed_everything=1")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (tmp_path / "lightning_logs" / "version_1" / "checkpoints" / "last.ckpt").is_file()


def test_predict_prints_text_alone(fit: Run, run: Run, text: str, tmp_path: Path) -> None:
    fit()
    (tmp_path / text).unlink()  # neither the text nor the config is needed any more
    outcome = run("predict", "--max_new_tokens=20")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out) == 20 + 1  # and a line break
    assert set(outcome.out) <= set(pastiche())
    again = run("predict", "--max_new_tokens=20")
    assert again.out == outcome.out
    assert run("predict", "--max_new_tokens=20", "--seed=7").out != outcome.out


def test_predict_takes_the_newest_run_by_number(fit: Run, run: Run, tmp_path: Path) -> None:
    fit()
    logs = tmp_path / "lightning_logs"
    (logs / "version_0").rename(logs / "version_9")
    fit()
    (logs / "version_10" / "checkpoints" / "best.ckpt").rename(tmp_path / "away.ckpt")
    (logs / "version_11").mkdir()  # newer, and without a checkpoint
    assert "version_10" in run("predict", "--max_new_tokens=1").err
    for path in (str(tmp_path / "away.ckpt"), str(logs / "version_9"), "last"):
        assert run("predict", "--max_new_tokens=1", f"--ckpt_path={path}").code == 0


def test_validate_repeats_what_fit_printed(fit: Run, run: Run) -> None:
    printed = fit("--trainer.max_steps=4").out
    train, val = next(
        line.split(": ")[1].split(", ") for line in printed.splitlines() if "step 4:" in line
    )
    outcome = run("validate")
    assert outcome.code == 0, outcome.err
    assert val.removeprefix("val loss ") in outcome.out
    assert train.removeprefix("train loss ") in outcome.out
    assert "bits per character" in outcome.out


def test_validate_takes_a_checkpoint_from_anywhere(fit: Run, run: Run, tmp_path: Path) -> None:
    fit()
    before = run("validate").out.splitlines()[1:]
    (tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").rename(tmp_path / "my.ckpt")
    outcome = run("validate", "--ckpt_path", "my.ckpt", "--data.corpus=text.txt")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[1:] == before


def test_a_stand_in_is_announced_and_recorded(fit: Run, run: Run, tmp_path: Path) -> None:
    outcome = fit("--data.corpus=tiny_shakespeare", "--reference=bigram", "--trainer.max_steps=2")
    assert outcome.code == 0
    assert "pastiche stands in" in outcome.err
    assert "not compared with the reference" in outcome.out
    hparams = (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text(encoding="utf-8")
    assert "corpus_name: pastiche" in hparams
    assert "corpus_stands_in_for: tiny_shakespeare" in hparams
    assert "on pastiche" in run("validate").out


def test_without_a_stand_in_there_is_an_error(fit: Run) -> None:
    outcome = fit("--data.corpus=tiny_shakespeare", "--data.offline_corpus=null")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    for needed in ("tinyshakespeare.txt", "https://", "data"):
        assert needed in outcome.err


MISTAKES = [
    # options, what the line must say
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
    (["--data.corpus=."], "is not a file"),
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
    (["--config=model.yaml"], "below `model:`"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_gets_one_line(fit: Run, tmp_path: Path, options: list[str], says: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"abc\xff")
    (tmp_path / "typo.yaml").write_text("model:\n  n_layr: 3\n")
    (tmp_path / "broken.yaml").write_text("model: [\n")
    (tmp_path / "trainer.yaml").write_text("trainer: 3\n")
    (tmp_path / "model.yaml").write_text("model: 3\n")
    outcome = fit(*options)
    assert outcome.code == 2
    assert is_one_line(outcome.err), outcome.err
    assert says in outcome.err
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_without_a_run_the_way_to_one_is_shown(run: Run, command: str) -> None:
    outcome = run(command)
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "fit --config" in outcome.err


def test_an_unknown_command_gets_the_nearest(run: Run) -> None:
    assert "did you mean predict?" in run("predcit").err
    assert run().code == 0


def test_a_closed_stdin_holds_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as after <&-
    outcome = run("score", "--text=-")
    assert outcome.code == 2
    assert "is empty" in outcome.err
    sys.stdin.close()

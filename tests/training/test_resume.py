"""A run that is interrupted anywhere and resumed equals an uninterrupted one, bit for bit."""

import io
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from nanogpt.training import lightning_cli, optimizer
from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.callbacks.step_seed import StepSeed
from nanogpt.training.run_lock import lock_folder
from tests.command_lines import CONFIGS, TINY, Outcome, Run
from tests.training.oracles import curves, printed_losses, run_folder

GPT = ["--config", str(CONFIGS / "quickstart.yaml"), *TINY, "--model.dropout=0.3"]
MODERN = [*GPT, "--model.architecture=modern", "--model.init=null", "--model.token_noise=0.2"]
MODERN += ["--model.optimizer=muon", "--model.schedule=linear", "--data.replacement=false"]
ACCUMULATE = [*GPT, "--trainer.accumulate_grad_batches=2"]
BIGRAM = ["--config", str(CONFIGS / "bigram.yaml"), "--data.batch_size=4", "--card=false"]
STAGE = ["--config", str(CONFIGS / "ladder" / "08_layer_norm.yaml"), "--data.batch_size=4"]
MODELS = {
    "bigram": [*BIGRAM, "--reference=null"],
    "gpt": GPT,
    "ablated_gpt": [*STAGE, "--card=false"],
    "modern": MODERN,
    "modern in bf16": MODERN,
    "accumulating": ACCUMULATE,
}
SHORT = ["--trainer.max_steps=10", "--trainer.val_check_interval=4", "--trainer.accelerator=cpu"]
COMMON = ["--data.corpus=text.txt", "--trainer.log_every_n_steps=2"]


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, hook: str, call: int, number: int = signal.SIGINT
) -> None:
    """Send a signal at the nth call of a hook."""
    original, calls = getattr(RunState, hook), [0]

    def counted(self: RunState, *args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(number)
        original(self, *args, **kwargs)

    monkeypatch.setattr(RunState, hook, counted)


def content(version: int, name: str = "last") -> dict[str, Any]:
    """Return the content of a checkpoint without durations."""
    path = run_folder(version) / "checkpoints" / f"{name}.ckpt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    del state["callbacks"]["RunState"]["seconds"]
    del state["loops"]  # computed by a resumed run
    return state


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return where two contents differ in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, list | tuple):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {a.keys() ^ b.keys()}"]
        return [path for key in a for path in differences(a[key], b[key], f"{where}/{key}")]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a} {b}"]


def curves_without_speed(version: int) -> dict[str, dict[int, float]]:
    found = curves(run_folder(version))
    del found["characters_per_second"]
    return found


def fit_whole(run: Run, options: list[str]) -> Outcome:
    outcome = run("fit", *options, *SHORT, *COMMON)
    assert outcome.code == 0, outcome.err
    return outcome


def resume_last(run: Run, *options: str) -> Outcome:
    return run("fit", "--ckpt_path=last", *options)


def check_same(version: int = 1) -> None:
    assert len(list(Path("lightning_logs").glob("version_*"))) == version + 1
    for name in ("best", "last"):
        assert differences(content(0, name), content(version, name)) == []
    assert curves_without_speed(0) == curves_without_speed(version)


INTERRUPTIONS = [
    ("gpt", "on_train_batch_end", 1),
    ("gpt", "on_train_batch_end", 3),
    ("gpt", "on_train_batch_end", 4),  # before the evaluation of step 4
    ("gpt", "on_validation_end", 2),  # after it
    ("gpt", "on_validation_batch_end", 6),  # within it
    ("gpt", "on_validation_batch_end", 15),  # within that of the last step
    ("bigram", "on_train_batch_end", 7),
    ("bigram", "on_validation_batch_end", 8),
    ("ablated_gpt", "on_train_batch_end", 5),
    ("ablated_gpt", "on_validation_batch_end", 11),
    ("modern", "on_train_batch_end", 7),
    ("modern in bf16", "on_train_batch_end", 7),
    ("accumulating", "on_train_batch_end", 5),  # within step 3
    ("accumulating", "on_train_batch_end", 8),
    ("accumulating", "on_validation_batch_end", 7),
]


@pytest.mark.parametrize(("model", "hook", "call"), INTERRUPTIONS)
def test_resume_is_bit_exact(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch, model: str, hook: str, call: int
) -> None:
    monkeypatch.setattr(optimizer, "fast_bf16", lambda _: model == "modern in bf16")  # of Muon
    printed = printed_losses(fit_whole(run, MODELS[model]).out)
    interrupt_at(monkeypatch, hook, call)
    stopped = run("fit", *MODELS[model], *SHORT, *COMMON)
    assert stopped.code == 130
    assert stopped.err.count("\n") == 1
    assert "stopped by Ctrl-C after step" in stopped.err
    assert stopped.err.rstrip().endswith("resume with `python cli.py fit --ckpt_path last`")
    done = resume_last(run)
    assert done.code == 0, done.err
    assert done.err == ""
    check_same()
    lines = [*printed_losses(stopped.out).items(), *printed_losses(done.out).items()]
    assert lines == list(printed.items())  # each evaluation once, in order


def test_repeated_resume_is_bit_exact(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_whole(run, ACCUMULATE)
    stops = [("on_train_batch_end", 7), ("on_validation_batch_end", 1)] * 2
    stops += [("on_validation_end", 1), ("on_train_batch_end", 3)]
    for i, (hook, call) in enumerate(stops):
        with monkeypatch.context() as patched:
            interrupt_at(patched, hook, call, signal.SIGTERM)
            stopped = resume_last(run) if i else run("fit", *ACCUMULATE, *SHORT, *COMMON)
        assert stopped.code == 143, stopped.err
        assert "stopped by SIGTERM after step" in stopped.err
    assert resume_last(run).code == 0
    check_same()


def test_resume_after_a_crash_discards_later_events(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_whole(run, GPT)
    original = RunState.on_train_batch_end

    def crash(self: RunState, trainer: L.Trainer, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 7:
            raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "on_train_batch_end", crash)
        with pytest.raises(ZeroDivisionError):
            run("fit", *GPT, *SHORT, *COMMON)
    assert content(1)["global_step"] == 4
    assert max(curves(run_folder(1))["loss/batch"]) == 6
    assert resume_last(run).code == 0
    check_same()


def test_resume_without_seeding_each_step_is_detected(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_whole(run, GPT)
    interrupt_at(monkeypatch, "on_train_batch_end", 3)
    run("fit", *GPT, *SHORT, *COMMON)
    monkeypatch.setattr(StepSeed, "on_train_batch_start", lambda *_: None)
    assert resume_last(run).code == 0
    assert differences(content(0)["state_dict"], content(1)["state_dict"])


# settings


def test_given_options_override_the_run_config_with_notices(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *COMMON)
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())
    options = ["--trainer.max_steps=12", "--model.learning_rate=0.5", "--model.dropout=0.1"]
    options += ["--model.schedule=constant", "--model.warmup_steps=0", "--model.betas=[0.5,0.6]"]
    done = resume_last(run, *options)
    assert done.code == 0, done.err
    notices = done.err.splitlines()
    assert "notice: trainer.max_steps changed from 10 to 12" in notices
    assert "notice: model.learning_rate changed from 0.002 to 0.5" in notices
    assert "notice: model.betas changed from [0.9, 0.999] to [0.5, 0.6]" in notices
    assert len(notices) == 6
    now = yaml.safe_load((run_folder() / "config.yaml").read_text())
    assert now["trainer"]["max_steps"] == 12
    assert now["ckpt_path"] is None
    config["trainer"]["max_steps"] = 12
    config["model"] |= {"learning_rate": 0.5, "dropout": 0.1, "schedule": "constant"}
    config["model"] |= {"warmup_steps": 0, "betas": [0.5, 0.6]}
    assert now == config
    assert "learning_rate: 0.5" in (run_folder() / "hparams.yaml").read_text()
    group = content(0)["optimizer_states"][0]["param_groups"][0]
    assert (group["lr"], group["betas"]) == (0.5, (0.5, 0.6))
    assert curves(run_folder())["learning_rate"][12] == 0.5


def test_setting_missing_in_an_older_config_had_its_default(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *COMMON)
    path = run_folder() / "config.yaml"
    older = yaml.safe_load(path.read_text())
    for name in ("replacement", "offline_corpus"):
        del older["data"][name]
    del older["model"]["init"]
    path.write_text(yaml.safe_dump(older))
    done = resume_last(run, "--trainer.max_steps=12", "--data.replacement=false")
    assert sorted(done.err.splitlines()) == [
        "notice: data.replacement changed from True to False",
        "notice: trainer.max_steps changed from 10 to 12",
    ]


def test_weight_decay_changes_for_both_optimizers(run: Run, text: str) -> None:
    assert run("fit", *MODELS["modern"], *SHORT, *COMMON).code == 0
    last = run_folder() / "checkpoints" / "last.ckpt"
    older = torch.load(last, weights_only=True)
    for group in older["optimizer_states"][0]["param_groups"]:
        if "betas" not in group:
            del group["weight_decay"]  # which Muon once lacked
    torch.save(older, last)
    assert resume_last(run, "--trainer.max_steps=12", "--model.weight_decay=0.5").code == 0
    groups = content(0)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]


def test_given_config_overrides_the_run_config_in_the_same_folder(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *COMMON)
    Path("more.yaml").write_text("trainer:\n  max_steps: 12\n")
    done = run("fit", "--config", "more.yaml", "--ckpt_path", str(run_folder()))
    assert done.err == "notice: trainer.max_steps changed from 10 to 12\n"
    assert content(0)["global_step"] == 12
    assert list(curves(run_folder())["loss/val"]) == [0, 4, 8, 10, 12]


def test_checkpoint_path_in_a_config_resumes_that_run(run: Run, text: str) -> None:
    options = [*GPT, *SHORT, *COMMON]
    run("fit", *options)
    Path("more.yaml").write_text(f"ckpt_path: {run_folder()}\ntrainer:\n  max_steps: 12\n")
    done = run("fit", *options[:-4], *COMMON, "--config", "more.yaml")
    assert (done.code, "resumed at step 10" in done.out) == (0, True), done.err
    assert content(0)["global_step"] == 12


def test_checkpoints_are_read_once(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("fit", *GPT, *SHORT, *COMMON, "--trainer.max_steps=5")
    load, reads = torch.load, list[str]()

    def count(*args: Any, **kwargs: Any) -> Any:
        if not isinstance(args[0], io.BytesIO):  # not a file
            reads.append("read")
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", count)
    assert run("validate").code == 0
    assert len(reads) == 0  # it needs only the model file
    assert resume_last(run, "--trainer.max_steps=6").code == 0
    assert len(reads) == 2  # by us, and by Lightning


@pytest.mark.parametrize("steps", [(), ("--trainer.max_steps=6",)])
def test_finished_run_gives_the_command_to_resume(run: Run, text: str, steps: tuple[str]) -> None:
    run("fit", *GPT, *SHORT, *COMMON)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    outcome = resume_last(run, *steps)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "`python cli.py fit --ckpt_path last --trainer.max_steps MORE`" in outcome.err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_checkpoint_outside_a_run_folder_starts_a_new_run(run: Run, text: str) -> None:
    fit_whole(run, GPT)
    run("fit", *GPT, *SHORT, *COMMON, "--trainer.max_steps=4", "--model.warmup_steps=100")
    (run_folder(1) / "checkpoints" / "last.ckpt").rename("lone.ckpt")
    refused = run("fit", "--ckpt_path=lone.ckpt")
    assert refused.code == 2
    assert "--config" in refused.err
    done = run("fit", *GPT, *SHORT, *COMMON, "--ckpt_path=lone.ckpt")
    assert done.code == 0, done.err
    assert content(2)["global_step"] == 10
    assert [step for step, *_ in content(2)["callbacks"]["RunState"]["history"]] == [0, 4, 8, 10]
    assert list(curves(run_folder(2))["loss/val"]) == [8, 10]


def test_resume_from_the_best_step_discards_later_events(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *COMMON, "--trainer.max_steps=5")
    best = run_folder() / "checkpoints" / "best.ckpt"
    (run_folder() / "checkpoints" / "last.ckpt").replace(best)
    done = run("fit", "--ckpt_path=best", "--trainer.max_steps=8")
    assert done.code == 0, done.err
    assert list(curves(run_folder())["loss/val"]) == [0, 4, 5, 8]


# SLURM


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="SLURM runs on Linux")
def test_requeued_slurm_job_resumes(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_whole(run, GPT)
    job = {"JOB_ID": "1", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in (job | {"NODEID": "0", "NTASKS_PER_NODE": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", lambda _: 0)
    original = RunState.on_train_batch_end

    def requeue(self: RunState, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (3, 5):
            signal.raise_signal(signal.SIGUSR1 if trainer.global_step == 3 else signal.SIGTERM)
        original(self, trainer, *args)

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "on_train_batch_end", requeue)
        assert run("fit", *GPT, *SHORT, *COMMON).code == 143
    assert Path("hpc_ckpt_1.ckpt").is_file()
    again = fit_whole(run, GPT)  # SLURM repeats the command
    assert "resumed at step 3" in again.out
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert differences(content(0)[name], content(2)[name]) == []


# the end of a run


def test_time_limit_counts_the_time_before_a_resume(run: Run, text: str) -> None:
    limited = ["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01"]
    limited += ["--model.schedule=constant", "--trainer.val_check_interval=1000000"]
    assert run("fit", *ACCUMULATE, *COMMON, *limited).code == 0
    first = content(0)["global_step"]
    done = resume_last(run)
    assert done.code == 0, done.err
    assert f"training ended at step {first:,}: the time is up" in done.out
    assert content(0)["global_step"] == first
    assert resume_last(run, "--trainer.max_time=00:00:00:02").code == 0
    assert content(0)["global_step"] > first
    history = [step for step, *_ in content(0)["callbacks"]["RunState"]["history"]]
    assert history == [0, first, content(0)["global_step"]]


def test_run_folder_is_locked_during_training(run: Run, text: str) -> None:
    assert run("fit", *GPT, *SHORT, *COMMON, "--trainer.max_steps=5").code == 0
    before = content(0)
    with lock_folder(run_folder(0), is_used=lambda: True):
        second = resume_last(run, "--trainer.max_steps=10")
    assert (second.code, second.out) == (2, "")
    assert second.err.splitlines()[-1].startswith("error: another command is training in ")
    assert content(0)["global_step"] == before["global_step"] == 5
    assert resume_last(run, "--trainer.max_steps=10").code == 0


def test_checkpoint_changed_by_another_command_is_refused(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fit", *GPT, *SHORT, *COMMON, "--trainer.max_steps=5").code == 0
    last, build_loss = run_folder() / "checkpoints" / "last.ckpt", lightning_cli.build_loss

    def slow(*args: Any) -> Any:  # another command resumes and ends meanwhile
        last.write_bytes(last.read_bytes())
        os.utime(last, (1, 1))
        return build_loss(*args)

    monkeypatch.setattr(lightning_cli, "build_loss", slow)
    refused = resume_last(run, "--trainer.max_steps=10")
    assert (refused.code, refused.out) == (2, "")
    assert "was changed by another command: repeat this command" in refused.err.splitlines()[-1]


def test_run_without_evaluations_resumes(run: Run, text: str) -> None:
    options = [*GPT, *SHORT, *COMMON, "--trainer.limit_val_batches=0"]
    for steps in (10, 5):
        assert run("fit", *options, f"--trainer.max_steps={steps}").code == 0
    assert resume_last(run, "--trainer.max_steps=10", "--model.schedule=cosine").code == 0
    assert content(1)["global_step"] == 10
    assert curves_without_speed(1).keys() == {"loss/batch", "learning_rate"}

"""A run that was interrupted, anywhere and more than once, ends as one that never was."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from nanogpt.training import cli
from nanogpt.training.callbacks import Recorder
from nanogpt.training.run_lock import claimed
from tests.command_lines import CONFIGS, TINY, Outcome, Run
from tests.training.oracles import curves, printed_losses, run_folder

GPT = ["--config", str(CONFIGS / "quickstart.yaml"), *TINY, "--model.dropout=0.3"]
MODERN = [
    "--model.init=null",
    "--model.noise=0.2",
    "--model.schedule=linear",
    "--data.replacement=false",
]
ACCUMULATE = [*GPT, "--trainer.accumulate_grad_batches=2"]
BIGRAM = ["--config", str(CONFIGS / "bigram.yaml"), "--data.batch_size=4", "--card=false"]
RUNG = ["--config", str(CONFIGS / "ladder" / "08_layer_norm.yaml"), "--data.batch_size=4"]
MODELS = {
    "bigram": [*BIGRAM, "--reference=null"],
    "gpt": GPT,
    "rung": [*RUNG, "--card=false"],
    "modern": [*GPT, "--model.architecture=modern", "--model.optimizer=muon", *MODERN],
    "accumulating": ACCUMULATE,
}
SHORT = ["--trainer.max_steps=10", "--trainer.val_check_interval=4", "--trainer.accelerator=cpu"]
EVERY = ["--data.corpus=text.txt", "--trainer.log_every_n_steps=2"]


def interrupt_at(
    monkeypatch: pytest.MonkeyPatch, hook: str, call: int, number: int = signal.SIGINT
) -> None:
    """Send a signal at the nth call of one of the recorder's hooks, once."""
    real, calls = getattr(Recorder, hook), [0]

    def counted(self: Recorder, *args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(number)
        real(self, *args, **kwargs)

    monkeypatch.setattr(Recorder, hook, counted)


def content(version: int, name: str = "last") -> dict[str, Any]:
    """What a run ended with, without the time that it took."""
    path = run_folder(version) / "checkpoints" / f"{name}.ckpt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    del state["run"]["seconds"]
    state["run"]["logged"].pop("characters_per_second", None)
    return state


def different(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two contents are not the same to the bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, list | tuple):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {a.keys() ^ b.keys()}"]
        return [place for key in a for place in different(a[key], b[key], f"{where}/{key}")]
    return [] if type(a) is type(b) and a == b else [f"{where}: {a} {b}"]


def one_curve(version: int) -> dict[str, dict[int, float]]:
    found = curves(run_folder(version))
    del found["characters_per_second"]  # which no two runs share
    return found


def whole(run: Run, options: list[str]) -> Outcome:
    outcome = run("fit", *options, *SHORT, *EVERY)
    assert outcome.code == 0, outcome.err
    return outcome


def go_on(run: Run, *options: str) -> Outcome:
    return run("fit", "--ckpt_path=last", *options)


def check_same(version: int = 1) -> None:
    assert len(list(Path("lightning_logs").glob("version_*"))) == version + 1
    for name in ("best", "last"):
        assert different(content(0, name), content(version, name)) == []
    assert one_curve(0) == one_curve(version)


INTERRUPTIONS = [
    ("gpt", "on_train_batch_end", 1),
    ("gpt", "on_train_batch_end", 3),
    ("gpt", "on_train_batch_end", 4),  # before the evaluation of step 4
    ("gpt", "on_validation_end", 2),  # when it is done
    ("gpt", "on_validation_batch_end", 6),  # in its midst
    ("gpt", "on_validation_batch_end", 15),  # in that of the last step
    ("bigram", "on_train_batch_end", 7),
    ("bigram", "on_validation_batch_end", 8),
    ("rung", "on_train_batch_end", 5),
    ("rung", "on_validation_batch_end", 11),
    ("modern", "on_train_batch_end", 7),
    ("accumulating", "on_train_batch_end", 5),  # half of step 3 is done
    ("accumulating", "on_train_batch_end", 8),
    ("accumulating", "on_validation_batch_end", 7),
]


@pytest.mark.parametrize(("model", "hook", "call"), INTERRUPTIONS)
def test_an_interrupted_run_ends_as_one_that_never_was(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch, model: str, hook: str, call: int
) -> None:
    printed = printed_losses(whole(run, MODELS[model]).out)
    interrupt_at(monkeypatch, hook, call)
    stopped = run("fit", *MODELS[model], *SHORT, *EVERY)
    assert stopped.code == 130
    assert stopped.err.count("\n") == 1
    assert "stopped by Ctrl-C after step" in stopped.err
    assert stopped.err.rstrip().endswith("go on with `python cli.py fit --ckpt_path last`")
    done = go_on(run)
    assert done.code == 0, done.err
    assert done.err == ""
    check_same()
    lines = [*printed_losses(stopped.out).items(), *printed_losses(done.out).items()]
    assert lines == list(printed.items())  # each evaluation once, and in order


def test_a_run_may_be_interrupted_again_and_again(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(run, ACCUMULATE)
    stops = [("on_train_batch_end", 7), ("on_validation_batch_end", 1)] * 2
    stops += [("on_validation_end", 1), ("on_train_batch_end", 3)]
    for times, (hook, call) in enumerate(stops):
        with monkeypatch.context() as patched:
            interrupt_at(patched, hook, call, signal.SIGTERM)
            stopped = go_on(run) if times else run("fit", *ACCUMULATE, *SHORT, *EVERY)
        assert stopped.code == 143, stopped.err
        assert "stopped by SIGTERM after step" in stopped.err
    assert go_on(run).code == 0
    check_same()


def test_a_kill_leaves_what_was_saved_and_the_curve_forgets_the_rest(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(run, GPT)
    real = Recorder.on_train_batch_end

    def die(self: Recorder, trainer: L.Trainer, *args: Any) -> None:
        real(self, trainer, *args)
        if trainer.global_step == 7:
            raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_train_batch_end", die)
        with pytest.raises(ZeroDivisionError):
            run("fit", *GPT, *SHORT, *EVERY)
    assert content(1)["global_step"] == 4
    assert max(curves(run_folder(1))["loss/batch"]) == 6
    assert go_on(run).code == 0
    check_same()


def test_the_state_of_chance_is_what_dropout_needs(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(run, GPT)
    interrupt_at(monkeypatch, "on_train_batch_end", 3)
    run("fit", *GPT, *SHORT, *EVERY)
    monkeypatch.setattr(cli.callbacks.resume, "set_random_state", lambda *_: None)  # planted
    assert go_on(run).code == 0
    assert different(content(0)["state_dict"], content(1)["state_dict"])


# settings


def test_what_is_given_wins_and_is_said(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *EVERY)
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())
    options = ["--trainer.max_steps=12", "--model.learning_rate=0.5", "--model.dropout=0.1"]
    options += ["--model.schedule=constant", "--model.warmup_steps=0", "--model.betas=[0.5,0.6]"]
    done = go_on(run, *options)
    assert done.code == 0, done.err
    said = done.err.splitlines()
    assert "notice: trainer.max_steps 12 instead of the run's 10" in said
    assert "notice: model.learning_rate 0.5 instead of the run's 0.002" in said
    assert "notice: model.betas [0.5, 0.6] instead of the run's [0.9, 0.999]" in said
    assert len(said) == 6
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


def test_a_setting_that_an_older_run_did_not_have_had_its_default(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *EVERY)
    path = run_folder() / "config.yaml"
    older = yaml.safe_load(path.read_text())
    for name in ("replacement", "offline_corpus"):
        del older["data"][name]
    path.write_text(yaml.safe_dump(older))
    done = go_on(run, "--trainer.max_steps=12", "--data.replacement=false")
    assert sorted(done.err.splitlines()) == [
        "notice: data.replacement False instead of the run's True",
        "notice: trainer.max_steps 12 instead of the run's 10",
    ]


def test_weight_decay_may_change_for_all_parameters_alike(run: Run, text: str) -> None:
    assert run("fit", *MODELS["modern"], *SHORT, *EVERY).code == 0
    last = run_folder() / "checkpoints" / "last.ckpt"
    older = torch.load(last, weights_only=True)
    for group in older["optimizer_states"][0]["param_groups"]:
        if "betas" not in group:
            del group["weight_decay"]  # which Muon did not have
    torch.save(older, last)
    assert go_on(run, "--trainer.max_steps=12", "--model.weight_decay=0.5").code == 0
    groups = content(0)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]


def test_a_config_that_is_given_wins_too_and_the_run_stays_where_it_is(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *EVERY)
    Path("more.yaml").write_text("trainer:\n  max_steps: 12\n")
    done = run("fit", "--config", "more.yaml", "--ckpt_path", str(run_folder()))
    assert done.err == "notice: trainer.max_steps 12 instead of the run's 10\n"
    assert content(0)["global_step"] == 12
    assert list(curves(run_folder())["loss/val"]) == [0, 4, 8, 10, 12]


@pytest.mark.parametrize("steps", [(), ("--trainer.max_steps=6",)])
def test_a_run_that_is_done_says_how_to_go_on(run: Run, text: str, steps: tuple[str]) -> None:
    run("fit", *GPT, *SHORT, *EVERY)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    outcome = go_on(run, *steps)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "`python cli.py fit --ckpt_path last --trainer.max_steps MORE`" in outcome.err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_lone_checkpoint_begins_a_run_of_its_own(run: Run, text: str) -> None:
    whole(run, GPT)
    run("fit", *GPT, *SHORT, *EVERY, "--trainer.max_steps=4", "--model.warmup_steps=100")
    (run_folder(1) / "checkpoints" / "last.ckpt").rename("lone.ckpt")
    refused = run("fit", "--ckpt_path=lone.ckpt")
    assert refused.code == 2
    assert "--config" in refused.err
    done = run("fit", *GPT, *SHORT, *EVERY, "--ckpt_path=lone.ckpt")
    assert done.code == 0, done.err
    assert content(2)["global_step"] == 10
    assert [step for step, *_ in content(2)["run"]["history"]] == [0, 4, 8, 10]
    assert list(curves(run_folder(2))["loss/val"]) == [8, 10]


def test_going_back_to_the_best_step_forgets_what_came_after(run: Run, text: str) -> None:
    run("fit", *GPT, *SHORT, *EVERY, "--trainer.max_steps=5")
    best = run_folder() / "checkpoints" / "best.ckpt"
    (run_folder() / "checkpoints" / "last.ckpt").replace(best)
    done = run("fit", "--ckpt_path=best", "--trainer.max_steps=8")
    assert done.code == 0, done.err
    assert list(curves(run_folder())["loss/val"]) == [0, 4, 5, 8]


# elsewhere


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="SLURM runs on Linux")
def test_a_requeued_slurm_job_goes_on_where_it_was(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(run, GPT)
    job = {"JOB_ID": "1", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in (job | {"NODEID": "0", "NTASKS_PER_NODE": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", lambda _: 0)
    real = Recorder.on_train_batch_end

    def requeue(self: Recorder, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (3, 5):
            signal.raise_signal(signal.SIGUSR1 if trainer.global_step == 3 else signal.SIGTERM)
        real(self, trainer, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_train_batch_end", requeue)
        assert run("fit", *GPT, *SHORT, *EVERY).code == 143
    assert Path("hpc_ckpt_1.ckpt").is_file()
    again = whole(run, GPT)  # the same command, which SLURM starts again
    assert "from step 3 on" in again.out
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "run"):
        assert different(content(0)[name], content(2)[name]) == []


# the end of a run


def test_a_time_limit_saves_and_counts_anew(run: Run, text: str) -> None:
    limited = ["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01"]
    limited += ["--model.schedule=constant", "--trainer.val_check_interval=1000000"]
    assert run("fit", *ACCUMULATE, *EVERY, *limited).code == 0
    first = content(0)["global_step"]
    done = go_on(run)
    assert done.code == 0, done.err
    assert content(0)["global_step"] > first
    history = [step for step, *_ in content(0)["run"]["history"]]
    assert history == [0, first, content(0)["global_step"]]


def test_one_training_at_a_time_holds_a_folder(run: Run, text: str) -> None:
    assert run("fit", *GPT, *SHORT, *EVERY, "--trainer.max_steps=5").code == 0
    before = content(0)
    with claimed(run_folder(0)):
        second = go_on(run, "--trainer.max_steps=10")
    assert (second.code, second.out) == (2, "")
    assert second.err.splitlines()[-1].startswith("error: another command trains in ")
    assert content(0)["global_step"] == before["global_step"] == 5
    assert go_on(run, "--trainer.max_steps=10").code == 0


def test_a_run_that_went_on_meanwhile_is_read_again_first(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fit", *GPT, *SHORT, *EVERY, "--trainer.max_steps=5").code == 0
    last, real = run_folder() / "checkpoints" / "last.ckpt", cli.choose_loss

    def slow(*parts: Any) -> Any:  # another command goes on and ends while this one sets up
        last.write_bytes(last.read_bytes())
        os.utime(last, (1, 1))
        return real(*parts)

    monkeypatch.setattr(cli, "choose_loss", slow)
    refused = go_on(run, "--trainer.max_steps=10")
    assert (refused.code, refused.out) == (2, "")
    assert "written anew meanwhile: run this again" in refused.err.splitlines()[-1]


def test_a_run_that_never_evaluates_can_go_on_too(run: Run, text: str) -> None:
    never = ["--trainer.limit_val_batches=0"]
    for steps in (10, 5):
        assert run("fit", *GPT, *SHORT, *EVERY, *never, f"--trainer.max_steps={steps}").code == 0
    assert go_on(run, "--trainer.max_steps=10", "--model.schedule=cosine").code == 0
    assert content(1)["global_step"] == 10
    assert one_curve(1).keys() == {"loss/batch", "learning_rate"}

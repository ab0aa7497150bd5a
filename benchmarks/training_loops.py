"""The training loops that ``benchmarks/train.py`` compares; each runs in a separate process."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from baseline import Sizes, Training
from run_and_record import peak_memory
from torch import Tensor

from nanogpt.hardware import best_device
from nanogpt.models import count_parameters
from nanogpt.text.batches import Windows, gather, training_batches
from nanogpt.training import lightning_cli
from nanogpt.training.compiled import CompiledLoss, plan_compilation
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.optimizer import build_optimizer

BASELINES = {  # (autocast, compiled)
    "baseline": (False, False),
    "baseline, bf16": (True, False),
    "baseline, bf16, compiled": (True, True),
}
# The minimum before timing starts: the first steps allocate memory and, on a GPU, build kernels.
WARM_UP_SECONDS, WARM_UP_STEPS = 0.5, 3
MAX_STEPS_PER_ROUND = 200
AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def loop_names(sizes: Sizes, device: str) -> list[str]:
    """Return the names of the loops to compare on a device, ``fit`` last."""
    if device == "cuda" and sizes.architecture != "bigram":
        return [*BASELINES, "bare", "fit, not compiled", "fit"]
    return ["baseline", "baseline, bf16", "bare", "fit"]


@dataclass
class Timer:
    """Times the steps of a loop: a warm-up, then some rounds.

    Args:
        rounds: number of rounds.
        seconds: duration of a round, which has at least one step.
    """

    rounds: int
    seconds: float
    times: list[float] = field(default_factory=list)  # seconds per step of each round

    def __iter__(self) -> Iterator[None]:
        """Yield before each step."""
        for round_number in range(self.rounds + 1):
            warm_up = round_number == 0
            min_steps = WARM_UP_STEPS if warm_up else 1
            duration = WARM_UP_SECONDS if warm_up else self.seconds
            steps, start = 0, now()
            while steps < min_steps or (
                time.perf_counter() - start < duration and steps < MAX_STEPS_PER_ROUND
            ):
                yield
                steps += 1
            seconds_per_step = (now() - start) / steps
            if not warm_up:
                self.times.append(seconds_per_step)


def now() -> float:
    """Return the time in seconds, after a GPU has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class TimedFit(lightning_cli.CLI):
    """``fit`` as shipped, with a timer in front of its training data loader.

    Args:
        command: ``fit``.
        argv: its options.
        timer: times the steps.
        bare: whether to run the bare loop instead, once everything is set up.
    """

    def __init__(self, command: str, argv: list[str], timer: Timer, bare: bool) -> None:
        self.timer, self.bare = timer, bare
        super().__init__(command, argv)

    def before_fit(self) -> None:
        """Wrap the training data loader."""
        super().before_fit()
        loader = self.datamodule.train_dataloader
        self.datamodule.train_dataloader = lambda: TimedLoader(loader(), self)

    def after_fit(self) -> None:
        """Print nothing and write no model card."""

    def timed_batches(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the batches of the timed steps, or run the bare loop; then stop the trainer.

        Lightning fetches each batch one step ahead, so it takes one step between two fetches.
        """
        if self.bare:
            step = self.bare_step()
            for _ in self.timer:
                step()
        else:
            for _ in self.timer:
                yield next(batches)
        self.trainer.should_stop = True
        yield next(batches)

    def bare_step(self) -> Callable[[], None]:
        """Return a function that takes one step of the same model and loss without Lightning.

        The network is the one that ``fit`` has built, with its kernels installed.
        """
        data, model, trainer = self.datamodule, self.model, self.trainer
        device, T, net = trainer.strategy.root_device, data.block_size, model.net
        optimizer = build_optimizer(net, model.hparams, fused=True)
        ids = data.splits["train"].to(device)
        batches = training_batches(data.draw, 0)
        dtype = AUTOCAST_DTYPES.get(str(trainer.precision))

        def step() -> None:
            offsets = next(batches).to(device, non_blocking=device.type == "cuda")  # as Lightning
            inputs, targets = gather(ids, Windows(offsets, T))
            with torch.autocast(device.type, dtype) if dtype else nullcontext():
                loss = model.training_loss(net, inputs, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step


@dataclass
class TimedLoader:
    """A data loader whose batches are timed.

    Args:
        loader: the training data loader of ``fit``.
        fit: the command that trains.
    """

    loader: Any
    fit: TimedFit

    def __iter__(self) -> Iterator[Tensor]:
        return self.fit.timed_batches(iter(self.loader))


def run(name: str, config: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Run a loop.

    Returns:
        Seconds per step of each round, arithmetic, number of parameters, peak memory in bytes; or,
        if the loop fails (no compiler, out of memory), the error message.
    """
    timer = Timer(rounds, seconds)
    time_loop = time_baseline if name in BASELINES else time_ours
    try:
        result = time_loop(name, config, timer)
    except Exception as error:
        first_line, *_ = [*str(error).strip().splitlines(), ""]
        return {"failure": f"{type(error).__name__}: {first_line}"}
    return {"rounds": timer.times, "threads": torch.get_num_threads()} | result | peak_memory()


def time_baseline(name: str, config: Path, timer: Timer) -> dict[str, Any]:
    """Time the baseline under PyTorch's default settings.

    Returns:
        Its arithmetic, its number of parameters and whether it is compiled.
    """
    autocast, compiled = BASELINES[name]
    training = Training(Sizes.from_config(config), best_device(), autocast, compiled)
    for _ in timer:
        training.step()
    return {
        "arithmetic": "bf16" if autocast else "fp32",
        "parameters": count_parameters(training.model),
        "compiled": compiled,
    }


def is_compiled(config: Path) -> bool:
    """Return whether ``fit`` compiles a config on this machine."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    sizes = Sizes.from_config(config)
    strategy = SimpleNamespace(root_device=torch.device(best_device()))
    counts = {"accumulate_grad_batches": 1, "world_size": 1, "max_steps": sizes.max_steps}
    trainer: Any = SimpleNamespace(strategy=strategy, **counts)
    data: Any = sizes  # which has the same attributes
    return plan_compilation("auto", LanguageModel(**content["model"]), data, trainer).compiled


def time_ours(name: str, config: Path, timer: Timer) -> dict[str, Any]:
    """Time ``fit``, or the bare loop under its settings; return the same as ``time_baseline``."""
    # the number of steps below must not change whether `fit` compiles this config
    compiled = name != "fit, not compiled" and is_compiled(config)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        options = ["--config", str(config), "--trainer.default_root_dir", folder]
        options += ["--trainer.accelerator", "gpu" if best_device() == "cuda" else "cpu"]
        options += ["--trainer.max_steps", str(10**6), "--trainer.enable_progress_bar", "false"]
        options += ["--trainer.limit_val_batches", "0", "--card", "false"]
        options += ["--compile", str(compiled).lower()]
        timed_fit = partial(TimedFit, timer=timer, bare=name == "bare")
        cli = lightning_cli.run("fit", options, timed_fit)
    loss, precision = cli.model.training_loss, str(cli.trainer.precision)
    on_cuda = cli.trainer.strategy.root_device.type == "cuda"
    has_tf32 = on_cuda and torch.cuda.get_device_capability()[0] >= 8
    arithmetic = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
    return {
        "arithmetic": arithmetic.get(precision, "tf32" if has_tf32 else "fp32"),
        "parameters": count_parameters(cli.model.net),
        "compiled": isinstance(loss, CompiledLoss) and loss.run is not loss.loss,
    }

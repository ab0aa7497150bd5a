"""The loops that benchmarks/train.py compares, each to be run in a process of its own."""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from run_and_record import memory
from baseline import Sizes, Training
from torch import Tensor

from nanogpt.hardware import best_device
from nanogpt.models import count_parameters
from nanogpt.text.batches import Windows, gather, training_batches
from nanogpt.training import cli
from nanogpt.training.compiled import WORTH_IT_FROM, CompiledLoss
from nanogpt.training.optimizer import build_optimizer

TEXTBOOK = {  # autocast, compiled
    "textbook": (False, False),
    "textbook, bf16": (True, False),
    "textbook, bf16, compiled": (True, True),
}
WARM_UP, WARM_STEPS = 0.5, 3  # seconds and steps at least before the clock runs: a step's memory
# is first touched, and on a GPU its kernels are made
MOST_STEPS = 200  # in a round
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def names(sizes: Sizes, device: str) -> list[str]:
    """Return the loops to compare on a device; `fit` the last."""
    if device == "cuda" and sizes.architecture != "bigram":
        return [*TEXTBOOK, "bare", "fit, not compiled", "fit"]
    return ["textbook", "textbook, bf16", "bare", "fit"]


@dataclass
class Clock:
    """Times the steps of a loop: after a warm-up, in rounds.

    Args:
        rounds: how many.
        seconds: for which a round should last; it has a step at least.
    """

    rounds: int
    seconds: float
    times: list[float] = field(default_factory=list)  # seconds per step, of each round

    def __iter__(self) -> Iterator[None]:
        """Yield before each step."""
        for number in range(self.rounds + 1):
            least, lasts = (1, self.seconds) if number else (WARM_STEPS, WARM_UP)
            steps, begun = 0, now()
            while steps < least or (time.perf_counter() - begun < lasts and steps < MOST_STEPS):
                yield
                steps += 1
            seconds = (now() - begun) / steps
            if number:
                self.times.append(seconds)


def now() -> float:
    """Return the time, once a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Fit(cli.CLI):
    """`fit` as it is shipped, save that a clock stands at its loader."""

    clock: Clock
    bare: bool  # whether to run the bare loop in its place, once all is set up

    def before_fit(self) -> None:
        """Put the clock between the loader and Lightning."""
        super().before_fit()
        loader = self.datamodule.train_dataloader
        self.datamodule.train_dataloader = lambda: TimedLoader(loader(), self)

    def after_fit(self) -> None:
        """Say nothing and leave no card: there is no result."""

    def timed(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the batches of the timed steps, or take bare steps; then stop.

        Lightning asks for a batch one step ahead, so between two of its questions lies one step.
        """
        if self.bare:
            step = self.bare_step()
            for _ in self.clock:
                step()
        else:
            for _ in self.clock:
                yield next(batches)
        self.trainer.should_stop = True
        yield next(batches)

    def bare_step(self) -> Callable[[], None]:
        """Return a step of our model without Lightning, compiled and in a precision as `fit` is."""
        data, model, trainer = self.datamodule, self.model, self.trainer
        device, T = trainer.strategy.root_device, data.block_size
        net = model.build(len(data.tokenizer.vocabulary)).to(device)
        optimizer = build_optimizer(net, model.hparams, fused=True)
        ids = data.splits["train"].to(device)
        batches = training_batches(data.draw, 0)
        half = HALF.get(str(trainer.precision))

        def step() -> None:
            inputs, targets = gather(ids, Windows(next(batches).to(device), T))
            with torch.autocast(device.type, half) if half else nullcontext():
                loss = model.training_loss(net, inputs, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step


@dataclass
class TimedLoader:
    """A loader at which the clock stands."""

    loader: Any
    fit: Fit

    def __iter__(self) -> Iterator[Tensor]:
        return self.fit.timed(iter(self.loader))


def run(name: str, config: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Run a loop; return the seconds per step of each round, and what it computed in what memory.

    Where it fails (no compiler, no memory), return what it said.
    """
    clock = Clock(rounds, seconds)
    try:
        time_loop = time_textbook if name in TEXTBOOK else time_ours
        about = time_loop(name, config, clock)
    except Exception as error:
        first, *_ = [*str(error).strip().splitlines(), ""]
        return {"failure": f"{type(error).__name__}: {first}"}
    return {"rounds": clock.times, "threads": torch.get_num_threads(), **about, **memory()}


def time_textbook(name: str, config: Path, clock: Clock) -> dict[str, Any]:
    """Time the textbook's loop, under the settings that PyTorch comes with.

    Returns: its arithmetic, its number of parameters and whether it is compiled.
    """
    autocast, compiled = TEXTBOOK[name]
    training = Training(Sizes.of(config), best_device(), autocast, compiled)
    for _ in clock:
        training.step()
    return {
        "arithmetic": "bf16" if autocast else "fp32",
        "parameters": count_parameters(training.model),
        "compiled": compiled,
    }


def time_ours(name: str, config: Path, clock: Clock) -> dict[str, Any]:
    """Time `fit`, or the bare loop under its settings; return the same."""
    Fit.clock, Fit.bare = clock, name == "bare"
    short = 0 <= Sizes.of(config).max_steps < WORTH_IT_FROM  # which `fit` would not compile
    choice = "false" if short or name == "fit, not compiled" else "auto"
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        options = ["--config", str(config), "--trainer.default_root_dir", folder]
        options += ["--trainer.accelerator", "gpu" if best_device() == "cuda" else "cpu"]
        options += ["--trainer.max_steps", str(10**6), "--trainer.enable_progress_bar", "false"]
        options += ["--trainer.limit_val_batches", "0", "--card", "false", "--compile", choice]
        fitted = cli.run("fit", options, Fit)
    loss, precision = fitted.model.training_loss, str(fitted.trainer.precision)
    on_cuda = fitted.trainer.strategy.root_device.type == "cuda"
    tf32 = on_cuda and torch.cuda.get_device_capability()[0] >= 8
    halves = {"bf16-mixed": "bf16", "16-mixed": "fp16"}
    return {
        "arithmetic": halves.get(precision, "tf32" if tf32 else "fp32"),
        "parameters": count_parameters(fitted.model.net),
        "compiled": isinstance(loss, CompiledLoss) and loss.works,
    }

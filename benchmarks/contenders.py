"""The loops that benchmarks/train.py compares, and how they take turns."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from textbook import Sizes, Training
from torch import Tensor

from nanogpt.text.windows import Windows, gather, training_batches
from nanogpt.training import cli
from nanogpt.training.compiled import CompiledLoss, Loss
from nanogpt.training.module import next_character_loss
from nanogpt.training.optimizer import build_optimizer

WARM_UP = 0.5  # seconds that a loop runs before it is timed, and at least one step
MOST_STEPS = 200  # in a round
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Contender:
    """One loop: how it takes a step, under which settings, and how long that took.

    Args:
        name: of the loop.
        arithmetic: of its matrix products: fp32, tf32, bf16 or fp16.
        step: takes one step; Lightning's own loop takes them itself.
        threads: of the CPU, as this loop would have them in a process of its own.
        matmul: what it says to ``torch.set_float32_matmul_precision``.
    """

    name: str
    arithmetic: str
    step: Callable[[], None]
    threads: int
    matmul: str
    rounds: list[float] = field(default_factory=list)  # seconds per step
    timed_steps: int = 0
    held: int = 0  # bytes of the GPU that it keeps between its rounds
    peak_memory: int = 0  # bytes of the GPU, what the other loops keep not counted
    failure: str = ""

    @property
    def seconds(self) -> float:
        """Seconds per step: the median of the rounds."""
        return statistics.median(self.rounds)

    def begin(self) -> None:
        """Set what the loop wants set, and start its clock."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._by_others = allocated() - self.held
        self._steps, self._begun = 0, time.perf_counter()

    def another(self, seconds: float) -> bool:
        """Whether one more step begins: always the first, and as many as do in these seconds."""
        late = time.perf_counter() - self._begun >= seconds or self._steps >= MOST_STEPS
        if self._steps and late:
            return False
        self._steps += 1
        return True

    def end(self, timed: bool = True) -> None:
        """Stop the clock, and keep what it says unless the loop was only warming up."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - self._by_others
            self.peak_memory = max(self.peak_memory, peak)
        if timed:
            self.rounds.append((time.perf_counter() - self._begun) / self._steps)
            self.timed_steps += self._steps

    def take_round(self, seconds: float, timed: bool = True) -> None:
        """Take steps for so many seconds."""
        self.begin()
        while self.another(seconds):
            self.step()
        self.end(timed)


def allocated() -> int:
    """Return the bytes in use on the GPU, if there is one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


class Fit(cli.CLI):
    """`fit` as it is shipped, save that its loader lets the others have their turn."""

    turns: "Turns | None" = None

    def before_fit(self) -> None:
        """Put the turns between the loader and Lightning."""
        super().before_fit()
        loader, turns = self.datamodule.train_dataloader, self.turns
        assert turns is not None
        turns.cli = self
        self.datamodule.train_dataloader = lambda: TurningLoader(loader(), turns)

    def after_fit(self) -> None:
        """Say nothing and leave no card: there is no result."""


@dataclass
class TurningLoader:
    """A loader whose batches keep Lightning waiting while it is the others' turn."""

    loader: object
    turns: "Turns"

    def __iter__(self) -> Iterator[Tensor]:
        return self.turns.around(iter(self.loader))


@dataclass
class Turns:
    """Lets `fit` and the other loops of a config take turns.

    Args:
        sizes: of the config.
        rounds: how often each has its turn.
        seconds: for which a round should last.
        longest: seconds after which no further round begins.
    """

    sizes: Sizes
    rounds: int
    seconds: float
    longest: float
    contenders: list[Contender] = field(default_factory=list)
    at_first: int = field(default_factory=lambda: allocated())
    cli: Fit = field(init=False)

    def around(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the batches of `fit`, and between its rounds run those of the others.

        Lightning asks for a batch one step ahead: between two of its questions lies one step,
        only not between the first two.
        """
        begun = time.perf_counter()
        threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
        precision = self.cli.trainer.precision
        fit = Contender("fit", self.arithmetic(precision), lambda: None, threads, matmul)
        yield next(batches)
        fit.begin()
        while fit.another(WARM_UP):
            yield next(batches)
        fit.end(timed=False)
        fit.held = allocated() - self.at_first
        others = list(self.others(fit))
        for _ in range(self.rounds):
            for other in others:
                attempt(other, other.take_round, self.seconds)
            fit.begin()
            while fit.another(self.seconds):
                yield next(batches)
            fit.end()
            if time.perf_counter() - begun > self.longest:
                break
        self.contenders = [*others, fit]
        self.cli.trainer.should_stop = True

    def others(self, fit: Contender) -> Iterator[Contender]:
        """Make the other loops and warm them up, one after the other."""
        device = self.cli.trainer.strategy.root_device.type
        makers = [lambda: self.textbook(device), lambda: self.textbook(device, autocast=True)]
        if device == "cuda" and self.sizes.architecture != "bigram":
            makers.append(lambda: self.textbook(device, autocast=True, compiled=True))
        makers.append(lambda: self.bare(fit))
        if isinstance(self.cli.model.training_loss, CompiledLoss):
            makers.append(lambda: self.bare(fit, compiled=True))
        for make in makers:
            at_first = allocated()
            contender = make()
            attempt(contender, contender.take_round, WARM_UP, False)
            contender.held = allocated() - at_first
            yield contender

    def textbook(self, device: str, autocast: bool = False, compiled: bool = False) -> Contender:
        """Return the textbook's loop, under the settings that PyTorch comes with."""
        training = Training(self.sizes, device, autocast, compiled)
        name = "textbook" + autocast * ", bf16" + compiled * ", compiled"
        return Contender(name, "bf16" if autocast else "fp32", training.step, THREADS, "highest")

    def bare(self, fit: Contender, compiled: bool = False) -> Contender:
        """Return our model in a bare loop, in the precision and under the settings of `fit`."""
        loss_of: Loss = next_character_loss
        if compiled:
            loss_of = CompiledLoss(next_character_loss, self.cli.model.training_loss.graphs)
        data, model, trainer = self.cli.datamodule, self.cli.model, self.cli.trainer
        device, T = trainer.strategy.root_device, data.block_size
        net = model.build(len(data.tokenizer.vocabulary)).to(device)
        optimizer = build_optimizer(net, model.hparams, fused=True)
        ids = data.splits["train"].to(device)
        batches = training_batches(data.seed, 0, data.batch_size, len(ids) - T)
        half = HALF.get(str(trainer.precision))

        def step() -> None:
            inputs, targets = gather(ids, Windows(next(batches).to(device), T))
            with torch.autocast(device.type, half) if half else nullcontext():
                loss = loss_of(net, inputs, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        name = "bare" + compiled * ", compiled"
        return Contender(name, fit.arithmetic, step, fit.threads, fit.matmul)

    def arithmetic(self, precision: str) -> str:
        """Return in what Lightning's precision multiplies matrices on this device."""
        if precision in HALF:
            return {"bf16-mixed": "bf16", "16-mixed": "fp16"}[precision]
        on_cuda = self.cli.trainer.strategy.root_device.type == "cuda"
        return "tf32" if on_cuda and torch.cuda.get_device_capability()[0] >= 8 else "fp32"


def attempt(contender: Contender, act: Callable[..., None], *arguments: float) -> None:
    """Do what a contender does, unless it has failed before; note if it fails now."""
    if contender.failure:
        return
    try:
        act(*arguments)
    except Exception as error:  # no compiler, no memory: the other loops have their figures
        first, *_ = [*str(error).strip().splitlines(), ""]
        contender.failure = f"{type(error).__name__}: {first}"


THREADS = torch.get_num_threads()  # before `fit` takes fewer for a small model

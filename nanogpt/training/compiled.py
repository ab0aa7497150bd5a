"""The training loss under ``torch.compile``: a few large kernels instead of many small ones.

A step of a small model is a few hundred kernels, and Python takes as long to launch them as they
take to run. The compiler (inductor) fuses them; on a GPU they are also recorded as CUDA graphs and
launched at once.

- Only the training step is compiled. Evaluations, samples and checkpoints use the plain network.
- CUDA graphs write gradients to fixed addresses, which is incompatible with gradient accumulation
  and with several devices: such runs are compiled without graphs.
- Compiled dropout and token noise draw other random numbers on a GPU than uncompiled ones, from the
  same generator, so that seeding each step works as without compilation.
- Compiled dropout of torch 2.13 can repeat parts of a mask (pytorch/pytorch#198333). The code that
  is generated for these GPTs is not affected: see "Code compiled for a GPU" in ``docs/results.md``.
- A replayed step overwrites the gradients of the one before: a hook that keeps them must copy them.

This has never run on a GPU.
"""

import os
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from nanogpt.errors import summarize
from nanogpt.hardware import memory_bandwidth
from nanogpt.notices import notice
from nanogpt.text import corpora
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.losses import Loss

Choice = bool | Literal["auto"]

ERROR_FILE = "compile_error.txt"  # in the folder of the run
TRIAL_RUNS = 3  # CUDA graphs warm up, then record, then replay
# Estimates for `auto`, not measured. The compiled step saves passes over memory, in bytes
# per character, layer and channel, and the launches of kernels, in seconds per layer.
COMPILE_SECONDS = 30.0  # between a minute the first time and ten seconds from the cache
SAVED_BYTES, SAVED_SECONDS = 600, 3e-4


@dataclass(frozen=True)
class Plan:
    """Whether to compile.

    Args:
        compiled: whether the training step is compiled.
        graphs: whether to record CUDA graphs.
        reason: the answer in words.
    """

    compiled: bool
    graphs: bool
    reason: str


def plan_compilation(
    choice: Choice, model: LanguageModel, data: CharDataModule, trainer: L.Trainer
) -> Plan:
    """Decide whether to compile; ``auto`` compiles on CUDA, if that is estimated to save time.

    It depends on all steps of a run, not on those that are left, so that a run that resumes with
    the same settings on the same GPU stays as it was.
    """
    device = trainer.strategy.root_device
    if not choice:
        return Plan(False, False, "not compiled, as chosen")
    if device.type != "cuda":
        return Plan(choice is True, False, "compiled" if choice is True else "not compiled")
    gain = trainer.max_steps * saved_seconds(model, data, device)  # negative without a last step
    if choice == "auto" and 0 <= gain < COMPILE_SECONDS:
        return Plan(False, False, "not compiled, which would take longer than it saves")
    if trainer.accumulate_grad_batches > 1 or trainer.world_size > 1:
        reason = "accumulated gradients" if trainer.world_size == 1 else "several devices"
        return Plan(True, False, f"compiled, without CUDA graphs because of {reason}")
    return Plan(True, True, "compiled, with CUDA graphs")


def saved_seconds(model: LanguageModel, data: CharDataModule, device: torch.device) -> float:
    """Estimate the seconds that compilation saves in a step on a GPU."""
    layers, width = (model.hparams.get(name) or 0 for name in ("n_layer", "n_embd"))
    n_bytes = SAVED_BYTES * data.batch_size * data.block_size * layers * width
    return float(SAVED_SECONDS * layers + n_bytes / memory_bandwidth(device))


def compiled_loss(loss: Loss, plan: Plan, folder: Path | None) -> Loss:
    """Return a loss, compiled if that is planned."""
    return CompiledLoss(loss, plan.graphs, folder) if plan.compiled else loss


class CompiledLoss:
    """A loss that is compiled at the first batch, or stays uncompiled if that fails.

    The compiled function is first run on trial, forward and backward, without effect on the run.
    If CUDA graphs cannot be recorded, it is compiled without them. If anything else is missing
    (Triton, a C++ compiler, support of an operator), the run is bit-identical to an uncompiled one.
    A notice gives the reason in one line, and the whole error is written to a file.

    Args:
        loss: function of a network, ids (B, T) and targets (B, T), which are always of one shape.
        graphs: whether to record CUDA graphs. The result is then valid until the next call.
        folder: where the error is written, if anywhere.
    """

    def __init__(self, loss: Loss, graphs: bool, folder: Path | None = None) -> None:
        self.loss, self.graphs, self.folder = loss, graphs, folder
        self.run: Loss | None = None

    def __call__(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if self.run is None:
            with isolate_rng():
                self.run = self._first_that_works(net, ids, targets)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.run(net, ids, targets)

    def _first_that_works(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Loss:
        while True:
            try:
                return self._compile(net, ids, targets)
            except Exception as error:  # the compiler has hundreds of ways to fail
                torch.compiler.reset()  # frees its memory
                failed = "recording CUDA graphs" if self.graphs else "torch.compile"
                instead = "without them" if self.graphs else "uncompiled"
                notice(
                    f"{failed} failed, training continues {instead}: {summarize(error)}"
                    + self._write_error()
                )
                if not self.graphs:
                    return self.loss
                self.graphs = False

    def _compile(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Loss:
        mode = "reduce-overhead" if self.graphs else "default"
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        keep_compiled_kernels()
        from torch._inductor import config  # takes a second

        # otherwise a step that cannot be recorded runs without graphs, slowly and without a word
        strict = config.patch("triton.cudagraph_or_error", True)
        with warnings.catch_warnings(action="ignore"), strict:
            run: Loss = torch.compile(self.loss, mode=mode, dynamic=False)
            for _ in range(TRIAL_RUNS):
                if self.graphs:
                    torch.compiler.cudagraph_mark_step_begin()
                torch.autograd.grad(run(net, ids, targets), weights, allow_unused=True)
            if ids.device.type == "cuda":
                torch.cuda.synchronize()  # errors of asynchronous kernels surface here
        return run

    def _write_error(self) -> str:
        """Write the current exception to the file; return where, as the end of a notice."""
        if self.folder and self.folder.is_dir():
            with suppress(OSError), (self.folder / ERROR_FILE).open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc() + "\n")
                return f" (the whole error is in {file.name})"
        return ""


def keep_compiled_kernels() -> None:
    """Let the compiler find the kernels of earlier runs, in the user's cache folder."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(corpora.cache_folder() / "compiled"))

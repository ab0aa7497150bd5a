"""The training loss under ``torch.compile``: a few large kernels instead of many small ones.

A step of a small model is a few hundred kernels, and Python takes as long to launch them as they
take to run. The compiler (inductor) fuses them; on a GPU they are also recorded as CUDA graphs and
launched at once.

- Only the training step is compiled. Evaluations, samples and checkpoints use the plain network.
- CUDA graphs write gradients to fixed addresses, which is incompatible with gradient accumulation
  and with several devices: such runs are compiled without graphs.
- Compiled dropout and token noise draw other random numbers on a GPU than uncompiled ones, from the
  same generator, so that seeding each step works as without compilation.

This has never run on a GPU.
"""

import warnings
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from nanogpt.notices import notice
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.losses import Loss

Choice = bool | Literal["auto"]

MIN_AUTO_STEPS = 1000  # a guess: shorter runs may not recoup the time of compilation
TRIAL_RUNS = 3  # CUDA graphs warm up, then record, then replay


def compiled_loss(loss: Loss, choice: Choice, model: LanguageModel, trainer: L.Trainer) -> Loss:
    """Return a loss, compiled if that is chosen.

    ``auto`` compiles on CUDA, unless model (bigram and ladder) or run are too small to gain by it.
    """
    on_cuda = trainer.strategy.root_device.type == "cuda"
    if choice == "auto":
        long = not 0 <= trainer.max_steps < MIN_AUTO_STEPS
        large = model.hparams["architecture"] not in ("bigram", "ablated_gpt")
        choice = on_cuda and long and large
    if not choice:
        return loss
    one_batch_a_step = trainer.accumulate_grad_batches == 1 and trainer.world_size == 1
    return CompiledLoss(loss, graphs=on_cuda and one_batch_a_step)


class CompiledLoss:
    """A loss that is compiled at the first batch, or stays uncompiled if that fails.

    The compiled function is first run on trial, forward and backward, without effect on the run.
    If anything is missing (Triton, a C++ compiler, support of an operator), a notice says so and
    the run is bit-identical to an uncompiled one.

    Args:
        loss: function of a network, ids (B, T) and targets (B, T), which are always of one shape.
        graphs: whether to record CUDA graphs. The result is then valid until the next call.
    """

    def __init__(self, loss: Loss, graphs: bool) -> None:
        self.loss, self.graphs = loss, graphs
        self.run: Loss | None = None

    def __call__(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if self.run is None:
            with isolate_rng():
                try:
                    self.run = self._compile(net, ids, targets)
                except Exception as error:  # the compiler has hundreds of ways to fail
                    torch.compiler.reset()  # frees its memory
                    notice(f"torch.compile failed, training continues uncompiled: {reason(error)}")
                    self.run, self.graphs = self.loss, False
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.run(net, ids, targets)

    def _compile(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Loss:
        mode = "reduce-overhead" if self.graphs else "default"
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        with warnings.catch_warnings(action="ignore"):
            run: Loss = torch.compile(self.loss, mode=mode, dynamic=False)
            for _ in range(TRIAL_RUNS):
                if self.graphs:
                    torch.compiler.cudagraph_mark_step_begin()
                torch.autograd.grad(run(net, ids, targets), weights, allow_unused=True)
            if ids.device.type == "cuda":
                torch.cuda.synchronize()  # errors of asynchronous kernels surface here
        return run


def reason(error: BaseException) -> str:
    """Summarize an error of the compiler in at most 200 characters."""
    error = getattr(error, "inner_exception", None) or error  # the backend's error
    first, *_ = [*str(error).strip().splitlines(), ""]
    return f"{type(error).__name__}: {first}"[:200]

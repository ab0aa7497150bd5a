"""The training loss, compiled: a few large kernels instead of many small ones.

A step of a small model is some hundred kernels, and takes as long as Python takes to start them.
PyTorch's compiler joins them (inductor); on a GPU they are recorded too, as CUDA graphs, and then
started all at once. What a user has to know:

- The network itself stays as it is, for evaluations, samples and checkpoints; only the training
  step goes through the compiled function.
- CUDA graphs write gradients to the same place each time, which gradients that accumulate, or
  that several devices share, would not survive: those runs are compiled without graphs.
- Compiled dropout and noise on a GPU draw other numbers than uncompiled ones, from the same
  generator: its state is saved and restored as it is without.

On a GPU none of this has ever run.
"""

import warnings
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from nanogpt.notices import notice
from nanogpt.training.lightning_module import LanguageModel, Loss
from nanogpt.training.resume import random_state, set_random_state

Choice = bool | Literal["auto"]

WORTH_IT_FROM = 1000  # steps: a guess; a shorter run may be over before compiling is repaid
REHEARSALS = 3  # of a step: CUDA graphs warm up, then record, then replay


def compiled_loss(loss: Loss, choice: Choice, model: LanguageModel, trainer: L.Trainer) -> Loss:
    """Return how a run computes its training loss: compiled, or as it is.

    Args:
        loss: what it computes.
        choice: true, false, or ``auto``: on CUDA, but not for a model too small (the bigram and
            the rungs) or a run too short to repay it.
        model: what is trained.
        trainer: which says where, and for how many steps.
    """
    on_cuda = trainer.strategy.root_device.type == "cuda"
    if choice == "auto":
        long = not 0 <= trainer.max_steps < WORTH_IT_FROM
        large = model.hparams["architecture"] in ("gpt", "modern", "shifted")
        choice = on_cuda and long and large
    if not choice:
        return loss
    alone = trainer.accumulate_grad_batches == 1 and trainer.world_size == 1
    return CompiledLoss(loss, graphs=on_cuda and alone)


class CompiledLoss:
    """Computes the loss of a batch by a compiled function, or as it is where that cannot be.

    Before the first batch it is rehearsed, forward and backward, with nothing kept: whatever is
    missing (Triton, a C++ compiler, support of an operator) shows itself there. Then one line says
    so and the run goes on as if it had never been compiled.

    Args:
        loss: of a network, ids (B, T) and targets (B, T); all batches have the same shape.
        graphs: whether to record CUDA graphs. Then the result holds until the next call.
    """

    def __init__(self, loss: Loss, graphs: bool) -> None:
        self.loss, self.graphs = loss, graphs
        self.run: Loss | None = None

    @property
    def works(self) -> bool:
        """Whether compiling has not failed."""
        return self.run is not self.loss

    def __call__(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        if self.run is None:
            chance = random_state(ids.device)
            try:
                self.run = self._rehearsed(net, ids, targets)
            except Exception as error:  # the compiler has hundreds of ways to fail
                torch.compiler.reset()  # which leaves its memory
                notice(f"training goes on uncompiled, since compiling failed: {reason(error)}")
                self.run, self.graphs = self.loss, False
            finally:
                set_random_state(chance, ids.device)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.run(net, ids, targets)

    def _rehearsed(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Loss:
        mode = "reduce-overhead" if self.graphs else "default"
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        with warnings.catch_warnings(action="ignore"):
            run: Loss = torch.compile(self.loss, mode=mode, dynamic=False)
            for _ in range(REHEARSALS):
                if self.graphs:
                    torch.compiler.cudagraph_mark_step_begin()
                torch.autograd.grad(run(net, ids, targets), weights, allow_unused=True)
            if ids.device.type == "cuda":
                torch.cuda.synchronize()  # where a kernel failed, it shows here
        return run


def reason(error: BaseException) -> str:
    """Say in a few words what an error of the compiler is about."""
    error = getattr(error, "inner_exception", None) or error  # what the backend raised
    first, *_ = [*str(error).strip().splitlines(), ""]
    return f"{type(error).__name__}: {first}"[:200]

"""The optimizers, and the learning rate as a function of the step."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from nanogpt.hardware import fast_bf16

Schedule = Literal["constant", "cosine", "linear"]
OptimizerName = Literal["adamw", "muon"]
DECAY = 0.6  # the last part of the steps, over which the linear schedule falls


def is_scheduled(settings: Mapping[str, Any]) -> bool:
    """Whether the learning rate changes at all with a model's settings."""
    return bool(settings["schedule"] != "constant" or settings["warmup_steps"])


def learning_rate_factor(
    step: int, max_steps: int, schedule: Schedule = "constant", warmup_steps: int = 0
) -> float:
    """Return what the peak learning rate is multiplied by at an optimizer step (from 0).

    It rises linearly over ``warmup_steps``; then it stays, or falls along half a cosine
    (Loshchilov and Hutter, 2017) to a tenth at ``max_steps``, the value that nanoGPT uses; or
    stays, and falls over the last 60% of the steps on a straight line to nothing.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(min((max_steps - step) / (DECAY * max_steps), 1.0), 0.0)
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def peaks(settings: Mapping[str, Any]) -> list[float]:
    """Return the peak learning rate of each group of parameters of an optimizer."""
    muon = [settings["muon_learning_rate"]] if settings["optimizer"] == "muon" else []
    return [*muon, settings["learning_rate"]]


def build_optimizer(net: nn.Module, settings: Mapping[str, Any], fused: bool) -> Optimizer:
    """Return the optimizer of a model's settings, for all that it learns.

    AdamW (Loshchilov and Hutter, 2019) over all parameters alike, as the reference; or Muon for
    the matrices of the blocks, and AdamW for the rest.
    """
    adamw = {
        "lr": settings["learning_rate"],
        "betas": tuple(settings["betas"]),
        "weight_decay": settings["weight_decay"],
        "fused": fused,
    }
    if settings["optimizer"] == "adamw":
        return AdamW(net.parameters(), **adamw)
    muon_rate, decay = settings["muon_learning_rate"], settings["weight_decay"]
    matrices = [p for name, p in net.named_parameters() if p.ndim == 2 and "blocks." in name]
    apart = {id(matrix) for matrix in matrices}
    rest = AdamW([p for p in net.parameters() if id(p) not in apart], **adamw)
    return CombinedOptimizer([Muon(matrices, muon_rate, weight_decay=decay), rest])


class Muon(Optimizer):
    """Momentum whose steps are made orthogonal: a matrix moves as far in every direction.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with
    its coefficients. PyTorch's own computes in bfloat16 always, which takes twice as long on a
    CPU without units for it.

    Args:
        matrices: parameters of two dimensions.
        lr: how far a step goes, for a matrix that is not taller than wide.
        momentum: of the gradients, Nesterov's.
        weight_decay: share of a weight that a step takes away, for each unit of ``lr``.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; return what the closure, which computes the gradients, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            kept = 1 - group["lr"] * group["weight_decay"]
            for matrices in group_by_shape(group["params"]):
                gradients = [self._with_momentum(matrix, group["momentum"]) for matrix in matrices]
                directions = newton_schulz(torch.stack(gradients))
                tall = max(1.0, matrices[0].shape[0] / matrices[0].shape[1]) ** 0.5
                for matrix, direction in zip(matrices, directions, strict=True):
                    matrix.mul_(kept).add_(direction.to(matrix.dtype), alpha=-group["lr"] * tall)
        return loss

    def _with_momentum(self, matrix: Tensor, decay: float) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        return matrix.grad.lerp(state["momentum"].lerp_(matrix.grad, 1 - decay), decay)


def group_by_shape(matrices: list[Tensor]) -> list[list[Tensor]]:
    """Return those that have gradients, together with the others of their shape and kind."""
    groups: dict[Any, list[Tensor]] = {}
    for matrix in matrices:
        if matrix.grad is not None:
            groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(matrix)
    return list(groups.values())


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest matrices with orthogonal rows or columns: (k, m, n) to (k, m, n).

    Five Newton-Schulz steps of a polynomial that takes all singular values to between 0.7 and
    1.2, in bfloat16 where that is fast.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if fast_bf16(matrices.device.type) else torch.float32)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class CombinedOptimizer(Optimizer):
    """Several optimizers, each with parameters of its own, that look like one.

    Args:
        parts: the optimizers; their groups and their state are those of this one.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a loaded state, and share it among the parts."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        """Take a step with each; the closure runs once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

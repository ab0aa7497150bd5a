"""AdamW, Muon, and both combined in one optimizer."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from nanogpt.errors import UserError
from nanogpt.hardware import fast_bf16

OptimizerName = Literal["adamw", "muon"]
NO_MATRICES = "muon is for the matrices of blocks, and the {} has none: set optimizer to adamw"


def peak_learning_rates(hparams: Mapping[str, Any]) -> list[float]:
    """Return the peak learning rate of each parameter group of ``build_optimizer``."""
    muon = [hparams["muon_learning_rate"]] if hparams["optimizer"] == "muon" else []
    return [*muon, hparams["learning_rate"]]


def build_optimizer(model: nn.Module, hparams: Mapping[str, Any], fused: bool) -> Optimizer:
    """Build the optimizer of a model from the hyperparameters of the LightningModule.

    ``adamw`` is AdamW for all parameters in one group, as in the reference; ``muon`` is Muon for
    the matrices of the blocks and AdamW for the rest. ``fused`` is an option of AdamW. Source:
    Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).

    Raises:
        UserError: if there are no matrices for Muon.
    """
    adamw = {
        "lr": hparams["learning_rate"],
        "betas": tuple(hparams["betas"]),
        "weight_decay": hparams["weight_decay"],
        "fused": fused,
    }
    if hparams["optimizer"] == "adamw":
        return AdamW(model.parameters(), **adamw)
    parameters = dict(model.named_parameters())
    matrices = {name: p for name, p in parameters.items() if p.ndim == 2 and "blocks." in name}
    if not matrices:
        raise UserError(NO_MATRICES.format("model"))
    rest = [p for name, p in parameters.items() if name not in matrices]
    muon = Muon(matrices.values(), hparams["muon_learning_rate"], hparams["weight_decay"])
    return CombinedOptimizer([muon, AdamW(rest, **adamw)])


def is_fused(trainer: L.Trainer) -> bool:
    """Return whether AdamW is fused: in mixed precision, Lightning cannot clip its gradients."""
    return not (trainer.gradient_clip_val and str(trainer.precision).endswith("-mixed"))


class Muon(Optimizer):
    """Muon: Nesterov momentum, orthogonalized by Newton-Schulz iterations.

    The iterations are in bfloat16 where that is fast, else in float32: ``torch.optim.Muon`` always
    computes in bfloat16, which takes twice as long on a CPU without bfloat16 units. Source: Jordan
    et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with its coefficients.

    Args:
        matrices: parameters of two dimensions.
        lr: learning rate. The update of a matrix with more rows than columns is scaled up by the
            square root of their ratio.
        weight_decay: decoupled weight decay, relative to the learning rate.
        momentum: decay rate of the averaged gradient.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters; the ``CombinedOptimizer`` runs the closure."""
        assert closure is None
        for group in self.param_groups:
            decay = 1 - group["lr"] * group["weight_decay"]
            for matrices in group_by_shape(group["params"]):
                gradients = [self._nesterov(matrix, group["momentum"]) for matrix in matrices]
                dtype = torch.bfloat16 if fast_bf16(matrices[0].device.type) else torch.float32
                updates = newton_schulz(torch.stack(gradients).to(dtype))
                scale = max(1.0, matrices[0].shape[0] / matrices[0].shape[1]) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(decay).add_(update.to(matrix.dtype), alpha=-group["lr"] * scale)

    def _nesterov(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        average = state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(average, momentum)


def group_by_shape(matrices: list[Tensor]) -> list[list[Tensor]]:
    """Group the matrices that have gradients by shape, dtype and device."""
    groups: dict[Any, list[Tensor]] = {}
    for matrix in matrices:
        if matrix.grad is not None:
            groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(matrix)
    return list(groups.values())


def newton_schulz(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices: (k, m, n) to (k, m, n).

    The iterated polynomial maps singular values to between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class CombinedOptimizer(Optimizer):
    """Several optimizers of different parameters behind the interface of one.

    Args:
        parts: the optimizers; this one shares their parameter groups and state.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a state and share it with the parts."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        """Run the closure, which computes the loss and the gradients, and update the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

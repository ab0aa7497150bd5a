"""The numbers that sampling reads a model's weights as: a step is mostly the reading of them."""

import warnings
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.hardware import fast_bf16

Weights = Literal["auto", "fp32", "bf16", "int8"]
Model = TypeVar("Model", bound=nn.Module)


def set_weights(model: Model, weights: Weights, device: str) -> Model:
    """Put a model on a device, with the weights that sampling is to read.

    The model itself is changed, and serves only under ``torch.inference_mode`` from then on.

    Args:
        model: in evaluation mode, with float32 weights, on the CPU.
        weights: ``fp32`` leaves them; ``bf16`` turns all of the model to bfloat16, its logits and
            caches with it; ``int8``, on a CPU, replaces every linear by an ``Int8Linear``;
            ``auto`` is bf16 where that is fast, else fp32, and never int8, which is less exact.
        device: ``cpu``, ``cuda``, …

    Raises:
        UserError: for int8 where there is no way to compute with it, or weights of another name.
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights must be auto, fp32, bf16 or int8, not {weights}")
    if weights == "auto":
        weights = "bf16" if fast_bf16(torch.device(device).type) else "fp32"
    if weights == "int8":
        engine = int8_engine(device)
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    parent.register_module(name, Int8Linear(child, engine))
    return model.to(device, torch.bfloat16 if weights == "bf16" else None)


def cache_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype to keep a model's keys and values in; None is that of its weights.

    Beside int8 weights they are bfloat16, where a CPU has units for it: attention over a cache
    takes as long as reading it.
    """
    int8 = any(isinstance(module, Int8Linear) for module in model.modules())
    return torch.bfloat16 if int8 and torch.cpu._is_avx512_bf16_supported() else None


def int8_engine(device: str) -> str:
    """Return the name of PyTorch's fastest library for quantised linears on a device.

    Raises:
        UserError: if there is none.
    """
    if torch.device(device).type != "cpu":
        raise UserError(f"int8 weights run on a CPU only, not on {device}: choose bf16 or fp32")
    for engine in ("x86", "onednn", "qnnpack"):
        if engine in torch.backends.quantized.supported_engines:
            return engine
    raise UserError("this PyTorch has no int8 kernels for this CPU: choose bf16 or fp32")


class Int8Linear(nn.Module):
    """A linear with weights of 8 bits and a scale for each output channel.

    Its inputs are rounded to 8 bits too, with one scale for all of a call: results depend a little
    on what else is in the batch.
    """

    def __init__(self, linear: nn.Linear, engine: str) -> None:
        super().__init__()
        weight = linear.weight.detach()  # (out, in)
        scales = (weight.abs().amax(1) / 127).clamp_min(1e-20)  # (out); a channel may be all zero
        with warnings.catch_warnings(action="ignore"):  # quantised tensors are to leave PyTorch
            whole = torch.quantize_per_channel(
                weight, scales, torch.zeros_like(scales, dtype=torch.long), 0, torch.qint8
            )
            torch.backends.quantized.engine = engine
            self.packed = torch.ops.quantized.linear_prepack(whole, linear.bias)
        # without VNNI x86 adds products in 16 bits: two of 7 by 8 bits fit, two of 8 by 8 do not
        self.narrow = engine != "qnnpack" and not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), float32 both."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.narrow)

"""Weights for sampling in bf16 or int8: at small batches, a step mostly reads the weights."""

import warnings
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.hardware import fast_bf16

Weights = Literal["auto", "fp32", "bf16", "int8"]
Model = TypeVar("Model", bound=nn.Module)


def set_weights(model: Model, weights: Weights, device: str) -> Model:
    """Convert the weights of a model for sampling and move it to a device, in place.

    The model can then only be used under ``torch.inference_mode``. UserError is raised for weights
    that are unknown, or that the device does not support.

    Args:
        model: in evaluation mode and float32, on the CPU; with the kernels installed for int8.
        weights: ``fp32`` keeps the weights; ``bf16`` converts the whole model, and with it logits
            and caches; ``int8``, on a CPU, replaces each linear by an ``Int8Linear``; ``auto`` is
            bf16 where it is fast, else fp32, and never int8, which is less accurate.
        device: ``cpu``, ``cuda``, …
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights must be auto, fp32, bf16 or int8, not {weights}")
    if weights == "auto":
        weights = "bf16" if fast_bf16(torch.device(device).type) else "fp32"
    if weights == "int8":
        engine = int8_engine(device)
        kernels.install(model, {nn.Linear: lambda linear: Int8Linear(linear, engine)})
    return model.to(device, torch.bfloat16 if weights == "bf16" else None)


def cache_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype for a model's keys and values; None means that of its weights.

    With int8 weights it is bfloat16 if the CPU supports it: attention takes as long as reading the
    cache.
    """
    int8 = any(isinstance(module, Int8Linear) for module in model.modules())
    return torch.bfloat16 if int8 and torch.cpu._is_avx512_bf16_supported() else None


def int8_engine(device: str) -> str:
    """Return PyTorch's fastest library for quantized linears, or raise UserError without one."""
    if torch.device(device).type != "cpu":
        raise UserError(f"int8 weights run on a CPU only, not on {device}: choose bf16 or fp32")
    for engine in ("x86", "onednn", "qnnpack"):
        if engine in torch.backends.quantized.supported_engines:
            return engine
    raise UserError("this PyTorch has no int8 kernels for this CPU: choose bf16 or fp32")


class Int8Linear(nn.Module):
    """A linear with 8-bit weights and one scale per output channel.

    Its inputs are quantized to 8 bits as well, with one scale per call: results depend slightly on
    the rest of the batch.
    """

    def __init__(self, linear: nn.Linear, engine: str) -> None:
        super().__init__()
        weight = linear.weight.detach()  # (out, in)
        scales = (weight.abs().amax(1) / 127).clamp_min(1e-20)  # (out); a channel may be all zero
        with warnings.catch_warnings(action="ignore"):  # that quantized tensors are deprecated
            quantized = torch.quantize_per_channel(
                weight, scales, torch.zeros_like(scales, dtype=torch.long), 0, torch.qint8
            )
            torch.backends.quantized.engine = engine
            self.packed = torch.ops.quantized.linear_prepack(quantized, linear.bias)
        # without VNNI, x86 sums pairs of products in 16 bits, which overflow for 8-bit inputs
        self.reduce_range = engine != "qnnpack" and not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), both float32."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)

"""What ``fit`` prints about a GPU before it trains: attention, compilation and memory."""

import lightning as L
import torch
from torch.nn.attention import SDPBackend

from nanogpt.kernels.attention import chosen_backend
from nanogpt.models import count_parameters
from nanogpt.training.compiled import Plan
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel

BACKENDS = {
    SDPBackend.MATH: "unfused attention",
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN attention",
}
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


def gpu_summary(trainer: L.Trainer, model: LanguageModel, data: CharDataModule, plan: Plan) -> str:
    """Return the attention backend, whether the step is compiled, and the estimated memory."""
    dtype = DTYPES.get(str(trainer.precision).partition("-")[0], torch.float32)
    parts = [plan.reason]
    if trainer.strategy.root_device.type == "cuda" and model.hparams.get("n_head"):
        parts.insert(0, attention_backend(model, data.block_size, dtype))
    parallel = trainer.accumulate_grad_batches * trainer.world_size
    n_bytes = estimated_memory(model, data.batch_size // parallel * data.block_size, dtype)
    return "; ".join([*parts, f"about {n_bytes / 2**30:.1f} GiB of GPU memory"])


def attention_backend(model: LanguageModel, block_size: int, dtype: torch.dtype) -> str:
    """Return the name of the kernel that PyTorch chooses for the attention of a training step."""
    n_head, n_embd = model.hparams["n_head"], model.hparams["n_embd"]
    head_size = model.hparams.get("head_size") or n_embd // n_head
    q = torch.empty(1, n_head, block_size, head_size, dtype=dtype, device=model.device)
    q.requires_grad_()
    backend = chosen_backend(q, model.hparams.get("dropout") or 0.0)
    return BACKENDS.get(backend, "attention by an extension")


def estimated_memory(model: LanguageModel, characters: int, dtype: torch.dtype) -> float:
    """Estimate the bytes that a step on some characters takes, without compilation.

    Each parameter has a gradient and two moments, in float32. A layer keeps 34 bytes per character
    and channel in 16 bits, with fused attention (Korthikanti et al., 2022, "Reducing activation
    recomputation in large transformer models", section 4.1). The head has a log-probability and its
    gradient, in float32, and the gradient of the logit.
    """
    layers, width = (model.hparams.get(name) or 0 for name in ("n_layer", "n_embd"))
    per_channel = 2 + 16 * dtype.itemsize
    logits = len(model.hparams["vocabulary"]) * (8 + dtype.itemsize)
    kept = characters * (layers * width * per_channel + logits)
    return float(16 * count_parameters(model.net) + kept)

"""The line about a GPU before training; its estimate of memory against what autograd keeps."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.training import gpu_summary
from nanogpt.training.compiled import Plan
from nanogpt.training.lightning_module import LanguageModel

SIZES = {"block_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 64}
VOCABULARY = "".join(map(chr, range(65, 130)))
DATA: Any = SimpleNamespace(batch_size=8, block_size=64)


def summary(model: LanguageModel, precision: str, device: str = "cuda") -> str:
    strategy = SimpleNamespace(root_device=torch.device(device))
    counts = {"accumulate_grad_batches": 2, "world_size": 1}
    trainer: Any = SimpleNamespace(strategy=strategy, precision=precision, **counts)
    return gpu_summary.gpu_summary(trainer, model, DATA, Plan(True, True, "compiled"))


@pytest.mark.parametrize(
    ("choice", "name"),
    [(0, "unfused"), (1, "flash"), (2, "memory-efficient"), (3, "cuDNN")],
)
def test_attention_backend_is_named(
    choice: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def choose(q: Tensor, k: Tensor, v: Tensor, mask: Any, p: float, causal: bool) -> int:
        asked.extend([q.shape, q.dtype, p, causal])
        return choice

    monkeypatch.setattr(torch, "_fused_sdp_choice", choose)
    model = LanguageModel(vocabulary=VOCABULARY, dropout=0.1, **SIZES)
    assert summary(model, "bf16-mixed").startswith(f"{name} attention; compiled; about 0.")
    assert asked == [(1, 4, 64, 16), torch.bfloat16, 0.1, True]


def test_choice_of_attention_can_be_asked_here() -> None:
    model = LanguageModel(vocabulary=VOCABULARY, **SIZES)
    assert "attention; compiled; about" in summary(model, "32-true")


def test_bigram_has_no_attention_and_other_devices_are_not_asked() -> None:
    bigram = LanguageModel("bigram", vocabulary=VOCABULARY)
    gpt = LanguageModel(vocabulary=VOCABULARY, **SIZES)
    for line in (summary(bigram, "32-true"), summary(gpt, "32-true", "mps")):
        assert line.startswith("compiled; about 0.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [{}, {"n_layer": 1, "n_head": 1, "n_embd": 8}], ids=str)
def test_estimated_memory_is_close_to_what_autograd_keeps(
    dtype: torch.dtype, sizes: dict[str, int]
) -> None:
    model = LanguageModel(vocabulary=VOCABULARY, dropout=0.0, **{**SIZES, **sizes})
    ids, kept = torch.zeros(8, 64, dtype=torch.long), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
        model.training_loss(model.net, ids, ids)
    weights = 16 * sum(weight.numel() for weight in model.net.parameters())
    estimate = gpu_summary.estimated_memory(model, ids.numel(), dtype) - weights
    gradients = ids.numel() * len(VOCABULARY) * (4 + dtype.itemsize)  # at the start of the backward
    assert 0.75 < estimate / (sum(kept.values()) + gradients) < 1.35

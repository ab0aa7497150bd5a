"""Attention weights of every head, recomputed during a forward pass.

The fused kernels do not store these weights, so they are recomputed on demand.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nanogpt.models.ablated_gpt import CausalMean, mean_by_matrix
from nanogpt.models.gpt import Attention

SENTENCE = "To read is to remember what was"  # 31 characters that most vocabularies contain


@torch.inference_mode()
def attention_maps(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Return the attention weights of every layer of a model in evaluation mode.

    Args:
        model: maps ids (B, T) to logits. A model without attention has no maps.
        ids: one sequence, (T,), of at most ``block_size`` ids.

    Returns:
        For each layer (nh, T, T): row t holds the weights of positions s ≤ t in output t.
    """
    maps: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Attention):
            q, k, _ = inputs  # (1, nh, T, hs) each
            maps.append(module.weights(q, k)[0])
        else:  # the mean of unit vectors gives its weights, as those of one head
            maps.append(mean_by_matrix(torch.eye(len(ids), device=ids.device)[None]))

    hooks = [
        module.register_forward_pre_hook(record)
        for module in model.modules()
        if isinstance(module, Attention | CausalMean)
    ]
    try:
        model(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return maps

"""Where each head looks: the attention weights, computed again beside the forward pass.

The fused kernels never hold these weights, so a model that is not looked at pays nothing for maps.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nanogpt.models.attention import attention_weights, causal_mask
from nanogpt.models.gpt import CausalSelfAttention
from nanogpt.models.ladder import CausalMean, mean_by_matrix
from nanogpt.models.modern import ModernAttention

SENTENCE = "To read is to remember what was"  # 31 characters, in most vocabularies


@torch.inference_mode()
def attention_maps(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Return the attention weights of every layer of a model in evaluation mode.

    Args:
        model: maps ids (B, T) to logits; a model without attention has no maps.
        ids: one sentence, (T,), T at most the model's ``block_size``.

    Returns: for each layer (nh, T, T): row t holds how much of each position s ≤ t goes into t.
    """
    maps: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # the last input is the cache
        if isinstance(module, CausalSelfAttention | ModernAttention):
            q, k, _ = (x[0] for x in module.heads(*inputs[:-1]))  # (nh, T, hs)
            maps.append(attention_weights(q, k, causal_mask(len(ids), q).to(q.device)))
        else:  # the mean of one unit vector for each position: its weights
            maps.append(mean_by_matrix(torch.eye(len(ids), device=ids.device)[None]))

    kinds = (CausalSelfAttention, ModernAttention, CausalMean)
    hooks = [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    try:
        model(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return maps

"""Attention weights of every head, recomputed during a forward pass.

The fused kernels do not store these weights, so they are recomputed on demand.

Axes: T time, nh heads.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.generation.decoding import evaluation_mode
from nanogpt.generation.generate import HasTextModel, TextModel, as_text_model
from nanogpt.models.ablated_gpt import CausalMean, mean_by_matrix
from nanogpt.models.gpt import Attention

SENTENCE = "To read is to remember what was"  # 31 characters that most vocabularies contain


def attention_maps(model: TextModel | HasTextModel, text: str) -> list[Tensor]:
    """Return the attention weights of every layer of a model that reads a text.

    Args:
        model: from ``load``, or a ``LanguageModel``.
        text: 1 to ``block_size`` characters.

    Returns:
        For each layer (nh, T, T), in float32: row t holds the weights of positions s ≤ t in
        output t.

    Raises:
        UserError: if the text is empty or too long, the model does not know a character of it, or
            the model has no attention.
    """
    text_model = as_text_model(model)
    net, block_size = text_model.model, text_model.model.block_size
    if not 1 <= len(text) <= block_size:
        raise UserError(
            f"the text has {len(text):,} characters, but the model reads 1 to {block_size:,} "
            "(its block_size): pass another part of it"
        )
    ids = text_model.tokenizer.encode(text).long().to(next(net.parameters()).device)
    maps = record_attention(net, ids)
    if not maps:
        raise UserError(
            f"a {type(net).__name__} has no attention: pass a model of another architecture"
        )
    return [weights.float() for weights in maps]


@torch.inference_mode()
def record_attention(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Return the attention weights of every layer, (nh, T, T) each.

    Args:
        model: maps ids (B, T) to logits. A model without attention has no maps.
        ids: one sequence, (T,), of at most ``block_size`` ids, on the model's device.
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
        with evaluation_mode(model):
            model(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return maps

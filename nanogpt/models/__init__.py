"""Language models in plain torch: ``forward(ids, cache=None) -> logits``, always."""

from nanogpt.models.ablated_gpt import AblatedGPT, AblatedGPTConfig
from nanogpt.models.bigram import Bigram, BigramConfig
from nanogpt.models.gpt import GPT, GPTConfig
from nanogpt.models.modern import ModernConfig, ModernGPT
from nanogpt.models.registry import ARCHITECTURES, Model, build_model, count_parameters

__all__ = [
    "ARCHITECTURES",
    "GPT",
    "AblatedGPT",
    "AblatedGPTConfig",
    "Bigram",
    "BigramConfig",
    "GPTConfig",
    "Model",
    "ModernConfig",
    "ModernGPT",
    "build_model",
    "count_parameters",
]

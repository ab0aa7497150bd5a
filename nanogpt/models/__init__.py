"""Language models in plain torch: ``forward(ids, cache=None) -> logits``, always."""

from nanogpt.models.ablated_gpt import AblatedGPT as AblatedGPT
from nanogpt.models.ablated_gpt import AblatedGPTConfig as AblatedGPTConfig
from nanogpt.models.bigram import Bigram as Bigram
from nanogpt.models.bigram import BigramConfig as BigramConfig
from nanogpt.models.gpt import GPT as GPT
from nanogpt.models.gpt import GPTConfig as GPTConfig
from nanogpt.models.modern import ModernConfig as ModernConfig
from nanogpt.models.modern import ModernGPT as ModernGPT
from nanogpt.models.registry import ARCHITECTURES as ARCHITECTURES
from nanogpt.models.registry import Model as Model
from nanogpt.models.registry import build_model as build_model
from nanogpt.models.registry import count_parameters as count_parameters

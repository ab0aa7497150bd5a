"""A character-level GPT in PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogpt.generation.generate import generate as generate
    from nanogpt.generation.generate import load as load
    from nanogpt.insight.attention_maps import attention_maps as attention_maps

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public functions on first use, so that ``--help`` does not import torch."""
    if name in ("load", "generate"):
        from nanogpt.generation import generate

        return getattr(generate, name)
    if name == "attention_maps":
        from nanogpt.insight.attention_maps import attention_maps

        return attention_maps
    raise AttributeError(f"module 'nanogpt' has no attribute {name!r}")

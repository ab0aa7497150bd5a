"""A character-level GPT in PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogpt.generation.generate import generate as generate
    from nanogpt.generation.generate import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``generate`` on first use, so that ``--help`` does not import torch."""
    if name in ("load", "generate"):
        from nanogpt.generation import generate

        return getattr(generate, name)
    raise AttributeError(f"module 'nanogpt' has no attribute {name!r}")

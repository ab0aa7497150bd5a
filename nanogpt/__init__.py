"""A character-level GPT that one can read, run and change."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanogpt.generation.generate import generate as generate
    from nanogpt.generation.generate import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``generate`` when they are asked for: help needs no torch."""
    if name in ("load", "generate"):
        from nanogpt.generation import generate

        return getattr(generate, name)
    raise AttributeError(f"module 'nanogpt' has no attribute {name!r}")

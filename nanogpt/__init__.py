"""A character-level GPT that one can read, run and change."""

__version__ = "0.1.0"

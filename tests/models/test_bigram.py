"""The bigram is a table drawn from N(0, 1) that sees one character."""

import pytest
import torch

from nanogpt.models import Bigram, BigramConfig


def test_logits_are_rows_of_the_table_at_any_length() -> None:
    model = Bigram(7, BigramConfig(block_size=3))
    ids = torch.tensor([[0, 6, 6, 2, 1]])
    assert torch.equal(model(ids)[0], model.token_embedding.weight[[0, 6, 6, 2, 1]])


def test_the_table_is_the_first_draw_of_the_generator() -> None:
    torch.manual_seed(1337)
    table = Bigram(65, BigramConfig()).token_embedding.weight
    torch.manual_seed(1337)
    assert torch.equal(table, torch.randn(65, 65))


def test_an_invalid_block_size_is_named() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1, not 0"):
        BigramConfig(block_size=0)

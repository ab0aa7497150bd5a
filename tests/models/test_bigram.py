"""The bigram is a table drawn from N(0, 1), and sees one character."""

import pytest
import torch

from nanogpt.models import Bigram


def test_logits_are_the_tables_rows_at_any_length() -> None:
    model = Bigram(7, block_size=3)
    ids = torch.tensor([[0, 6, 6, 2, 1]])
    assert torch.equal(model(ids)[0], model.table.weight[[0, 6, 6, 2, 1]])


def test_the_table_is_the_generators_first_draw() -> None:
    torch.manual_seed(1337)
    table = Bigram(65).table.weight
    torch.manual_seed(1337)
    assert torch.equal(table, torch.randn(65, 65))


@pytest.mark.parametrize("setting", ["vocab_size", "block_size"])
def test_a_bad_size_is_named(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, not 0"):
        Bigram(**{"vocab_size": 7, "block_size": 3, setting: 0})

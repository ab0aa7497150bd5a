"""A small GPT trained on ``pastiche`` comes close to the exact loss of its source."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.models import GPT, GPTConfig
from nanogpt.text.batches import Draw, Windows, batch_offsets, gather
from nanogpt.text.pastiche import SOURCE, pastiche
from nanogpt.text.tokenizer import Tokenizer

STEPS, WARMUP, LEARNING_RATE = 1000, 50, 5e-3
B, T = 32, 64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: on a shared machine, waiting for a second one takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return Tokenizer.from_text(pastiche()).encode(pastiche())


@pytest.fixture(scope="module")
def trained(ids: Tensor) -> GPT:
    """A GPT of 0.1 M parameters, trained for half a minute on the first nine tenths."""
    train = ids[: int(0.9 * len(ids))]
    torch.manual_seed(1)
    config = GPTConfig(block_size=T, n_layer=2, n_head=4, n_embd=64, init="normal")
    model = GPT(65, config)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)
    for step in range(STEPS):
        rate = LEARNING_RATE * min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
        optimizer.param_groups[0]["lr"] = rate
        offsets = batch_offsets(Draw(1, B, len(train) - T), step)
        inputs, targets = gather(train, Windows(offsets, T))
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def excess(model: GPT, ids: Tensor, shift: int = 1) -> float:
    """The relative excess of a model's loss on the last tenth over the exact loss.

    Each character with at least half a block of context counts once.
    """
    starts = torch.arange(int(0.9 * len(ids)), len(ids) - T - shift, T // 2)
    losses = []
    for part in starts.split(128):
        windows = ids.unfold(0, T + shift, 1)[part].long()  # (B, T + shift)
        logits, targets = model(windows[:, :T]), windows[:, shift:]
        losses.append(F.cross_entropy(logits.mT, targets, reduction="none")[:, T // 2 :])
    positions = (starts[:, None] + shift + torch.arange(T // 2, T)).flatten()
    exact = torch.tensor(SOURCE.exact_losses(pastiche()))[positions]
    return float(torch.cat(losses).double().mean() / exact.mean()) - 1


def test_small_gpt_is_within_five_percent_of_the_exact_loss(trained: GPT, ids: Tensor) -> None:
    assert excess(trained, ids) < 0.05


def test_small_gpt_is_not_better_than_the_exact_loss(trained: GPT, ids: Tensor) -> None:
    assert excess(trained, ids) > -0.01  # 0 up to the noise of a finite text


def test_targets_shifted_by_one_are_detected(trained: GPT, ids: Tensor) -> None:
    assert excess(trained, ids, shift=2) > 1

"""The yardstick: a small GPT comes close to the exact loss of the source of ``pastiche``."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.models import GPT
from nanogpt.text.pastiche import exact_losses, pastiche
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.text.batches import Draw, Windows, batch_offsets, gather

STEPS, WARMUP, LEARNING_RATE = 1000, 50, 5e-3
B, T = 32, 64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Work on one thread: on a shared machine, waiting for a second one takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return Tokenizer.of(pastiche()).encode(pastiche())


@pytest.fixture(scope="module")
def trained(ids: Tensor) -> GPT:
    """A GPT of 0.1 M parameters, trained on the first nine tenths for half a minute."""
    train = ids[: int(0.9 * len(ids))]
    torch.manual_seed(1)
    model = GPT(65, T, n_layer=2, n_head=4, n_embd=64, init="normal")
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
    """How far, relatively, a model's loss on the last tenth lies above the exact one.

    Only characters with at least half a block before them count, each of them once.
    """
    begin = int(0.9 * len(ids))
    starts = torch.arange(begin, len(ids) - T - shift, T // 2)
    losses = []
    for part in starts.split(128):
        cut = ids.unfold(0, T + shift, 1)[part].long()  # (B, T + shift)
        logits, targets = model(cut[:, :T]), cut[:, shift:]
        losses.append(F.cross_entropy(logits.mT, targets, reduction="none")[:, T // 2 :])
    places = (starts[:, None] + shift + torch.arange(T // 2, T)).flatten()
    exact = torch.tensor(exact_losses(pastiche()))[places]
    return float(torch.cat(losses).double().mean() / exact.mean()) - 1


def test_a_small_gpt_comes_within_five_percent_of_the_source(trained: GPT, ids: Tensor) -> None:
    assert excess(trained, ids) < 0.05


def test_nobody_beats_the_source(trained: GPT, ids: Tensor) -> None:
    assert excess(trained, ids) > -0.01  # but for the noise of a finite text


def test_the_yardstick_sees_a_target_shifted_by_one(trained: GPT, ids: Tensor) -> None:
    assert excess(trained, ids, shift=2) > 1

"""The surprisal of each character of a text under a model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogpt.errors import UserError

BATCH_CHARACTERS = 2**14  # in a batch of windows


@dataclass(frozen=True)
class Surprisal:
    """The surprisal and the most likely characters at each of N positions, on the CPU.

    Args:
        nats: -ln P(character | context), (N,).
        likely: ids of the k most likely characters, most likely first, (N, k).
        probabilities: their probabilities, (N, k).
    """

    nats: Tensor
    likely: Tensor
    probabilities: Tensor


@torch.inference_mode()
def surprisal(
    model: nn.Module, start_id: int, ids: Tensor, k: int = 5, stride: int | None = None
) -> Surprisal:
    """Score every character of a text, given those before it.

    Windows of ``block_size`` ids overlap; each scores the targets that the previous one did not
    contain. A character is predicted from all previous ones, ``start_id`` included, or at least
    from the last ``block_size - stride + 1``.

    Args:
        model: maps ids (B, T) to logits (B, T, V); in evaluation mode, on any device.
        start_id: the id before the first character.
        ids: the text, (N,) of any integer type, N at least 1.
        k: number of most likely characters to return; at most V.
        stride: characters from one window to the next; by default half of ``block_size``, rounded
            up.

    Raises:
        UserError: if ``stride`` is not from 1 to ``block_size``: characters would be missed.
    """
    device = next(model.parameters()).device
    block_size: int = model.block_size  # type: ignore[assignment]
    check_stride(stride, block_size)
    sequence = torch.cat([ids.new_tensor([start_id]), ids])  # (N + 1)
    length = min(block_size, len(ids))
    last, shift = len(ids) - length, stride or (block_size + 1) // 2
    starts = torch.arange(0, last + shift, shift).clamp(max=last)  # (W); the text ends the last one
    n_new = starts.diff(prepend=torch.tensor([-length]))  # (W), targets that no earlier one has
    steps = torch.arange(length)
    inputs, targets = (part.unfold(0, length, 1) for part in (sequence[:-1], ids))
    parts = []
    for rows in torch.arange(len(starts)).split(max(BATCH_CHARACTERS // length, 1)):
        new = steps >= length - n_new[rows, None]  # (B, T)
        logits = model(inputs[starts[rows]].long().to(device))[new.to(device)]  # (n, V)
        log_probs = logits.float().log_softmax(-1)
        target = targets[starts[rows]][new].long().to(device)  # (n)
        top, likely = log_probs.topk(min(k, log_probs.shape[-1]))  # (n, k) each
        nats = -log_probs.gather(1, target[:, None])[:, 0]
        parts.append([part.cpu() for part in (nats, likely.int(), top.exp())])
    return Surprisal(*(torch.cat(part) for part in zip(*parts, strict=True)))


def check_stride(stride: int | None, block_size: int) -> None:
    """Raise a ``UserError`` if windows of ``block_size`` would leave gaps."""
    if stride is not None and not 1 <= stride <= block_size:
        raise UserError(
            f"stride must be at least 1 and at most the block_size {block_size}, not {stride}"
        )

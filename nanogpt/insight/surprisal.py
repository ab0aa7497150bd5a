"""How surprised a model is by each character of a text."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CHARACTERS_AT_A_TIME = 2**14  # in a batch of windows


@dataclass(frozen=True)
class Surprisal:
    """What a model expected at each of N places of a text, on the CPU.

    ``nats`` (N,) is minus the log of the probability of the character that stands there;
    ``likely`` (N, k) holds the ids of the most likely characters, the likeliest first, and
    ``chances`` (N, k) their probabilities.
    """

    nats: Tensor
    likely: Tensor
    chances: Tensor


@torch.inference_mode()
def surprisal(model: nn.Module, start: int, ids: Tensor, k: int = 5) -> Surprisal:
    """Score every character of a text, given those before it.

    Windows of ``block_size`` ids overlap by half and each scores what the one before did not
    reach: a character is predicted from all that stands before it, the start included, or at
    least from the last ``block_size // 2 + 1`` of it.

    Args:
        model: maps ids (B, T) to logits (B, T, V); in evaluation mode, on any device.
        start: the id that stands before the first character.
        ids: the text, (N,) of any integer type, N at least 1.
        k: how many of the most likely characters to keep; at most all V are.
    """
    device = next(model.parameters()).device
    block_size: int = model.block_size  # type: ignore[assignment]
    sequence = torch.cat([ids.new_tensor([start]), ids])  # (N + 1)
    begins, fresh = windows(len(ids), block_size)  # 2 x (W)
    length = min(block_size, len(ids))
    steps = torch.arange(length)
    inputs, targets = (part.unfold(0, length, 1) for part in (sequence[:-1], ids))
    parts = []
    for rows in torch.arange(len(begins)).split(max(CHARACTERS_AT_A_TIME // length, 1)):
        new = steps >= length - fresh[rows, None]  # (B, T)
        logits = model(inputs[begins[rows]].long().to(device))[new.to(device)]  # (n, V)
        logs = logits.float().log_softmax(-1)
        target = targets[begins[rows]][new].long().to(device)  # (n)
        chances, likely = logs.topk(min(k, logs.shape[-1]))  # 2 x (n, k)
        nats = -logs.gather(1, target[:, None])[:, 0]
        parts.append([part.cpu() for part in (nats, likely.int(), chances.exp())])
    return Surprisal(*(torch.cat(part) for part in zip(*parts, strict=True)))


def windows(n_targets: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Lay out windows that overlap by half; the last one is moved back to end with the text.

    Returns: where each begins, and how many targets at its end no window before it holds, both
    (W,); a window is ``block_size`` long, or as long as the text where that is shorter.
    """
    length = min(block_size, n_targets)
    begins = torch.arange(0, n_targets - length + 1, (block_size + 1) // 2)  # (W)
    if begins[-1] < n_targets - length:
        begins = torch.cat([begins, torch.tensor([n_targets - length])])
    return begins, begins.diff(prepend=torch.tensor([-length]))

"""What more context buys: the loss by position in the window."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.text.windows import evaluation_windows, gather


@torch.inference_mode()
def loss_by_position(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean loss at each position of consecutive windows, in nats per character.

    Args:
        model: maps ids (B, T) to logits (B, T, V); in evaluation mode.
        ids: a split, (N,), on the model's device, longer than one window.

    Returns: (T,) on the CPU; the loss at position t is that of predicting from t + 1 characters.
    """
    block_size: int = model.block_size  # type: ignore[assignment]
    full = (len(ids) - 1) // block_size
    total = torch.zeros(block_size, dtype=torch.float64)
    for windows in evaluation_windows(full * block_size, block_size):
        inputs, targets = gather(ids, windows)  # (B, T)
        losses = F.cross_entropy(model(inputs).transpose(1, 2).float(), targets, reduction="none")
        total += losses.sum(0).double().cpu()  # (T)
    return total / full


def binned(by_position: Tensor) -> list[tuple[float, float]]:
    """Average the loss by position, (T,), over bins, two for each doubling of the context.

    A split has few windows, so that the loss at a single position carries noise.

    Returns: for each bin its middle, in characters of context, and the mean loss.
    """
    seen = torch.arange(1, len(by_position) + 1)
    bins = (2 * seen.double().log2()).round().long()
    return [
        (seen[bins == n].double().mean().item(), by_position[bins == n].mean().item())
        for n in bins.unique()
    ]

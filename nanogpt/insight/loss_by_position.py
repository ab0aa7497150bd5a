"""The loss by position in the window: how much a model gains from more context."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.text.batches import evaluation_windows, gather


@torch.inference_mode()
def loss_by_position(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the mean loss at each position of consecutive windows, in nats per character.

    Args:
        model: maps ids (B, T) to logits (B, T, V); in evaluation mode.
        ids: a split, (N,), on the model's device, longer than one window.

    Returns:
        (T,) on the CPU. The prediction at position t is made from t + 1 characters.
    """
    block_size: int = model.block_size  # type: ignore[assignment]
    n_windows = (len(ids) - 1) // block_size
    total = torch.zeros(block_size, dtype=torch.float64)
    for windows in evaluation_windows(n_windows * block_size, block_size):
        inputs, targets = gather(ids, windows)  # (B, T)
        losses = F.cross_entropy(model(inputs).transpose(1, 2).float(), targets, reduction="none")
        total += losses.sum(0).cpu().double()  # (T); MPS has no float64
    return total / n_windows


def bin_means(losses: Tensor) -> list[tuple[float, float]]:
    """Average the loss by position, (T,), over logarithmic bins, two for each doubling of context.

    A split has few windows, so the loss at a single position is noisy.

    Returns:
        For each bin its mean context in characters, and its mean loss.
    """
    context = torch.arange(1, len(losses) + 1)
    bins = (2 * context.double().log2()).round().long()
    return [
        (context[bins == n].double().mean().item(), losses[bins == n].mean().item())
        for n in bins.unique()
    ]

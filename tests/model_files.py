"""Changed copies of model files."""

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def change_weights(
    source: Path, target: Path, change: Callable[[dict[str, Tensor]], object]
) -> None:
    """Write a copy of a model file with changed weights and the same metadata."""
    with safe_open(source, framework="pt") as file:
        weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(weights)
    save_file(weights, target, metadata)

"""Properties of the machine that determine devices, dtypes and allocators."""

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def best_device() -> str:
    """Return ``cuda`` if there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_bf16(device_type: str) -> bool:
    """Return whether bf16 is faster than float32 on a type of device, such as ``cuda`` or ``cpu``.

    This is the case for CUDA from compute capability 8.0 (A100, RTX 30), and for CPUs with AMX.
    With AVX512-BF16 alone, training in bf16 ran at 0.6 times the speed of float32.
    """
    import torch

    if device_type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return device_type == "cpu" and torch.cpu._is_amx_tile_supported()


def memory_bandwidth(device: "torch.device") -> float:
    """Return the bytes per second that a GPU reads from its memory, or 10^12 if unknown."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    kilohertz = getattr(properties, "memory_clock_rate", 0)
    bits = getattr(properties, "memory_bus_width", 0)
    return 2 * kilohertz * 1e3 * bits / 8 or 1e12  # two transfers per cycle


def prefer_flash_attention() -> None:
    """Do not use cuDNN's attention, which PyTorch prefers on Hopper GPUs.

    It makes a plan for each length of the keys, which takes tens of milliseconds: sampling would
    spend seconds on its first characters.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def configure_allocator() -> None:
    """Make the process keep freed memory, and use large pages, on Linux with glibc.

    Activations and caches are large blocks, which glibc by default returns to the system at once;
    mapping their pages again took a third of a gpt10m step on a CPU (see ``mallopt(3)``). PyTorch
    uses large pages if an environment variable is set at its first large tensor, so call this
    first; reading a cache of 300 MB was a quarter faster.
    """
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another libc
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

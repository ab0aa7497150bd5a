"""What this machine has, and what it is fast at."""


def best_device() -> str:
    """Return the device to run a model on: ``cuda`` where there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_bf16(device_type: str) -> bool:
    """Return whether bf16 is faster than float32 on a kind of device: ``cuda``, ``cpu``, ….

    It is on CUDA from compute capability 8.0 on (RTX 30, A100), and on CPUs with matrix units for
    it (AMX). With AVX512-BF16 alone training measured 0.6 times the speed of float32.
    """
    import torch

    if device_type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return device_type == "cpu" and torch.cpu._is_amx_tile_supported()

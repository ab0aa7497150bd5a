"""Decisions that depend on the machine, with simulated hardware."""

import pytest
import torch

from nanogpt import hardware
from nanogpt.hardware import best_device, configure_allocator, fast_bf16


@pytest.mark.parametrize(("cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_best_device_is_a_gpu_if_there_is_one(
    cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert best_device() == expected


@pytest.mark.parametrize(
    ("device", "capability", "amx", "expected"),
    [
        ("cuda", (12, 0), False, True),
        ("cuda", (8, 0), False, True),
        ("cuda", (7, 5), True, False),
        ("cuda", (6, 1), False, False),
        ("cpu", (9, 0), True, True),
        ("cpu", (9, 0), False, False),
        ("mps", (9, 0), True, False),
    ],
)
def test_bf16_is_fast_if_the_device_supports_it(
    device: str,
    capability: tuple[int, int],
    amx: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fast_bf16(device) is expected


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_fast_bf16_does_not_query_the_gpu_for_other_devices(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cuda, "get_device_capability")
    assert isinstance(fast_bf16(device), bool)


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_configure_allocator_does_nothing_on_other_systems(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware.sys, "platform", platform)
    monkeypatch.delattr(hardware.ctypes, "CDLL")
    configure_allocator()


def test_configure_allocator_ignores_a_libc_without_mallopt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_libc(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(hardware.ctypes, "CDLL", no_libc)
    configure_allocator()

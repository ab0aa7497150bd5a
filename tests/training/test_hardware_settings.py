"""Precision, device and threads on simulated hardware."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from nanogpt.training.hardware_settings import choose_precision, device_type, limit_threads


@pytest.mark.parametrize(
    ("device", "capability", "amx", "expected"),
    [
        ("cuda", (9, 0), False, "bf16-mixed"),
        ("cuda", (8, 6), False, "bf16-mixed"),
        ("cuda", (8, 0), False, "bf16-mixed"),
        ("cuda", (7, 5), False, "16-mixed"),
        ("cuda", (7, 0), False, "16-mixed"),
        ("cuda", (6, 1), False, "32-true"),
        ("cpu", None, True, "bf16-mixed"),
        ("cpu", None, False, "32-true"),
        ("mps", None, False, "32-true"),
        ("mps", None, True, "32-true"),
    ],
)
def test_bf16_is_replaced_with_a_reason_where_it_is_slow(
    device: str,
    capability: tuple[int, int] | None,
    amx: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    precision, reason = choose_precision("bf16-mixed", device)
    assert precision == expected
    if expected == "bf16-mixed":
        assert reason is None
    else:
        assert reason is not None
        assert "\n" not in reason
        assert f"{expected} instead of bf16-mixed" in reason


@pytest.mark.parametrize(
    ("amx", "expected"), [(True, "bf16-mixed"), (False, "32-true")], ids=["AMX", "no AMX"]
)
def test_fp16_is_replaced_on_a_cpu(
    amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    reason = f"16-mixed needs a GPU: using {expected} instead"
    assert choose_precision("16-mixed", "cpu") == (expected, reason)


@pytest.mark.parametrize(
    ("precision", "device"),
    [
        *product(["32-true", "bf16-true", "64-true", "32"], ["cuda", "cpu", "mps", "tpu"]),
        *product(["16-mixed"], ["cuda", "mps", "tpu"]),
    ],
)
def test_other_precisions_are_unchanged_whatever_the_hardware(
    precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cuda, "get_device_capability")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert choose_precision(precision, device) == (precision, None)


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("gpu", True, False, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, False, "cuda"),
    ],
)
def test_device_type_of_an_accelerator(
    accelerator: str, cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_type(accelerator) == expected


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of threads that are set."""
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return calls


@pytest.mark.parametrize(
    ("flop_per_step", "omp_num_threads", "expected"),
    [(6 * 4_225 * 32 * 8, None, [1]), (6 * 4_225 * 32 * 8, "2", []), (1e12, None, [])],
    ids=["bigram", "the user's choice", "gpt10m"],
)
def test_small_model_runs_on_one_thread_unless_the_user_sets_the_number(
    flop_per_step: float,
    omp_num_threads: str | None,
    expected: list[int],
    threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if omp_num_threads:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    limit_threads(flop_per_step)
    assert threads == expected

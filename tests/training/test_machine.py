"""What a machine is given: each kind of one, with the hardware's answers put in its mouth."""

from collections.abc import Iterator

import pytest
import torch

from nanogpt.training.machine import device_type, fast_precision, use_few_threads


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
def test_bf16_is_kept_where_it_is_fast_and_else_replaced_with_a_reason(
    device: str,
    capability: tuple[int, int] | None,
    amx: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    precision, reason = fast_precision("bf16-mixed", device)
    assert precision == expected
    if expected == "bf16-mixed":
        assert reason is None
    else:
        assert reason is not None
        assert "\n" not in reason
        assert f"{expected} instead of bf16-mixed" in reason


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-true", "64-true", "32"])
@pytest.mark.parametrize("device", ["cuda", "cpu", "mps", "tpu"])
def test_any_other_precision_is_left_alone_and_no_hardware_asked(
    precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cuda, "get_device_capability")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert fast_precision(precision, device) == (precision, None)


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
def test_device_type(
    accelerator: str, cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_type(accelerator) == expected


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of threads that are asked for."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


@pytest.mark.parametrize(
    ("flop_per_step", "omp_num_threads", "expected"),
    [(6 * 4_225 * 32 * 8, None, [1]), (6 * 4_225 * 32 * 8, "2", []), (1e12, None, [])],
    ids=["bigram", "the user's choice", "gpt10m"],
)
def test_a_small_model_takes_one_thread_unless_the_user_chose(
    flop_per_step: float,
    omp_num_threads: str | None,
    expected: list[int],
    threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if omp_num_threads:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    use_few_threads(flop_per_step)
    assert threads == expected

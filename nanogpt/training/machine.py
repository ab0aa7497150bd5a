"""Settings that depend on the machine: precision, memory, and how long a run will take."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch.profilers import PassThroughProfiler

from nanogpt.errors import UserError
from nanogpt.hardware import fast_bf16, keep_memory


def device_type(accelerator: str) -> str:
    """Return the kind of device that Lightning takes for an ``--trainer.accelerator``."""
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        return "cpu"
    return accelerator


def prepare() -> None:
    """Set what makes any run on this machine faster and changes nothing that matters."""
    keep_memory()
    torch.set_float32_matmul_precision("high")  # TF32 on NVIDIA GPUs that have it


def fast_precision(precision: str, device: str) -> tuple[str, str | None]:
    """Return the precision to use where ``bf16-mixed`` is asked for, and why if it is another.

    Where bf16 is not fast, GPUs with tensor cores (7.x) have 16-bit floats; all others stay in
    float32.

    Args:
        precision: as configured; anything but ``bf16-mixed`` is left as it is.
        device: ``cuda``, ``cpu``, ``mps``, …
    """
    if precision != "bf16-mixed" or fast_bf16(device):
        return precision, None
    if device == "cuda":
        instead = "16-mixed" if torch.cuda.get_device_capability()[0] == 7 else "32-true"
        return instead, f"this GPU has no bf16 units: precision {instead} instead of {precision}"
    return "32-true", f"bf16 is slow on this {device.upper()}: 32-true instead of {precision}"


def check_memory(n_bytes: int) -> None:
    """Check that weights fit into this machine's memory, where the system tells its size.

    Raises:
        UserError: if they do not.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > memory > 0:
        raise UserError(
            f"the weights alone take {n_bytes / 2**30:,.0f} GB, and this machine has "
            f"{memory / 2**30:,.0f}: make --model.n_embd, --model.n_layer or --model.block_size "
            "smaller"
        )


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, at less cost: Lightning enters a profiler some fifty times a step."""

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return one and the same context, instead of running a generator each time."""
        return self.nothing


def use_few_threads(flop_per_step: float) -> None:
    """Let a model too small to share out run on one thread of a CPU.

    Below some 10^9 operations a step, waking and awaiting other threads costs more than they do:
    the bigram's step takes half the time on one.
    """
    if flop_per_step < 1e9 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)

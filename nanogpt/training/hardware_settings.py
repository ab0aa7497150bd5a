"""Settings that depend on the hardware: precision, threads and memory."""

import os

import torch
from jsonargparse import Namespace

from nanogpt.errors import UserError
from nanogpt.hardware import configure_allocator, fast_bf16, prefer_flash_attention
from nanogpt.training.lightning_module import LanguageModel


def device_type(accelerator: str) -> str:
    """Return the device type that Lightning uses for a value of ``--trainer.accelerator``."""
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        return "cpu"
    return accelerator


def use_torchrun(trainer: Namespace) -> None:
    """Train on the processes that torchrun has started, if it has.

    Raises:
        UserError: if ``--trainer.devices`` is another number.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    local, world = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if str(trainer.devices) not in ("1", "-1", "auto", str(local)):
        raise UserError(
            f"torchrun has started {local} processes on this machine, but --trainer.devices is "
            f"{trainer.devices}: set it to auto, or leave it out"
        )
    trainer.devices, trainer.num_nodes = local, world // local


def configure_process() -> None:
    """Apply the process-wide settings that make any run faster."""
    configure_allocator()
    torch.set_float32_matmul_precision("high")  # TF32 on NVIDIA GPUs that have it
    prefer_flash_attention()


def choose_precision(precision: str, device: str) -> tuple[str, str | None]:
    """Return the precision to use on a device type, and the reason if it is not the given one.

    Where bf16 is not fast, ``bf16-mixed`` is replaced: by ``16-mixed`` on GPUs with tensor cores
    (compute capability 7.x), and by ``32-true`` on all other devices. A CPU has no ``16-mixed``:
    it is treated like ``bf16-mixed`` there.
    """
    if precision == "16-mixed" and device == "cpu":
        instead = choose_precision("bf16-mixed", device)[0]
        return instead, f"16-mixed needs a GPU: using {instead} instead"
    if precision != "bf16-mixed" or fast_bf16(device):
        return precision, None
    if device == "cuda":
        instead = "16-mixed" if torch.cuda.get_device_capability()[0] == 7 else "32-true"
        return instead, f"this GPU lacks bf16 support: using {instead} instead of {precision}"
    return "32-true", f"bf16 is slow on this {device.upper()}: using 32-true instead of {precision}"


def check_memory(model: LanguageModel, vocab_size: int) -> None:
    """Raise a ``UserError`` if weights do not fit into memory and the system reports its size."""
    with torch.device("meta"):  # shapes only
        net = model.build(vocab_size)
    n_bytes = sum(weight.nbytes for weight in net.parameters())
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > memory > 0:
        raise UserError(
            f"the weights alone take {n_bytes / 2**30:,.0f} GB, and this machine has "
            f"{memory / 2**30:,.0f}: make --model.n_embd, --model.n_layer or --model.block_size "
            "smaller"
        )


def limit_threads(flop_per_step: float) -> None:
    """Run a model too small to profit from several CPU threads on one.

    Below some 10^9 FLOP a step, synchronizing threads costs more than they gain: the bigram's step
    takes half the time on one thread. ``OMP_NUM_THREADS`` overrides this.
    """
    if flop_per_step < 1e9 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)

"""The provenance of a result: the state of the code, the library versions and the machine."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import nanogpt


def git_state() -> str:
    """Return the commit of this code, with ``-dirty`` if the work tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    folder = Path(nanogpt.__file__).parents[1]
    if not (folder / ".git").exists():  # installed, maybe inside another repository
        return "not a git checkout"
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return result.stdout.strip()


def versions() -> str:
    """Return the versions of nanogpt, Python and the libraries that results depend on."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    return f"nanogpt {nanogpt.__version__}, Python {platform.python_version()}, {libraries}"


def machine(device: torch.device) -> str:
    """Return the name of a device and, for a CPU, the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", "replace").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{device.type} ({name}, {threads} thread{'s' if threads > 1 else ''})"

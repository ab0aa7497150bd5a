"""Check and time the parts of gpt10m's training step on a GPU, before any long run.

python benchmarks/gpu_checks.py versions|tests|rehearse|step [--config gpt10m] [--json FILE]
    [--code DIR]

- ``versions``: GPU, driver and libraries, the attention kernels that PyTorch chooses, and whether
  a trivial function can be compiled.
- ``tests``: runs the tests that need a GPU, if pytest is installed.
- ``rehearse``: compiles the step as ``fit`` does, but errors are not caught; compares its gradients
  with those of the uncompiled step at dropout 0; counts graph breaks, skipped CUDA graphs and the
  random functions of the generated code, which is copied to DIR.
- ``step``: times forward and backward passes, one after the other without waiting: uncompiled,
  compiled and with CUDA graphs, each with flash and with cuDNN attention; prints a profile.

Each row is written to FILE as soon as it is known. On a CPU, what needs CUDA is left out. This has
never run on a GPU.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from baseline import config_path
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt.hardware import best_device, memory_bandwidth, prefer_flash_attention
from nanogpt.insight import provenance
from nanogpt.kernels.attention import chosen_backend
from nanogpt.training.compiled import CompiledLoss, keep_compiled_kernels
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.losses import Loss, next_character_loss

VOCABULARY = "".join(map(chr, range(65, 130)))  # 65 characters
PACKAGES = (
    "torch",
    "lightning",
    "triton",
    "jsonargparse",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
REPEATS = 20
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


@dataclass
class Rows:
    """The results so far, in a file if there is one.

    Args:
        path: of the JSON file.
    """

    path: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, **figures: Any) -> None:
        """Print a row and write all rows."""
        self.rows.append({"name": name, **figures})
        print(
            f"{name:42}", "  ".join(f"{key} {value}" for key, value in figures.items()), flush=True
        )
        if self.path:
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Step:
    """A training step without an optimizer.

    Args:
        config: path of the config.
        dropout: of the model; None for that of the config.
    """

    config: Path
    dropout: float | None = None

    def build(self) -> tuple[LanguageModel, Tensor]:
        """Return the model, and ids (B, T + 1) on its device."""
        content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        dropout = {} if self.dropout is None else {"dropout": self.dropout}
        torch.manual_seed(1337)
        model = LanguageModel(vocabulary=VOCABULARY, **{**content["model"], **dropout})
        shape = content["data"]["batch_size"], content["model"]["block_size"] + 1
        ids = torch.randint(len(VOCABULARY), shape)
        return model.to(best_device()), ids.to(best_device())

    def runner(self, loss: Loss) -> Callable[[], LanguageModel]:
        """Return a function that computes the gradients once, in bf16 on CUDA."""
        model, ids = self.build()
        context = torch.autocast("cuda", torch.bfloat16) if ids.is_cuda else nullcontext()

        def run() -> LanguageModel:
            with context:
                value = loss(model.net, ids[:, :-1], ids[:, 1:])
            model.zero_grad(set_to_none=True)
            value.backward()
            return model

        return run

    def gradients(self, loss: Loss) -> list[Tensor]:
        """Return the gradients of all weights."""
        weights = self.runner(loss)().net.parameters()
        return [weight.grad.clone() for weight in weights if weight.grad is not None]


def versions(rows: Rows, options: argparse.Namespace) -> None:
    """Report what this machine is, and what PyTorch does on it."""
    device = torch.device(best_device())
    rows.add("machine", device=provenance.machine(device), code=provenance.git_state())
    rows.add("packages", **{name: found for name in PACKAGES if (found := installed(name))})
    if device.type == "cuda":
        rows.add("CUDA", version=torch.version.cuda, cudnn=torch.backends.cudnn.version())
        rows.add("driver", version=driver())
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        rows.add("GPU", capability=capability, bytes_per_second=memory_bandwidth(device))
    n_head, block_size, head_size = (2, 8, 8) if options.tiny else (6, 256, 64)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    shape, found = (1, n_head, block_size, head_size), dict[str, str]()
    for when in ("PyTorch", "ours"):
        if when == "ours":
            prefer_flash_attention()
        for name, dtype in dtypes.items():
            q = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
            found[f"{when}, {name}"] = chosen_backend(q, 0.2).name
    rows.add("attention", **found)
    keep_compiled_kernels()
    if options.tiny and device.type == "cpu":
        return
    compiled = torch.compile(lambda x: x.sin() + 1)
    x = torch.ones(1000, device=device)
    rows.add("a trivial compiled function", equal=bool(compiled(x).allclose(x.sin() + 1)))


def installed(name: str) -> str | None:
    """Return the version of a package, if it is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_tests(rows: Rows, options: argparse.Namespace) -> None:
    """Run the tests that need a GPU; without one they are skipped."""
    try:
        import pytest
    except ImportError:
        rows.add("tests", result="pytest is not installed")
        return
    places = [f"tests/{name}.py" for name in ("training/test_compiled", "generation/test_replay")]
    code = pytest.main(["-q", "-ra", "-o", "addopts=", "-k", "gpu or cuda_graphs", *places])
    rows.add("tests", exit_code=int(code))
    if code:
        sys.exit(int(code))


class StrictLoss(CompiledLoss):
    """A ``CompiledLoss`` whose errors are raised."""

    def _first_that_works(self, *args: Any) -> Loss:
        return self._compile(*args)


def rehearse(rows: Rows, options: argparse.Namespace) -> None:
    """Compile the step and compare its gradients."""
    from torch._dynamo.utils import counters

    prefer_flash_attention()
    on_cuda = best_device() == "cuda"
    step = Step(config_path(options.config), dropout=0.0)
    expected = step.gradients(next_character_loss)
    start = time.perf_counter()
    found = step.gradients(StrictLoss(next_character_loss, graphs=on_cuda))
    rows.add("compiling", seconds=round(time.perf_counter() - start, 1), graphs=on_cuda)
    errors = [(a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]
    rows.add("gradients against uncompiled ones", largest_relative_error=float(max(errors)))
    skips = counters["inductor"]["cudagraph_skips"]
    rows.add("counters", cudagraph_skips=skips, graph_breaks=sum(counters["graph_break"].values()))
    if not options.tiny or on_cuda:
        # with dropout, as it is trained: the code that draws masks
        step = Step(config_path(options.config))
        step.gradients(StrictLoss(next_character_loss, graphs=on_cuda))
    if not options.code:
        return
    texts = save_code(options.code)
    names = ("tl.rand(", "rand4x(", "rand_eager", "extern_kernels", "flash")
    rows.add("generated code", **{name: sum(text.count(name) for text in texts) for name in names})


def save_code(target: Path) -> list[str]:
    """Copy the generated modules that call kernels to a folder; return their texts."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    target.mkdir(parents=True, exist_ok=True)
    texts = []
    for path in Path(cache_dir()).rglob("*.py"):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "def call(" in text:
            shutil.copyfile(path, target / path.name)
            texts.append(text)
    return texts


def time_step(rows: Rows, options: argparse.Namespace) -> None:
    """Time the step and profile it."""
    on_cuda, step = best_device() == "cuda", Step(config_path(options.config))
    losses: dict[str, Callable[[], Loss]] = {"uncompiled": lambda: next_character_loss}
    if on_cuda:
        losses["compiled"] = lambda: StrictLoss(next_character_loss, graphs=False)
        losses["compiled, CUDA graphs"] = lambda: StrictLoss(next_character_loss, graphs=True)
    for attention in ("flash", "cuDNN") if on_cuda else ("",):
        for name, build in losses.items():
            torch.compiler.reset()
            label = ", ".join(filter(None, (name, attention)))
            try:
                with sdpa_kernel(BACKENDS[attention]) if attention else nullcontext():
                    rows.add(label, **timed(step.runner(build())))
            except Exception as error:  # the others are timed all the same
                rows.add(label, failure=f"{type(error).__name__}: {error}"[:300])
    prefer_flash_attention()
    torch.compiler.reset()
    loss = StrictLoss(next_character_loss, graphs=False) if on_cuda else next_character_loss
    profile(step.runner(loss))


def timed(run: Callable[[], object]) -> dict[str, Any]:
    """Return the time of a step, and that of the host alone, both without waiting in between."""
    for _ in range(5):
        run()
    if not torch.cuda.is_available():
        start = time.perf_counter()
        run()
        return {"ms": round((time.perf_counter() - start) * 1e3, 3), "host_ms": "not on a CPU"}
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start = time.perf_counter()
    first.record()
    for _ in range(REPEATS):
        run()
    last.record()
    host_ms = (time.perf_counter() - start) * 1e3 / REPEATS
    torch.cuda.synchronize()
    ms = first.elapsed_time(last) / REPEATS
    return {"ms": round(ms, 3), "host_ms": round(host_ms, 3), "steps": REPEATS}


def profile(run: Callable[[], object]) -> None:
    """Print the kernels that take longest in five steps."""
    for _ in range(5):
        run()
    with torch.profiler.profile() as profiler:
        for _ in range(5):
            run()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    print(profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=30))


def main(arguments: list[str]) -> None:
    """Run one of the checks."""
    checks = {"versions": versions, "tests": run_tests, "rehearse": rehearse, "step": time_step}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=checks)
    parser.add_argument("--config", default="gpt10m", help="name or path of a config")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--code", type=Path, help="copy the generated code to this folder")
    parser.add_argument("--tiny", action="store_true", help="leave out what takes long on a CPU")
    options = parser.parse_args(arguments)
    checks[options.check](Rows(options.json), options)


if __name__ == "__main__":
    main(sys.argv[1:])

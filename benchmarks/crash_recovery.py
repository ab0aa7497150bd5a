"""Kill a run at random times, resume it each time, and compare it with an uninterrupted run.

python benchmarks/crash_recovery.py [--kills 50] [--seed 0]

Runs on Linux and macOS. Each run is forked from a process that has imported everything, so that it
starts quickly, and is killed by SIGKILL after a random time: while it starts, trains, evaluates or
writes. After each kill every checkpoint and config is read. The model is small, with dropout and
gradient accumulation. The exit code is 1 if anything was lost.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from nanogpt.commands.main import main
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.text.pastiche import pastiche
from nanogpt.training import lightning_cli  # noqa: F401  # imported before the fork

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
FIT = [
    *("--config", str(CONFIG), "--data.corpus=text.txt", "--card=false"),
    *("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=16"),
    *("--model.dropout=0.2", "--data.batch_size=8", "--trainer.accumulate_grad_batches=2"),
    *("--trainer.accelerator=cpu", "--trainer.val_check_interval=10"),
]
RESUME = ["--ckpt_path=last"]
OUTPUT = Path("output.txt")


def child(argv: list[str]) -> None:
    """Run a command line in a forked process and exit with its code."""
    with (
        OUTPUT.open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        code = main(argv)
    os._exit(code)


def run(argv: list[str], seconds: float | None = None) -> int:
    """Run a command line in a new process and kill it after a number of seconds.

    Args:
        argv: the command line.
        seconds: until it is killed; None lets it finish.

    Returns:
        Its exit code, or -9 if it was killed.
    """
    process = get_context("fork").Process(target=child, args=(argv,))
    process.start()
    process.join(seconds)
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def unreadable(run_folder: Path) -> list[str]:
    """Read every checkpoint and config in a run folder; return an error for each damaged file."""
    errors = []
    models = run_folder.glob("checkpoints/*.safetensors")
    for path in [*run_folder.glob("checkpoints/*.ckpt"), *models, *run_folder.glob("*.yaml")]:
        try:
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)["state_dict"]
            elif path.suffix == ".safetensors":
                read_checkpoint(path)
            elif not yaml.safe_load(path.read_bytes()):
                raise ValueError("empty")
        except Exception as error:
            errors.append(f"{path}: {error}")
    return errors


def last_checkpoint(version: int) -> Path:
    """Return the path of a run's last checkpoint."""
    return Path(f"lightning_logs/version_{version}/checkpoints/last.ckpt")


def final_state(version: int) -> Any:
    """Return the contents of a run's last checkpoint without its timings."""
    content = torch.load(last_checkpoint(version), weights_only=True)
    del content["callbacks"]["RunState"]["seconds"]
    del content["loops"]  # computed by a resumed run
    return content


def equal(a: Any, b: Any) -> bool:
    """Return whether two checkpoints are bitwise equal."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)


def is_finished(version: int, n_steps: int) -> bool:
    """Return whether a run has saved its last step."""
    return last_checkpoint(version).exists() and bool(
        final_state(version)["global_step"] == n_steps
    )


def kill_and_resume(kills: int, seed: int) -> bool:
    """Kill and resume runs in the current folder and print a summary.

    Returns:
        Whether every file stayed readable and every final state equals the uninterrupted run's.
    """
    n_steps, rng = kills * 20, random.Random(seed)
    fit = ["fit", *FIT, f"--trainer.max_steps={n_steps}"]
    Path("text.txt").write_text(pastiche()[:5000], encoding="utf-8")
    start = time.monotonic()
    ok = run(fit) == 0
    uninterrupted = time.monotonic() - start
    run([*fit, "--trainer.max_steps=1", "--trainer.default_root_dir=elsewhere"])
    start_up = time.monotonic() - start - uninterrupted
    max_training = 1.2 * (uninterrupted - start_up) / kills  # half of it on average before a kill
    done = resumed = restarted = 0
    version, errors = 1, list[str]()
    while ok and (done < kills or version == 1):
        folder = Path(f"lightning_logs/version_{version}")
        resumable = last_checkpoint(version).exists()
        if not resumable and folder.exists():  # killed before the first checkpoint
            folder.rename(f"restarted_{restarted}")
            restarted += 1
        seconds = rng.uniform(0, start_up + max_training) if done < kills else None
        code = run(["fit", *RESUME] if resumable else fit, seconds)
        resumed += resumable
        done += code == -signal.SIGKILL
        errors += unreadable(folder)
        if is_finished(version, n_steps):  # continue with another run until all kills are done
            ok = equal(final_state(0), final_state(version))
            version += 1
        elif code != -signal.SIGKILL:
            ok = False
    print(
        f"{done} kills, {resumed} resumed, {restarted} restarted from step 0 because nothing had "
        f"been saved yet, {len(errors)} unreadable files; final state of {version - 1} run(s) "
        f"equal to that of the uninterrupted run: {'yes' if ok else 'no'} "
        f"({time.monotonic() - start:.0f} s; the uninterrupted run took {uninterrupted:.0f} s)"
    )
    for error in errors:
        print(error)
    if not ok:
        print("".join(OUTPUT.read_text().splitlines(keepends=True)[-20:]))
    return ok and not errors and done == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no other threads
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.exit(not kill_and_resume(options.kills, options.seed))

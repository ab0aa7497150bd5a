"""Kill a run at random moments, resume it each time, and compare its end with a run left alone.

``python benchmarks/crash_recovery.py [--kills 50] [--seed 0]``, on Linux or macOS. Each run is a process
forked from one that has imported everything, so that a start takes a moment; it is killed by
SIGKILL after a random time, which may be while it starts, trains, evaluates or writes. After each
kill every checkpoint and config is read. The model is a small GPT with dropout and gradient
accumulation. Exits with 1 if anything was lost.
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
from nanogpt.text.pastiche import pastiche
from nanogpt.training import callbacks, cli  # noqa: F401  # for the children

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
    """Run a command line in this process, in a process group of its own, and end it."""
    with (
        OUTPUT.open("a") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        code = main(argv)
    os._exit(code)


def run(argv: list[str], seconds: float | None = None) -> int:
    """Run a command line in a fresh process; kill it after so many seconds.

    Returns: its exit code, or -9 if it was killed before its end.
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
    """Read every checkpoint and config in a run's folder; return what went wrong."""
    wrong = []
    for path in [*run_folder.glob("checkpoints/*.ckpt"), *run_folder.glob("*.yaml")]:
        try:
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)["state_dict"]
            elif not yaml.safe_load(path.read_bytes()):
                raise ValueError("empty")
        except Exception as error:
            wrong.append(f"{path}: {error}")
    return wrong


def kept(version: int) -> Any:
    """What a run ended with, but for the time that it took."""
    path = Path(f"lightning_logs/version_{version}/checkpoints/last.ckpt")
    content = torch.load(path, weights_only=True)
    del content["run"]["seconds"]
    content["run"]["logged"].pop("characters_per_second", None)
    return content


def equal(a: Any, b: Any) -> bool:
    """Whether two contents are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)


def finished(version: int, steps: int) -> bool:
    """Whether a run has saved its last step."""
    path = Path(f"lightning_logs/version_{version}/checkpoints/last.ckpt")
    return path.exists() and bool(kept(version)["global_step"] == steps)


def ordeal(kills: int, seed: int) -> bool:
    """Kill and resume runs so often, in the current folder; print how it went."""
    n_steps, chance = kills * 20, random.Random(seed)
    fit = ["fit", *FIT, f"--trainer.max_steps={n_steps}"]
    Path("text.txt").write_text(pastiche()[:5000], encoding="utf-8")
    begin = time.monotonic()
    sound = run(fit) == 0
    alone = time.monotonic() - begin
    run([*fit, "--trainer.max_steps=1", "--trainer.default_root_dir=elsewhere"])
    start = time.monotonic() - begin - alone
    training = 1.2 * (alone - start) / kills  # half of it on average, so that a run lasts
    done = resumed = begun_again = 0
    version, wrong = 1, list[str]()
    while sound and (done < kills or version == 1):
        folder = Path(f"lightning_logs/version_{version}")
        begun = (folder / "checkpoints" / "last.ckpt").exists()
        if not begun and folder.exists():  # killed before there was anything to go on from
            folder.rename(f"lost_{begun_again}")
            begun_again += 1
        wait = chance.uniform(0, start + training) if done < kills else None
        code = run(["fit", *RESUME] if begun else fit, wait)
        resumed += begun
        done += code == -signal.SIGKILL
        wrong += unreadable(folder)
        if finished(version, n_steps):  # on to another one, if it came to its end too soon
            sound = equal(kept(0), kept(version))
            version += 1
        elif code != -signal.SIGKILL:
            sound = False
    print(
        f"{done} kills, {resumed} resumed, {begun_again} begun again since nothing was saved yet, "
        f"{len(wrong)} unreadable files; end state of {version - 1} equal to the uninterrupted "
        f"run: {'yes' if sound else 'no'} ({time.monotonic() - begin:.0f} s; uninterrupted "
        f"{alone:.0f} s)"
    )
    for line in wrong:
        print(line)
    if not sound:
        print("".join(OUTPUT.read_text().splitlines(keepends=True)[-20:]))
    return sound and not wrong and done == kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a fork keeps no other threads
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        sys.exit(not ordeal(given.kills, given.seed))

"""The output of ``fit`` and ``validate`` on the terminal, before training and at the end."""

import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.seed import isolate_rng

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import Checkpoint
from nanogpt.generation.generate import sample_text
from nanogpt.insight.reference import Losses, best_losses, comparison_table, reference_curve
from nanogpt.insight.surprisal import surprisal
from nanogpt.models import count_parameters
from nanogpt.notices import print_message, print_text, program
from nanogpt.runs import LOGS
from nanogpt.text import corpora
from nanogpt.training.compiled import CompiledLoss
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.losses import loss_figures

SAMPLE_CHARACTERS = 500
LONG_ON_CPU = 2e14  # FLOP of a training that takes a CPU more than about ten minutes


def warn_about_replaced_corpus(corpus: corpora.Corpus) -> None:
    """Print a conspicuous warning that another corpus replaces the requested one."""
    rule = "!" * 100
    print_message(
        f"{rule}\n"
        f"!  {corpus.stands_in_for} is not on this machine and could not be downloaded: "
        f"{corpus.failure}.\n"
        f"!  The built-in {corpus.name} replaces it, so losses are not comparable with those of "
        "other work.\n"
        f"!  To train on the real text, download {corpora.URL}\n"
        f"!  and save it as {Path('data') / corpora.FILE}.\n"
        f"{rule}"
    )


def print_header(
    trainer: L.Trainer, model: LanguageModel, data: CharDataModule, folder: Path | None
) -> None:
    """Print corpus, model size, device and run folder, and the duration if that is long."""
    n_train, n_val = len(data.splits["train"]), len(data.splits["val"])
    print_text(
        f"corpus {data.corpus.name}: {n_train + n_val:,} characters, "
        f"{len(data.tokenizer.vocabulary)} distinct; {n_train:,} train, {n_val:,} val"
    )
    print(f"{count_parameters(model.net) / 1e6} M parameters")
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    place = f", in {folder}" if folder else ""
    resumed = f", resumed at step {trainer.global_step}" if trainer.global_step else ""
    print_text(f"training on {name} in {trainer.precision}{place}{resumed}")
    steps = trainer.max_steps - trainer.global_step
    if device.type == "cpu" and flop_per_step(model, data) * steps > LONG_ON_CPU:
        hours = measure_step(trainer, model, data) * steps / 3600
        print(
            f"estimated time: about {hours:.1f} hours on this CPU; --config quickstart trains a "
            "smaller model in minutes"
        )
    sys.stdout.flush()


def flop_per_step(model: LanguageModel, data: CharDataModule) -> float:
    """Return the floating-point operations of an optimizer step, by the usual estimate."""
    return 6 * count_parameters(model.net) * data.batch_size * data.block_size


def measure_step(trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> float:
    """Return the seconds of a training step, measured on 1/16 of a batch.

    The random state is preserved.
    """
    windows = max(data.batch_size // 16, 1)
    loss = model.training_loss
    loss = loss.loss if isinstance(loss, CompiledLoss) else loss  # compiled for whole batches
    ids = torch.zeros(windows, data.block_size, dtype=torch.long)
    seconds = math.inf
    with isolate_rng(), trainer.precision_plugin.train_step_context():
        for _ in range(3):  # the first step also allocates memory
            start = time.perf_counter()
            loss(model.net, ids, ids).backward()
            seconds = min(seconds, time.perf_counter() - start)
    model.zero_grad()
    return seconds * data.batch_size / windows / trainer.world_size


def print_end(trainer: L.Trainer, step: int) -> None:
    """Print why the run ended after ``step`` steps, if that was not the last one."""
    last = trainer.max_steps
    if trainer.fast_dev_run or 0 <= last <= step:  # type: ignore[attr-defined]
        return
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    stops = [c.stopping_reason_message for c in callbacks if isinstance(c, EarlyStopping)]
    reasons = [stop.removesuffix(" Signaling Trainer to stop.") for stop in stops if stop]
    timers = [callback for callback in callbacks if isinstance(callback, Timer)]
    remaining = [timer.time_remaining() for timer in timers]
    if any(seconds is not None and seconds <= 0 for seconds in remaining):
        reasons.append("the time is up")
    of_last = f" of {last:,}" if last >= 0 else ""
    reason = "; ".join(reasons) or "a callback or a signal stopped the trainer"
    print_text(f"training ended at step {step:,}{of_last}: {reason}")


def print_result(
    data: CharDataModule,
    history: Sequence[Losses],
    reference: str | None,
    checkpoint: Checkpoint | None,
) -> None:
    """Print the best val loss, the comparison with the reference, a sample and the run's files.

    The sample and the files need ``checkpoint``, the best one, if the run has saved any.
    """
    if any(losses.step for losses in history):
        best = best_losses(history)
        print(f"best val loss {best.val:.4f} at step {best.step}")
    if reference and data.corpus.sha256 != corpora.SHA256:
        print_text(f"no comparison with the reference: the corpus is {data.corpus.name}")
    elif table := comparison_table(history, reference_curve(reference, data.corpus.sha256)):
        print(f"\ncompared with the reference's {reference}:\n{table}")
    if data.corpus.stands_in_for:
        warn_about_replaced_corpus(data.corpus)
    if checkpoint:
        print_run(checkpoint, data.seed)


def print_run(checkpoint: Checkpoint, seed: int) -> None:
    """Print a sample from the best checkpoint of a run, and the paths of the run's files."""
    path = checkpoint.path
    folder = path.parent.parent
    sample = sample_text(checkpoint.model, checkpoint.tokenizer, SAMPLE_CHARACTERS, seed)
    checkpoints = ", ".join(str(file) for file in sorted(path.parent.glob("*.ckpt")))
    ckpt_path = "" if folder.parent == LOGS else f" --ckpt_path {shlex.quote(str(folder))}"
    print_text(
        f"\na sample of {SAMPLE_CHARACTERS} characters from {path.name}:\n\n"
        + sample.strip("\n")
        + f"\n\nrun          {folder}\n"
        f"checkpoints  {checkpoints}\n"
        f"{curves_line(folder)}"
        f"more text    {program()} predict{ckpt_path}"
    )


def curves_line(folder: Path) -> str:
    """Return the line that says how to see the curves of a run; empty if its folder has none."""
    if any(folder.rglob("events.out.tfevents.*")):
        return f"curves       tensorboard --logdir {shlex.quote(str(folder.parent))}\n"
    table = folder / "metrics.csv"  # of the CSVLogger
    return f"curves       {table}\n" if table.is_file() else ""


def print_validation(
    trainer: L.Trainer, data: CharDataModule, checkpoint: Checkpoint, stride: int | None
) -> None:
    """Print loss, perplexity and bits per character of both splits.

    With a stride, also those of val in overlapping windows, in float32 and by one process.

    Raises:
        UserError: if a loss is not finite.
    """
    metrics = trainer.callback_metrics
    if not all(math.isfinite(value) for value in metrics.values()):
        raise UserError(f"the loss of {checkpoint.label} is not finite: its training diverged")
    after = "" if checkpoint.others else f", after step {checkpoint.step}"
    print_text(f"{checkpoint.label}{after}, on {data.corpus.name}:")
    print("         loss  perplexity  bits per character")
    for split in ("train", "val"):
        print(f"{split:5} {columns(metrics[f'loss/{split}'].item())}")
    if stride is not None and trainer.is_global_zero:
        net = checkpoint.model.to(trainer.strategy.root_device)  # Lightning moved it to the CPU
        ids = data.splits["val"]
        loss = surprisal(net.eval(), int(ids[0]), ids[1:], 1, stride).nats.double().mean().item()
        least = f"each after at least {net.block_size - stride + 1} characters, or all"
        print(f"val   {columns(loss)}  --stride {stride}: {least}")


def columns(loss: float) -> str:
    """Return a loss, its perplexity and its bits per character as columns of a table."""
    loss, perplexity, bits = loss_figures(loss).values()
    return f"{loss:7.4f}  {perplexity:10.4f}  {bits:18.4f}"

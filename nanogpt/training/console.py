"""What ``fit`` and ``validate`` say: before they train, and at their end."""

import math
import sys
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from nanogpt.generation.generate import sample_text
from nanogpt import kernels
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.insight.reference import Losses, best, comparison, expected
from nanogpt.models import count_parameters
from nanogpt.runs import LOGS, Run
from nanogpt.text import corpora
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.machine import use_few_threads
from nanogpt.training.lightning_module import LanguageModel

SAMPLE_CHARACTERS = 500
LONG_ON_A_CPU = 2e14  # FLOP of training that a CPU takes more than ten minutes or so for


def stand_in_warning(corpus: corpora.Corpus) -> None:
    """Say, so that nobody can miss it, that another text than the one asked for is used."""
    rule = "!" * 100
    print(
        f"{rule}\n"
        f"!  {corpus.stands_in_for} is neither on this machine nor to be downloaded: "
        f"{corpus.failure}.\n"
        f"!  The built-in {corpus.name} stands in for it: losses do not compare with those of "
        "other work.\n"
        f"!  For the real text get {corpora.URL}\n"
        f"!  and put it at {Path('data') / corpora.FILE}.\n"
        f"{rule}",
        file=sys.stderr,
        flush=True,
    )


def introduce(trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> None:
    """Print the corpus, the size of the model, where it runs and, if that is long, for how long."""
    if data.corpus.stands_in_for and trainer.is_global_zero:
        stand_in_warning(data.corpus)
    n_train, n_val = len(data.splits["train"]), len(data.splits["val"])
    model.print(
        f"corpus {data.corpus.name}: {n_train + n_val:,} characters, "
        f"{len(data.tokenizer.vocabulary)} distinct; {n_train:,} to train on, {n_val:,} to "
        "validate"
    )
    n_parameters = count_parameters(model.net)
    model.print(f"{n_parameters / 1e6} M parameters")
    device = trainer.strategy.root_device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    folder = f", in {Path(trainer.log_dir)}" if trainer.logger and trainer.log_dir else ""
    begun = f", from step {trainer.global_step} on" if trainer.global_step else ""
    model.print(f"training on {where} in {trainer.precision}{folder}{begun}")
    if device.type != "cpu":
        return
    flop_per_step = 6 * n_parameters * data.batch_size * data.block_size
    use_few_threads(flop_per_step)
    steps = trainer.max_steps - trainer.global_step
    if flop_per_step * steps > LONG_ON_A_CPU:
        hours = seconds_per_step(trainer, model, data) * steps / 3600
        model.print(
            f"this will take about {hours:.1f} hours on this CPU; configs/quickstart.yaml "
            "trains a smaller model in three minutes"
        )


def seconds_per_step(trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> float:
    """Measure a training step on a sixteenth of a batch; leaves random state as it was."""
    windows = max(data.batch_size // 16, 1)
    ids = torch.zeros(windows, data.block_size, dtype=torch.long)
    seconds = math.inf
    with isolate_rng(), trainer.precision_plugin.train_step_context():
        for _ in range(3):  # the first touches fresh memory; the fastest is the least disturbed
            begin = time.perf_counter()
            model.training_step((ids, ids), 0).backward()
            seconds = min(seconds, time.perf_counter() - begin)
    model.zero_grad()
    return seconds * data.batch_size / windows


def after_fit(
    trainer: L.Trainer, data: CharDataModule, history: list[Losses], reference: str | None
) -> None:
    """Print the best evaluation, the comparison, a sample, and where everything is."""
    if not trainer.is_global_zero:
        return
    if any(losses.step for losses in history):
        print(f"best val loss {best(history).val:.4f} at step {best(history).step}")
    if reference and data.corpus.sha256 != corpora.SHA256:
        print(f"not compared with the reference, whose text was not {data.corpus.name}")
    elif table := comparison(history, expected(reference, data.corpus.sha256)):
        print(f"\nbeside the reference's {reference}:\n{table}")
    if data.corpus.stands_in_for:
        stand_in_warning(data.corpus)
    if trainer.logger and trainer.log_dir:
        show_run(Run(Path(trainer.log_dir)), data.seed)


def show_run(run: Run, seed: int) -> None:
    """Print a sample from a run's best checkpoint, and where everything is."""
    checkpoint = run.checkpoint()
    if checkpoint is None:
        return
    trained = read_checkpoint(checkpoint)
    print(f"\na sample of {SAMPLE_CHARACTERS} characters from {checkpoint.name}:\n")
    print(sample_text(kernels.install(trained.model), trained.tokenizer, SAMPLE_CHARACTERS, seed).strip("\n"))
    kept = sorted(checkpoint.parent.glob("*.ckpt"))
    newest = "" if run.folder.parent == LOGS else f" --ckpt_path {run.folder}"
    print(
        f"\nrun          {run.folder}\n"
        f"checkpoints  {', '.join(str(path) for path in kept)}\n"
        f"curves       tensorboard --logdir {run.folder.parent}\n"
        f"more text    python cli.py predict{newest}"
    )


def after_validate(trainer: L.Trainer, data: CharDataModule, checkpoint: Path) -> None:
    """Print loss, perplexity and bits per character of both splits."""
    metrics = trainer.callback_metrics
    step = read_checkpoint(checkpoint).step
    print(f"{checkpoint}, after step {step}, on {data.corpus.name}:")
    print("         loss  perplexity  bits per character")
    for split in ("train", "val"):
        loss, perplexity, bits = (
            metrics[f"{name}/{split}"].item()
            for name in ("loss", "perplexity", "bits_per_character")
        )
        print(f"{split:5} {loss:7.4f}  {perplexity:10.4f}  {bits:18.4f}")

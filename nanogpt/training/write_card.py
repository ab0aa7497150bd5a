"""What of a finished run goes on its card."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from nanogpt import kernels
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.insight import provenance
from nanogpt.insight.reference import best, expected
from nanogpt.models import count_parameters
from nanogpt.notices import notice
from nanogpt.runs import Run
from nanogpt.training.callbacks import Recorder
from nanogpt.training.datamodule import CharDataModule


def write_card(
    trainer: L.Trainer,
    data: CharDataModule,
    recorder: Recorder,
    reference: str | None,
    settings: Mapping[str, Any],
) -> None:
    """Write the card and the pictures of a finished run into its folder, and say where.

    ``reference`` is the curve to compare with, if its text was the same; ``settings`` are those
    that are not at their defaults.
    """
    run = Run(Path(trainer.log_dir)) if trainer.logger and trainer.log_dir else None
    checkpoint = run.checkpoint() if run and trainer.is_global_zero else None
    if run is None or checkpoint is None or not recorder.history:
        return
    from nanogpt.insight import run_report  # matplotlib takes its time: the result is out by now

    device = trainer.strategy.root_device
    trained = read_checkpoint(checkpoint)
    model = kernels.install(trained.model)
    finished = run_report.Finished(
        run=run,
        model=model.to(device) if device.type == "cuda" else model,
        tokenizer=trained.tokenizer,
        text=data.corpus.text,
        n_train=len(data.splits["train"]),
        history=recorder.history,
        reference=expected(reference, data.corpus.sha256),
        ngrams=data.ngrams,
        seed=data.seed,
    )
    architecture = trainer.lightning_module.hparams["architecture"]
    size = f"{count_parameters(model):,} ({architecture})"
    try:
        run_report.write(finished, {"parameters": size, **facts_of(trainer, data, recorder)}, settings)
    except OSError as error:
        notice(f"the run is complete and kept, but its card could not be written: {error}")
    else:
        print(f"card         {run.folder / 'card.md'}, with curves.png")


def facts_of(trainer: L.Trainer, data: CharDataModule, recorder: Recorder) -> dict[str, str]:
    """Return what a card says of a run, in words."""
    lowest, corpus = best(recorder.history), data.corpus
    resumed = f", resumed at step {recorder.first_step:,}" if recorder.first_step else ""
    stands_in = f", standing in for {corpus.stands_in_for}" if corpus.stands_in_for else ""
    return {
        "best val loss": f"{lowest.val:.4f} nats per character at step {lowest.step:,} (perplexity "
        f"{math.exp(lowest.val):.2f}, {lowest.val / math.log(2):.3f} bits per character)",
        "corpus": f"{corpus.name}{stands_in}: {len(corpus.text):,} characters, "
        f"{len(data.tokenizer.vocabulary)} distinct, SHA-256 `{corpus.sha256}`",
        "training": f"{trainer.global_step:,} steps of {data.batch_size} x {data.block_size} "
        f"characters{resumed}, seed {data.seed}, in {trainer.precision}",
        "time": f"{recorder.seconds:.1f} s, evaluations included",
        "machine": provenance.machine(trainer.strategy.root_device),
        "versions": provenance.versions(),
        "code": provenance.git_state(),
    }

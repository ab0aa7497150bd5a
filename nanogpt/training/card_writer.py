"""Writes the report of a finished run: its card, plots and further TensorBoard events."""

import math

import lightning as L
from jsonargparse import Namespace

from nanogpt.generation.checkpoint import Checkpoint
from nanogpt.insight import provenance
from nanogpt.insight.reference import best_losses, reference_curve
from nanogpt.models import count_parameters
from nanogpt.notices import notice, print_text
from nanogpt.runs import Run
from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.run_config import changed_settings


def write_card(
    trainer: L.Trainer,
    data: CharDataModule,
    run_state: RunState,
    checkpoint: Checkpoint,
    settings: Namespace,
    defaults: Namespace,
) -> None:
    """Write the report of a finished run to its folder and print the path.

    The best checkpoint is ``checkpoint``. The card lists the settings that differ from the
    defaults, and the reference curve if the corpus is the same.
    """
    from nanogpt.insight import run_report  # matplotlib is slow to import: print the result first

    run, device = Run(checkpoint.path.parent.parent), trainer.strategy.root_device
    model = checkpoint.model
    finished = run_report.FinishedRun(
        run=run,
        model=model.to(device) if device.type == "cuda" else model,
        tokenizer=checkpoint.tokenizer,
        text=data.corpus.text,
        n_train=len(data.splits["train"]),
        history=run_state.history,
        reference=reference_curve(settings.reference, data.corpus.sha256),
        ngrams=data.ngrams,
        seed=data.seed,
    )
    architecture = checkpoint.settings["architecture"]
    facts = {"parameters": f"{count_parameters(model):,} ({architecture})"}
    try:
        facts |= run_facts(trainer, data, run_state)
        run_report.write_report(finished, facts, changed_settings(settings, defaults))
    except OSError as error:
        notice(f"the run is complete and saved, but its card could not be written: {error}")
    else:
        print_text(f"card         {run.folder / 'card.md'}, with curves.png")


def run_facts(trainer: L.Trainer, data: CharDataModule, run_state: RunState) -> dict[str, str]:
    """Return the facts about a run that its card lists, by name."""
    best, corpus = best_losses(run_state.history), data.corpus
    resumed = f", resumed at step {run_state.first_step:,}" if run_state.first_step else ""
    replaced = f", in place of {corpus.stands_in_for}" if corpus.stands_in_for else ""
    return {
        "best val loss": f"{best.val:.4f} nats per character at step {best.step:,} (perplexity "
        f"{math.exp(best.val):.2f}, {best.val / math.log(2):.3f} bits per character)",
        "corpus": f"{corpus.name}{replaced}: {len(corpus.text):,} characters, "
        f"{len(data.tokenizer.vocabulary)} distinct, SHA-256 `{corpus.sha256}`",
        "training": f"{trainer.global_step:,} steps of {data.batch_size} x {data.block_size} "
        f"characters{resumed}, seed {data.seed}, in {trainer.precision}",
        "time": f"{run_state.seconds:.1f} s, evaluations included",
        "machine": provenance.machine(trainer.strategy.root_device),
        "versions": provenance.versions(),
        "code": provenance.git_state(),
    }

"""What ``fit`` and ``validate`` say at their end."""

import sys
from pathlib import Path

import lightning as L

from nanogpt.generation.decoding import sample_text
from nanogpt.generation.loading import load_model, read_checkpoint
from nanogpt.insight.reference import Losses, comparison, read_curve
from nanogpt.text import corpora
from nanogpt.training.data import CharacterData

SAMPLE_CHARACTERS = 500


def stand_in_warning(corpus: corpora.Corpus) -> None:
    """Say, so that nobody can miss it, that another text than the one asked for is used."""
    rule = "!" * 100
    print(
        f"{rule}\n"
        f"!  {corpus.stands_in_for} is neither on this machine nor to be downloaded.\n"
        f"!  The built-in {corpus.name} stands in for it: losses do not compare with those of "
        "other work.\n"
        f"!  For the real text get {corpora.URL}\n"
        f"!  and put it at {Path('data') / corpora.FILE}.\n"
        f"{rule}",
        file=sys.stderr,
        flush=True,
    )


def after_fit(
    trainer: L.Trainer, data: CharacterData, history: list[Losses], reference: str | None
) -> None:
    """Print the best evaluation, the comparison, a sample, and where everything is."""
    if not trainer.is_global_zero:
        return
    if history:
        best = min(history, key=lambda losses: losses.val)
        print(f"best val loss {best.val:.4f} at step {best.step}")
    if reference and data.corpus.sha256 == corpora.SHA256:
        print(
            f"\nbeside the reference's {reference}:\n{comparison(history, read_curve(reference))}"
        )
    elif reference:
        print(
            f"not compared with the reference, whose text was another one than {data.corpus.name}"
        )
    if data.corpus.stands_in_for:
        stand_in_warning(data.corpus)
    callback = trainer.checkpoint_callback
    checkpoint = Path(
        getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
    )
    if not checkpoint.is_file():
        return
    model, tokenizer = load_model(checkpoint)
    print(f"\na sample of {SAMPLE_CHARACTERS} characters from {checkpoint.name}:\n")
    print(sample_text(model, tokenizer, SAMPLE_CHARACTERS, data.seed).strip("\n"))
    folder, kept = checkpoint.parent.parent, sorted(checkpoint.parent.glob("*.ckpt"))
    print(
        f"\nrun          {folder}\n"
        f"checkpoints  {', '.join(str(path) for path in kept)}\n"
        f"curves       tensorboard --logdir {folder.parent}\n"
        "more text    python cli.py predict"
    )


def after_validate(trainer: L.Trainer, data: CharacterData, checkpoint: Path) -> None:
    """Print loss, perplexity and bits per character of both splits."""
    metrics = trainer.callback_metrics
    step = read_checkpoint(checkpoint)["global_step"]
    print(f"{checkpoint}, after step {step}, on {data.corpus.name}:")
    print("         loss  perplexity  bits per character")
    for split in ("train", "val"):
        loss, perplexity, bits = (
            metrics[f"{name}/{split}"].item()
            for name in ("loss", "perplexity", "bits_per_character")
        )
        print(f"{split:5} {loss:7.4f}  {perplexity:10.4f}  {bits:18.4f}")

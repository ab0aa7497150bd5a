"""The report of a finished run: ``card.md``, ``curves.png`` and further TensorBoard events."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from nanogpt.atomic import write_atomically
from nanogpt.generation.generate import GenerationOptions, TextModel, generate_many
from nanogpt.insight.attention_maps import SENTENCE, record_attention
from nanogpt.insight.loss_by_position import bin_means, loss_by_position
from nanogpt.insight.memorization import find_overlap
from nanogpt.insight.model_card import render_card
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.plots import plot_attention, plot_curves, save_figure
from nanogpt.insight.printable import printable
from nanogpt.insight.reference import Losses, best_losses, comparison_table, loss_table
from nanogpt.models import Model
from nanogpt.runs import Run
from nanogpt.text.tokenizer import Tokenizer

SAMPLES, SAMPLE_CHARACTERS = 50, 200  # 10,000 characters, in one batch on a CPU


@dataclass(frozen=True)
class FinishedRun:
    """A finished run and its best model, in evaluation mode.

    The first ``n_train`` characters of ``text`` are the train split; ``reference`` is the curve to
    compare ``history`` with, or empty.
    """

    run: Run
    model: Model
    tokenizer: Tokenizer
    text: str
    n_train: int
    history: Sequence[Losses]
    reference: Sequence[Losses]
    ngrams: Sequence[NGram]
    seed: int


def write_report(
    finished: FinishedRun, facts: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Write the card, the plot of the losses and further TensorBoard events to the run folder.

    The card lists ``facts`` about the run and the ``settings`` that differ from their defaults.
    """
    folder, tokenizer = finished.run.folder, finished.tokenizer
    train_text, val_text = finished.text[: finished.n_train], finished.text[finished.n_train :]
    val = tokenizer.encode(val_text).to(next(finished.model.parameters()).device)
    by_position = loss_by_position(finished.model, val)
    curves = plot_curves(finished.history, finished.reference, finished.ngrams, by_position)
    save_figure(curves, folder / "curves.png")
    text_model = TextModel(finished.model, tokenizer)
    options = GenerationOptions(max_new_tokens=SAMPLE_CHARACTERS, seed=finished.seed)
    samples = list(generate_many(text_model, SAMPLES, options=options))
    compared = {
        f"characters in {SAMPLES} samples": samples,
        "characters of the val split, in such excerpts": evenly_spaced_excerpts(val_text),
    }
    overlaps = {
        f"{sum(map(len, texts)):,} {name}": find_overlap(texts, train_text)
        for name, texts in compared.items()
    }
    losses = comparison_table(finished.history, finished.reference) or loss_table(finished.history)
    card = render_card(folder.name, facts, losses, finished.ngrams, overlaps, samples[0], settings)
    write_atomically(folder / "card.md", card.encode(errors="backslashreplace"))
    known = set(SENTENCE) <= set(tokenizer.vocabulary)
    sentence = SENTENCE if known else val_text[: len(SENTENCE)]
    log_to_tensorboard(finished, by_position, sentence[: finished.model.block_size])


def evenly_spaced_excerpts(text: str) -> list[str]:
    """Return excerpts of the length of a sample, as many as there are samples or as fit."""
    n = min(max(len(text) // SAMPLE_CHARACTERS, 1), SAMPLES)
    last = max(len(text) - SAMPLE_CHARACTERS, 0)
    starts = [i * last // max(n - 1, 1) for i in range(n)]
    return [text[start : start + SAMPLE_CHARACTERS] for start in starts]


def log_to_tensorboard(finished: FinishedRun, by_position: Tensor, sentence: str) -> None:
    """Log the loss by position, the attention maps for a sentence and the token embeddings."""
    model, tokenizer = finished.model, finished.tokenizer
    step = best_losses(finished.history).step
    with SummaryWriter(str(finished.run.folder), filename_suffix=".insight") as writer:
        for position, loss in bin_means(by_position):
            writer.add_scalar("loss_by_position/val", loss, round(position))
        ids = tokenizer.encode(sentence).long().to(next(model.parameters()).device)
        characters = [printable(character) for character in sentence]
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # missing glyphs
            for layer, maps in enumerate(record_attention(model, ids), 1):
                figure = plot_attention(maps, characters, f"layer {layer}")
                writer.add_figure(f"attention/layer_{layer}", figure, step)
        embeddings = model.token_embedding.weight.detach()
        labels = [printable(character) for character in tokenizer.vocabulary]
        writer.add_embedding(embeddings, labels, tag="characters", global_step=step)

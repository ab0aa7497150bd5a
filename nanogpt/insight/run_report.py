"""What a finished run leaves to look at: ``card.md``, ``curves.png``, and more in TensorBoard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from nanogpt.atomic import write_atomically
from nanogpt.generation.generate import TextModel, generate_many
from nanogpt.insight.attention_maps import SENTENCE, attention_maps
from nanogpt.insight.model_card import Card
from nanogpt.insight.printable import visible
from nanogpt.insight.loss_by_position import binned, loss_by_position
from nanogpt.insight.memorization import copied
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.plots import attention_picture, curves_picture, missing_glyphs, save
from nanogpt.insight.reference import Losses, best, comparison
from nanogpt.models import Bigram, Model
from nanogpt.runs import Run
from nanogpt.text.tokenizer import Tokenizer

SAMPLES, SAMPLE_CHARACTERS = 50, 200  # 10,000 characters, short enough for a CPU in one batch


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and its best model, in evaluation mode."""

    run: Run
    model: Model
    tokenizer: Tokenizer
    text: str
    n_train: int  # the first characters of the text, which it was trained on
    history: Sequence[Losses]
    reference: Sequence[Losses]
    ngrams: Sequence[NGram]
    seed: int


def write(finished: Finished, facts: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Write the card, the picture of the curves, and pages of TensorBoard, into its folder.

    Args:
        finished: the run.
        facts: about it, in words.
        settings: of the run, by their full names: those that are not at their defaults.
    """
    run, model, tokenizer = finished.run, finished.model, finished.tokenizer
    device = next(model.parameters()).device
    val = tokenizer.encode(finished.text[finished.n_train :]).to(device)
    by_position = loss_by_position(model, val)
    save(
        curves_picture(finished.history, finished.reference, finished.ngrams, by_position),
        run.folder / "curves.png",
    )
    samples = list(
        generate_many(
            TextModel(model, tokenizer), SAMPLES, "", SAMPLE_CHARACTERS, seed=finished.seed
        )
    )
    train_text = finished.text[: finished.n_train]
    held_out = spread(finished.text[finished.n_train :])
    card = Card(
        title=run.folder.name,
        facts=facts,
        history=finished.history,
        beside=comparison(finished.history, finished.reference),
        ngrams=finished.ngrams,
        samples=samples,
        copied=copied(samples, train_text),
        held_out=held_out,
        copied_held_out=copied(held_out, train_text),
        settings=settings,
    )
    write_atomically(run.folder / "card.md", card.markdown().encode(errors="replace"))
    log_to_tensorboard(finished, by_position, fitting_sentence(finished))


def spread(text: str) -> list[str]:
    """Return pieces of a text as many and as long as the samples, or as far as it goes."""
    pieces = min(max(len(text) // SAMPLE_CHARACTERS, 1), SAMPLES)
    last = max(len(text) - SAMPLE_CHARACTERS, 0)
    starts = [i * last // max(pieces - 1, 1) for i in range(pieces)]
    return [text[start : start + SAMPLE_CHARACTERS] for start in starts]


def fitting_sentence(finished: Finished) -> str:
    """Return the fixed sentence if the model knows it, else the beginning of the val split."""
    known = set(SENTENCE) <= set(finished.tokenizer.vocabulary)
    sentence = SENTENCE if known else finished.text[finished.n_train :][: len(SENTENCE)]
    return sentence[: finished.model.block_size]


def log_to_tensorboard(finished: Finished, by_position: Tensor, sentence: str) -> None:
    """Add to a run's events the loss by position, its attention maps and its embeddings."""
    model, tokenizer = finished.model, finished.tokenizer
    step = best(finished.history).step
    with SummaryWriter(str(finished.run.folder), filename_suffix=".insight") as writer:
        for position, loss in binned(by_position):
            writer.add_scalar("loss_by_position/val", loss, round(position))
        ids = tokenizer.encode(sentence).long().to(next(model.parameters()).device)
        characters = [visible(character) for character in sentence]
        with missing_glyphs():
            for layer, maps in enumerate(attention_maps(model, ids), 1):
                picture = attention_picture(maps, characters, f"layer {layer}")
                writer.add_figure(f"attention/layer_{layer}", picture, step)
        table = model.token_embedding
        labels = [visible(character) for character in tokenizer.vocabulary]
        writer.add_embedding(table.weight.detach(), labels, tag="characters", global_step=step)

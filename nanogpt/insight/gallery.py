"""What a finished run leaves to look at: ``card.md``, ``curves.png``, and more in TensorBoard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from nanogpt.generation.decoding import sample_texts
from nanogpt.insight.attention_maps import SENTENCE, attention_maps
from nanogpt.insight.card import Card
from nanogpt.insight.characters import visible
from nanogpt.insight.context import binned, loss_by_position
from nanogpt.insight.memorising import copied
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.pictures import attention_picture, curves_picture, missing_glyphs, save
from nanogpt.insight.reference import Losses, comparison
from nanogpt.models import GPT, Bigram
from nanogpt.runs import Run
from nanogpt.text.tokenizer import Tokenizer

SAMPLES, SAMPLE_CHARACTERS = 50, 200  # 10,000 characters, short enough for a CPU in one batch


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and its best model, in evaluation mode."""

    run: Run
    model: Bigram | GPT
    tokenizer: Tokenizer
    text: str
    n_train: int  # the first characters of the text, which it was trained on
    history: Sequence[Losses]
    reference: Sequence[Losses]
    ngrams: Sequence[NGram]
    seed: int


def leave(finished: Finished, facts: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Write the card, the picture of the curves, and the pages of TensorBoard, into the folder.

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
    samples = sample_texts(model, tokenizer, SAMPLES, SAMPLE_CHARACTERS, finished.seed)
    train_text = finished.text[: finished.n_train]
    card = Card(
        title=run.folder.name,
        facts=facts,
        history=finished.history,
        beside=comparison(finished.history, finished.reference),
        ngrams=finished.ngrams,
        samples=samples,
        copied=copied(samples, train_text),
        copied_val=copied(spread(finished.text[finished.n_train :]), train_text),
        settings=settings,
    )
    (run.folder / "card.md").write_text(card.markdown(), encoding="utf-8", errors="replace")
    hang_in_tensorboard(run, model, tokenizer, by_position, finished.history[-1].step)


def spread(text: str) -> list[str]:
    """Return as much of a text as there are samples, in pieces of the same length."""
    last = max(len(text) - SAMPLE_CHARACTERS, 0)
    starts = {i * last // (SAMPLES - 1) for i in range(SAMPLES)}
    return [text[start : start + SAMPLE_CHARACTERS] for start in sorted(starts)]


def hang_in_tensorboard(
    run: Run, model: Bigram | GPT, tokenizer: Tokenizer, by_position: Tensor, step: int
) -> None:
    """Add to a run's events the loss by position, its attention maps and its embeddings."""
    with SummaryWriter(str(run.folder), filename_suffix=".insight") as writer:
        for position, loss in binned(by_position):
            writer.add_scalar("loss_by_position/val", loss, position)
        known = "".join(c for c in SENTENCE if c in tokenizer.vocabulary) or tokenizer.vocabulary
        sentence = known[: model.block_size]
        ids = tokenizer.encode(sentence).long().to(next(model.parameters()).device)
        characters = [visible(character) for character in sentence]
        with missing_glyphs():
            for layer, maps in enumerate(attention_maps(model, ids), 1):
                picture = attention_picture(maps, characters, f"layer {layer}")
                writer.add_figure(f"attention/layer_{layer}", picture, step)
        table = model.table if isinstance(model, Bigram) else model.token_embedding
        labels = [visible(character) for character in tokenizer.vocabulary]
        writer.add_embedding(table.weight.detach(), labels, tag="characters", global_step=step)

"""Pictures of a run: its curves, its attention, the ladder. Importing this takes half a second."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nanogpt.atomic import write_atomically
from nanogpt.insight.loss_by_position import binned
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses, best

TRAIN, VAL, FAINT, INK = "#2563a8", "#c2410c", "#9aa0a6", "#202124"
STYLE: dict[str, Any] = {"fontsize": 9, "color": INK}


def curves_picture(
    history: Sequence[Losses],
    reference: Sequence[Losses],
    ngrams: Sequence[NGram],
    by_position: Tensor,
) -> Figure:
    """Draw the losses over the steps, and the val loss by position in the window, (T,)."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_losses(left, history, reference)
    lowest = min(min(row.train, row.val) for row in [*history, *reference])
    for ngram in ngrams:
        if ngram.held_out > lowest - 0.3:
            _draw_ngram(left, ngram)
    _draw_positions(right, by_position)
    return figure


def attention_picture(maps: Tensor, characters: Sequence[str], title: str) -> Figure:
    """Draw the attention weights of every head of a layer, (nh, T, T), each on a square."""
    n_head, size = maps.shape[:2]
    columns = math.ceil(math.sqrt(n_head))
    rows = math.ceil(n_head / columns)
    width, height = 4 * columns, 0.3 + 4.1 * rows  # inches; a layout engine would take a second
    figure = Figure(figsize=(width, height))
    margins = {"left": 0.25 / width, "right": 1 - 0.1 / width, "bottom": 0.1 / height}
    figure.subplots_adjust(**margins, top=1 - 0.75 / height, wspace=0.08, hspace=0.14)
    squares = figure.subplots(rows, columns, squeeze=False).flat
    for head, axes in enumerate(squares, 1):
        axes.set_visible(head <= n_head)
        if head > n_head:
            continue
        axes.imshow(maps[head - 1].numpy(force=True), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        axes.set_xticks(range(size), characters, fontsize=7, family="monospace")
        axes.set_yticks(range(size), characters, fontsize=7, family="monospace")
        axes.tick_params(length=0, pad=2)
        axes.xaxis.tick_top()
        axes.set_title(f"head {head}", **STYLE)
        axes.spines[:].set_color("#dddddd")
    about = f"{title}: each row gathers from the columns, the darker the more"
    figure.suptitle(about, y=1 - 0.1 / height, va="top", **STYLE)
    return figure


def ladder_picture(
    names: Sequence[str], losses: Sequence[Sequence[float]], ngrams: Sequence[NGram]
) -> Figure:
    """Draw the best val loss of every rung: a dot for each seed, a bar for their mean."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots()
    means = [sum(of_rung) / len(of_rung) for of_rung in losses]
    for place, (mean, of_rung) in enumerate(zip(means, losses, strict=True)):
        lower = place == 0 or mean < means[place - 1]
        color = TRAIN if lower else FAINT
        axes.plot([place - 0.36, place + 0.36], [mean, mean], color=color, linewidth=5)
        axes.plot([place] * len(of_rung), of_rung, "o", color=INK, markersize=3, zorder=3)
        axes.annotate(
            f"{mean:.3f}", (place, max(of_rung)), (0, 7), textcoords="offset points", ha="center"
        )
        if place:
            axes.plot([place - 0.5] * 2, [means[place - 1], mean], color=FAINT, linewidth=1)
    axes.set_ylim(min(map(min, losses)) - 0.1, max(map(max, losses)) + 0.15)
    for ngram in ngrams:
        if axes.get_ylim()[0] < ngram.held_out < axes.get_ylim()[1]:
            _draw_ngram(axes, ngram)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("best val loss (nats per character)")
    _calm(axes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all."""
    content = io.BytesIO()
    with missing_glyphs():
        figure.savefig(content, dpi=120)
    write_atomically(path, content.getbuffer())


@contextmanager
def missing_glyphs() -> Iterator[None]:
    """Draw a character that the font lacks as a box, and say nothing of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _draw_losses(axes: Axes, history: Sequence[Losses], reference: Sequence[Losses]) -> None:
    for rows, style, name in ((reference, "--", "reference's "), (history, "o-", "")):
        if not rows:
            continue
        steps = [row.step for row in rows]
        for split, color in (("train", TRAIN), ("val", VAL)):
            losses = [getattr(row, split) for row in rows]
            axes.plot(
                *(steps, losses, style),
                color=color,
                markersize=3,
                linewidth=1 if name else 1.6,
                label=f"{name}{split}",
                alpha=0.55 if name else 1,
            )
    lowest = best(history)
    axes.plot(lowest.step, lowest.val, "o", color=VAL, markersize=7, fillstyle="none")
    axes.annotate(
        *(f"{lowest.val:.4f}", (lowest.step, lowest.val), (0, 9)),
        textcoords="offset points",
        ha="right",
        color=VAL,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per character)")
    axes.legend(frameon=False, fontsize=9)
    _calm(axes)


def _draw_ngram(axes: Axes, ngram: NGram) -> None:
    axes.axhline(ngram.held_out, color=FAINT, linestyle=":", linewidth=1, zorder=0)
    label = f"{ngram.name}\ncounts {ngram.held_out:.2f}"
    beside = axes.get_yaxis_transform()
    axes.text(1.01, ngram.held_out, label, transform=beside, va="center", fontsize=8, color=FAINT)


def _draw_positions(axes: Axes, by_position: Tensor) -> None:
    axes.plot(range(1, len(by_position) + 1), by_position.numpy(), ".", color=FAINT, markersize=3)
    axes.plot(*zip(*binned(by_position), strict=True), "o-", color=VAL, markersize=3, linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("characters of context")
    axes.set_title("what more context buys: val loss by position", **STYLE)
    _calm(axes)


def _calm(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)

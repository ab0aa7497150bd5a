"""Figures of a run's losses, its attention maps and the ladder. Takes half a second to import."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nanogpt.atomic import write_atomically
from nanogpt.insight.loss_by_position import bin_means
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses, best_losses

TRAIN_COLOR, VAL_COLOR, GRAY, BLACK = "#2563a8", "#c2410c", "#9aa0a6", "#202124"
TITLE_STYLE: dict[str, Any] = {"fontsize": 9, "color": BLACK}


def plot_curves(
    history: Sequence[Losses],
    reference: Sequence[Losses],
    ngrams: Sequence[NGram],
    by_position: Tensor,
) -> Figure:
    """Plot the losses by step, and the val loss by position in the window, (T,)."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _plot_losses(left, history, reference)
    lowest = min(min(row.train, row.val) for row in [*history, *reference])
    for ngram in ngrams:
        if ngram.held_out > lowest - 0.3:
            _plot_ngram(left, ngram)
    _plot_positions(right, by_position)
    return figure


def plot_attention(maps: Tensor, characters: Sequence[str], title: str) -> Figure:
    """Plot the attention weights of every head of a layer, (nh, T, T), in a grid."""
    n_head, size = maps.shape[:2]
    columns = math.ceil(math.sqrt(n_head))
    rows = math.ceil(n_head / columns)
    width, height = 4 * columns, 0.3 + 4.1 * rows  # inches; a layout engine would take a second
    figure = Figure(figsize=(width, height))
    margins = {"left": 0.25 / width, "right": 1 - 0.1 / width, "bottom": 0.1 / height}
    figure.subplots_adjust(**margins, top=1 - 0.75 / height, wspace=0.08, hspace=0.14)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for head, axes in enumerate(grid, 1):
        axes.set_visible(head <= n_head)
        if head > n_head:
            continue
        axes.imshow(maps[head - 1].numpy(force=True), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        axes.set_xticks(range(size), characters, fontsize=7, family="monospace")
        axes.set_yticks(range(size), characters, fontsize=7, family="monospace")
        axes.tick_params(length=0, pad=2)
        axes.xaxis.tick_top()
        axes.set_title(f"head {head}", **TITLE_STYLE)
        axes.spines[:].set_color("#dddddd")
    title = f"{title}: each row attends to the columns; darker is more"
    figure.suptitle(title, y=1 - 0.1 / height, va="top", **TITLE_STYLE)
    return figure


def plot_ladder(
    names: Sequence[str], losses: Sequence[Sequence[float]], ngrams: Sequence[NGram]
) -> Figure:
    """Plot the best val losses of every stage: a dot for each seed, a bar for their mean."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots()
    means = [sum(seeds) / len(seeds) for seeds in losses]
    for i, (mean, seeds) in enumerate(zip(means, losses, strict=True)):
        improves = i == 0 or mean < means[i - 1]
        color = TRAIN_COLOR if improves else GRAY
        axes.plot([i - 0.36, i + 0.36], [mean, mean], color=color, linewidth=5)
        axes.plot([i] * len(seeds), seeds, "o", color=BLACK, markersize=3, zorder=3)
        axes.annotate(
            f"{mean:.3f}", (i, max(seeds)), (0, 7), textcoords="offset points", ha="center"
        )
        if i:
            axes.plot([i - 0.5] * 2, [means[i - 1], mean], color=GRAY, linewidth=1)
    axes.set_ylim(min(map(min, losses)) - 0.1, max(map(max, losses)) + 0.15)
    for ngram in ngrams:
        if axes.get_ylim()[0] < ngram.held_out < axes.get_ylim()[1]:
            _plot_ngram(axes, ngram)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("best val loss (nats per character)")
    _style(axes)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file atomically."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getbuffer())


def _plot_losses(axes: Axes, history: Sequence[Losses], reference: Sequence[Losses]) -> None:
    for rows, style, name in ((reference, "--", "reference's "), (history, "o-", "")):
        if not rows:
            continue
        steps = [row.step for row in rows]
        for split, color in (("train", TRAIN_COLOR), ("val", VAL_COLOR)):
            losses = [getattr(row, split) for row in rows]
            axes.plot(
                *(steps, losses, style),
                color=color,
                markersize=3,
                linewidth=1 if name else 1.6,
                label=f"{name}{split}",
                alpha=0.55 if name else 1,
            )
    best = best_losses(history)
    axes.plot(best.step, best.val, "o", color=VAL_COLOR, markersize=7, fillstyle="none")
    axes.annotate(
        *(f"{best.val:.4f}", (best.step, best.val), (0, 9)),
        textcoords="offset points",
        ha="right",
        color=VAL_COLOR,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per character)")
    axes.legend(frameon=False, fontsize=9)
    _style(axes)


def _plot_ngram(axes: Axes, ngram: NGram) -> None:
    axes.axhline(ngram.held_out, color=GRAY, linestyle=":", linewidth=1, zorder=0)
    label = f"{ngram.name}\ncounts {ngram.held_out:.2f}"
    transform = axes.get_yaxis_transform()
    axes.text(1.01, ngram.held_out, label, transform=transform, va="center", fontsize=8, color=GRAY)


def _plot_positions(axes: Axes, by_position: Tensor) -> None:
    axes.plot(range(1, len(by_position) + 1), by_position.numpy(), ".", color=GRAY, markersize=3)
    x, y = zip(*bin_means(by_position), strict=True)
    axes.plot(x, y, "o-", color=VAL_COLOR, markersize=3, linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("characters of context")
    axes.set_title("val loss by position in the context", **TITLE_STYLE)
    _style(axes)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)

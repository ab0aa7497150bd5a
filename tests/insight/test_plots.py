"""Figures are rendered without a display, whatever backend the environment names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PLOT = """
import torch
from nanogpt.insight.plots import plot_attention, plot_curves, plot_ladder, save_figure
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses
from pathlib import Path
from torch.utils.tensorboard import SummaryWriter

history, ngrams = [Losses(0, 4.2, 4.3), Losses(10, 2.5, 2.6)], [NGram(2, 2.4, 2.5)]
save_figure(plot_curves(history, history[:1], ngrams, torch.ones(8)), Path("curves.png"))
save_figure(plot_ladder(["a", "b"], [[2.5], [2.4]], ngrams), Path("ladder.png"))
with SummaryWriter("logs") as writer:
    writer.add_figure("attention", plot_attention(torch.eye(3)[None], "ab漢", "layer 1"))
"""


@pytest.mark.parametrize("backend", ["qtagg", "agg"])
def test_figures_are_rendered_with_any_backend(backend: str, tmp_path: Path) -> None:
    env = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore:Glyph", "-c", PLOT]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in ("curves.png", "ladder.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 1000
    assert list((tmp_path / "logs").iterdir())

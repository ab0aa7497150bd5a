"""A new architecture is one file and one line in the registry, as in docs/architecture.md."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.generation.generate import generate, load
from nanogpt.models.registry import ARCHITECTURES, build_model
from nanogpt.runs import find_model
from tests.command_lines import Run, is_one_line

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
CONFIG = """\
model: {{architecture: {name}, block_size: 8, width: 12, learning_rate: 0.01}}
data: {{corpus: text.txt, batch_size: 4}}
trainer: {{accelerator: cpu, max_steps: 6, val_check_interval: 3}}
"""


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Add the architecture of the document and write a config; return its name."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## Adding an architecture")[1]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    ((name, config, model),) = re.findall(r'^\+ +"(\w+)": \((\w+), (\w+)\),$', section, re.M)
    Path(f"{name}.py").write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"nanogpt.models.{name}", f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    classes = (getattr(module, config), getattr(module, model))
    monkeypatch.setitem(ARCHITECTURES, name, classes)
    Path("config.yaml").write_text(CONFIG.format(name=name))
    return name


def succeed(run: Run, *argv: str) -> str:
    outcome = run(*argv)
    assert outcome.code == 0, outcome.err
    return outcome.out


def last_weights(version: int) -> dict[str, torch.Tensor]:
    path = Path(f"lightning_logs/version_{version}/checkpoints/last.safetensors")
    return read_checkpoint(path).model.state_dict()


def test_training_resuming_and_sampling(run: Run, architecture: str) -> None:
    out = succeed(run, "fit", "--config=config.yaml", "--model.width=10")
    assert read_checkpoint(find_model()).settings["width"] == 10  # overrides the config
    assert "step 6: train loss " in out
    printed = re.findall(r"step 6: train loss (\S+), val loss (\S+)", out)[0]
    validated = succeed(run, "validate")
    assert all(loss in validated for loss in printed)
    succeed(run, "score", "--text=text.txt")

    succeed(run, "fit", "--config=config.yaml", "--trainer.max_steps=3")
    assert "resumed at step 3" in succeed(run, "fit", "--ckpt_path=last", "--trainer.max_steps=6")
    resumed = last_weights(version=1)
    succeed(run, "fit", "--config=config.yaml", "--card=false")
    uninterrupted = last_weights(version=2)
    assert resumed.keys() == uninterrupted.keys()
    assert all(resumed[name].equal(uninterrupted[name]) for name in resumed)

    sample = succeed(run, "predict", "--max_new_tokens=20", "--weights=fp32")
    assert sample == "".join(generate(load(weights="fp32"), max_new_tokens=20)) + "\n"


@pytest.mark.parametrize("lengths", [[8], [1] * 8, [3, 1, 4]], ids=str)
def test_reading_in_pieces_gives_the_logits_of_the_whole_text(
    architecture: str, lengths: list[int]
) -> None:
    torch.manual_seed(1)
    model = build_model(architecture, 11, block_size=8, width=6).double()
    ids, cache = torch.randint(11, (2, 8)), model.new_cache()
    with torch.no_grad():
        logits = torch.cat([model(piece, cache) for piece in ids.split(lengths, dim=1)], dim=1)
        torch.testing.assert_close(logits, model(ids))
    assert cache.length == 8


@pytest.mark.parametrize("option", ["--model.n_layer=2", "--model.dropout=0.1"])
def test_option_of_another_architecture_is_refused(
    run: Run, architecture: str, option: str
) -> None:
    outcome = run("fit", "--config=config.yaml", option)
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    name = option.removeprefix("--model.").partition("=")[0]
    expected = f"the architecture {architecture} has no setting {name}; it has block_size, width"
    assert expected in outcome.err


def test_option_of_the_new_architecture_is_refused_by_others(run: Run, architecture: str) -> None:
    outcome = run("fit", "--config=config.yaml", "--model.architecture=bigram")
    assert outcome.code == 2
    assert "the architecture bigram has no setting width; it has block_size" in outcome.err
    assert "--model.width" in run("fit", "--help").out


@pytest.mark.parametrize("value", ["0", "x"])
def test_settings_are_validated(run: Run, architecture: str, value: str) -> None:
    outcome = run("fit", "--config=config.yaml", f"--model.width={value}")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "width" in outcome.err
    assert not Path("lightning_logs").exists()

"""Every shipped config runs and matches its description."""

import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanogpt.models.registry import build_model, config_class, count_parameters
from nanogpt.resources import shipped_configs
from nanogpt.text.corpora import PASTICHE
from tests.command_lines import CONFIGS, Run

ALL = pytest.mark.parametrize("path", shipped_configs().values(), ids=shipped_configs())

# the reference's table: parameters, batch, block, steps, evaluation interval, lr, dropout
REFERENCE = {
    "bigram": (4_225, 32, 8, 5000, 300, 1e-3, 0.0),
    "ladder/01_bigram": (4_225, 32, 8, 5000, 500, 1e-3, 0.0),
    "ladder/04_heads": (7_553, 32, 8, 5000, 500, 1e-3, 0.0),
    "gpt_small": (309_313, 32, 128, 5000, 500, 3e-4, 0.2),
    "gpt10m": (10_788_929, 64, 256, 5000, 500, 3e-4, 0.2),
}
OPTIMIZER = ("betas", "weight_decay", "schedule", "warmup_steps")  # the reference used defaults

# overrides that make any config small, for the settings that it contains
SMALL = {
    "model": {"block_size": 8, "n_embd": 24},
    "data": {"batch_size": 2},
    "trainer": {"max_steps": 2, "val_check_interval": 2},
}


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def n_parameters(model: dict[str, Any]) -> int:
    """Return the parameters of a config's model with a vocabulary of 65 characters."""
    names = [field.name for field in fields(config_class(model["architecture"]))]
    settings = {name: model[name] for name in names if name in model}
    return count_parameters(build_model(model["architecture"], 65, **settings))


@ALL
def test_config_runs(path: Path, run: Run, text: str) -> None:
    options = [
        f"--{section}.{name}={value}"
        for section, settings in read(path).items()
        for name, value in SMALL.get(section, {}).items()
        if name in settings
    ]
    outcome = run(
        *("fit", "--config", str(path), *options),
        *(f"--data.corpus={text}", "--trainer.accelerator=cpu", "--card=false"),
    )
    assert outcome.code == 0, outcome.err
    for step in (0, 2):
        assert f"step {step}: train loss " in outcome.out
    assert (Path("lightning_logs") / "version_0" / "checkpoints" / "best.ckpt").is_file()


@ALL
def test_config_can_be_trained_offline(path: Path) -> None:
    data = read(path)["data"]
    assert data["offline_corpus"] == PASTICHE
    assert "corpus" not in data  # tiny Shakespeare if it is available


@ALL
def test_first_line_states_the_number_of_parameters(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split("\n")[0]
    found = re.match(r"# .*\(([\d.,]+)( M)? parameters\)", first)
    assert found, first
    n, stated = n_parameters(read(path)["model"]), found[1].replace(",", "")
    assert stated == (f"{n / 1e6:.1f}" if found[2] else str(n))


@pytest.mark.parametrize("name", REFERENCE)
def test_config_matches_the_reference(name: str) -> None:
    config = read(CONFIGS / f"{name}.yaml")
    model, trainer = config["model"], config["trainer"]
    assert (
        n_parameters(model),
        config["data"]["batch_size"],
        model["block_size"],
        trainer["max_steps"],
        trainer["val_check_interval"],
        model["learning_rate"],
        model.get("dropout", 0.0),
    ) == REFERENCE[name]
    assert model.get("init", "default") == "default"
    assert not model.keys() & set(OPTIMIZER)
    assert not trainer.keys() & {"gradient_clip_val", "accumulate_grad_batches"}
    assert "seed_everything" not in config  # 1337 without it: the reference's seed


# the setting that each stage of the ladder changes, from the third on
LADDER = sorted((CONFIGS / "ladder").glob("*.yaml"))
CHANGES = ["parts", "n_head", "parts", "n_layer", "parts", "parts", "positions"]


def flat(path: Path) -> dict[str, Any]:
    """Return the settings of a config by their full names."""
    return {
        f"{section}.{name}": value
        for section, settings in read(path).items()
        for name, value in settings.items()
    }


def test_each_stage_of_the_ladder_changes_one_setting() -> None:
    changes = []
    for previous, stage in pairwise(map(flat, LADDER[1:])):
        assert previous.keys() == stage.keys()
        changes.append([name for name in stage if stage[name] != previous[name]])
    assert changes == [[f"model.{name}"] for name in CHANGES]


def test_first_two_stages_share_their_common_settings() -> None:
    bigram, average = map(flat, LADDER[:2])
    assert bigram.keys() < average.keys()
    assert [name for name in bigram if bigram[name] != average[name]] == ["model.architecture"]


@pytest.mark.parametrize("path", LADDER, ids=lambda path: path.stem)
def test_all_stages_are_trained_with_the_same_settings(path: Path) -> None:
    settings = flat(path)
    shared = ("data.batch_size", "model.block_size", "trainer.max_steps", "model.learning_rate")
    assert [settings[name] for name in shared] == [32, 8, 5000, 1e-3]
    assert "model.dropout" not in settings

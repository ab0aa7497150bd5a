"""A checkpoint gives back the model that was trained, and nothing else gets in."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import SETTINGS, load_model, read_checkpoint
from nanogpt.models import GPT, Bigram, build_model

VOCABULARY = "\n abé🎭"
MODELS: dict[str, dict[str, Any]] = {
    "bigram": {"block_size": 8},
    "gpt": {"block_size": 5, "n_layer": 2, "n_head": 3, "n_embd": 8, "head_size": 7,
            "dropout": 0.3, "init": "normal"},
}  # fmt: skip


def content(architecture: str = "gpt") -> tuple[Bigram | GPT, dict[str, Any]]:
    """A model, and what a checkpoint of it holds."""
    settings = dict.fromkeys(SETTINGS) | MODELS[architecture]
    model = build_model(architecture, len(VOCABULARY), **settings)
    hparams = {"architecture": architecture, "vocabulary": VOCABULARY, **settings}
    return model, {
        "state_dict": {f"net.{name}": weight for name, weight in model.state_dict().items()},
        "hyper_parameters": {**hparams, "learning_rate": 1e-3, "betas": (0.9, 0.999)},
        "global_step": 7,
        "CharDataModule": {"name": "faust.txt", "sha256": "0", "stands_in_for": None},
    }


@pytest.mark.parametrize("architecture", MODELS)
def test_a_checkpoint_gives_back_the_same_logits(architecture: str) -> None:
    model, kept = content(architecture)
    torch.save(kept, "model.ckpt")
    loaded, tokenizer = load_model(Path("model.ckpt"))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert tokenizer.vocabulary == VOCABULARY
    ids = torch.tensor([[0, 3, 5, 1, 4]])
    assert loaded(ids).equal(model.eval()(ids))
    assert read_checkpoint(Path("model.ckpt"))["global_step"] == 7


class Harmful:
    """What runs code when it is unpickled the plain way: it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm was done"),)


def test_the_harm_is_real() -> None:
    pickle.loads(pickle.dumps(Harmful()))
    assert Path("harm was done").exists()


def saved(value: Any, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def changed(**parts: Any) -> bytes:
    """A checkpoint with some of its hyperparameters or parts replaced, or left out where `...`."""
    _, kept = content()
    for name, value in parts.items():
        where = kept if name in kept else kept["hyper_parameters"]
        where[name] = value
        if value is ...:
            del where[name]
    return saved(kept)


def shapes(change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    _, kept = content()
    change(kept["state_dict"])
    return saved(kept)


WRONG: dict[str, Callable[[], bytes]] = {
    "code in a hyperparameter": lambda: changed(learning_rate=Harmful()),
    "code in the old format": lambda: saved(
        {**content()[1], "extra": Harmful()}, _use_new_zipfile_serialization=False
    ),
    "nothing but code": lambda: pickle.dumps(Harmful()),
    "a path": lambda: changed(learning_rate=Path("x")),
    "cut short": lambda: saved(content()[1])[:-200],
    "cut in half": lambda: saved(content()[1])[: len(saved(content()[1])) // 2],
    "empty": lambda: b"",
    "text": lambda: b"Some text\nof two lines.\n",
    "a single tensor": lambda: saved(torch.zeros(3)),
    "weights alone": lambda: saved(content()[1]["state_dict"]),
    "a list": lambda: saved([1, 2]),
    "an unknown architecture": lambda: changed(architecture="os.system"),
    "no architecture": lambda: changed(architecture=...),
    "a setting out of range": lambda: changed(n_head=0),
    "a setting of another kind": lambda: changed(n_layer="two"),
    "no vocabulary": lambda: changed(vocabulary=...),
    "a vocabulary that repeats": lambda: changed(vocabulary="aabcde"),
    "a vocabulary of another length": lambda: changed(vocabulary="abc"),
    "a vocabulary of numbers": lambda: changed(vocabulary=[1, 2]),
    "no weights": lambda: changed(state_dict=...),
    "no step": lambda: changed(global_step=...),
    "a wider model": lambda: changed(n_embd=10),
    "a weight too few": lambda: shapes(lambda state: state.pop("net.ln_f.bias")),
    "a weight too many": lambda: shapes(lambda state: state.update({"net.x": torch.zeros(1)})),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_anything_else_is_refused_in_one_line_and_runs_nothing(wrong: Callable[[], bytes]) -> None:
    path = Path("model.ckpt")
    path.write_bytes(wrong())
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    assert "'model.ckpt' is not a checkpoint of this project" in str(error.value)
    assert len(str(error.value)) < 300
    assert [found.name for found in Path().iterdir()] == ["model.ckpt"]


def test_an_unchanged_checkpoint_is_not_refused() -> None:
    Path("model.ckpt").write_bytes(changed())
    load_model(Path("model.ckpt"))


def test_a_folder_and_a_missing_file_are_refused() -> None:
    for path in (Path(), Path("missing.ckpt")):
        with pytest.raises(UserError, match="not a checkpoint"):
            load_model(path)

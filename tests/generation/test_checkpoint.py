"""A model file restores the trained model; any other file is refused."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import (
    METADATA_KEY,
    load_checkpoint,
    model_file,
    read_checkpoint,
)
from nanogpt.models import Model, build_model
from nanogpt.runs import LOGS

VOCABULARY = "\n abé🎭"
MODELS: dict[str, dict[str, Any]] = {
    "bigram": {"block_size": 8},
    "gpt": {"block_size": 5, "n_layer": 2, "n_head": 3, "n_embd": 8, "head_size": 7,
            "dropout": 0.3, "init": "normal"},
    "modern": {"block_size": 5, "n_layer": 1, "n_head": 2, "n_embd": 8},
    "ablated_gpt": {"block_size": 4, "n_layer": 300, "parts": ["mean"]},
}  # fmt: skip


def content(architecture: str = "gpt") -> tuple[Model, dict[str, Any]]:
    """Return a model and the content of its checkpoint, as Lightning saves it."""
    settings = MODELS[architecture]
    model = build_model(architecture, len(VOCABULARY), **settings)
    hparams = {"architecture": architecture, "vocabulary": VOCABULARY, **settings}
    return model, {
        "state_dict": {f"net.{name}": weight for name, weight in model.state_dict().items()},
        "hyper_parameters": {**hparams, "learning_rate": 1e-3, "betas": (0.9, 0.999)},
        "global_step": 7,
        "callbacks": {"RunState": {"history": [[0, 4.0, 4.1], [7, 3.0, 3.1]], "seconds": 1.0}},
        "CharDataModule": {"name": "faust.txt", "sha256": "0", "path": "/home/faust.txt"},
        "datamodule_hyper_parameters": {"corpus": "/home/faust.txt", "val_fraction": 0.2},
    }


@pytest.mark.parametrize("architecture", MODELS)
def test_loaded_model_has_the_same_logits(architecture: str) -> None:
    model, saved_content = content(architecture)
    Path("model.safetensors").write_bytes(model_file(saved_content))
    checkpoint = load_checkpoint("model.safetensors")
    assert type(checkpoint.model) is type(model)
    assert not checkpoint.model.training
    assert checkpoint.tokenizer.vocabulary == VOCABULARY
    ids = torch.tensor([[0, 3, 5, 1]])
    assert checkpoint.model(ids).equal(model.eval()(ids))
    assert checkpoint.path == Path("model.safetensors")
    assert (checkpoint.step, checkpoint.val_loss) == (7, 3.1)
    assert checkpoint.settings == saved_content["hyper_parameters"] | {"betas": [0.9, 0.999]}
    assert checkpoint.corpus == {"name": "faust.txt", "sha256": "0", "stands_in_for": None}


def test_weights_of_lower_precision_become_float32() -> None:
    _, saved_content = content()
    state = saved_content["state_dict"]
    saved_content["state_dict"] = {name: weight.bfloat16() for name, weight in state.items()}
    Path("model.safetensors").write_bytes(model_file(saved_content))
    weights = read_checkpoint(Path("model.safetensors")).model.state_dict()
    assert all(weights[name[4:]].equal(w.bfloat16().float()) for name, w in state.items())


def changed(**parts: Any) -> bytes:
    """Return a model file with entries or settings replaced, or removed if `...`."""
    raw = model_file(content()[1])
    info = json.loads(header(raw)["__metadata__"][METADATA_KEY])
    for name, value in parts.items():
        target = info if name in info else info["settings"]
        target[name] = value
        if value is ...:
            del target[name]
    return save(load(raw), {METADATA_KEY: json.dumps(info)})


def header(raw: bytes) -> dict[str, Any]:
    """Return the header of a model file."""
    parsed: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return parsed


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    raw = model_file(content()[1])
    weights = load(raw)
    change(weights)
    return save(weights, header(raw)["__metadata__"])


def filled(value: float) -> bytes:
    return with_weights(lambda weights: weights["ln_f.bias"].fill_(value))


def test_step_that_was_not_evaluated_has_no_val_loss() -> None:
    for value in (None, ...):
        Path("model.safetensors").write_bytes(changed(val_loss=value))
        assert read_checkpoint(Path("model.safetensors")).val_loss is None


WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "a checkpoint": (lambda: pickle.dumps(content()[1]["hyper_parameters"]), "header"),
    "truncated": (lambda: changed()[:-200], "Error"),
    "empty": (lambda: b"", "Error"),
    "text": (lambda: b"Some text\nof two lines.\n", "header"),
    "only weights": (lambda: save(load(changed())), "no settings"),
    "an unknown architecture": (lambda: changed(architecture="os.system"), "no architecture"),
    "no architecture": (lambda: changed(architecture=...), "architecture"),
    "a setting out of range": (lambda: changed(n_head=0), "n_head"),
    "a setting of the wrong type": (lambda: changed(n_layer="two"), "n_layer"),
    "a nested setting": (lambda: changed(n_layer={"a": [1]}), "n_layer cannot be"),
    "a huge setting": (lambda: changed(block_size=10**30), "Error|fit|large"),
    "an infinite setting": (lambda: changed(dropout=float("inf")), "dropout"),
    "too many layers": (lambda: changed(n_layer=10**9), "n_layer must be at most"),
    "a huge model": (lambda: changed(n_embd=10**15), "too large|do not fit"),
    "no vocabulary": (lambda: changed(vocabulary=...), "no settings"),
    "a vocabulary with duplicates": (lambda: changed(vocabulary="aabcde"), "distinct"),
    "a vocabulary of the wrong length": (lambda: changed(vocabulary="abc"), "do not fit"),
    "a vocabulary of numbers": (lambda: changed(vocabulary=[1, 2]), "no settings"),
    "a vocabulary with a surrogate": (lambda: changed(vocabulary="\n abé\ud800"), "surrogates"),
    "a huge vocabulary": (lambda: changed(vocabulary="x" * 2**17), "vocabulary is not valid"),
    "a long setting": (lambda: changed(betas=[0.5] * 2000), "settings is not valid"),
    "too many settings": (lambda: changed(**{f"x{i}": 1 for i in range(200)}), "settings is not"),
    "a huge header": (lambda: changed(vocabulary="x" * 2**23), "more than 4,194,304 bytes"),
    "no step": (lambda: changed(step=...), "no settings"),
    "a negative step": (lambda: changed(step=-1), "step is not valid"),
    "a NaN val loss": (lambda: changed(val_loss=float("nan")), "val_loss is not valid"),
    "a val loss of text": (lambda: changed(val_loss="low"), "val_loss is not valid"),
    "a corpus of numbers": (lambda: changed(corpus={"name": 1}), "corpus is not valid"),
    "a wider model": (lambda: changed(n_embd=10), "do not fit"),
    "a missing weight": (lambda: with_weights(lambda w: w.pop("ln_f.bias")), "ln_f.bias"),
    "an extra weight": (lambda: with_weights(lambda w: w.update(x=torch.zeros(1))), "such as x"),
    "a NaN": (lambda: filled(float("nan")), "ln_f.bias is not finite"),
    "an infinity": (lambda: filled(float("inf")), "ln_f.bias is not finite"),
    "integers": (
        lambda: with_weights(lambda w: w.update({"ln_f.bias": w["ln_f.bias"].int()})), "type"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "reason"), WRONG.values(), ids=WRONG)
def test_any_other_file_is_refused_in_one_line(wrong: Callable[[], bytes], reason: str) -> None:
    path = Path("model.safetensors")
    path.write_bytes(wrong())
    with pytest.raises(UserError, match=reason) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert "'model.safetensors' cannot be read as a nanogpt model" in str(error.value)
    assert len(str(error.value)) < 300
    assert [found.name for found in Path().iterdir()] == ["model.safetensors"]


def test_unchanged_file_is_accepted() -> None:
    Path("model.safetensors").write_bytes(changed())
    read_checkpoint(Path("model.safetensors"))


@pytest.mark.parametrize("architecture", ["bigram", "modern"])
def test_context_is_bounded_where_the_weights_do_not_limit_it(architecture: str) -> None:
    _, saved_content = content(architecture)
    path = Path("model.safetensors")
    for block_size in (2**16, 10**8):
        saved_content["hyper_parameters"]["block_size"] = block_size
        path.write_bytes(model_file(saved_content))
        if block_size == 2**16:
            read_checkpoint(path)
    with pytest.raises(UserError, match="block_size of 100,000,000 is out of proportion"):
        read_checkpoint(path)


def test_what_is_no_regular_file_is_refused() -> None:
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for path in ("", "missing.safetensors", "pipe", "loop", "/dev/zero"):
        with pytest.raises(UserError, match="cannot be read as a nanogpt model"):
            read_checkpoint(Path(path))


# the other model of the run


@pytest.fixture
def run_folder() -> Path:
    """Create a run with a damaged best model and an intact last one."""
    checkpoints = LOGS / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.safetensors").touch()
    (checkpoints / "last.safetensors").write_bytes(changed())
    return checkpoints.parent


def test_damaged_model_is_replaced_by_the_other_one_with_a_notice(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run_folder / "checkpoints" / "last.safetensors"
    for ckpt_path in ("best", str(run_folder)):
        assert load_checkpoint(ckpt_path).path == last
        assert "best.safetensors is damaged: using" in capsys.readouterr().err
    assert load_checkpoint("last").path == last
    assert not capsys.readouterr().err


def test_damaged_model_is_an_error_without_an_intact_one(run_folder: Path) -> None:
    best = run_folder / "checkpoints" / "best.safetensors"
    with pytest.raises(UserError, match="cannot be read as a"):  # a file name has no fallback
        load_checkpoint(str(best))
    best.with_name("last.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"neither .*best.safetensors nor last.safetensors .*train"):
        load_checkpoint()
    best.with_name("last.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read as a"):
        load_checkpoint()

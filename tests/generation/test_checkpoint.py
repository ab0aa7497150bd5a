"""A checkpoint restores the trained model; any other file is refused."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import load_checkpoint, read_checkpoint
from nanogpt.models import Model, build_model
from nanogpt.runs import LOGS

VOCABULARY = "\n abé🎭"
MODELS: dict[str, dict[str, Any]] = {
    "bigram": {"block_size": 8},
    "gpt": {"block_size": 5, "n_layer": 2, "n_head": 3, "n_embd": 8, "head_size": 7,
            "dropout": 0.3, "init": "normal"},
}  # fmt: skip


def content(architecture: str = "gpt") -> tuple[Model, dict[str, Any]]:
    """Return a model and the content of its checkpoint."""
    settings = MODELS[architecture]
    model = build_model(architecture, len(VOCABULARY), **settings)
    hparams = {"architecture": architecture, "vocabulary": VOCABULARY, **settings}
    return model, {
        "state_dict": {f"net.{name}": weight for name, weight in model.state_dict().items()},
        "hyper_parameters": {**hparams, "learning_rate": 1e-3, "betas": (0.9, 0.999)},
        "global_step": 7,
        "CharDataModule": {"name": "faust.txt", "sha256": "0", "stands_in_for": None},
    }


@pytest.mark.parametrize("architecture", MODELS)
def test_loaded_model_has_the_same_logits(architecture: str) -> None:
    model, saved_content = content(architecture)
    torch.save(saved_content, "model.ckpt")
    checkpoint = load_checkpoint("model.ckpt")
    assert type(checkpoint.model) is type(model)
    assert not checkpoint.model.training
    assert checkpoint.tokenizer.vocabulary == VOCABULARY
    ids = torch.tensor([[0, 3, 5, 1, 4]])
    assert checkpoint.model(ids).equal(model.eval()(ids))
    assert checkpoint.path == Path("model.ckpt")
    assert checkpoint.step == 7
    assert checkpoint.settings == saved_content["hyper_parameters"]
    assert checkpoint.corpus == saved_content["CharDataModule"]


class Harmful:
    """Creates a file when it is unpickled by ``pickle``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm was done"),)


def test_harmful_object_runs_code_with_plain_pickle() -> None:
    pickle.loads(pickle.dumps(Harmful()))
    assert Path("harm was done").exists()


def saved(value: Any, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def changed(**parts: Any) -> bytes:
    """Return a checkpoint with entries or hyperparameters replaced, or removed if `...`."""
    _, entries = content()
    for name, value in parts.items():
        target = entries if name in entries else entries["hyper_parameters"]
        target[name] = value
        if value is ...:
            del target[name]
    return saved(entries)


def with_state(change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    _, entries = content()
    change(entries["state_dict"])
    return saved(entries)


WRONG: dict[str, Callable[[], bytes]] = {
    "code in a hyperparameter": lambda: changed(learning_rate=Harmful()),
    "code in the old format": lambda: saved(
        {**content()[1], "extra": Harmful()}, _use_new_zipfile_serialization=False
    ),
    "only code": lambda: pickle.dumps(Harmful()),
    "a path": lambda: changed(learning_rate=Path("x")),
    "truncated": lambda: saved(content()[1])[:-200],
    "cut in half": lambda: saved(content()[1])[: len(saved(content()[1])) // 2],
    "empty": lambda: b"",
    "text": lambda: b"Some text\nof two lines.\n",
    "a single tensor": lambda: saved(torch.zeros(3)),
    "only weights": lambda: saved(content()[1]["state_dict"]),
    "a list": lambda: saved([1, 2]),
    "an unknown architecture": lambda: changed(architecture="os.system"),
    "no architecture": lambda: changed(architecture=...),
    "a setting out of range": lambda: changed(n_head=0),
    "a setting of the wrong type": lambda: changed(n_layer="two"),
    "no vocabulary": lambda: changed(vocabulary=...),
    "a vocabulary with duplicates": lambda: changed(vocabulary="aabcde"),
    "a vocabulary of the wrong length": lambda: changed(vocabulary="abc"),
    "a vocabulary of numbers": lambda: changed(vocabulary=[1, 2]),
    "no weights": lambda: changed(state_dict=...),
    "no step": lambda: changed(global_step=...),
    "a negative step": lambda: changed(global_step=-1),
    "an earlier version": lambda: saved({**content()[1], "CharacterData": {}}),
    "a wider model": lambda: changed(n_embd=10),
    "a missing weight": lambda: with_state(lambda state: state.pop("net.ln_f.bias")),
    "an unexpected weight": lambda: with_state(
        lambda state: state.update({"net.x": torch.zeros(1)})
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_any_other_file_is_refused_in_one_line_and_runs_no_code(wrong: Callable[[], bytes]) -> None:
    path = Path("model.ckpt")
    path.write_bytes(wrong())
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert "'model.ckpt' cannot be read as a nanogpt checkpoint" in str(error.value)
    assert len(str(error.value)) < 300
    assert [found.name for found in Path().iterdir()] == ["model.ckpt"]


def test_unchanged_checkpoint_is_accepted() -> None:
    Path("model.ckpt").write_bytes(changed())
    read_checkpoint(Path("model.ckpt"))


def test_folder_and_missing_file_are_refused() -> None:
    for path in (Path(), Path("missing.ckpt")):
        with pytest.raises(UserError, match="cannot be read as a nanogpt checkpoint"):
            read_checkpoint(path)


# the other checkpoint of the run


@pytest.fixture
def run_folder() -> Path:
    """Create a run with a damaged best.ckpt and an intact last.ckpt."""
    checkpoints = LOGS / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").touch()
    (checkpoints / "last.ckpt").write_bytes(changed())
    return checkpoints.parent


def test_damaged_checkpoint_is_replaced_by_the_other_one_with_a_notice(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run_folder / "checkpoints" / "last.ckpt"
    for ckpt_path in ("best", str(run_folder)):
        assert load_checkpoint(ckpt_path).path == last
        assert "best.ckpt is damaged: using" in capsys.readouterr().err
    assert load_checkpoint(str(run_folder), "last").path == last
    assert not capsys.readouterr().err


def test_damaged_checkpoint_is_an_error_without_an_intact_one(run_folder: Path) -> None:
    best = run_folder / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="cannot be read as a"):  # a file name has no fallback
        load_checkpoint(str(best))
    best.with_name("last.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"neither .*best.ckpt nor last.ckpt .* --ckpt_path"):
        load_checkpoint()
    best.with_name("last.ckpt").unlink()
    with pytest.raises(UserError, match="cannot be read as a"):
        load_checkpoint()


def test_weightless_layers_are_not_limited_by_the_number_of_weights() -> None:
    settings: dict[str, Any] = {"block_size": 4, "n_layer": 300, "parts": ["mean"]}
    model = build_model("ablated_gpt", len(VOCABULARY), **settings)
    entries = content("bigram")[1]
    entries["hyper_parameters"] = {
        **settings, "architecture": "ablated_gpt", "vocabulary": VOCABULARY,
    }  # fmt: skip
    entries["state_dict"] = {f"net.{name}": weight for name, weight in model.state_dict().items()}
    Path("model.ckpt").write_bytes(saved(entries))
    assert len(read_checkpoint(Path("model.ckpt")).model.blocks) == 300

"""Reads and writes a trained model: one safetensors file with its weights and its settings.

Such a file may come from a stranger. The only parser is that of safetensors; the settings are JSON
in its metadata. Nothing in it selects code: the architecture is one of the registry's.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.models.ensemble import Ensemble
from nanogpt.models.registry import Model, build_model, config_class
from nanogpt.notices import notice
from nanogpt.runs import MODEL, find_model
from nanogpt.text.tokenizer import Tokenizer

T = TypeVar("T")

METADATA_KEY = "nanogpt"
MAX_HEADER = 2**22  # bytes; safetensors itself reads up to 100 MB, which takes gigabytes
MAX_CACHED = 2**24  # positions x width x layers, unless the weights are of that order too
MAX_SETTINGS, MAX_SETTING = 100, 5000  # their number, and characters of JSON of one
MAX_VOCABULARY = 2**16
DTYPES = {"F64", "F32", "F16", "BF16"}
ENTRIES = {"settings": dict, "vocabulary": str, "step": int, "corpus": dict, "data": dict}
CORPUS_KEY = "CharDataModule"  # Lightning saves a data module's state under its class name
CORPUS_FIELDS = ("name", "sha256", "stands_in_for")  # no path: the file may be shared


@dataclass(frozen=True)
class Checkpoint:
    """A trained model that has been read from a file and checked.

    Args:
        path: path of the file.
        model: in evaluation mode and float32, on the CPU.
        tokenizer: tokenizer of the training text.
        settings: hyperparameters of the LightningModule.
        step: number of optimizer steps it was trained for.
        corpus: name and SHA-256 of the corpus, and the one that it replaced, if any.
        val_loss: of that step, if it was evaluated.
        data: hyperparameters of the data module.
        others: the files of the further members, if the model is an ensemble; all else is that of
            the first.
    """

    path: Path
    model: Model
    tokenizer: Tokenizer
    settings: dict[str, Any]
    step: int
    corpus: dict[str, str | None] = field(default_factory=dict)
    val_loss: float | None = None
    data: dict[str, Any] = field(default_factory=dict)
    others: tuple[Path, ...] = ()

    @property
    def label(self) -> str:
        """The files, for messages."""
        return ", ".join(map(str, (self.path, *self.others)))


def load_checkpoint(ckpt_path: str = "best") -> Checkpoint:
    """Find and read a model or, if it is damaged, the other one of its run, with a notice.

    There is no fallback for a file given by its name.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a file. Several of them,
            separated by commas, are an ensemble.

    Raises:
        UserError: if there is no such model, or those of an ensemble have other vocabularies.
    """
    exists = os.path.exists(ckpt_path)  # noqa: PTH110 (a Path raises an error for a long name)
    names = [ckpt_path] if exists else ckpt_path.split(",")
    first, *others = [read_or_other(read_checkpoint, find_model(name), name) for name in names]
    for other in others:
        if other.tokenizer.vocabulary != first.tokenizer.vocabulary:
            raise UserError(
                f"{other.path} cannot be in an ensemble with {first.path}: it knows other "
                "characters; use models that were trained on the same text"
            )
    if not others:
        return first
    model: Any = Ensemble([checkpoint.model for checkpoint in (first, *others)])
    return replace(first, model=model, others=tuple(other.path for other in others))


def read_or_other(read: Callable[[Path], T], path: Path, ckpt_path: str) -> T:
    """Read a file of a run or, if it is damaged, the ``best`` or ``last`` one beside it.

    Args:
        read: raises a UserError if the file is damaged.
        path: of the file that was found for ``ckpt_path``.
        ckpt_path: if it names a file instead of a run, no other is read.
    """
    try:
        return read(path)
    except UserError as error:
        other = path.with_stem("last" if path.stem == "best" else "best")
        if path.parent == Path(ckpt_path).parent or not other.is_file():
            raise
        try:
            content = read(other)
        except UserError:
            raise UserError(
                f"neither {path} nor {other.name} in the same folder can be read: pass another "
                f"run or file to --ckpt_path, or train again ({error})"
            ) from error
        notice(f"{path} is damaged: using {other} instead")
        return content


def unreadable(path: Path, error: Exception, kind: str, suffix: str) -> UserError:
    """Return the error for a damaged file, or one of another kind, with a reason in ASCII."""
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    reason = ascii(" ".join(f"{name}{error}".split())[:100])[1:-1]
    return UserError(
        f"{str(path)!r} cannot be read as a nanogpt {kind} ({reason}); give the path of a "
        f"{suffix} file from lightning_logs/version_N/checkpoints/"
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model file; raise a UserError if it is not valid.

    The settings are checked against the names and shapes of the weights before these are read.
    """
    try:
        check_header(path)
        with safe_open(str(path), framework="pt") as file:
            info = parse_metadata(file.metadata())
            tokenizer = Tokenizer(info["vocabulary"])
            model = build_on_meta(info["settings"], len(tokenizer.vocabulary))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            check_shapes(model, {name: part.get_shape() for name, part in slices.items()})
            check_context(model)
            if not all(part.get_dtype() in DTYPES for part in slices.values()):
                raise ValueError("its weights are of another type than a model's")
            weights = {name: file.get_tensor(name).clone() for name in slices}
        check_finite(weights)
        model.load_state_dict(weights, assign=True)
    except Exception as error:  # a damaged file can fail in any way
        raise unreadable(path, error, "model", MODEL) from error
    del info["vocabulary"]
    return Checkpoint(path, model.eval().float(), tokenizer, **info)


def model_file(content: Mapping[str, Any]) -> bytes:
    """Return the model file of a Lightning checkpoint's content."""
    settings = dict(content["hyper_parameters"])
    corpus, callbacks = content.get(CORPUS_KEY) or {}, content.get("callbacks") or {}
    losses = {step: val for step, _, val in callbacks.get("RunState", {}).get("history", ())}
    info = {
        "vocabulary": settings.pop("vocabulary"),
        "settings": settings,
        "step": content["global_step"],
        "val_loss": losses.get(content["global_step"]),
        "corpus": {name: corpus.get(name) for name in CORPUS_FIELDS},
        "data": dict(content.get("datamodule_hyper_parameters") or {}),
    }
    weights = {
        name.removeprefix("net."): weight.detach().cpu().contiguous()
        for name, weight in content["state_dict"].items()
    }
    return bytes(save(weights, {METADATA_KEY: json.dumps(info)}))


def build_on_meta(settings: Mapping[str, Any], vocab_size: int) -> Model:
    """Build the model of some hyperparameters without memory for its weights."""
    names = config_class(settings["architecture"]).__dataclass_fields__
    with torch.device("meta"):
        return build_model(
            settings["architecture"],
            vocab_size,
            **{name: settings[name] for name in names if name in settings},
        )


def check_shapes(model: nn.Module, shapes: Mapping[str, Any]) -> None:
    """Raise ValueError if names or shapes of weights are not those of a model."""
    expected = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    found = {name: list(shape) for name, shape in shapes.items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise ValueError(f"its weights do not fit its settings, such as {wrong[0]}")


def check_header(path: Path) -> None:
    """Raise ValueError if a file is not regular, or its header is too long to be a model's."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER:
            raise ValueError(f"its header has more than {MAX_HEADER:,} bytes")


def check_context(model: Model) -> None:
    """Raise ValueError if sampling would take far more memory than the weights.

    The weights of an architecture without position embeddings do not limit its context.
    """
    weights = model.state_dict().values()
    cached = model.block_size * next(iter(weights)).shape[-1] * len(getattr(model, "blocks", "1"))
    if cached > max(MAX_CACHED, 8 * sum(weight.numel() for weight in weights)):
        raise ValueError(f"its block_size of {model.block_size:,} is out of proportion")


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a weight is not finite."""
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weight {name} is not finite")


def parse_metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the entries of a model file's metadata, of the right types.

    The settings of the model are checked when it is built.
    """
    info = json.loads((metadata or {}).get(METADATA_KEY, "null"))
    if type(info) is not dict or any(type(info.get(key)) is not ENTRIES[key] for key in ENTRIES):
        raise ValueError("it has no settings of a nanogpt model")
    val_loss = info.setdefault("val_loss", None)  # of a step that was not evaluated
    vocabulary, block_size = info["vocabulary"], info["settings"].get("block_size")
    values = [json.dumps(value) for key in ("settings", "data") for value in info[key].values()]
    vocabulary.encode()  # raises for what is no valid Unicode
    valid = {
        "step": 0 <= info["step"] < 2**62,
        "val_loss": val_loss is None or (type(val_loss) is float and math.isfinite(val_loss)),
        "settings": len(values) <= MAX_SETTINGS and len(max(values, key=len)) <= MAX_SETTING,
        "vocabulary": len(vocabulary) <= MAX_VOCABULARY,
        "block_size": type(block_size) is int,
        "corpus": all(value is None or type(value) is str for value in info["corpus"].values()),
    }
    if not all(valid.values()):
        raise ValueError(f"{', '.join(key for key in valid if not valid[key])} is not valid")
    info["settings"]["vocabulary"] = vocabulary
    return {key: info[key] for key in (*ENTRIES, "val_loss")}

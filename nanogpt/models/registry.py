"""The architectures by name, and how a config or a checkpoint becomes a model.

Only what is listed here can be built: a file that names anything else is refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from nanogpt.errors import UserError
from nanogpt.models.ablated_gpt import AblatedGPT, AblatedGPTConfig
from nanogpt.models.bigram import Bigram, BigramConfig
from nanogpt.models.gpt import GPT, GPTConfig
from nanogpt.models.modern import ModernConfig, ModernGPT

Model = Bigram | GPT | ModernGPT  # for annotations; any nn.Module with their methods will do
ARCHITECTURES: dict[str, tuple[type[Any], type[Any]]] = {
    "bigram": (BigramConfig, Bigram),
    "gpt": (GPTConfig, GPT),
    "ablated_gpt": (AblatedGPTConfig, AblatedGPT),
    "modern": (ModernConfig, ModernGPT),
}
MAX_LAYERS = 300  # each takes time and memory, even if it has no weights


def config_class(architecture: str) -> type[Any]:
    """Return the config dataclass of an architecture; raise UserError if there is none."""
    if architecture not in ARCHITECTURES:
        raise UserError(f"no architecture {architecture!r}; choose from {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture][0]


def build_config(architecture: str, settings: Mapping[str, Any]) -> Any:
    """Build the config of an architecture; a setting of None takes its default.

    Raises UserError if there is no such architecture or setting, or if a value is not valid.
    """
    cls = config_class(architecture)
    given = {name: value for name, value in settings.items() if value is not None}
    types = get_type_hints(cls)
    for name, value in given.items():
        if name not in types:
            raise UserError(
                f"the architecture {architecture} has no setting {name}; it has "
                f"{', '.join(types)}: leave {name} out (or set it to null)"
            )
        if not _is_of_type(value, types[name]):
            raise UserError(f"{name} cannot be {value!r}")
        given[name] = tuple(value) if isinstance(value, list) else value
    if given.get("n_layer", 0) > MAX_LAYERS:
        raise UserError(f"n_layer must be at most {MAX_LAYERS:,}, not {given['n_layer']:,}")
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_model(architecture: str, vocab_size: int, **settings: Any) -> Model:
    """Build a model by its architecture's name; a setting of None takes its default.

    Raises:
        UserError: if the settings are not valid, or describe a model too large to build.
    """
    config = build_config(architecture, settings)
    try:
        model: Model = ARCHITECTURES[architecture][1](vocab_size, config)
    except (RuntimeError, OverflowError, TypeError) as error:  # of torch, for sizes beyond memory
        raise UserError(
            "a model with these settings is too large for this machine: lower n_embd, n_head, "
            "head_size or block_size"
        ) from error
    return model


def plain_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a config as plain values, for a file."""
    values = asdict(config).items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def structural_settings(architecture: str) -> list[str]:
    """Return the settings on which the meaning of trained weights depends."""
    every = fields(config_class(architecture))
    return [field.name for field in every if not field.metadata.get("training_only")]


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _is_of_type(value: Any, kind: Any) -> bool:
    """Check a plain value from a file or a caller against a field's annotation."""
    if get_origin(kind) is Literal:
        return type(value) is str  # the config names the choices
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(type(item) is str for item in value)
    allowed = {float: (int, float)}.get(kind, get_args(kind) or (kind,))
    return type(value) in allowed

"""Language models in pure torch: ``forward(ids) -> logits``, always.

``ARCHITECTURES`` is the fixed list of what a config or a checkpoint may name: nothing that is
read from a file chooses any other code.
"""

import inspect
from collections.abc import Sequence

from torch import nn

from nanogpt.errors import UserError
from nanogpt.models.bigram import Bigram
from nanogpt.models.gpt import GPT
from nanogpt.models.ladder import Rung
from nanogpt.models.modern import Modern
from nanogpt.models.shifted import Shifted

Net = Bigram | GPT | Modern
ARCHITECTURES: dict[str, type[Bigram] | type[GPT] | type[Modern]] = {
    "bigram": Bigram,
    "gpt": GPT,
    "rung": Rung,
    "modern": Modern,
    "shifted": Shifted,
}

# the settings that architectures have between them, beside the size of the vocabulary
SETTINGS = (
    *("block_size", "n_layer", "n_head", "n_embd", "head_size", "dropout", "noise", "init"),
    *("parts", "positions"),
)

MOST_LAYERS = 1_000

__all__ = [
    "ARCHITECTURES",
    "GPT",
    "SETTINGS",
    "Bigram",
    "Modern",
    "Net",
    "Rung",
    "Shifted",
    "build_model",
    "count_parameters",
]


def build_model(
    architecture: str, vocab_size: int, **settings: int | float | str | Sequence[str] | None
) -> Net:
    """Build a model by its name; a setting that is None takes the model's own default.

    Raises:
        UserError: if there is no such architecture, or it has no such setting, or a setting is
            out of its range.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"no architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    model = ARCHITECTURES[architecture]
    given = {name: value for name, value in settings.items() if value is not None}
    accepted = [name for name in inspect.signature(model).parameters if name != "vocab_size"]
    for name in given:
        if name not in accepted:
            raise UserError(
                f"the architecture {architecture} has no setting {name}; it has "
                f"{', '.join(accepted)}: leave {name} out (or set it to null)"
            )
    n_layer = given.get("n_layer")
    if isinstance(n_layer, int) and n_layer > MOST_LAYERS:  # each takes time and memory, even empty
        raise UserError(f"n_layer must be at most {MOST_LAYERS:,}, not {n_layer:,}")
    try:
        return model(vocab_size, **given)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, TypeError, OverflowError) as error:  # what torch says of such sizes
        raise UserError(
            "a model of these settings is too large for this machine, or they are of a wrong "
            "kind: make n_embd, n_head, head_size or block_size smaller"
        ) from error


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable numbers in a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

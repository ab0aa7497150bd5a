"""Command lines for tests, and their outcomes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanogpt.text import corpora

CONFIGS = Path(__file__).parents[1] / "configs"
SHARED_TEXT = Path(__file__).parents[2] / "shared" / "data" / corpora.FILE

# overrides configs/quickstart.yaml: a GPT of 2,000 parameters that takes a millisecond per step
TINY = [
    *("--model.architecture=gpt", "--model.token_shift=null", "--model.init=normal"),
    "--model.optimizer=adamw",
    *("--model.learning_rate=2e-3", "--model.schedule=cosine", "--model.warmup_steps=100"),
    *("--model.betas=[0.9,0.999]", "--model.weight_decay=0.01"),
    "--data.replacement=true",
    *("--model.block_size=8", "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=8"),
    *("--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=2"),
    "--card=false",
]


@dataclass
class Outcome:
    """The exit code and output of a command line."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def is_one_line(error: str) -> bool:
    """Return whether stderr is a single line without a traceback."""
    return error.startswith("error: ") and error.count("\n") == 1

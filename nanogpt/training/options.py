"""CLI options besides Lightning's own, their defaults and their validation."""

from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from nanogpt.errors import UserError
from nanogpt.models.registry import ARCHITECTURES, build_config, plain_settings
from nanogpt.training.trainer_parts import DEFAULT_CALLBACKS

TRAINER_DEFAULTS = {
    "devices": 1,
    "max_epochs": -1,  # training is counted in steps
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,  # count the interval over all steps, not within an epoch
    "num_sanity_val_steps": -1,  # a whole evaluation at step 0
    "enable_model_summary": False,
}
HELP = {  # Lightning's names other values
    "ckpt_path": "checkpoint to resume (fit) or model to evaluate (validate; several, separated by "
    "commas, are an ensemble): best or last of the newest run, a run folder, or a file"
}
DERIVED_SETTINGS = {
    "data.block_size": "model.block_size",
    "data.seed": "seed_everything",
    "model.vocabulary": "data.vocabulary",
}


def add_options(parser: LightningArgumentParser, command: str) -> None:
    """Add the options that are not Lightning's, and derive data settings from others."""
    parser.add_argument(
        "--reference",
        type=Literal["bigram", "gpt10m"] | None,
        help="reference curve to compare the run with",
    )
    parser.add_argument(
        "--card",
        type=bool,
        default=True,
        help="write card.md, curves.png and further TensorBoard plots to the run folder",
    )
    parser.add_argument(
        "--teachers",
        type=list[str],
        default=[],
        help="run folders or checkpoints of models to distill: train on their mean prediction "
        "instead of the text's next characters; [PATH, ...]",
    )
    parser.add_argument(
        "--compile",
        type=bool | Literal["auto"],
        default="auto",
        help="compile the training step; auto: on CUDA, if that is estimated to save time",
    )
    if command == "validate":
        parser.add_argument(
            "--stride",
            type=int | None,
            default=None,
            help="also evaluate val in overlapping windows; characters from the start of one "
            "window to the next",
        )
    add_sections(parser)
    source = ("model.architecture", "model.block_size")
    parser.link_arguments(source, "data.block_size", compute_fn=block_size_of)
    parser.link_arguments("seed_everything", "data.seed", int)  # a bool becomes a number
    parser.link_arguments("data.vocabulary", "model.vocabulary")


def add_sections(parser: LightningArgumentParser) -> None:
    """Add the settings of the architectures, and the callbacks by name."""
    for name, (kind, description) in model_settings().items():
        parser.add_argument(f"--model.{name}", type=kind | None, default=None, help=description)
    for name, kind in DEFAULT_CALLBACKS.items():
        parser.add_argument(
            f"--callbacks.{name}",
            type=Callback | None,
            default={"class_path": f"nanogpt.training.callbacks.{kind.__name__}"},
            help=f"{kind.__name__}, or a class path that replaces it; null for none",
        )


def model_settings() -> dict[str, tuple[Any, str]]:
    """Return the type and help text of each setting of the architectures' configs."""
    settings: dict[str, tuple[Any, str]] = {}
    defaults: dict[str, list[str]] = {}
    for architecture, (config, _) in ARCHITECTURES.items():
        types = get_type_hints(config)
        docs = {
            p.arg_name: p.description for p in docstring_parser.parse_from_object(config).params
        }
        for field in fields(config):
            kind = list[str] if get_origin(types[field.name]) is tuple else types[field.name]
            other_kind, text = settings.get(field.name, (kind, docs.get(field.name) or ""))
            settings[field.name] = other_kind | kind, text
            if field.default is not None:
                defaults.setdefault(field.name, []).append(f"{architecture} {field.default}")
    return {
        name: (kind, f"{text} (default: {', '.join(defaults[name])})" if name in defaults else text)
        for name, (kind, text) in settings.items()
    }


def block_size_of(architecture: str, block_size: int | None) -> int:
    """Return a block size, or the architecture's default for None."""
    if block_size is not None or architecture not in ARCHITECTURES:  # rejected later
        return block_size or 1
    default: int = ARCHITECTURES[architecture][0].block_size
    return default


def resolve_model_settings(settings: Namespace) -> None:
    """Replace model settings that are None by the defaults of the architecture.

    Raises:
        UserError: if a setting is out of range, or the architecture does not have it.
    """
    given = {name: settings.model.get(name) for name in model_settings()}
    config = build_config(settings.model.architecture, given)
    settings.model.update(Namespace(plain_settings(config)))


def default_settings(parser: LightningArgumentParser, settings: Namespace) -> Namespace:
    """Return the defaults of all settings; those of the model are of the chosen architecture."""
    defaults = parser.get_defaults()
    config = build_config(settings.model.architecture, {})
    defaults.model.update(Namespace(plain_settings(config)))
    return defaults


def check_sections(settings: Namespace) -> None:
    """Raise a ``UserError`` if model, data or trainer is no section or the seed out of range."""
    for name in ("model", "data", "trainer", "callbacks"):
        if not isinstance(settings[name], Namespace):
            raise UserError(
                f"{name} cannot be {settings[name]!r}; it must be a section of settings"
            )
    seed = settings.seed_everything
    if not 0 <= seed < 2**32:
        raise UserError(f"seed_everything must be a whole number from 0 to 2^32 - 1, not {seed}")


def check_derived(settings: Namespace) -> None:
    """Raise a ``UserError`` if a config contradicts a setting that is derived from another."""
    for path in settings.config or ():
        if not hasattr(path, "read_text"):  # settings given as a string, not as a file
            continue
        content = yaml.safe_load(path.read_text())  # jsonargparse keeps the content of stdin
        for name, source in DERIVED_SETTINGS.items():
            section, _, key = name.partition(".")
            given = content.get(section) if isinstance(content, dict) else None
            value = given.get(key) if isinstance(given, dict) else None
            if value not in (None, settings[source]):
                raise UserError(
                    f"{name} is derived from {source}: set that instead, and remove {name} from "
                    f"{path}"
                )


def check_utf8(name: str, path: Any) -> None:
    """Raise a ``UserError`` for the path of a folder that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} {str(path)!r} is not valid UTF-8, which TensorBoard requires: rename it, or "
            "use a UTF-8 locale"
        ) from error


def check_fit(settings: Namespace) -> None:
    """Raise a ``UserError`` if a setting of ``fit`` is not valid."""
    check_steps(settings)
    check_batches(settings.trainer)
    check_utf8("trainer.default_root_dir", settings.trainer.default_root_dir)


def check_steps(settings: Namespace) -> None:
    """Raise a ``UserError`` if a setting that counts optimizer steps is not valid."""
    trainer = settings.trainer
    if trainer.max_epochs != -1 or (trainer.max_steps < 0 and trainer.max_time is None):
        raise UserError(
            "training is counted in optimizer steps: set --trainer.max_steps (or "
            "--trainer.max_time), and leave --trainer.max_epochs out"
        )
    if settings.model.schedule != "constant" and trainer.max_steps < 0:
        raise UserError(
            f"the schedule {settings.model.schedule} ends at the last step: set "
            "--trainer.max_steps, or --model.schedule constant"
        )
    for name in ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        value = trainer[name]
        if value is None and name != "val_check_interval":
            continue
        if type(value) is not int or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
    for name, instead in (
        ("min_epochs", "min_steps"),
        ("check_val_every_n_epoch", "val_check_interval"),
    ):
        if trainer[name] is not None:
            raise UserError(
                f"training and evaluations are counted in steps: set --trainer.{instead}, and "
                f"leave --trainer.{name} out"
            )


def check_batches(trainer: Namespace) -> None:
    """Raise a ``UserError`` if a setting that counts batches is not valid."""
    for name in ("limit_train_batches", "overfit_batches"):
        if (trainer[name] or 0) % 1:
            raise UserError(
                f"{name} cannot be {trainer[name]}: training has no fixed number of batches of "
                "which to take a fraction; give a number of batches"
            )
    batches = trainer.accumulate_grad_batches or 1
    for name in ("val_check_interval", "limit_train_batches"):
        value = trainer[name] or 0
        if value > 1 and value % batches:
            raise UserError(
                f"{name} counts batches, not optimizer steps: make it a multiple of "
                f"accumulate_grad_batches, {batches}, instead of {int(value)}"
            )

"""Settings: those beside Lightning's; given ones checked, taken from a run, told from defaults."""

import json
from contextlib import suppress
from dataclasses import fields
from typing import Any, Literal, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.models.registry import ARCHITECTURES, build_config, plain_settings
from nanogpt.runs import find_checkpoint, run_of

TRAINER_DEFAULTS = {
    "devices": 1,
    "max_epochs": -1,  # steps are what is counted
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,  # over all steps, not within an epoch
    "num_sanity_val_steps": -1,  # the whole evaluation, at step 0
    "enable_model_summary": False,
}
LINKED = ("config", "ckpt_path", "data.block_size", "data.seed", "data.vocabulary")  # by others
OF_OTHERS = {  # what is taken from another setting, also where a config gives it
    "block_size": "model.block_size",
    "seed": "seed_everything",
}


def add_options(parser: LightningArgumentParser) -> None:
    """Add the settings of no part, and what the data takes from the model and the run."""
    parser.add_argument(
        "--reference",
        type=Literal["bigram", "gpt10m"] | None,
        help="the curve in lightning_logs/reference/ to compare with",
    )
    parser.add_argument(
        "--card",
        type=bool,
        default=True,
        help="leave card.md, curves.png and pictures for TensorBoard in the run's folder",
    )
    parser.add_argument(
        "--teachers",
        type=list[str],
        default=[],
        help="trained runs or checkpoints whose mean expectation is learnt, in place of the text's "
        "next characters; [PATH, ...]",
    )
    parser.add_argument(
        "--compile",
        type=bool | Literal["auto"],
        default="auto",
        help="compile the training step; auto: on CUDA, a GPT's run of at least 1,000 steps",
    )
    for name, (kind, about) in model_settings().items():
        parser.add_argument(f"--model.{name}", type=kind | None, default=None, help=about)
    source = ("model.architecture", "model.block_size")
    parser.link_arguments(source, "data.block_size", compute_fn=block_size_of)
    parser.link_arguments("seed_everything", "data.seed", int)  # true and false too


def model_settings() -> dict[str, tuple[Any, str]]:
    """Return type and help of the settings of all architectures, as their configs declare them."""
    settings: dict[str, tuple[Any, str]] = {}
    defaults: dict[str, list[str]] = {}
    for architecture, (config, _) in ARCHITECTURES.items():
        types = get_type_hints(config)
        about = {param.arg_name: param.description for param in docstring_parser.parse_from_object(config).params}
        for field in fields(config):
            kind = list[str] if get_origin(types[field.name]) is tuple else types[field.name]
            known, help_text = settings.get(field.name, (kind, about.get(field.name, "")))
            settings[field.name] = known | kind, help_text
            defaults.setdefault(field.name, []).append(f"{architecture} {field.default}")
    return {
        name: (kind, f"{text} (default: {', '.join(defaults[name])})")
        for name, (kind, text) in settings.items()
    }


def block_size_of(architecture: str, block_size: int | None) -> int:
    """Return the block size that is given, or the architecture's default."""
    if block_size is not None or architecture not in ARCHITECTURES:  # which is refused later
        return block_size or 1
    default: int = ARCHITECTURES[architecture][0].block_size
    return default


def resolve_model_settings(settings: Namespace) -> None:
    """Write the defaults of the chosen architecture where a setting was not given.

    Raises:
        UserError: if a setting is out of range, or the architecture does not have it.
    """
    given = {name: settings.model.get(name) for name in model_settings()}
    config = build_config(settings.model.architecture, given)
    settings.model.update(Namespace(plain_settings(config)))


def check_rooms(settings: Namespace) -> None:
    """Check that model, data and trainer have settings, and that the seed is one.

    Raises:
        UserError: if not.
    """
    for name in ("model", "data", "trainer"):
        if not isinstance(settings[name], Namespace):
            raise UserError(f"{name} cannot be {settings[name]!r}; it takes settings")
    seed = settings.seed_everything
    if not 0 <= seed < 2**32:
        raise UserError(f"seed_everything must be a whole number from 0 to 2^32 - 1, not {seed}")


def check_linked(settings: Namespace) -> None:
    """Check that the data is not given what it takes from another setting.

    A value that the other setting has too does no harm.

    Raises:
        UserError: if one does.
    """
    if settings.data.vocabulary not in (None, settings.model.vocabulary):
        raise UserError("data.vocabulary follows model.vocabulary: set that")
    for path in settings.config or ():
        if not hasattr(path, "read_text"):  # settings that are not in a file
            continue
        content = yaml.safe_load(path.read_text())  # which knows stdin again
        data = content.get("data") if isinstance(content, dict) else None
        given = data if isinstance(data, dict) else {}
        for name, other in OF_OTHERS.items():
            if given.get(name) not in (None, settings[other]):
                raise UserError(f"data.{name} follows {other}: set that, and not this in {path}")


def check_evaluation(settings: Namespace) -> None:
    """Check that ``validate`` has something to do.

    Raises:
        UserError: if not.
    """
    if settings.trainer.limit_val_batches == 0:
        raise UserError("validate needs an evaluation: leave --trainer.limit_val_batches out")


def check_fit(settings: Namespace) -> None:
    """Check the settings that count optimizer steps, and name the checkpoints of the teachers.

    Raises:
        UserError: if one of them makes no sense, or is not there.
    """
    check_steps(settings)
    settings.teachers = [find_teacher(given) for given in settings.teachers]


def find_teacher(given: str) -> str:
    """Return the path of a teacher's checkpoint; no ``best`` or ``last``, which change.

    Raises:
        UserError: if there is none.
    """
    if given not in ("best", "last"):
        with suppress(UserError):
            return str(find_checkpoint(given))
    raise UserError(f"no teacher at {given!r}: --teachers takes .ckpt files and folders of runs")


def check_steps(settings: Namespace) -> None:
    """Check the settings that count optimizer steps.

    Raises:
        UserError: if one of them makes no sense.
    """
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
        if (value is None or type(value) is not int or value < 1) and (
            value is not None or name == "val_check_interval"
        ):
            raise UserError(f"{name} is a whole number of steps, from 1, not {value!r}")
    if trainer.check_val_every_n_epoch is not None:
        raise UserError(
            "evaluations are counted in steps: set --trainer.val_check_interval, and leave "
            "--trainer.check_val_every_n_epoch out"
        )


def validate_options(options: list[str]) -> list[str]:
    """Put the run's own config before the given options, and its checkpoint after them."""
    given = given_checkpoint(options)
    checkpoint = load_checkpoint("best" if given is None else given)
    if found := run_of(checkpoint.path):
        config = str(found.config)
    else:
        model = checkpoint.settings | {"vocabulary": None}
        data = dict(checkpoint.content["datamodule_hyper_parameters"])
        seed = data.pop("seed")
        del data["block_size"]  # the model's
        config = json.dumps({"seed_everything": seed, "model": model, "data": data})
    return ["--config", config, *options, "--ckpt_path", str(checkpoint.path), "--verbose", "false"]


def fit_options(options: list[str]) -> list[str]:
    """Do the same for a run that goes on; the options of one that does not stay as they are.

    Raises:
        UserError: if there is no such checkpoint, or neither a run nor a config to go with it.
    """
    given = given_checkpoint(options)
    if given in (None, "null"):
        return options
    checkpoint = load_checkpoint(given, of_folder="last").path
    path = ["--ckpt_path", str(checkpoint)]
    if found := run_of(checkpoint):
        return ["--config", str(found.config), *options, *path]
    if not {option.partition("=")[0] for option in options} & {"-c", "--config"}:
        raise UserError(
            f"{checkpoint} does not lie in the folder of a run: say how to go on from it, with "
            "--config FILE"
        )
    return [*options, *path]


def given_checkpoint(options: list[str]) -> str | None:
    """Return what ``--ckpt_path`` is given, if it is."""
    chosen = None
    for place, option in enumerate(options):
        name, given, value = option.partition("=")
        if name == "--ckpt_path":
            chosen = value if given else "".join(options[place + 1 : place + 2])
    return chosen


def differences(saved: str, now: str, usual: str) -> list[str]:
    """Name the settings in which a run's configuration, as YAML, is not what it was.

    What an older run's lacks had its default.

    Returns: lines such as ``trainer.max_steps 3000 instead of the run's 1500``.
    """
    was, given, default = (flat(yaml.safe_load(tree)) for tree in (saved, now, usual))
    was = default | was
    return [
        f"{name} {given[name]!r} instead of the run's {was[name]!r}"
        for name in given
        if name in was and name not in LINKED and given[name] != was[name]
    ]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by their full names."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    names = {name: f"{prefix}.{name}" if prefix else str(name) for name in tree}
    return {k: v for name, value in tree.items() for k, v in flat(value, names[name]).items()}


def changed_settings(settings: Namespace, defaults: Namespace) -> dict[str, Any]:
    """Return the settings that are not at their defaults, by full name."""
    usual, given = (vars(namespace.as_flat()) for namespace in (defaults, settings))
    return {k: v for k, v in given.items() if k in usual and k not in LINKED and v != usual[k]}

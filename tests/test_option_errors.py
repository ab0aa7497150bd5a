"""One-line errors for messages of jsonargparse, which these tests provoke rather than quote."""

from argparse import ArgumentError
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import ArgumentParser

from nanogpt.option_errors import explain


class Color:
    """A base class whose subclasses can be chosen by name."""


class Red(Color):
    def __init__(self, shade: int) -> None: ...


class Model:
    def __init__(
        self,
        n_layer: int = 4,
        dropout: float = 0.0,
        architecture: Literal["bigram", "gpt"] = "gpt",
        init: Literal["default", "normal"] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        fused: bool = True,
        color: Color | None = None,
    ) -> None: ...


def explained(*argv: str) -> str:
    """Return the error for a command line of a parser that resembles LightningCLI's."""
    top = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    fit = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    fit.add_argument("--config", action="config")
    fit.add_class_arguments(Model, "model")
    fit.add_argument("--max_steps", type=int, default=10)
    top.add_subcommands().add_subcommand("fit", fit)
    with pytest.raises(ArgumentError) as error:
        top.parse_args(["fit", *argv])
    return explain(str(error.value), fit.get_defaults().keys())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.n_layr", "3"], "unknown option --model.n_layr; did you mean --model.n_layer?"),
        (["--model.n_layr=3"], "unknown option --model.n_layr; did you mean --model.n_layer?"),
        (["--modl.n_layer=3"], "unknown option --modl.n_layer; did you mean --model.n_layer?"),
        (["--n_layr=3"], "unknown option --n_layr; did you mean --model.n_layer?"),
        (["--max_step=3"], "unknown option --max_step; did you mean --max_steps?"),
        (["--foo", "--bar"], "unknown option --foo; see --help for all of them"),
        (["-n"], "unknown option -n; see --help for all of them"),
        (["a", "b"], "unexpected argument 'a'; options are written --name value"),
        (
            ["--max_steps"],
            "--max_steps takes a value: write --max_steps=VALUE if it begins with a dash",
        ),
    ],
    ids=str,
)
def test_unknown_option(argv: list[str], expected: str) -> None:
    assert explained(*argv) == expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.n_layer=four", "model.n_layer cannot be 'four'; it takes int"),
        ("--model.n_layer=", "model.n_layer cannot be ''; it takes int"),
        ("--model.n_layer=1.5", "model.n_layer cannot be '1.5'; it takes int"),
        ("--model.dropout=much", "model.dropout cannot be 'much'; it takes float"),
        ("--model.fused=maybe", "model.fused cannot be 'maybe'; it takes bool"),
        ("--model.architecture=gtp", "model.architecture cannot be 'gtp'; it takes bigram, gpt"),
        ("--model.init=glorot", "model.init cannot be 'glorot'; it takes default, normal or null"),
        ("--model.betas=[1]", "model.betas cannot be '[1]'; it takes tuple with 2 elements"),
        ("--model.betas=[a,b]", "model.betas cannot be 'a'; it takes float"),
        ("--max_steps=null", "max_steps cannot be 'None'; it takes int"),
    ],
)
def test_invalid_value(option: str, expected: str) -> None:
    assert explained(option) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("model: {n_layr: 3}", "unknown setting model.n_layr in the config; did you mean "
                               "model.n_layer?"),
        ("modl: {n_layer: 3}", "unknown setting modl.n_layer in the config; did you mean "
                               "model.n_layer?"),
        ("n_layer: 3", "unknown setting n_layer in the config; did you mean model.n_layer?"),
        ("max_step: 3", "unknown setting max_step in the config; did you mean max_steps?"),
        ("foo: 3", "unknown setting foo in the config; see --help for all of them"),
        ("model: {n_layer: x}", "model.n_layer cannot be 'x'; it takes int"),
    ],
)  # fmt: skip
def test_invalid_setting_in_a_config(tmp_path: Path, config: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    assert explained("--config=config.yaml") == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("model: [", "Problems parsing config: while"),
        ("- 1", "a config has the sections `model:`, `data:` and `trainer:`, and cannot be '- 1'"),
        ("", "a config has the sections `model:`, `data:` and `trainer:`, and cannot be ''"),
    ],
)
def test_invalid_config(tmp_path: Path, config: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    message = explained("--config=config.yaml")
    assert message.startswith(expected)
    assert "\n" not in message


def test_missing_config() -> None:
    message = explained("--config=missing.yaml")
    assert message.startswith("config: File does not exist: ")
    assert "missing.yaml" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.color=Rde"], "model.color: there is no class 'Rde'"),
        (["--model.color=tests.test_option_errors.Model"], "model.color cannot be"),
        (["--model.color=Red"], "model.color: Red: the following arguments are required: shade"),
    ],
    ids=str,
)
def test_invalid_class(options: list[str], expected: str) -> None:
    message = explained(*options)
    assert message.startswith(expected)
    assert "\n" not in message
    assert len(message) < 200


def test_any_other_message_is_put_on_one_line() -> None:
    assert explain("something\n  else  is\twrong\n", []) == "something else is wrong"
    assert explain('Parser key "a.b":\n  odd\n  thing', []) == "a.b: odd thing"


@pytest.mark.parametrize(
    ("unknown", "options", "closest"),
    [
        ("--n_layer", ["a.n_layer", "b.n_layer"], "a.n_layer"),  # the first of two
        ("--trainer.n_layer", ["trainer.logger", "model.n_layer"], "model.n_layer"),
        ("--dropuot", ["model.dropout", "model.init"], "model.dropout"),
    ],
)
def test_closest_option_by_its_last_part(unknown: str, options: list[str], closest: str) -> None:
    message = explain(f"unrecognized arguments: {unknown}=3", options)
    assert message == f"unknown option {unknown}; did you mean --{closest}?"

"""What jsonargparse says, in one line: its messages are made here, not remembered."""

from argparse import ArgumentError
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import ArgumentParser

from nanogpt.option_errors import explain


class Colour:
    """Something that is chosen by its class."""


class Red(Colour):
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
        colour: Colour | None = None,
    ) -> None: ...


def explained(*argv: str) -> str:
    """What a user is told about a command line of a parser that is like the real one's."""
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
            "--max_steps takes a value: write --max_steps=VALUE if that begins with a dash",
        ),
    ],
    ids=str,
)
def test_options(argv: list[str], expected: str) -> None:
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
def test_values(option: str, expected: str) -> None:
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
def test_settings_of_a_config(tmp_path: Path, config: str, expected: str) -> None:
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    assert explained("--config=config.yaml") == expected


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("model: [", "Problems parsing config: while"),
        ("- 1", "a config takes settings below `model:`, `data:` or `trainer:`, not '- 1'"),
        ("", "a config takes settings below `model:`, `data:` or `trainer:`, not ''"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, config: str, says: str) -> None:
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    found = explained("--config=config.yaml")
    assert found.startswith(says)
    assert "\n" not in found


def test_a_config_that_is_missing() -> None:
    found = explained("--config=missing.yaml")
    assert found.startswith("config: File does not exist: ")
    assert "missing.yaml" in found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.colour=Rde"], "model.colour: there is no 'Rde'"),
        (["--model.colour=tests.test_parsing.Model"], "model.colour cannot be"),
        (["--model.colour=Red"], "model.colour: Red: the following arguments are required: shade"),
    ],
    ids=str,
)
def test_classes(options: list[str], expected: str) -> None:
    found = explained(*options)
    assert found.startswith(expected)
    assert "\n" not in found
    assert len(found) < 200


def test_any_other_message_is_left_in_words_and_put_on_one_line() -> None:
    assert explain("something\n  else  is\twrong\n", []) == "something else is wrong"
    assert explain('Parser key "a.b":\n  odd\n  thing', []) == "a.b: odd thing"


@pytest.mark.parametrize(
    ("unknown", "options", "nearest"),
    [
        ("--n_layer", ["a.n_layer", "b.n_layer"], "a.n_layer"),  # the first of two alike
        ("--trainer.n_layer", ["trainer.logger", "model.n_layer"], "model.n_layer"),
        ("--dropuot", ["model.dropout", "model.init"], "model.dropout"),
    ],
)
def test_the_nearest_option_is_found_by_its_last_part_too(
    unknown: str, options: list[str], nearest: str
) -> None:
    found = explain(f"unrecognized arguments: {unknown}=3", options)
    assert found == f"unknown option {unknown}; did you mean --{nearest}?"

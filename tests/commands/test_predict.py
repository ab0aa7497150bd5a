"""``predict``: text on stdout, all else on stderr, interrupts and one-line errors."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.commands import predict
from nanogpt.commands.main import main
from nanogpt.generation import generate as generate_module
from nanogpt.generation.checkpoint import model_file
from nanogpt.generation.generate import generate, generate_many, load
from nanogpt.models import build_model
from tests.command_lines import Outcome, Run, is_one_line
from tests.model_files import change_weights
from tests.models.oracles import DIVIDING, randomize

LETTERS = "\n abcdefgé🎭"
SETTINGS: dict[str, Any] = {**DIVIDING, "block_size": 8, "vocab_size": len(LETTERS)}
BEST = Path("lightning_logs/version_0/checkpoints/best.safetensors")


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    """The model file of a model with random weights."""
    weights = randomize(build_model("gpt", **SETTINGS)).float().state_dict()
    hparams = {"architecture": "gpt", "vocabulary": LETTERS, **SETTINGS}
    content = {
        "state_dict": {f"net.{name}": weight for name, weight in weights.items()},
        "hyper_parameters": hparams,
        "global_step": 7,
        "CharDataModule": {},
    }
    return model_file(content)


@pytest.fixture
def sample(checkpoint: bytes, run: Run) -> Run:
    """Run ``predict`` with fp32 weights in a folder with one run."""
    BEST.parent.mkdir(parents=True)
    BEST.write_bytes(checkpoint)

    def sample(*options: str) -> Outcome:
        return run("predict", "--weights=fp32", *options)

    return sample


def text(prompt: str = "", n: int = 500, **settings: Any) -> str:
    """Return the prompt and the text that ``generate`` returns."""
    model = load("best", "fp32")
    return prompt + "".join(generate(model, prompt, max_new_tokens=n, **settings))


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))


# text


def test_stdout_is_the_text_of_generate_and_stderr_names_the_checkpoint(sample: Run) -> None:
    outcome = sample("--prompt=abc", "--max_new_tokens=30", "--seed=5")
    assert outcome.code == 0
    assert outcome.out == text("abc", 30, seed=5) + "\n"
    assert outcome.err == f"sampling from {BEST}\n"


def test_default_is_500_characters_after_a_line_break(sample: Run) -> None:
    out = sample().out
    assert out.startswith(text("", 20))
    assert len(out) == 501


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--temperature=0.7", "--top_k=4"], {"temperature": 0.7, "top_k": 4}),
        (["--top_p=0.6"], {"top_p": 0.6}),
        (["--temperature=0"], {"temperature": 0.0}),
        (["--context=exact"], {"context": "exact"}),
        (["--stop=a"], {"stop": ["a"]}),
        (["--stop=dd", "--stop= b", "--stop=\n"], {"stop": ["dd", " b", "\n"]}),
        (["--stop=1"], {"stop": ["1"]}),
        (["--stop=null"], {"stop": ["null"]}),
    ],
    ids=str,
)
def test_options_match_those_of_generate(
    sample: Run, options: list[str], settings: dict[str, Any]
) -> None:
    outcome = sample("--prompt=e", "--max_new_tokens=40", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.out == text("e", 40, **settings) + "\n"


def test_greedy_text_does_not_depend_on_the_seed(sample: Run) -> None:
    seeds = ("--seed=1", "--seed=2")
    assert len({sample("--temperature=0", "--max_new_tokens=20", seed).out for seed in seeds}) == 1


def test_samples_are_separated_and_each_begins_with_the_prompt(sample: Run) -> None:
    options = ("--prompt=ab", "--max_new_tokens=20", "--stop=dd")
    outcome = sample(*options, "--num_samples=5")
    many = list(generate_many(load("best", "fp32"), 5, "ab", max_new_tokens=20, stop=["dd"]))
    assert outcome.out == "".join(f"ab{one}\n\n" for one in many)
    assert sample(*options).out == f"ab{many[0]}\n"
    assert [f"sample {i} of 5" for i in range(1, 6)] == outcome.err.splitlines()[1:]


@pytest.mark.parametrize("prompt", ["null", "1", "[a]", "a: b", " a ", "\na\n", '"a"', "- a"])
def test_prompt_is_not_parsed_as_yaml(
    sample: Run, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[str]()
    monkeypatch.setattr(predict, "generate", lambda _, prompt, __: seen.append(prompt) or [])
    monkeypatch.setattr(predict, "drop_unknown", lambda prompt, *_: prompt)
    assert sample(f"--prompt={prompt}").out == f"{prompt}\n"
    assert seen == [prompt]


# prompts from files and pipes


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [("aé🎭\nb\n".encode(), "utf-8"), ("aé🎭\nb\n".encode("utf-16"), "utf-16"),
     ("\ufeffaé🎭\r\nb\r\n".encode(), "utf-8")],
    ids=["utf-8", "utf-16", "windows"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["prompt.txt", "-"])
def test_prompt_from_a_file_or_a_pipe(
    sample: Run, raw: bytes, encoding: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompt.txt").write_bytes(raw)
    set_stdin(monkeypatch, raw)
    outcome = sample(f"--prompt_file={name}", f"--encoding={encoding}", "--max_new_tokens=9")
    assert outcome.out == text("aé🎭\nb\n", 9) + "\n"


def test_unknown_characters_can_be_dropped(sample: Run) -> None:
    outcome = sample("--prompt=axbyyc", "--on_unknown=skip", "--max_new_tokens=9")
    assert outcome.out == text("abc", 9) + "\n"
    assert "dropped 3 unknown characters of the prompt" in outcome.err
    assert (
        sample("--prompt=xyz", "--on_unknown=skip", "--max_new_tokens=9").out == text("", 9) + "\n"
    )


# the smallest and the largest numbers

FLOATS = ["5e-324", "1e-310", "1e-46", "1e-45", "1e-38", "1e30", "3.4e38", "1e39", "1e308",
          "1.7976931348623157e308", "0.9999999999999999", "0.99999999999999999", "-0.0", "nan",
          "inf", "-inf", "1e400", "-5e-324"]  # fmt: skip
INTS = ["0", "-1", f"{2**31}", f"{2**63 - 1}", f"{2**63}", f"{2**64}", "9" * 400, "9" * 5000,
        "1e3", "nan", f"{-(2**63)}"]  # fmt: skip
EXTREMES = [
    *((f"--temperature={value}", rest) for value in FLOATS for rest in ("--top_k=3", "--top_p=.5")),
    *((f"--top_p={value}", rest) for value in FLOATS for rest in ("--top_k=3", "--temperature=.1")),
    *((f"--{name}={value}", "--stop=a") for value in INTS for name in ("top_k", "seed")),
]


@pytest.mark.parametrize("options", EXTREMES, ids=lambda options: options[0][:40] + options[1])
def test_extreme_number_gives_text_or_a_one_line_error(
    sample: Run, options: tuple[str, str]
) -> None:
    outcome = sample("--max_new_tokens=9", *options)
    if outcome.code == 0:
        assert outcome.out.endswith("\n")
        assert set(outcome.out) <= set(LETTERS)
    else:
        assert outcome.code == 2
        assert is_one_line(outcome.err), outcome.err
        assert options[0].partition("=")[0].lstrip("-") in outcome.err
        assert outcome.out == ""


@pytest.mark.parametrize("name", ["max_new_tokens", "num_samples"])
@pytest.mark.parametrize("value", INTS, ids=lambda value: value[:20])
def test_extreme_count_is_accepted_or_gets_a_one_line_error(
    sample: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(predict, "generate", lambda *_: iter(["a"]))
    monkeypatch.setattr(predict, "generate_many", lambda *_, **__: iter(["a"]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # the bar computes with the count
    outcome = sample(f"--{name}={value}")
    if value in (f"{2**31}", f"{2**63 - 1}"):
        assert outcome.code == 0, outcome.err
        assert outcome.out.strip() == "a"
    else:
        assert outcome.code == 2
        assert is_one_line(outcome.err), outcome.err
        assert name in outcome.err


def test_seed_after_the_largest_is_0(sample: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stdin(monkeypatch, "a\nb\n")
    outcome = sample("--interactive", "--max_new_tokens=9", f"--seed={2**63 - 1}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(text("b", 9, seed=0).removeprefix("b") + "\n")


@pytest.mark.parametrize("options", [[], ["--num_samples=2"], ["--top_k=2", "--top_p=.5"]], ids=str)
def test_model_that_returns_nan_gets_a_one_line_error(sample: Run, options: list[str]) -> None:
    # finite weights, whose products are not
    change_weights(BEST, BEST, lambda weights: weights["lm_head.weight"].fill_(3e38))
    outcome = sample(*options)
    assert outcome.code == 2
    assert outcome.out == ""
    error = outcome.err.splitlines()[-1]
    assert error.startswith("error: the model returned NaN: its training diverged")


def test_weights_that_are_not_finite_are_refused(sample: Run) -> None:
    change_weights(BEST, BEST, lambda weights: weights["lm_head.bias"][0].fill_(float("nan")))
    outcome = sample()
    assert outcome.code == 2
    assert "the weight lm_head.bias is not finite" in outcome.err


# output


def test_names_that_are_not_utf_8_are_escaped(sample: Run) -> None:
    folder, output = Path("run\udcff"), Path("\udce9.txt")
    try:
        Path("lightning_logs/version_0").rename(folder)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    outcome = sample(f"--ckpt_path={folder}")  # safetensors opens only valid UTF-8
    assert outcome.code == 2
    assert outcome.err.startswith(r"error: 'run\udcff/checkpoints/best.safetensors' cannot be read")
    folder.rename("lightning_logs/version_0")
    outcome = sample(f"--output={output}", "--max_new_tokens=3")
    assert outcome.code == 0, outcome.err
    assert output.read_text(encoding="utf-8") == outcome.out


def test_text_that_utf_8_cannot_encode_is_escaped(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "generate", lambda *_: iter("a\ud800b"))
    outcome = sample("--output=new.txt")
    assert outcome.code == 0, outcome.err
    assert outcome.out == Path("new.txt").read_text(encoding="utf-8") == "a\\ud800b\n"


CONTROLS = "\x1b[2J\x9b31m\x07"
ESCAPED = "\\x1b[2J\\x9b31m\\x07"


@pytest.mark.parametrize("options", [[], ["--num_samples=2"], ["--interactive"]], ids=str)
def test_control_characters_are_escaped_on_a_terminal_only(
    sample: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(predict, "generate", lambda *_, **__: iter([CONTROLS]))
    monkeypatch.setattr(predict, "generate_many", lambda *_, **__: iter([CONTROLS] * 2))
    set_stdin(monkeypatch, "a\n")
    assert CONTROLS in sample(*options).out
    set_stdin(monkeypatch, "a\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    if not options:
        options = ["--output=new.txt"]
    outcome = sample(*options)
    assert ESCAPED in outcome.out
    assert not {"\x1b", "\x9b", "\x07"} & {*outcome.out}
    if options == ["--output=new.txt"]:
        assert Path("new.txt").read_text(encoding="utf-8") == CONTROLS + "\n"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file names")
@pytest.mark.parametrize("options", [["--max_new_tokens=1"], ["--prompt=é@"]], ids=str)
def test_control_characters_of_a_path_are_escaped(sample: Run, options: list[str]) -> None:
    path = Path(f"{CONTROLS}.ckpt")
    BEST.rename(path)
    err = sample(f"--ckpt_path={path}", *options).err
    path.write_bytes(b"damaged")
    err += sample(f"--ckpt_path={path}").err + sample(f"--ckpt_path={path}x").err
    assert "x1b[2J" in err
    assert not {"\x1b", "\x9b", "\x07"} & {*err}


@pytest.mark.parametrize("options", [["--prompt=aé🎭"], ["--num_samples=3"]], ids=str)
def test_output_file_equals_stdout(sample: Run, options: list[str]) -> None:
    outcome = sample(*options, "--max_new_tokens=30", "--output=new.txt")
    assert Path("new.txt").read_bytes() == outcome.out.encode()


def test_existing_file_is_not_overwritten(sample: Run) -> None:
    Path("mine.txt").write_text("mine")
    outcome = sample("--output=mine.txt")
    assert outcome.code == 2
    assert is_one_line(outcome.err), outcome.err
    assert "--output 'mine.txt' cannot be created: File exists" in outcome.err
    assert Path("mine.txt").read_text() == "mine"


def test_mistake_creates_no_file(sample: Run) -> None:
    assert sample("--prompt=x", "--output=new.txt").code == 2
    assert not Path("new.txt").exists()


# interrupts and closed pipes


def pieces_then(last: Callable[[], str]) -> Callable[..., Iterator[str]]:
    """Return a fake ``generate`` that yields three characters and then calls a function."""

    def generate(*_: Any, **__: Any) -> Iterator[str]:
        yield from "cde"
        yield last()
        yield "f"

    return generate


def interrupt() -> str:
    raise KeyboardInterrupt


def test_interrupt_keeps_the_text_so_far(sample: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "generate", pieces_then(interrupt))
    outcome = sample("--prompt=ab", "--output=new.txt")
    assert outcome.code == 130
    assert outcome.out == Path("new.txt").read_text() == "abcde"
    assert outcome.err.splitlines()[1:] == ["stopped"]


def test_interrupt_keeps_the_finished_samples(sample: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "generate_many", pieces_then(interrupt))
    outcome = sample("--num_samples=5", "--output=new.txt")
    assert outcome.code == 130
    assert outcome.out == Path("new.txt").read_text() == "c\n\nd\n\ne\n\n"
    assert "Traceback" not in outcome.err


def test_interrupt_keeps_the_unfinished_samples_of_a_batch(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(model: Any, prompt: torch.Tensor, *_: Any) -> Iterator[torch.Tensor]:
        yield from torch.tensor([[2, 3], [4, 5]])
        interrupt()

    monkeypatch.setattr(generate_module, "decode", decode)
    outcome = sample("--num_samples=2")
    assert outcome.code == 130
    assert outcome.out == "ac\n\nbd\n\n"
    assert outcome.err.splitlines()[-1] == "stopped"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature=0", "--top_k=3"], "top_k and top_p have no effect with temperature 0"),
        (["--temperature=0", "--top_p=0.5"], "top_k and top_p have no effect with temperature 0"),
        (["--encoding=latin-1"], "--encoding has no effect without --prompt_file"),
        (["--temperature=0"], None),
        (["--top_k=3", "--encoding=utf-8"], None),
    ],
    ids=str,
)
def test_option_without_effect_is_announced(
    sample: Run, options: list[str], expected: str | None
) -> None:
    outcome = sample("--max_new_tokens=1", *options)
    assert outcome.code == 0
    assert ("notice" in outcome.err) == (expected is not None)
    assert (expected or "") in outcome.err


@pytest.mark.parametrize("how", ["generate", "generate_many"])
def test_closed_pipe_is_not_an_error(
    sample: Run, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()

    def close_reader() -> str:
        os.close(reader)
        return "x"

    samples = "--num_samples=1" if how == "generate" else "--num_samples=5"
    monkeypatch.setattr(predict, how, pieces_then(close_reader))
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert main(["predict", "--prompt=ab", samples, "--output=new.txt"]) == 0
    assert "rror" not in capsys.readouterr().err
    kept = Path("new.txt").read_text()
    assert kept == ("abcde" if how == "generate" else "abc\n\nabd\n\nabe\n\n")


def test_progress_bar_needs_a_terminal_on_stderr_only(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "char" not in sample("--max_new_tokens=3").err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "0/3 " in sample("--max_new_tokens=3").err
    assert "0/6 " in sample("--max_new_tokens=3", "--num_samples=2").err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "0/3 " not in sample("--max_new_tokens=3").err


# interactive


def test_each_line_is_a_prompt_until_stdin_ends(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stdin(monkeypatch, " abc \n\né🎭")
    outcome = sample("--interactive", "--max_new_tokens=20", "--stop=dd", "--seed=5")
    prompts = enumerate([" abc ", "", "é🎭"], 5)
    texts = [text(p, 20, seed=seed, stop=["dd"]).removeprefix(p) for seed, p in prompts]
    assert outcome.code == 0
    assert outcome.out == "".join(f"{continued}\n" for continued in texts)


def test_prompt_with_unknown_characters_does_not_end_the_session(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stdin(monkeypatch, "xyz\nab\n")
    outcome = sample("--interactive", "--max_new_tokens=5")
    assert outcome.code == 0
    assert "error: the character 'x' at position 0" in outcome.err
    assert outcome.out == "\n" + text("ab", 5, seed=1338).removeprefix("ab") + "\n"
    set_stdin(monkeypatch, "xayz\n")
    skipped = sample("--interactive", "--max_new_tokens=5", "--on_unknown=skip")
    assert skipped.out == text("a", 5).removeprefix("a") + "\n"


def test_invalid_utf_8_does_not_end_the_session(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stdin(monkeypatch, b"a\xff\nab\n")
    outcome = sample("--interactive", "--max_new_tokens=5")
    assert outcome.code == 0
    assert outcome.out.endswith(text("ab", 5, seed=1338).removeprefix("ab") + "\n")


def test_interrupt_ends_a_sample_but_not_the_session(
    sample: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "generate", pieces_then(interrupt))
    set_stdin(monkeypatch, "a\nb\n")
    outcome = sample("--interactive")
    assert outcome.code == 0
    assert outcome.out == "cde\ncde\n"


# mistakes

MISTAKES = [
    # options, expected part of the error
    (["--temperature=-1"], "temperature"),
    (["--temperature=nan"], "temperature"),
    (["--temperature=inf"], "temperature"),
    (["--temperature=warm"], "temperature cannot be 'warm'"),
    (["--top_k=0"], "top_k must be at least 1"),
    (["--top_k=1.5"], "top_k cannot be '1.5'"),
    (["--top_p=0"], "top_p must be above 0"),
    (["--top_p=1.5"], "top_p must be above 0 and at most 1"),
    (["--top_p=nan"], "top_p"),
    (["--num_samples=0"], "num_samples must be at least 1"),
    (["--max_new_tokens=-5"], "max_new_tokens must be at least 1"),
    (["--seed=-1"], "seed"),
    ([f"--seed={2**63}"], "seed"),
    (["--stop="], "stop string cannot be empty"),
    (["--stop=a", "--stop="], "stop string cannot be empty"),
    (["--stop"], "--stop takes a value"),
    (["--context=full"], "refill, exact"),
    (["--weights=int4"], "fp32, bf16, int8"),
    (["--on_unknown=ignore"], "error, skip"),
    (["--prompt=Thx"], "'T' at position 0"),
    (["--prompt=abx"], "--on_unknown skip"),
    (["--promt=abc"], "--prompt"),
    (["--stopp=abc"], "--stop"),
    (["surplus"], "surplus"),
    (["--prompt=a", "--prompt_file=prompt.txt"], "from --prompt or from --prompt_file"),
    (["--prompt_file=missing.txt"], "'missing.txt' does not exist"),
    (["--prompt_file="], "is not a regular file"),
    (["--prompt_file=empty.txt"], "is empty"),
    (["--prompt_file=binary.bin"], "byte 1 is 0xff"),
    (["--prompt_file=."], "is not a regular file"),
    (["--prompt_file=unknown.txt"], "'z' at position 1"),
    (["--prompt_file=prompt.txt", "--encoding=utf-9"], "utf-9"),
    (["--prompt_file=-"], "byte 2 is 0xff"),
    (["--output=no/folder/new.txt"], "cannot be created"),
    (["--output="], "File exists"),
    ([f"--output={'n' * 300}"], "cannot be created: File name too long"),
    (["--output=loop"], "cannot be created: File exists"),
    (["--output=loop/new.txt"], "cannot be created: "),
    (["--prompt_file=loop"], "'loop' cannot be read: Too many levels of symbolic links"),
    ([f"--prompt_file={'n' * 300}"], "File name too long"),
    ([f"--ckpt_path={'n' * 300}"], "no model at"),
    (["--prompt=caf\udce9"], r"the character '\udce9' at position 3"),
    (["--output=."], "File exists"),
    (["--output=prompt.txt"], "File exists"),
    (["--interactive", "--prompt=a"], "interactive"),
    (["--interactive", "--prompt_file=-"], "interactive"),
    (["--interactive", "--num_samples=2"], "interactive"),
    (["--interactive", "--output=new.txt"], "interactive"),
    (["--ckpt_path=missing.safetensors"], "missing.safetensors"),
    (["--ckpt_path=prompt.txt"], "cannot be read as a nanogpt model"),
]


@pytest.mark.parametrize(
    ("options", "expected"), MISTAKES, ids=[" ".join(options) for options, _ in MISTAKES]
)
def test_mistake_gets_a_one_line_error(
    sample: Run, options: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("loop").symlink_to("loop")
    Path("empty.txt").touch()
    Path("prompt.txt").write_text("abc")
    Path("unknown.txt").write_text("azc")
    Path("binary.bin").write_bytes(b"a\xff\0\1")
    set_stdin(monkeypatch, b"ab\xff")
    before = sorted(Path().rglob("*"))
    outcome = sample(*options)
    assert outcome.code == 2
    assert is_one_line(outcome.err), outcome.err
    assert expected in outcome.err
    assert outcome.out == ""
    assert sorted(Path().rglob("*")) == before

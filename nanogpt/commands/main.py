"""Answers help and dispatches, without heavy imports; a user's mistake gets one line."""

import errno
import io
import os
import sys
from difflib import get_close_matches
from pathlib import Path

from nanogpt.errors import Interrupted, UserError

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = ("fit", "validate", "predict", "score", "ladder")
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
HELP = """\
usage: python cli.py COMMAND [OPTIONS]

A character-level GPT: train it, look at it, sample from it.

  fit        train a model         python cli.py fit --config configs/quickstart.yaml
  validate   its exact loss        python cli.py validate
  predict    sample text from it   python cli.py predict --prompt "ROMEO:"
  score      any text's surprise   python cli.py score --text my.txt --html my.html
  ladder     the story, in steps   python cli.py ladder

`validate`, `predict` and `score` take the newest run and need no config. Any setting of a config
can be given as an option, which wins:

  python cli.py fit --config configs/gpt10m.yaml --model.dropout 0.1 --trainer.max_steps 1000
  python cli.py fit --config configs/quickstart.yaml --data.corpus my.txt

A run that was stopped, by whatever, goes on where it was; one that is done, with more steps:

  python cli.py fit --ckpt_path last
  python cli.py fit --ckpt_path last --trainer.max_steps 3000

Options of a command: python cli.py COMMAND --help
Curves of all runs:   tensorboard --logdir lightning_logs
"""


def main(argv: list[str]) -> int:
    """Run one command line; return the exit code: 0, 2 for a user's mistake, or a signal's."""
    prepare_streams()
    try:
        return dispatch(argv)
    except UserError as error:
        return fail(str(error))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except BrokenPipeError:  # `| head` has seen enough: a quiet end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail("training ended with what read its output") if argv[:1] == ["fit"] else 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "what was there is untouched; make room and run again"
        elif error.errno in NO_PLACE:
            way_out = "run in a folder that you may write to, or set --trainer.default_root_dir"
        else:
            raise
        where = f" at {error.filename}" if error.filename else ""
        needs = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        return fail(f"{error.strerror}{where}{needs}: {way_out}")


def prepare_streams() -> None:
    """Let any text come in and go out, also on Windows, and also where a stream is closed."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123
    on_odd = {sys.stdin: "surrogateescape", sys.stdout: "strict", sys.stderr: "backslashreplace"}
    for stream, errors in on_odd.items():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def dispatch(argv: list[str]) -> int:
    """Answer help, or import what the command needs and run it."""
    command, *options = argv or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else "see python cli.py --help"
        raise UserError(f"no command {command!r}; {hint}")
    named = {option.split("=")[0] for option in options}
    if command == "fit" and not named & {"-c", "--config", "--ckpt_path", "-h", "--help"}:
        raise UserError(f"fit needs a config, `--config FILE`, one of:\n{config_list()}")
    if command == "predict":
        from nanogpt.commands import predict

        predict.run(options)
    elif command == "score":
        from nanogpt.commands import score

        score.run(options)
    elif command == "ladder":
        from nanogpt.commands import ladder

        ladder.run(options)
    else:
        from nanogpt.training import lightning_cli

        lightning_cli.run(command, options)
    return 0


def config_list() -> str:
    """List the shipped configs with the first line of each."""
    lines = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        about = path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ")
        shown = path if not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())
        lines.append(f"  {shown!s:26} {about}")
    return "\n".join(lines)


def fail(message: str) -> int:
    """Say what is wrong on stderr and return the exit code of a user's mistake."""
    print(f"error: {message}", file=sys.stderr)
    return 2

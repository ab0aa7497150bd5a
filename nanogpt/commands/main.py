"""The entry point: answers help and mistakes without heavy imports, and runs the commands."""

import errno
import io
import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec

from nanogpt import __version__
from nanogpt.errors import Interrupted, UserError
from nanogpt.notices import escape_controls, print_message, program
from nanogpt.processes import is_first_on_machine, process_rank, silence
from nanogpt.resources import find_config, shipped_configs

COMMANDS = ("fit", "validate", "predict", "score", "ladder")
MAX_LINE = 900  # characters of an error
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
NOT_A_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
HELP = """\
usage: {program} COMMAND [OPTIONS]

A character-level GPT in PyTorch Lightning.

  fit        train a model                    {program} fit --config quickstart
  validate   evaluate a model                 {program} validate
  predict    sample text from a model         {program} predict --prompt "ROMEO:"
  score      compute the loss of any text     {program} score --text my.txt --html my.html
  ladder     build up a GPT in nine stages    {program} ladder

`validate`, `predict` and `score` use the newest run and need no config. Any setting of a config
can be overridden by an option:

  {program} fit --config gpt10m --model.dropout 0.1 --trainer.max_steps 1000
  {program} fit --config quickstart --data.corpus my.txt

Resume a run that was interrupted, or train a finished one for more steps:

  {program} fit --ckpt_path last
  {program} fit --ckpt_path last --trainer.max_steps 3000

Options of a command: {program} COMMAND --help
Version:              {program} --version
Curves of all runs:   tensorboard --logdir lightning_logs
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its arguments; by default those of this process.

    Returns:
        The exit code: 0, 2 for a user's mistake, or that of a signal.
    """
    argv = sys.argv[1:] if argv is None else argv
    prepare_streams()
    replace_missing_backend()
    if process_rank():
        return run_silently(argv)
    try:
        return dispatch(argv)
    except UserError as error:
        return fail(str(error))
    except Interrupted as stop:
        print_message(str(stop))
        return stop.code
    except BrokenPipeError:  # such as `| head`, once it has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail("stdout was closed: training has stopped") if argv[:1] == ["fit"] else 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:
        return fail(explain_os_error(error))
    except (MemoryError, RuntimeError) as error:
        return fail(explain_out_of_memory(error, argv[0]))


def run_silently(argv: list[str]) -> int:
    """Run a further process of a run, whose first one prints and decides the exit code.

    Returns:
        0: with another code, Lightning would kill the first process, before it has printed the
        same error. 1 for an error that only this process has.
    """
    stderr = sys.stderr
    silence()
    try:
        dispatch(argv)
    except UserError as error:
        if is_first_on_machine():  # on another machine than the first process
            print(escape_controls(f"error: {error}"), file=stderr)
    except (Interrupted, OSError, KeyboardInterrupt):
        pass  # the first process has the same one
    except Exception as error:
        if "Connection closed by peer" not in str(error):  # the first process has ended
            traceback.print_exc(file=stderr)
            return 1
    return 0


def explain_os_error(error: OSError) -> str:
    """Return the message for an error of the disk or the path; reraise other errors."""
    if error.errno in DISK_FULL:
        way_out = "existing files are unchanged; free some space and run again"
    elif error.errno in NOT_WRITABLE:
        way_out = "run in a folder with write permission, or set --trainer.default_root_dir"
    elif error.errno == errno.EFBIG:
        way_out = "allow larger files (ulimit -f), or write to another file system"
    elif error.errno in NOT_A_PATH:
        way_out = "pass another path"
    else:
        raise error
    where = f" at {error.filename}" if error.filename else ""
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return f"{error.strerror}{where}{notes}: {way_out}"


def explain_out_of_memory(error: MemoryError | RuntimeError, command: str) -> str:
    """Return the message for an error of memory; reraise other errors."""
    if not (isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)):
        raise error
    way_out = {
        "fit": "set --trainer.accumulate_grad_batches to 2, 4 or more, which divides each batch "
        "into parts and keeps its size, or lower --data.batch_size",
        "predict": "lower --num_samples, or use a smaller model",
    }
    return f"out of memory: {way_out.get(command, 'use a shorter text or a smaller model')}"


def prepare_streams() -> None:
    r"""Use UTF-8 for stdin, stdout and stderr, and replace closed ones by the null device.

    Characters that UTF-8 cannot encode, as in a file name that is not UTF-8, are printed as escapes
    such as ``\udce9``.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(encoding="utf-8", errors=errors)


def replace_missing_backend() -> None:
    """Replace Matplotlib's backend by agg if its module is not installed here.

    A notebook sets ``MPLBACKEND`` for its own kernel, and processes started from it inherit the
    variable. If the backend is missing in their environment, Matplotlib cannot be imported.
    """
    backend = os.environ.get("MPLBACKEND", "")
    module = backend.removeprefix("module://").partition(".")[0]
    if backend.startswith("module://") and (not module or find_spec(module) is None):
        os.environ["MPLBACKEND"] = "agg"


def dispatch(argv: list[str]) -> int:
    """Answer help, or import the module of the command and run it."""
    command, *options = argv or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP.format(program=program()), end="")
        return 0
    if command == "--version":
        print(f"nanogpt {__version__}")
        return 0
    if command not in COMMANDS:
        close = get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"see {program()} --help"
        raise UserError(f"no command {command!r}; {hint}")
    if command in ("fit", "validate"):
        options = resolve_configs(command, options)
        import_module("nanogpt.training.lightning_cli").run(command, options)
    else:
        import_module(f"nanogpt.commands.{command}").run(options)
    return 0


def resolve_configs(command: str, options: list[str]) -> list[str]:
    """Replace the names of shipped configs in the options of ``fit`` or ``validate`` by paths."""
    names = {option.partition("=")[0] for option in options}
    if command == "fit" and not names & {"-c", "--config", "--ckpt_path", "-h", "--help"}:
        message = "fit needs a config, `--config NAME` or `--config FILE`:"
        for config, path in shipped_configs().items():
            first_line = path.read_text(encoding="utf-8").partition("\n")[0]
            message += f"\n  {config:24} {first_line.lstrip('# ')}"
        raise UserError(message)
    resolved: list[str] = []
    for previous, option in zip(["", *options], options, strict=False):
        name, sep, value = option.partition("=")
        if sep and name in ("-c", "--config"):
            option = f"{name}={find_config(value)}"
        elif previous in ("-c", "--config") and not option.startswith("-"):
            option = find_config(option)
        resolved.append(option)
    return resolved


def fail(message: str) -> int:
    """Print an error on stderr and return the exit code of a user's mistake."""
    # a message may quote a text of any length from a file
    lines = [
        line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…" for line in message.split("\n")
    ]
    print_message("error: " + "\n".join(lines))
    return 2

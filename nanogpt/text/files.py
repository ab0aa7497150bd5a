"""Read and decode the user's text files, with one-line errors."""

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from nanogpt.errors import UserError

MAX_BYTES = 2**31  # the ids and code points of a longer text take more memory than most machines
KERNEL_FILE_SYSTEMS = {
    *("proc", "sysfs", "debugfs", "tracefs", "securityfs", "selinuxfs", "configfs", "pstore"),
    *("cgroup", "cgroup2", "bpf", "efivarfs", "binfmt_misc", "fusectl", "mqueue", "devpts"),
}


class NotRegularFileError(OSError):
    """A folder, FIFO, socket, device, or file of the kernel where a file is expected."""


def read_regular_file(path: Path) -> bytes:
    """Return the bytes of a regular file of at most ``MAX_BYTES``.

    Opening or reading another kind of file might never end, act on a device or, in ``/proc``,
    reveal secrets. So the file is checked before it is opened, and the opened one once more, in
    case another has replaced it meanwhile.

    Raises:
        NotRegularFileError: if it is another kind of file.
        OSError: if it does not exist, is too large or cannot be read.
    """
    _check_regular(path.stat())
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # if a device replaces it
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        _check_regular(status)
        if status.st_size > MAX_BYTES:
            raise OSError(
                errno.EFBIG,
                f"it has {status.st_size / 1e6:,.0f} MB, more than {MAX_BYTES / 1e6:,.0f} MB",
            )
        return file.read()


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or _is_of_kernel(status):
        raise NotRegularFileError(errno.EINVAL, "it is not a regular file")


def _is_of_kernel(status: os.stat_result) -> bool:
    """Return whether a file belongs to a file system that shows the Linux kernel's state."""
    mounts = ""
    with suppress(OSError):  # not on Linux
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    for line in mounts.splitlines():
        # 24 1 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
        _, _, device, *fields = line.split(" ")
        if device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}":
            return fields[fields.index("-") + 1] in KERNEL_FILE_SYSTEMS
    return False


def read_file(path: str, name: str, hint: str, searched: str = "") -> bytes:
    """Return the bytes of a file; raise UserError if it does not exist or cannot be read.

    Args:
        path: path of a regular file.
        name: what to call the file in an error message, such as ``the corpus``.
        hint: the end of the error message: the option to pass and the values it takes.
        searched: where a file that does not exist was searched for, such as `` in '/home'``.
    """
    try:
        return read_regular_file(Path(path))
    except NotRegularFileError as error:
        raise UserError(f"{name} {path!r} is not a regular file; {hint}") from error
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # a null byte
        raise UserError(f"{name} {path!r} does not exist{searched}; {hint}") from error
    except OSError as error:
        raise UserError(f"{name} {path!r} cannot be read: {error.strerror}") from error


def decode_text(raw: bytes, encoding: str, name: str, option: str) -> str:
    r"""Decode the bytes of a text.

    Removes a byte order mark and converts line endings to ``\n``. Raises UserError if the text is
    empty or not in that encoding, with ``name``, the text's, and ``option``, which sets the
    encoding.
    """
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        position = len(raw) - len(error.object) + error.start  # utf-8-sig does not count the mark
        raise UserError(
            f"{name} is not {encoding}: byte {position} is 0x{raw[position]:02x} ({error.reason}); "
            f"pass its encoding with {option}"
        ) from error
    except (LookupError, ValueError) as error:
        raise UserError(f"unknown encoding {encoding!r}; try utf-8, latin-1 or utf-16") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise UserError(f"{name} is empty; pass a file that contains text")
    return text


def read_text(path: str, encoding: str, name: str, option: str) -> tuple[str, str]:
    """Return the name and the text of a file, or of standard input for ``-``, or raise UserError.

    Args:
        path: path of the file, or ``-``.
        encoding: text encoding of the file.
        name: what to call the text in an error message, such as ``the prompt``.
        option: the option that takes the path.
    """
    if path == "-":
        path_name, raw = "standard input", sys.stdin.buffer.read()
    else:
        hint = f"{option} takes the path of a text file, or - for standard input"
        path_name, raw = path, read_file(path, name, hint)
    return path_name, decode_text(raw, encoding, f"{name} {path_name!r}", "--encoding")

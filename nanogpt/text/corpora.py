"""Training corpora: tiny Shakespeare, the built-in pastiche, or any text file."""

import hashlib
import os
import queue
import socket
import threading
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from nanogpt.atomic import write_atomically
from nanogpt.errors import UserError
from nanogpt.notices import notice
from nanogpt.text.files import decode_text, read_file
from nanogpt.text.pastiche import pastiche

TINY_SHAKESPEARE = "tiny_shakespeare"
PASTICHE = "pastiche"
BUILT_IN = (TINY_SHAKESPEARE, PASTICHE)

FILE = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_SECONDS = 9.0  # timeout of all attempts together
RETRY_AFTER_SECONDS = (1.0, 2.0)  # pauses before the second and third attempt


@dataclass(frozen=True)
class Corpus:
    """A text and where it comes from.

    Args:
        name: the name or the path by which it was requested.
        text: all of it.
        sha256: SHA-256 of the bytes before decoding.
        path: absolute path of the file; None for the corpora that have a name.
        stands_in_for: the requested corpus if it was not available.
        failure: the reason why it was not.
    """

    name: str
    text: str
    sha256: str
    path: str | None = None
    stands_in_for: str | None = None
    failure: str | None = None


def load_corpus(
    corpus: str = TINY_SHAKESPEARE,
    encoding: str = "utf-8",
    offline_corpus: str | None = PASTICHE,
    trained_path: str | None = None,
) -> Corpus:
    """Load a corpus by name or from the path of a text file.

    Args:
        corpus: ``tiny_shakespeare``, ``pastiche`` or a path.
        encoding: text encoding of the file; ignored for the other two.
        offline_corpus: the corpus to use if tiny Shakespeare is not on disk and cannot be
            downloaded; None raises an error instead.
        trained_path: absolute path of the file in training. It is read, with a notice, if
            ``corpus`` is a relative path that does not exist in the current folder.

    Raises:
        UserError: if there is no such file, it is empty or it cannot be decoded; or if tiny
            Shakespeare is not available and ``offline_corpus`` is None.
    """
    if corpus == PASTICHE:
        text = pastiche()
        return Corpus(PASTICHE, text, hashlib.sha256(text.encode()).hexdigest())
    if corpus != TINY_SHAKESPEARE:
        return read_corpus(corpus, encoding, trained_path)
    path = find_tiny_shakespeare()
    if path is None:
        path = cache_folder() / FILE
        failure = download(path)
        if failure is not None:
            if offline_corpus is None:
                raise UserError(
                    "tiny Shakespeare is not on this machine and could not be downloaded "
                    f"({failure}): save {URL} as {Path('data') / FILE}, or set NANOGPT_DATA_DIR to "
                    f"the folder that contains {FILE}, or train on --data.corpus pastiche"
                )
            stand_in = load_corpus(offline_corpus, encoding, None)
            return replace(stand_in, stands_in_for=TINY_SHAKESPEARE, failure=failure)
    return Corpus(TINY_SHAKESPEARE, path.read_text("utf-8"), SHA256)


def read_corpus(name: str, encoding: str, trained_path: str | None) -> Corpus:
    """Read a text file; raise UserError if that fails, or if it is empty. See ``load_corpus``."""
    path, searched = Path(name), ""
    hint = f"--data.corpus takes the path of a text file or one of {', '.join(BUILT_IN)}"
    if not path.is_absolute():
        searched = f" in {str(Path.cwd())!r}"
        if trained_path and trained_path != str(path.absolute()) and not os.path.lexists(path):
            # Path.is_file raises an error for a name that is too long
            if os.path.isfile(trained_path):  # noqa: PTH113
                notice(f"no {name!r} in the current folder: reading {trained_path!r} instead")
                path = Path(trained_path)
            else:
                searched += f", nor at {trained_path!r}, where it was in training"
    raw = read_file(str(path), "the corpus", hint, searched)
    text = decode_text(raw, encoding, f"the corpus {str(path)!r}", "--data.encoding")
    return Corpus(name, text, hashlib.sha256(raw).hexdigest(), str(path.absolute()))


def find_tiny_shakespeare() -> Path | None:
    """Return the path of the first copy in the folders below, or None.

    Searches ``$NANOGPT_DATA_DIR``, ``data/`` and the user's cache folder, and skips files that
    cannot be read. Raises UserError if a copy has another checksum.
    """
    folders = [Path("data"), cache_folder()]
    if data_dir := os.environ.get("NANOGPT_DATA_DIR"):
        folders.insert(0, Path(data_dir))
    for path in (folder / FILE for folder in folders):
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            continue
        if sha256 != SHA256:
            raise UserError(
                f"{path} is not tiny Shakespeare: its SHA-256 is {sha256[:12]}…, not "
                f"{SHA256[:12]}…; remove it, or train on it with --data.corpus {path}"
            )
        return path
    return None


def cache_folder() -> Path:
    """Return the user's cache folder for nanogpt, as the operating system defines it."""
    from platformdirs import user_cache_path

    return user_cache_path("nanogpt", appauthor=False)


@cache  # called several times per run; without a network, only the first call waits
def download(target: Path) -> str | None:
    """Download tiny Shakespeare, verify its checksum and write it atomically.

    A daemon thread downloads it to memory, because a DNS lookup has no timeout.

    Returns:
        None, or the reason of the failure, at the latest after ``DOWNLOAD_SECONDS``.
    """
    answers: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_fetch()), daemon=True).start()
    try:
        answer = answers.get(timeout=DOWNLOAD_SECONDS)
    except queue.Empty:
        return f"no answer within {DOWNLOAD_SECONDS:g} s"
    if isinstance(answer, str):
        return answer
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, answer)
    except OSError as error:
        return f"{target.parent} cannot be written: {error.strerror}"
    return None


def _fetch() -> bytes | str:
    """Return the bytes of tiny Shakespeare, or the reason of the failure."""
    import requests

    failure = ""
    for pause in (0.0, *RETRY_AFTER_SECONDS):
        time.sleep(pause)
        try:
            answer = requests.get(URL, timeout=3)
            answer.raise_for_status()
        except Exception as error:  # any failure becomes the reason
            cause: BaseException = error
            while cause.__context__ is not None:  # requests wraps the cause three times
                cause = cause.__context__
            failure = " ".join(str(cause).split())
            if isinstance(cause, socket.gaierror):  # no network, so retrying is useless
                break
        else:
            if hashlib.sha256(answer.content).hexdigest() == SHA256:
                return answer.content
            failure = "the downloaded file has another checksum"
    return failure

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
from nanogpt.text.files import decode_text, read_file, read_regular_file
from nanogpt.text.pastiche import pastiche

TINY_SHAKESPEARE = "tiny_shakespeare"
PASTICHE = "pastiche"
BUILT_IN = (TINY_SHAKESPEARE, PASTICHE)

FILE = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394  # bytes
DOWNLOAD_SECONDS = 9.0  # deadline of all attempts together
TOO_SLOW = "no answer within {:g} s"
RETRY_AFTER_SECONDS = (1.0, 2.0)  # pauses before the second and third attempt


@dataclass(frozen=True)
class Corpus:
    """A text and where it comes from.

    Args:
        name: the name or the path by which it was requested.
        text: all of it.
        sha256: SHA-256 of the bytes before decoding.
        stands_in_for: the requested corpus if it was not available.
        failure: the reason why it was not.
    """

    name: str
    text: str
    sha256: str
    stands_in_for: str | None = None
    failure: str | None = None


def load_corpus(
    corpus: str = TINY_SHAKESPEARE,
    encoding: str = "utf-8",
    offline_corpus: str | None = PASTICHE,
    fallback_folder: Path | None = None,
) -> Corpus:
    """Load a corpus by name or from the path of a text file.

    Args:
        corpus: ``tiny_shakespeare``, ``pastiche`` or a path.
        encoding: text encoding of the file; ignored for the other two.
        offline_corpus: the corpus to use if tiny Shakespeare is not on disk and cannot be
            downloaded; None raises an error instead.
        fallback_folder: where to find a relative path, with a notice, that does not exist in the
            current folder: the folder that contains the ``lightning_logs`` of a run.

    Raises:
        UserError: if there is no such file, it is empty or it cannot be decoded; or if tiny
            Shakespeare is not available and ``offline_corpus`` is None.
    """
    if corpus == PASTICHE:
        text = pastiche()
        return Corpus(PASTICHE, text, hashlib.sha256(text.encode()).hexdigest())
    if corpus != TINY_SHAKESPEARE:
        return read_corpus(corpus, encoding, fallback_folder)
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
    return Corpus(TINY_SHAKESPEARE, read_regular_file(path).decode("utf-8"), SHA256)


def read_corpus(name: str, encoding: str, fallback_folder: Path | None) -> Corpus:
    """Read a text file; raise UserError if that fails, or if it is empty. See ``load_corpus``."""
    path, searched = Path(name), ""
    hint = f"--data.corpus takes the path of a text file or one of {', '.join(BUILT_IN)}"
    if not path.is_absolute():
        searched = f" in {str(Path.cwd())!r}"
        if fallback_folder and not os.path.lexists(path):
            other = fallback_folder.absolute() / path
            if os.path.lexists(other):
                notice(f"no {name!r} in the current folder: reading {str(other)!r} instead")
                path = other
            elif other != path.absolute():
                searched += f", nor in {str(fallback_folder.absolute())!r}, the folder of the run"
    raw = read_file(str(path), "the corpus", hint, searched)
    text = decode_text(raw, encoding, f"the corpus {str(path)!r}", "--data.encoding")
    return Corpus(name, text, hashlib.sha256(raw).hexdigest())


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
            sha256 = hashlib.sha256(read_regular_file(path)).hexdigest()
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
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    answers: queue.SimpleQueue[bytes | str] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_fetch(deadline)), daemon=True).start()
    try:
        answer = answers.get(timeout=DOWNLOAD_SECONDS)
    except queue.Empty:
        return TOO_SLOW.format(DOWNLOAD_SECONDS)
    if isinstance(answer, str):
        return answer
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, answer)
    except OSError as error:
        return f"{target.parent} cannot be written: {error.strerror}"
    return None


class _RefusedAnswerError(Exception):
    """An answer that is not the file; the message contains no text from the server."""


def _fetch(deadline: float) -> bytes | str:
    """Return the bytes of tiny Shakespeare, or the reason of the last failure."""
    failure = ""
    for pause in (0.0, *RETRY_AFTER_SECONDS):
        if failure and time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
        try:
            content = _request(deadline)
        except Exception as error:  # any failure becomes the reason
            cause: BaseException = error
            while cause.__context__ is not None:  # requests wraps the cause three times
                cause = cause.__context__
            failure = _reason(cause)
            if isinstance(cause, socket.gaierror):  # no network, so retrying is useless
                break
        else:
            if hashlib.sha256(content).hexdigest() == SHA256:
                return content
            failure = "the downloaded file has another checksum"
    return failure


def _request(deadline: float) -> bytes:
    """Return the body of one answer, without following redirects or decompressing it.

    Raises _RefusedAnswerError if the body is compressed, longer than ``SIZE`` or not complete by
    the deadline, a value of ``time.monotonic``.
    """
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, resp: requests.Response) -> None:
            """Find no redirect: with ``allow_redirects=False``, its whole body is still read."""

    content, headers = b"", {"Accept-Encoding": "identity"}
    with Session() as session, session.get(URL, headers=headers, stream=True, timeout=3) as answer:
        if answer.status_code != 200:
            raise _RefusedAnswerError(f"the server answered {answer.status_code}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise _RefusedAnswerError("the answer is compressed")
        # read() would wait for all bytes, however slow they are
        while piece := answer.raw.read1(2**16, decode_content=False):
            content += piece
            if len(content) > SIZE:
                raise _RefusedAnswerError(f"the answer is longer than {SIZE:,} bytes")
            if time.monotonic() > deadline:
                raise _RefusedAnswerError(TOO_SLOW.format(DOWNLOAD_SECONDS))
    return content


def _reason(error: BaseException) -> str:
    """Return why a request failed, without text from the server, which may contain anything."""
    if isinstance(error, _RefusedAnswerError):
        return str(error)
    if isinstance(error, OSError) and error.errno and error.strerror:
        return " ".join(error.strerror.split())
    return f"no valid answer: {type(error).__name__}"

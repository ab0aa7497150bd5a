"""Where a text comes from: by name, or from a file of the user's own."""

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
from nanogpt.text.files import decode_text, read_file

TINY_SHAKESPEARE = "tiny_shakespeare"
PASTICHE = "pastiche"
KNOWN = (TINY_SHAKESPEARE, PASTICHE)

FILE = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_SECONDS = 9.0  # after which a machine counts as one without a network
RETRY_AFTER_SECONDS = (1.0, 2.0)  # a failed download is tried again so many times


@dataclass(frozen=True)
class Corpus:
    """A text and what identifies it.

    ``name`` is a known name or the file's path; ``sha256`` is that of the bytes before
    decoding; ``stands_in_for`` names the corpus that was asked for and could not be had, and
    ``failure`` says why.
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
) -> Corpus:
    """Load a corpus by its known name, or from the path of a text file.

    Args:
        corpus: ``tiny_shakespeare``, ``pastiche`` or a path.
        encoding: of a file; the known corpora are what they are.
        offline_corpus: what stands in where tiny Shakespeare is neither on disk nor to be
            downloaded; None makes that an error.

    Raises:
        UserError: if there is no such file, or it is empty or cannot be decoded, or tiny
            Shakespeare is not to be had and nothing may stand in for it.
    """
    if corpus == PASTICHE:
        return _pastiche()
    if corpus != TINY_SHAKESPEARE:
        return read_corpus(Path(corpus), encoding)
    found = find_tiny_shakespeare()
    if found is None:
        failure = download(cache_folder() / FILE)
        if failure is None:
            found = cache_folder() / FILE
        elif offline_corpus is None:
            raise UserError(
                f"tiny Shakespeare is not on this machine and could not be downloaded ({failure}): "
                f"get {URL} and put it at {Path('data') / FILE}, or set NANOGPT_DATA_DIR to the "
                f"folder that holds {FILE}, or train on --data.corpus pastiche"
            )
        else:
            stand_in = load_corpus(offline_corpus, encoding, None)
            return replace(stand_in, stands_in_for=TINY_SHAKESPEARE, failure=failure)
    return Corpus(TINY_SHAKESPEARE, found.read_text("utf-8"), SHA256)


def read_corpus(path: Path, encoding: str = "utf-8") -> Corpus:
    """Read a text file of the user's own.

    Raises:
        UserError: if it is no readable file, is empty, or is not text in that encoding.
    """
    takes = f"--data.corpus takes the path of a text file or one of {', '.join(KNOWN)}"
    raw = read_file(str(path), "the corpus", takes)
    text = decode_text(raw, encoding, f"the corpus {str(path)!r}", "--data.encoding")
    return Corpus(str(path), text, hashlib.sha256(raw).hexdigest())


def find_tiny_shakespeare() -> Path | None:
    """Return the first copy on this machine that has the right checksum, if there is one.

    Looked for in ``$NANOGPT_DATA_DIR``, in ``data/`` and in the user's cache folder; what is not
    to be read counts as not there.

    Raises:
        UserError: if a copy is there and is not the file that it should be.
    """
    folders = [Path("data"), cache_folder()]
    if chosen := os.environ.get("NANOGPT_DATA_DIR"):
        folders.insert(0, Path(chosen))
    for path in (folder / FILE for folder in folders):
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError:
            continue
        if found != SHA256:
            raise UserError(
                f"{path} is not tiny Shakespeare: its SHA-256 is {found[:12]}…, not "
                f"{SHA256[:12]}…; remove it (or pass it as --data.corpus {path})"
            )
        return path
    return None


def cache_folder() -> Path:
    """Return the user's cache folder for this project, by the customs of the system."""
    from platformdirs import user_cache_path

    return user_cache_path("nanogpt", appauthor=False)


@cache  # a run asks more than once, and a machine without a network should wait but once
def download(target: Path) -> str | None:
    """Download tiny Shakespeare, check it, and only then give it its name.

    It gives up after ``DOWNLOAD_SECONDS``, also where looking up the host hangs: that is why a
    thread of its own fetches, into memory, and leaves nothing behind whenever it ends.

    Returns: None, or why there is no file.
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
    """Return the bytes of tiny Shakespeare, or in a few words why they could not be had."""
    import requests

    failure = ""
    for pause in (0.0, *RETRY_AFTER_SECONDS):
        time.sleep(pause)
        try:
            answer = requests.get(URL, timeout=3)
            answer.raise_for_status()
        except Exception as error:  # whatever went wrong, there is no file, and this is why
            cause: BaseException = error
            while cause.__context__ is not None:  # requests wraps it three times
                cause = cause.__context__
            failure = " ".join(str(cause).split())
            if isinstance(cause, socket.gaierror):  # no network: do not keep the user waiting
                break
        else:
            if hashlib.sha256(answer.content).hexdigest() == SHA256:
                return answer.content
            failure = "what came has another checksum"
    return failure


def _pastiche() -> Corpus:
    from nanogpt.text.pastiche import pastiche

    text = pastiche()
    return Corpus(PASTICHE, text, hashlib.sha256(text.encode()).hexdigest())

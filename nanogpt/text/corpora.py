"""Where a text comes from: by name, or from a file of the user's own."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from nanogpt.errors import UserError

TINY_SHAKESPEARE = "tiny_shakespeare"
PASTICHE = "pastiche"
KNOWN = (TINY_SHAKESPEARE, PASTICHE)

FILE = "tinyshakespeare.txt"
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
DOWNLOAD_SECONDS = 9.0  # after which a machine counts as one without a network


@dataclass(frozen=True)
class Corpus:
    """A text and what identifies it.

    ``name`` is a known name or the file's path; ``sha256`` is that of the bytes before
    decoding; ``stands_in_for`` names the corpus that was asked for and could not be had.
    """

    name: str
    text: str
    sha256: str
    stands_in_for: str | None = None


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
            return Corpus(stand_in.name, stand_in.text, stand_in.sha256, TINY_SHAKESPEARE)
    return Corpus(TINY_SHAKESPEARE, found.read_text("utf-8"), SHA256)


def read_corpus(path: Path, encoding: str = "utf-8") -> Corpus:
    """Read a text file of the user's own.

    A byte order mark is dropped, and Windows' line ends become ``\\n``, as Python reads text.

    Raises:
        UserError: if it is no readable file, is empty, or is not text in that encoding.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(
            f"the corpus {str(path)!r} {what}; --data.corpus takes the path of a text file or one "
            f"of {', '.join(KNOWN)}"
        )
    try:
        raw = path.read_bytes()
        text = raw.decode(encoding)
    except OSError as error:
        raise UserError(f"the corpus {str(path)!r} cannot be read: {error.strerror}") from error
    except LookupError as error:
        raise UserError(f"no encoding {encoding!r}; try utf-8, latin-1 or utf-16") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the corpus {str(path)!r} is not {encoding}: byte {error.start} is "
            f"0x{raw[error.start]:02x} ({error.reason}); name its encoding with --data.encoding"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise UserError(f"the corpus {str(path)!r} is empty; give a file with some text in it")
    return Corpus(str(path), text, hashlib.sha256(raw).hexdigest())


def find_tiny_shakespeare() -> Path | None:
    """Return the first copy on this machine that has the right checksum, if there is one.

    Looked for in ``$NANOGPT_DATA_DIR``, in ``data/`` and in the user's cache folder.

    Raises:
        UserError: if a copy is there and is not the file that it should be.
    """
    folders = [Path("data"), cache_folder()]
    if chosen := os.environ.get("NANOGPT_DATA_DIR"):
        folders.insert(0, Path(chosen))
    for path in (folder / FILE for folder in folders):
        if path.is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
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


def download(target: Path) -> str | None:
    """Download tiny Shakespeare once, check it, and only then give it its name.

    It gives up after ``DOWNLOAD_SECONDS``, also where looking up the host hangs.

    Returns: None, or why there is no file.
    """
    import threading

    outcome: list[str | None] = [f"no answer within {DOWNLOAD_SECONDS:.0f} s"]

    def fetch() -> None:
        try:
            import pooch

            pooch.get_logger().setLevel("ERROR")
            downloader = pooch.HTTPDownloader(timeout=3, progressbar=False)
            pooch.retrieve(
                URL,
                f"sha256:{SHA256}",
                fname=target.name,
                path=target.parent,
                downloader=downloader,
            )
            outcome[0] = None
        except Exception as error:  # whatever went wrong, there is no file, and this is why
            outcome[0] = f"{type(error).__name__}"

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    return outcome[0]


def _pastiche() -> Corpus:
    from nanogpt.text.pastiche import pastiche

    text = pastiche()
    return Corpus(PASTICHE, text, hashlib.sha256(text.encode()).hexdigest())

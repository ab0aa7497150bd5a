"""Corpora from a file, from this machine, from the network, or the built-in replacement."""

import hashlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.text import corpora
from nanogpt.text.corpora import (
    FILE,
    PASTICHE,
    TINY_SHAKESPEARE,
    find_tiny_shakespeare,
    load_corpus,
)
from nanogpt.text.tokenizer import Tokenizer
from tests.command_lines import SHARED_TEXT

FAKE = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
not_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions do not apply to this user"
)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with empty folders and without network, on which FAKE is tiny Shakespeare."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("NANOGPT_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(corpora, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(corpora, "SHA256", hashlib.sha256(FAKE).hexdigest())
    monkeypatch.setattr(corpora, "URL", "http://127.0.0.1:9/unreachable.txt")
    monkeypatch.setattr(corpora, "RETRY_AFTER_SECONDS", (0.0, 0.0))
    return tmp_path


def write_copy(folder: Path, content: bytes = FAKE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(content)
    return folder / FILE


def error_of(path: Path | str, encoding: str = "utf-8") -> str:
    """The one-line error for a corpus that cannot be read."""
    with pytest.raises(UserError) as error:
        load_corpus(str(path), encoding)
    assert "\n" not in str(error.value)
    return str(error.value)


# text files


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "faust.txt"
    path.write_bytes("Habe nun, ach! 🎭\n".encode())
    corpus = load_corpus(str(path))
    assert corpus.text == "Habe nun, ach! 🎭\n"
    assert corpus.name == str(path)
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.stands_in_for is None


# a relative path, from another folder


def test_path_of_a_file_is_absolute(tmp_path: Path) -> None:
    Path("text").write_text("here", "utf-8")
    corpus = load_corpus("text")
    assert (corpus.name, corpus.path) == ("text", str(tmp_path / "work" / "text"))
    assert load_corpus(str(corpus.path)).path == corpus.path
    assert load_corpus(PASTICHE).path is None


def test_missing_relative_path_is_replaced_by_that_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = tmp_path / "text"
    trained.write_text("there", "utf-8")
    corpus = load_corpus("text", trained_path=str(trained))
    assert (corpus.name, corpus.text, corpus.path) == ("text", "there", str(trained))
    notice = f"notice: no 'text' in the current folder: reading {str(trained)!r} instead\n"
    assert capsys.readouterr().err == notice
    Path("text").write_text("here", "utf-8")  # takes precedence
    corpus = load_corpus("text", trained_path=str(trained))
    assert (corpus.text, corpus.path) == ("here", str(Path("text").absolute()))
    assert load_corpus("text", trained_path=str(Path("text").absolute())).text == "here"
    assert capsys.readouterr().err == ""


def test_error_names_both_folders(tmp_path: Path) -> None:
    for trained in (str(tmp_path / "text"), "n" * 300, "a\0b", str(tmp_path)):
        with pytest.raises(UserError) as error:
            load_corpus("text", trained_path=trained)
        where = f"'text' does not exist in {str(Path.cwd())!r}, nor at {trained!r}, where it was"
        assert where in str(error.value)
    for trained in (None, str(Path("text").absolute())):
        with pytest.raises(UserError, match=r"'text' does not exist in '[^']*'; --data.corpus"):
            load_corpus("text", trained_path=trained)
    absolute = str(tmp_path / "text")
    with pytest.raises(UserError, match=r"text' does not exist; --data.corpus"):
        load_corpus(absolute, trained_path=str(tmp_path / "other"))


@posix
def test_name_that_is_not_utf_8() -> None:
    try:
        Path("caf\udce9").write_text("text", "utf-8")
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    assert load_corpus("caf\udce9").text == "text"
    assert r"'th\udce9' does not exist" in error_of("th\udce9")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
def test_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_bytes("Größe\n".encode(encoding))
    assert load_corpus(str(path), encoding).text == "Größe\n"


def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("\ufeffa\ufeffb", "utf-8")
    assert load_corpus(str(path)).text == "a\ufeffb"


def test_line_endings_become_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("a\r\nb\rc\nd\r\n\r\n\u2028".encode())
    assert load_corpus(str(path)).text == "a\nb\nc\nd\n\n\u2028"


@pytest.mark.parametrize(
    ("raw", "encoding", "position", "byte"),
    [
        (b"na\xefve", "utf-8", 2, "0xef"),
        (b"\xef\xbb\xbfna\xefve", "utf-8-sig", 5, "0xef"),  # counted from the mark
        ("né".encode(), "ascii", 1, "0xc3"),
        (b"\xff\xfea\0b", "utf-16", 4, "0x62"),
    ],
)
def test_undecodable_byte_is_reported(
    tmp_path: Path, raw: bytes, encoding: str, position: int, byte: str
) -> None:
    path = tmp_path / "text"
    path.write_bytes(raw)
    message = error_of(path, encoding)
    assert f"is not {encoding}: byte {position} is {byte}" in message
    assert "--data.encoding" in message


@pytest.mark.parametrize("encoding", ["utf-99", "hex", "undefined", "a\0b", ""])
def test_unknown_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_text("text", "utf-8")
    assert f"unknown encoding {encoding!r}; try utf-8" in error_of(path, encoding)


@pytest.mark.parametrize(
    "name", ["missing", "tiny_shakspeare", "two\nlines", "n" * 300, "a\0b", "here/there"]
)
def test_missing_file(name: str) -> None:
    message = error_of(name)
    assert "does not exist" in message or "File name too long" in message
    assert repr(name) in message


def test_error_for_a_missing_file_lists_the_built_in_corpora() -> None:
    assert "tiny_shakespeare, pastiche" in error_of("shakespeare")


def test_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text", "utf-8")
    assert "does not exist" in error_of(tmp_path / "text" / "text")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text").write_bytes(content)
    assert "is empty" in error_of(tmp_path / "text")


def test_folder(tmp_path: Path) -> None:
    assert "is not a file" in error_of(tmp_path)
    assert "is not a file" in error_of("")


@posix
@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "link to /dev/zero", "/dev/tty"])
def test_fifo_or_device_is_not_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    os.mkfifo("fifo")
    Path("link to ").mkdir()
    Path("link to /dev").symlink_to("/dev")
    if not Path(name).exists():
        pytest.skip(f"no {name} on this machine")
    assert "is not a file" in error_of(name)


@posix
def test_broken_links() -> None:
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("missing")
    assert "does not exist" in error_of("loop")
    assert "does not exist" in error_of("dangling")


@not_root
def test_file_without_permission(tmp_path: Path) -> None:
    path = write_copy(tmp_path / "folder")
    path.chmod(0)
    assert "cannot be read: Permission denied" in error_of(path)


@not_root
def test_folder_without_permission(tmp_path: Path) -> None:
    path = write_copy(tmp_path / "folder")
    path.parent.chmod(0)
    try:
        assert "cannot be read: Permission denied" in error_of(path)
    finally:
        path.parent.chmod(0o700)


# tiny Shakespeare on this machine


def test_folders_are_searched_in_order(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(machine / "chosen"))
    for folder in (machine / "chosen", Path("data"), machine / "cache"):
        write_copy(folder)
    for folder in (machine / "chosen", Path("data"), machine / "cache"):
        assert find_tiny_shakespeare() == folder / FILE
        corpus = load_corpus()
        assert corpus.name == TINY_SHAKESPEARE
        assert corpus.text == FAKE.decode()
        assert corpus.sha256 == hashlib.sha256(FAKE).hexdigest()
        assert corpus.stands_in_for is None
        (folder / FILE).unlink()
    assert find_tiny_shakespeare() is None


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are specific to Linux")
def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine))
    assert corpora.cache_folder() == machine / "nanogpt"


@pytest.mark.parametrize("content", [b"", FAKE[:-1], FAKE.replace(b"\n", b"\r\n")])
def test_copy_with_another_checksum_is_an_error(content: bytes) -> None:
    path = write_copy(Path("data"), content)
    message = error_of(TINY_SHAKESPEARE)
    assert f"{path} is not tiny Shakespeare" in message
    assert hashlib.sha256(content).hexdigest()[:12] in message
    assert f"--data.corpus {path}" in message


def test_folder_with_the_name_of_the_file_is_skipped(machine: Path) -> None:
    (Path("data") / FILE).mkdir(parents=True)
    assert find_tiny_shakespeare() is None
    assert write_copy(machine / "cache") == find_tiny_shakespeare()


@not_root
def test_unreadable_folder_is_skipped(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = write_copy(machine / "unreadable").parent
    unreadable.chmod(0)
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(unreadable))
    try:
        assert find_tiny_shakespeare() is None
    finally:
        unreadable.chmod(0o700)


# without a network


def test_pastiche_by_name() -> None:
    corpus = load_corpus(PASTICHE)
    assert corpus.name == PASTICHE
    assert corpus.sha256 == hashlib.sha256(corpus.text.encode()).hexdigest()
    assert corpus.stands_in_for is None


def test_pastiche_replaces_tiny_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "download", lambda _: "no network")
    corpus = load_corpus()
    assert corpus.stands_in_for == TINY_SHAKESPEARE
    assert (corpus.name, corpus.text) == (PASTICHE, load_corpus(PASTICHE).text)


def test_file_replaces_tiny_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "download", lambda _: "no network")
    Path("own.txt").write_bytes("é".encode("latin-1"))
    corpus = load_corpus(encoding="latin-1", offline_corpus="own.txt")
    assert (corpus.name, corpus.text) == ("own.txt", "é")
    assert corpus.stands_in_for == TINY_SHAKESPEARE


@pytest.mark.parametrize("offline_corpus", [None, TINY_SHAKESPEARE])
def test_error_without_a_replacement_says_how_to_get_the_file(
    offline_corpus: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "download", lambda _: "cable unplugged")
    with pytest.raises(UserError) as error:
        load_corpus(offline_corpus=offline_corpus)
    message = str(error.value)
    for part in ("cable unplugged", corpora.URL, str(Path("data") / FILE), "NANOGPT_DATA_DIR"):
        assert part in message
    assert "--data.corpus pastiche" in message
    assert "\n" not in message


# download

Serve = Callable[..., list[str]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a local server that sends the given answers, and return the paths it is asked for."""
    servers = []

    def start(*answers: tuple[int, bytes]) -> list[str]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                status, content = answers[min(len(asked), len(answers)) - 1]
                if not status:  # closes the connection
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(corpora, "URL", f"http://127.0.0.1:{server.server_port}/input.txt")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_download_leaves_only_the_file(serve: Serve, machine: Path) -> None:
    asked = serve((200, FAKE))
    corpus = load_corpus(offline_corpus=None)
    assert (corpus.name, corpus.text) == (TINY_SHAKESPEARE, FAKE.decode())
    assert files(machine / "cache") == [FILE]
    assert (machine / "cache" / FILE).read_bytes() == FAKE
    load_corpus(offline_corpus=None)
    assert asked == ["/input.txt"]  # once


def test_file_is_renamed_when_complete(
    serve: Serve, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve((200, FAKE))
    renamed = []

    def replace(partial: Path, target: Path) -> None:
        renamed.append((partial.read_bytes(), target, target.exists()))
        partial.rename(target)

    monkeypatch.setattr(Path, "replace", replace)
    target = machine / "cache" / FILE
    assert corpora.download(target) is None
    assert renamed == [(FAKE, target, False)]


@pytest.mark.parametrize(
    "failures",
    [[(503, b"")], [(0, b"")], [(200, FAKE[:9])], [(500, b""), (200, b"<h1>Log in</h1>")]],
    ids=["busy", "closed", "truncated", "twice"],
)
def test_failed_download_is_retried(
    serve: Serve, machine: Path, failures: list[tuple[int, bytes]]
) -> None:
    asked = serve(*failures, (200, FAKE))
    assert corpora.download(machine / "cache" / FILE) is None
    assert files(machine / "cache") == [FILE]
    assert len(asked) == len(failures) + 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, FAKE + b"!"), "another checksum"),
        ((200, b""), "another checksum"),
        ((404, FAKE), "404"),
        ((0, b""), "closed connection"),
    ],
)
def test_wrong_answer_leaves_no_file(
    serve: Serve, machine: Path, answer: tuple[int, bytes], reason: str
) -> None:
    asked = serve(answer)
    failure = corpora.download(machine / "cache" / FILE)
    assert failure is not None
    assert reason in failure
    assert "\n" not in failure
    assert files(machine) == ["work"]
    assert len(asked) == 3


def test_connection_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setattr(corpora, "URL", f"http://127.0.0.1:{bound.getsockname()[1]}/")
        failure = corpora.download(machine / "cache" / FILE)
    assert failure is not None
    assert "refused" in failure


def test_failed_dns_lookup_is_not_retried(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = []

    def lookup(host: str, *_: object) -> None:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(corpora, "URL", "http://host.invalid/input.txt")
    for _ in range(2):  # setup calls it again after prepare_data
        failure = corpora.download(machine / "cache" / FILE)
        assert failure is not None
        assert "Name or service not known" in failure
    assert lookups == ["host.invalid"]


def test_silent_server_times_out(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "DOWNLOAD_SECONDS", 0.3)
    monkeypatch.setattr(corpora, "RETRY_AFTER_SECONDS", ())
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(corpora, "URL", f"http://127.0.0.1:{server.getsockname()[1]}/")
        before = set(threading.enumerate())
        assert corpora.download(machine / "cache" / FILE) == "no answer within 0.3 s"
        (thread,) = set(threading.enumerate()) - before
        assert thread.daemon  # so the program can exit
        connection, _ = server.accept()
        with connection:  # the answer is too late
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(FAKE)}\r\n\r\n"
            connection.sendall(head.encode() + FAKE)
            thread.join(10)
    assert not thread.is_alive()
    assert files(machine) == ["work"]


def test_cache_folder_cannot_be_created(serve: Serve, machine: Path) -> None:
    serve((200, FAKE))
    (machine / "cache").write_text("a file is in the way", "utf-8")
    failure = corpora.download(machine / "cache" / FILE)
    assert failure is not None
    assert f"{machine / 'cache'} cannot be written" in failure
    assert load_corpus().stands_in_for == TINY_SHAKESPEARE


@not_root
def test_cache_folder_is_not_writable(serve: Serve, machine: Path) -> None:
    serve((200, FAKE))
    (machine / "cache").mkdir(mode=0o500)
    failure = corpora.download(machine / "cache" / FILE)
    assert failure == f"{machine / 'cache'} cannot be written: Permission denied"
    assert files(machine / "cache") == []


# the real file


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    if not SHARED_TEXT.is_file():
        pytest.skip("no tiny Shakespeare on this machine")
    monkeypatch.undo()
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(SHARED_TEXT.parent))


@pytest.mark.usefixtures("real")
def test_tiny_shakespeare() -> None:
    corpus = load_corpus(offline_corpus=None)
    assert len(corpus.text) == 1_115_394
    assert corpus.sha256 == hashlib.sha256(SHARED_TEXT.read_bytes()).hexdigest() == corpora.SHA256
    tokenizer = Tokenizer.from_text(corpus.text)
    assert len(tokenizer.vocabulary) == 65
    assert tokenizer.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert tokenizer.decode(tokenizer.encode(corpus.text)) == corpus.text


@pytest.mark.usefixtures("real")
def test_split_of_tiny_shakespeare() -> None:
    from nanogpt.training.datamodule import CharDataModule  # imports Lightning

    data = CharDataModule(offline_corpus=None)
    data.setup("fit")
    text = data.corpus.text
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 1_003_854,
        "val": 111_540,
    }
    assert data.tokenizer.decode(data.splits["train"]) == text[:1_003_854]
    assert data.tokenizer.decode(data.splits["val"]) == text[1_003_854:]

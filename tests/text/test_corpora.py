"""Corpora from a file, from this machine, from the network, or the built-in replacement."""

import gzip
import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

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
from nanogpt.text.files import MAX_BYTES
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
    monkeypatch.setattr(corpora, "SIZE", len(FAKE))
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


def test_relative_path_is_searched_in_the_folder_of_the_run_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "text"
    other.write_text("there", "utf-8")
    corpus = load_corpus("text", fallback_folder=tmp_path)
    assert (corpus.name, corpus.text) == ("text", "there")
    notice = f"notice: no 'text' in the current folder: reading {str(other)!r} instead\n"
    assert capsys.readouterr().err == notice
    Path("text").write_text("here", "utf-8")  # takes precedence
    assert load_corpus("text", fallback_folder=tmp_path).text == "here"
    assert capsys.readouterr().err == ""


def test_error_names_both_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_corpus("text", fallback_folder=tmp_path)
    where = f"'text' does not exist in {str(Path.cwd())!r}, nor in {str(tmp_path)!r}, the folder of"
    assert where in str(error.value)
    for folder in (None, Path.cwd(), Path()):
        with pytest.raises(UserError, match=r"'text' does not exist in '[^']*'; --data.corpus"):
            load_corpus("text", fallback_folder=folder)
    absolute = str(tmp_path / "text")
    with pytest.raises(UserError, match=r"text' does not exist; --data.corpus"):
        load_corpus(absolute, fallback_folder=tmp_path)


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
    assert "is not a regular file" in error_of(tmp_path)
    assert "is not a regular file" in error_of("")


@posix
@pytest.mark.parametrize("name", ["fifo", "socket", "/dev/zero", "link to /dev/zero", "/dev/tty"])
def test_special_file_is_not_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    Path("link to ").mkdir()
    Path("link to /dev").symlink_to("/dev")
    if not Path(name).exists():
        pytest.skip(f"no {name} on this machine")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert "is not a regular file" in error_of(name)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of the Linux kernel")
@pytest.mark.parametrize("name", ["/proc/self/environ", "/proc/version", "/sys/kernel/mm", "link"])
def test_file_of_the_kernel_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("link").symlink_to("/proc/self/environ")
    if name.startswith("/sys"):
        found = [path for path in Path(name).rglob("*") if os.access(path, os.R_OK)]
        name = next((str(path) for path in found if path.is_file()), "")
    if not name or not os.access(name, os.R_OK):
        pytest.skip("no such file on this machine")
    assert "is not a regular file" in error_of(name)


@posix
def test_file_replaced_by_a_fifo_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text").write_text("text", "utf-8")
    os_open = os.open

    def replace_and_open(path: Path, flags: int) -> int:
        Path(path).unlink()
        os.mkfifo(path)
        return os_open(path, flags)

    monkeypatch.setattr(os, "open", replace_and_open)
    assert "is not a regular file" in error_of("text")


def test_too_large_file_is_refused_before_it_is_read() -> None:
    with Path("text").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no space
    assert "'text' cannot be read: it has 2,147 MB, more than 2,147 MB" in error_of("text")


@posix
def test_broken_links() -> None:
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("missing")
    assert "cannot be read: Too many levels of symbolic links" in error_of("loop")
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


@posix
def test_fifo_with_the_name_of_the_file_is_skipped(machine: Path) -> None:
    Path("data").mkdir()
    os.mkfifo(Path("data") / FILE)
    assert find_tiny_shakespeare() is None
    assert write_copy(machine / "cache") == find_tiny_shakespeare()


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
        ((200, FAKE[:-1] + b"!"), "the downloaded file has another checksum"),
        ((200, FAKE + b"!"), f"the answer is longer than {len(FAKE)} bytes"),
        ((200, b""), "the downloaded file has another checksum"),
        ((404, FAKE), "the server answered 404"),
        ((204, b""), "the server answered 204"),
        ((0, b""), "no valid answer: RemoteDisconnected"),
    ],
)
def test_wrong_answer_leaves_no_file(
    serve: Serve, machine: Path, answer: tuple[int, bytes], reason: str
) -> None:
    asked = serve(answer)
    assert corpora.download(machine / "cache" / FILE) == reason
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


# a hostile server

Answer = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HOSTILE = "\x1b[31mPWNED"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], list[bytes]]]:
    """Start a local server that answers every request with a function of the connection."""
    with ExitStack() as stack:

        def start(answer: Answer) -> list[bytes]:
            requests: list[bytes] = []

            class Handler(BaseRequestHandler):
                def handle(self) -> None:
                    requests.append(self.request.recv(2**16))
                    with suppress(OSError):  # the client has closed the connection
                        answer(self.request)

            server = stack.enter_context(ThreadingTCPServer(("127.0.0.1", 0), Handler))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
            monkeypatch.setattr(corpora, "URL", f"http://127.0.0.1:{server.server_address[1]}/")
            monkeypatch.setattr(corpora, "RETRY_AFTER_SECONDS", ())
            return requests

        yield start


Connect = Callable[[Answer], list[bytes]]


def endlessly(head: bytes, piece: bytes, sent: list[int], pause: float = 0) -> Answer:
    """Return a function that sends a head, and then a piece until the connection is closed."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            sent.append(len(piece))
            time.sleep(pause)

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"\r\n", b"a" * 4096),
        (OK + b"Content-Length: 99999999999\r\n\r\n", b"a" * 4096),
        (CHUNKED, b"1000\r\n" + b"a" * 4096 + b"\r\n"),
    ],
    ids=["until closed", "announced", "chunked"],
)
def test_endless_answer_is_cut_off(
    connect: Connect, machine: Path, head: bytes, piece: bytes
) -> None:
    sent: list[int] = []
    connect(endlessly(head, piece, sent))
    failure = corpora.download(machine / "cache" / FILE)
    assert failure == f"the answer is longer than {len(FAKE)} bytes"
    assert sum(sent) < 50_000_000  # what the buffers of the system hold
    assert files(machine) == ["work"]


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OK + b"\r\n", b"a"),
        (OK + f"Content-Length: {len(FAKE)}\r\n\r\n".encode(), b"a"),
        (CHUNKED, b"1\r\na\r\n"),
    ],
    ids=["until closed", "announced", "chunked"],
)
def test_slow_answer_ends_at_the_deadline(
    connect: Connect, machine: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, piece: bytes
) -> None:
    monkeypatch.setattr(corpora, "DOWNLOAD_SECONDS", 0.2)
    monkeypatch.setattr(corpora, "SIZE", 2**40)
    connect(endlessly(head, piece, [], pause=0.02))
    before = set(threading.enumerate())
    assert corpora.download(machine / "cache" / FILE) == "no answer within 0.2 s"
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # the download, and with it the thread of the server
        assert not thread.is_alive()


@pytest.mark.parametrize("head", [b"", OK + b"X-Slow: "], ids=["status", "header"])
def test_slow_head_does_not_delay_the_caller(
    connect: Connect, machine: Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(corpora, "DOWNLOAD_SECONDS", 0.2)
    connect(endlessly(head, b"a", [], pause=0.02))
    assert corpora.download(machine / "cache" / FILE) == "no answer within 0.2 s"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x" * 99])
def test_compressed_answer_is_refused(connect: Connect, machine: Path, encoding: str) -> None:
    head = OK + f"Content-Encoding: {encoding}\r\n\r\n".encode()
    requests = connect(lambda connection: connection.sendall(head + gzip.compress(FAKE)))
    assert corpora.download(machine / "cache" / FILE) == "the answer is compressed"
    assert b"\r\nAccept-Encoding: identity\r\n" in requests[0]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["file", "another host"])
def test_redirect_is_not_followed(
    connect: Connect, serve: Serve, machine: Path, status: int, target: str
) -> None:
    asked = serve((200, FAKE))
    secret = write_copy(machine / "secret")
    url = secret.as_uri() if target == "file" else corpora.URL
    head = f"HTTP/1.1 {status} {HOSTILE}\r\nLocation: {url}\r\n\r\n"
    sent: list[int] = []
    connect(endlessly(head.encode(), b"a" * 4096, sent))
    assert corpora.download(machine / "cache" / FILE) == f"the server answered {status}"
    assert asked == []
    assert sum(sent) < 50_000_000


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 404 {HOSTILE}\r\n\r\n",
        f"{HOSTILE}\r\n\r\n",
        f"HTTP/9 {HOSTILE} 200\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{HOSTILE}\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: {HOSTILE}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Encoding: {HOSTILE}\r\n\r\n",
        f"HTTP/1.1 301 Moved\r\nLocation: http://{HOSTILE}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nX: {HOSTILE * 9999}\r\n\r\n",
        "HTTP/1.1 200 OK\r\n" + f"{HOSTILE}: 1\r\n" * 999 + "\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + HOSTILE,
    ],
    ids=lambda answer: ascii(answer)[:50],
)
def test_failure_contains_no_text_of_the_server(
    connect: Connect, machine: Path, answer: str
) -> None:
    connect(lambda connection: connection.sendall(answer.encode()))
    failure = corpora.download(machine / "cache" / FILE)
    assert failure is not None
    assert "PWNED" not in failure
    assert "\x1b" not in failure
    assert len(failure) < 60
    assert files(machine) == ["work"]


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
    assert len(corpus.text) == SHARED_TEXT.stat().st_size == corpora.SIZE == 1_115_394
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

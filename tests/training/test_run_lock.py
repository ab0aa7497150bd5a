"""Two commands never train in the same run folder."""

import errno

import pytest
from filelock import FileLock

from nanogpt.errors import UserError
from nanogpt.runs import LOGS
from nanogpt.training.run_lock import lock_folder


def test_folder_is_locked_for_others_and_released() -> None:
    folder = LOGS / "version_0"
    for _ in range(2):
        with lock_folder(folder):
            lock = lock_folder(folder)
            with pytest.raises(UserError, match="another command"), lock:
                pass


def test_file_system_without_locks_gives_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lock_folder(LOGS / "version_0"):
        pass
    assert capsys.readouterr().err.startswith("notice: ")

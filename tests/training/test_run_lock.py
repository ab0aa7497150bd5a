"""Two commands never train in the same run folder."""

import errno
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from nanogpt.errors import UserError
from nanogpt.runs import LOGS
from nanogpt.training.run_lock import lock_folder


def test_folder_is_locked_for_others_and_released() -> None:
    folder = LOGS / "version_0"
    for _ in range(2):
        with lock_folder(folder, is_used=lambda: True):
            lock = lock_folder(folder, is_used=lambda: True)
            with pytest.raises(UserError, match="another command"), lock:
                pass


def test_file_system_without_locks_gives_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lock_folder(LOGS / "version_0", is_used=lambda: True):
        pass
    assert capsys.readouterr().err.startswith("notice: ")


@pytest.mark.parametrize("is_used", [True, False])
def test_folder_of_a_run_that_fails_before_its_first_step_is_removed(is_used: bool) -> None:
    def fail(folder: Path) -> None:
        with suppress(ValueError), lock_folder(folder, lambda: is_used):
            (folder / "config.yaml").touch()
            raise ValueError

    fail(LOGS / "version_0")
    assert LOGS.exists() == is_used
    older = LOGS / "version_1"
    older.mkdir(parents=True)
    fail(older)
    assert (older / "config.yaml").exists()

"""Two trainings never share a run's folder."""

import errno

import pytest
from filelock import FileLock

from nanogpt.errors import UserError
from nanogpt.runs import LOGS
from nanogpt.training.run_lock import claimed


def test_one_at_a_time_holds_a_folder() -> None:
    folder = LOGS / "version_0"
    for _ in range(2):  # and lets it go
        with claimed(folder), pytest.raises(UserError, match="another command"), claimed(folder):
            pass


def test_where_nothing_can_be_locked_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with claimed(LOGS / "version_0"):
        pass
    assert capsys.readouterr().err.startswith("notice: ")

"""Fixtures of the training tests."""

import pytest

from nanogpt.training import callbacks, console


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the samples of runs, which would take half the time of these tests."""
    for module in (callbacks, console):
        monkeypatch.setattr(module, "SAMPLE_CHARACTERS", 20)

"""Fixtures of the training tests."""

from typing import Any

import pytest

from nanogpt.training import console
from nanogpt.training.callbacks import SampleWriter


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the samples of runs, which would take half the time of these tests."""
    monkeypatch.setattr(console, "SAMPLE_CHARACTERS", 20)
    original = SampleWriter.on_validation_end

    def short(self: SampleWriter, *args: Any) -> None:
        self.length = 20
        original(self, *args)

    monkeypatch.setattr(SampleWriter, "on_validation_end", short)

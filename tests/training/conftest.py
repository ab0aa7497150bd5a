"""Runs of this room's tests print and log short samples: drawing them would take half the time."""

import pytest

from nanogpt.training import callbacks, report


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (callbacks, report):
        monkeypatch.setattr(module, "SAMPLE_CHARACTERS", 20)

"""The shipped configs reproduce the reference's losses on tiny Shakespeare."""

from pathlib import Path

import pytest

from nanogpt.insight.reference import Losses, read_curve
from tests.command_lines import CONFIGS, SHARED_TEXT, Run

pytestmark = pytest.mark.skipif(
    not SHARED_TEXT.is_file(), reason="no tiny Shakespeare on this machine"
)


@pytest.fixture(autouse=True)
def tiny_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(SHARED_TEXT.parent))


def printed(out: str) -> list[Losses]:
    rows = [line.replace(":", "").replace(",", "").split() for line in out.splitlines()]
    return [
        Losses(int(r[1]), float(r[4]), float(r[7])) for r in rows if r[:1] == ["step"] and r[2:]
    ]


def test_bigram_follows_the_curve_of_the_reference(run: Run) -> None:
    options = ("--trainer.max_steps=900", "--trainer.accelerator=cpu")
    outcome = run("fit", "--config", str(CONFIGS / "bigram.yaml"), *options)
    assert outcome.code == 0, outcome.err
    rows = printed(outcome.out.split("reference")[0])
    assert [row.step for row in rows] == [0, 300, 600, 900]
    for ours, reference in zip(rows, read_curve("bigram"), strict=False):
        assert ours.train == pytest.approx(reference.train, abs=0.05)
        assert ours.val == pytest.approx(reference.val, abs=0.05)
    assert "reference's bigram" in outcome.out


def test_gpt10m_starts_with_the_losses_of_the_reference(run: Run, tmp_path: Path) -> None:
    options = ("--trainer.max_steps=0", "--trainer.limit_val_batches=1")
    config = ("--config", str(CONFIGS / "gpt10m.yaml"), "--trainer.accelerator=cpu")
    outcome = run("fit", *config, *options)
    assert outcome.code == 0, outcome.err
    (row,) = printed(outcome.out.split("reference")[0])
    assert row.train == pytest.approx(4.2846, abs=0.12)
    assert row.val == pytest.approx(4.2820, abs=0.12)
    assert "10.788929 M parameters" in outcome.out

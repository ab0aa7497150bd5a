"""``ladder`` trains the stages in order and writes a table and a chart."""

import os
import re
import statistics
from pathlib import Path

import pytest
from PIL import Image

from nanogpt.commands import ladder
from nanogpt.insight import run_report
from nanogpt.insight.reference import Losses
from nanogpt.resources import CONFIGS
from tests.command_lines import Outcome, Run
from tests.training.oracles import curves

FOLDER = Path("lightning_logs") / "ladder" / "version_0"


@pytest.fixture
def climb(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the ladder with two steps per stage on a small text."""
    monkeypatch.setattr(run_report, "SAMPLES", 2)
    monkeypatch.setattr(run_report, "SAMPLE_CHARACTERS", 10)

    def climb(*options: str) -> Outcome:
        small = ("--trainer.max_steps=2", "--data.batch_size=2", "--trainer.accelerator=cpu")
        return run("ladder", f"--data.corpus={text}", *small, *options)

    return climb


def rows(out: str) -> dict[str, list[str]]:
    """Return the cells of the printed table by the number of the stage."""
    return {
        row[0][:2]: row[1:]
        for row in (re.split(r" {2,}", line) for line in out.splitlines())
        if re.match(r"\d\d \w", row[0]) and len(row) > 3
    }


def test_all_stages_run_in_order_with_their_descriptions(climb: Run) -> None:
    done = climb("--card=false")
    assert done.code == 0, done.err
    paths = sorted(CONFIGS.glob("ladder/*.yaml"))
    table = rows(done.out)
    assert list(table) == [path.name[:2] for path in paths]
    for path, (parameters, _, *_, adds) in zip(paths, table.values(), strict=True):
        assert path.read_text(encoding="utf-8").startswith(f"# {adds} ({parameters} parameters)")
        (loss,) = re.findall(r"^\S+", table[path.name[:2]][1])
        recorded = curves(FOLDER / path.stem)["loss/val"]
        assert f"{min(recorded.values()):.4f}" == loss


def test_report_chart_and_cards_are_written(climb: Run) -> None:
    done = climb("--stages=3,4")
    assert sorted(path.parent.name for path in FOLDER.glob("*/card.md")) == ["03_head", "04_heads"]
    page = (FOLDER / "ladder.md").read_text(encoding="utf-8")
    for cells in rows(done.out).values():
        assert f"| {cells[-1]} |" in page
    assert "--stages" in page
    with Image.open(FOLDER / "ladder.png") as picture:
        assert picture.width > 1000


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file names")
def test_control_characters_are_escaped_in_the_report(climb: Run, text: str) -> None:
    name = "\x1b[2J\x9b31m\udce9"
    Path(text).rename(name)
    done = climb("--stages=1", f"--data.corpus={name}", "--card=false")
    assert done.code == 0, done.err
    page = (FOLDER / "ladder.md").read_text(encoding="utf-8")
    assert "Corpus: \\x1b[2J\\x9b31m\\udce9, SHA-256" in page
    assert not {"\x1b", "\x9b"} & {*page, *done.out, *done.err}


def test_changes_are_relative_to_the_previous_stage_and_increases_are_explained(
    climb: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 3.0, 2.5, 2.75])
    monkeypatch.setattr(ladder, "best_losses", lambda _: Losses(2, 0.0, next(losses)))
    done = climb("--card=false", "--stages=1,2,3,6")
    table = rows(done.out)
    assert [row[1] for row in table.values()] == ["1.0000", "3.0000", "2.5000", "2.7500"]
    assert [row[2] for row in table.values()][1:] == ["+2.0000", "-0.5000", "+0.2500"]
    printed = " ".join(done.out.split())
    assert "02 average does not lower the val loss. It scores worse than the bigram:" in printed
    assert "06 layers does not lower the val loss. Depth alone does not help:" in printed
    assert "03 head does not" not in printed


def test_mean_and_standard_deviation_over_seeds(climb: Run) -> None:
    done = climb("--stages=4", "--seeds=3", "--card=false")
    folders = [FOLDER / f"04_heads_{seed}" for seed in (1337, 1338, 1339)]
    losses = [min(curves(folder)["loss/val"].values()) for folder in folders]
    assert len(set(losses)) == 3
    stated = f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"
    assert rows(done.out)["04"][1] == stated
    assert stated in (FOLDER / "ladder.md").read_text(encoding="utf-8")


def test_second_ladder_does_not_change_the_first_and_neither_is_the_newest_run(
    climb: Run, run: Run
) -> None:
    climb("--stages=1", "--card=false")
    before = (FOLDER / "ladder.md").read_bytes()
    climb("--stages=2", "--card=false")
    assert (FOLDER / "ladder.md").read_bytes() == before
    assert (FOLDER.with_name("version_1") / "02_average").is_dir()
    assert run("predict").code == 2
    shown = run("predict", "--ckpt_path", str(FOLDER / "01_bigram"), "--max_new_tokens=5")
    assert shown.code == 0, shown.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--seeds=0",), "at least 1"),
        (("--seeds=x",), "invalid int value"),
        (("--stages=0",), "from 1 to 9"),
        (("--stages=one",), "from 1 to 9"),
        (("--stages=",), "from 1 to 9"),
        (("--rungs=3",), "unknown option --rungs; see --help"),
        (("--config=x.yaml",), "leave it out"),
        (("--seed_everything", "3"), "leave it out"),
        (("--ckpt_path=best",), "leave it out"),
        (("--data.corpus=none.txt",), "does not exist"),
        (("--model.n_layr=2",), "did you mean --model.n_layer?"),
        (("--trainer.limit_val_batches=0",), "evaluat"),
    ],
)
def test_mistake_gets_a_one_line_error(climb: Run, options: tuple[str, ...], expected: str) -> None:
    done = climb("--card=false", *options)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not done.out
    if "limit_val_batches" not in options[0]:
        assert not Path("lightning_logs").exists()


def test_replaced_corpus_is_announced_once(run: Run) -> None:
    done = run("ladder", "--stages=1,2", "--trainer.max_steps=1", "--card=false")
    assert done.code == 0, done.err
    assert done.err.count("The built-in pastiche replaces it") == 1
    assert "pastiche instead of tiny_shakespeare" in (FOLDER / "ladder.md").read_text(
        encoding="utf-8"
    )


def test_missing_corpus_without_a_replacement_is_an_error(run: Run) -> None:
    done = run("ladder", "--stages=1", "--trainer.max_steps=1", "--data.offline_corpus=null")
    assert done.code == 2
    assert "not on this machine" in done.err


def test_stages_are_run_once_each_and_in_order(climb: Run) -> None:
    assert list(rows(climb("--stages=4,1,4", "--card=false").out)) == ["01", "04"]

"""benchmarks/full_size.py resumes, keeps what shows a result, and renders the page from it."""

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_benchmarks import BENCHMARKS, TINY

ROOT = BENCHMARKS.parent


@pytest.fixture
def full_size(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("full_size")


def test_page_is_rendered_from_the_kept_files(full_size: ModuleType) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rendered = full_size.render(ROOT / "docs" / "results")
    assert rendered in page, "run `python benchmarks/full_size.py --render`"
    assert page.count(full_size.START) == page.count(full_size.END) == 1


def test_kept_runs_have_their_files_and_no_weights(full_size: ModuleType) -> None:
    names = {run.name for run in full_size.RUNS}
    files = {"log.txt", "config.yaml", "card.md", "curve.csv", "sample.txt", "result.json"}
    for folder in (ROOT / "docs" / "results").iterdir():
        assert folder.name in names
        assert {path.name for path in folder.iterdir()} == files
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert "dirty" not in result["commit"]
        assert "/tmp" not in (folder / "config.yaml").read_text(encoding="utf-8")


def test_shipped_configs_are_listed_once(full_size: ModuleType) -> None:
    names = [run.name for run in full_size.RUNS]
    assert len(set(names)) == len(names)
    listed = {run.config for run in full_size.RUNS}
    assert listed == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_stopped_run_is_resumed_and_kept(
    full_size: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    kept, out = Path("kept"), Path("runs")
    options = (f"--data.corpus={text}", "--trainer.accelerator=cpu")
    shorter = full_size.Run("tiny.yaml", 1, (*options, "--trainer.max_steps=2"), sample=20)
    run = full_size.Run("tiny.yaml", 1, options, sample=20)
    folder = full_size.train(shorter, out)
    config = folder / "config.yaml"  # as if it had been stopped after two of three steps
    config.write_text(
        config.read_text("utf-8").replace("max_steps: 2\n", "max_steps: 3\n"), "utf-8"
    )
    assert full_size.train(run, out) == folder
    assert "resumed at step 2" in (out / "tiny-1" / "log.txt").read_text(encoding="utf-8")
    full_size.keep(run, folder, kept, "abc")
    curve = (kept / "tiny-1" / "curve.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in curve] == ["step", "0", "2", "3"]
    assert len((kept / "tiny-1" / "sample.txt").read_text(encoding="utf-8")) == 20 + 1
    shutil.copytree(kept / "tiny-1", kept / "tiny-2")
    result = json.loads((kept / "tiny-2" / "result.json").read_text(encoding="utf-8"))
    result |= {"seed": 2, "val": result["val"] + 1}
    (kept / "tiny-2" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    rendered = full_size.render(kept, [run, full_size.Run("other")])
    (row,) = [line for line in rendered.splitlines() if line.startswith("| [tiny]")]
    assert f"{result['val'] - 0.5:.4f} ± 0.7071 | 1, 2 |" in row
    assert "Missing: other-1337." in rendered
    monkeypatch.setattr(full_size, "is_finished", lambda _: pytest.fail("was trained again"))
    monkeypatch.setattr(full_size, "RUNS", (run,))
    monkeypatch.setattr(full_size, "KEPT", kept)
    page = Path("page.md")
    page.write_text(f"before\n{full_size.START}\nold\n{full_size.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(full_size, "PAGE", page)
    full_size.main(["tiny.yaml"])
    assert page.read_text("utf-8") == f"before\n{full_size.render(kept)}\nafter\n"


def test_failed_run_is_not_kept(full_size: ModuleType, text: str) -> None:
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    run = full_size.Run("tiny.yaml", 1, (f"--data.corpus={text}", "--model.n_layer=0"))
    with pytest.raises(SystemExit, match="tiny-1 ended with exit code 2: error: n_layer"):
        full_size.train(run, Path("runs"))


def test_state_of_each_run_is_listed(
    full_size: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.setattr(full_size, "KEPT", Path("kept"))
    monkeypatch.setattr(full_size, "RUNS", (full_size.Run("tiny.yaml"),))
    monkeypatch.setattr(full_size.training_loops, "run", lambda *_: {"rounds": [3600.0]})
    full_size.main(["--list"])
    line = " ".join(capsys.readouterr().out.split())
    assert line == "tiny-1337 step 0 of 3: 3.0 hours are left"

"""A run folder from elsewhere is data: its config imports and writes nothing of its own."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bad_input.fuzzing import LAUGHS
from tests.command_lines import Run, is_one_line

HOOK = "lightning.pytorch.callbacks.LambdaCallback"
MODULE = """\
from pathlib import Path
Path("harm").touch()
class Callback: pass
def hook(*args): Path("harm").touch()
"""


def part(section: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a setting."""
    return lambda config: config[section].update({name: value})


def top(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a section."""
    return lambda config: config.update({name: value})


def hook(path: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that lets a callback of Lightning call a function."""
    entry = {"class_path": HOOK, "init_args": {"on_fit_start": path}}
    return part("callbacks", "samples", entry)


EVIL = {"class_path": "evil.Callback"}
FOREIGN = "imported only from a config that you give"
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "class": (part("callbacks", "samples", EVIL), FOREIGN),
    "class as a text": (part("callbacks", "samples", "evil.Callback"), FOREIGN),
    "classes in a list": (part("trainer", "callbacks", [EVIL]), FOREIGN),
    "appended": (part("trainer", "callbacks+", [EVIL]), FOREIGN),
    "logger": (part("trainer", "logger", "evil.Callback"), FOREIGN),
    "profiler": (part("trainer", "profiler", "evil.Callback"), FOREIGN),
    "strategy": (part("trainer", "strategy", EVIL), FOREIGN),
    "plugins": (part("trainer", "plugins", ["evil.Callback"]), FOREIGN),
    "dotted name": (top("callbacks.samples", "evil.Callback"), FOREIGN),
    "dotted class path": (top("callbacks.samples.class_path", "evil.Callback"), FOREIGN),
    "nested": (top("fit", {"trainer": {"callbacks": [EVIL]}}), FOREIGN),
    "init_args": (
        part("callbacks", "samples", {"class_path": HOOK, "init_args": {"x": [EVIL]}}), FOREIGN
    ),
    "hook": (hook("evil.hook"), FOREIGN),
    "hook of the system": (hook("os.system"), FOREIGN),
    "hook through torch": (hook("torch.os.abort"), FOREIGN),
    "function of torch": (hook("torch.hub.load"), FOREIGN),
    "class through torch": (
        part("callbacks", "samples", {"class_path": "torch.os.abort"}), "abort"
    ),
    "short class": (part("callbacks", "samples", {"class_path": "LambdaCallback"}), FOREIGN),
    "file": (part("callbacks", "samples", "sub"), "names the file 'sub'"),
    "file for callbacks": (part("trainer", "callbacks", ["sub"]), "names the file 'sub'"),
    "file for a logger": (part("trainer", "logger", "sub"), "names the file 'sub'"),
    "file for a section": (top("trainer", "sub"), "trainer is not a section"),
    "another config": (top("config", "config2.yaml"), "includes another config"),
    "other configs": (top("config", ["config2.yaml"]), "includes another config"),
    "JSON": (part("trainer", "logger", '{"class_path": "evil\\u002eCallback"}'), "settings in"),
    "YAML": (part("trainer", "logger", 'class_path: "evil\\x2eCallback"'), "settings in"),
    "device": (part("callbacks", "samples", "/dev/zero"), "a place outside"),
    "absolute folder": (
        part("callbacks", "best_checkpoint", {
            "class_path": "nanogpt.training.callbacks.BestCheckpoint",
            "init_args": {"dirpath": "/tmp/elsewhere"},
        }), "a place outside",
    ),
    "folder above": (
        part("callbacks", "last_checkpoint", {
            "class_path": "nanogpt.training.callbacks.LastCheckpoint",
            "init_args": {"dirpath": "../elsewhere"},
        }), "a place outside",
    ),
    "server": (
        part("trainer", "logger", {
            "class_path": "lightning.pytorch.loggers.MLFlowLogger",
            "init_args": {"tracking_uri": "http://127.0.0.1:1"},
        }), "a place outside",
    ),
}  # fmt: skip
TEXTS: dict[str, tuple[bytes, str]] = {
    "tag that calls": (b"!!python/object/apply:os.system ['touch harm']", "python/object"),
    "tag that imports": (b"callbacks: !!python/module:evil ''", "python/module"),
    "billion laughs": (LAUGHS.encode(), "it has aliases"),
    "recursion": (b"model: &a {b: *a}", "it has aliases"),
    "deep": (b"[" * 10**5, "nested too deeply"),
    "deep in blocks": (b"- " * 10**4, "nested too deeply"),
    "deep keys": (b"? " * 10**4, "nested too deeply"),
    "huge": (b"a: " + b"x" * 10**6, "at most 131,072 bytes"),
    "empty": (b"", "it has no sections"),
    "list": (b"- 1", "it has no sections"),
    "not UTF-8": (b"a: \xff", "utf-8"),
    "NUL": (b"a: \0", "special characters"),
}
COMMANDS = (
    ["validate", "--ckpt_path=given"],
    ["fit", "--ckpt_path=given", "--trainer.max_steps=3"],
)


@pytest.fixture
def given(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a module beside its config, in a folder from which Python imports."""
    shutil.copytree(workplace / "lightning_logs" / "version_0", tmp_path / "given")
    shutil.copy(workplace / "text.txt", tmp_path)
    for place in (tmp_path, tmp_path / "given"):
        (place / "evil.py").write_text(MODULE)
        (place / "sub").write_text("class_path: evil.Callback\n")
        (place / "config2.yaml").write_text("trainer: {callbacks: [{class_path: evil.Callback}]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as for ``python -m nanogpt``
    return tmp_path / "given"


def check_refused(run: Run, reason: str) -> None:
    """Check that the commands refuse the folder and do nothing else."""
    before = sorted(Path().rglob("*"))
    for command in COMMANDS:
        outcome = run(*command)
        assert outcome.code == 2, outcome
        assert is_one_line(outcome.err), outcome.err
        assert reason in outcome.err, outcome.err
        assert "config.yaml" in outcome.err or "callbacks.samples" in outcome.err
        assert "evil" not in sys.modules
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", CHANGES)
def test_config_of_a_run_that_is_more_than_settings_is_refused(
    run: Run, given: Path, name: str
) -> None:
    change, reason = CHANGES[name]
    config = yaml.safe_load((given / "config.yaml").read_text())
    change(config)
    (given / "config.yaml").write_text(yaml.safe_dump(config))
    check_refused(run, reason)


@pytest.mark.parametrize("name", TEXTS)
def test_malformed_config_of_a_run_is_refused(run: Run, given: Path, name: str) -> None:
    content, reason = TEXTS[name]
    (given / "config.yaml").write_bytes(content)
    check_refused(run, reason)


def test_unchanged_folder_is_used(run: Run, given: Path) -> None:
    for command in (*COMMANDS, ["predict", "--ckpt_path=given", "--max_new_tokens=5"]):
        assert run(*command).code == 0
    assert "evil" not in sys.modules


def test_predict_does_not_read_the_config(run: Run, given: Path) -> None:
    (given / "config.yaml").unlink()
    os.mkfifo(given / "config.yaml")
    assert run("predict", "--ckpt_path=given", "--max_new_tokens=5").code == 0
    assert run("validate", "--ckpt_path=given", "--data.corpus=text.txt").code == 0


def test_class_is_used_if_the_user_gives_the_config(run: Run, given: Path) -> None:
    path = given / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["callbacks"]["samples"] = EVIL
    path.write_text(yaml.safe_dump(config))
    outcome = run("validate", "--ckpt_path=given", f"--config={path}")
    assert "is not" in outcome.err or "evil" in sys.modules  # it was imported, and is no Callback
    sys.modules.pop("evil", None)

"""One folder with a trained run and unusual files, in which all bad input is tested."""

import os
import shutil
from pathlib import Path

import pytest

from nanogpt.commands.main import main
from nanogpt.text.pastiche import pastiche

BASE = """\
model: {architecture: gpt, block_size: 8, n_layer: 1, n_head: 2, n_embd: 8}
data: {corpus: text.txt, batch_size: 4}
trainer: {accelerator: cpu, log_every_n_steps: 2, max_steps: 2, val_check_interval: 2}
card: false
"""
FILES = {
    "base.yaml": BASE.encode(),
    "list.yaml": b"- 1\n",
    "text.txt": pastiche()[:5000].encode(),
    "empty.txt": b"",
    "short.txt": b"a\n",
    "binary.txt": b"abc\xff" + bytes(50),
    "accents.txt": "é".encode() * 3000,
    "snow.txt": "☃".encode() * 300,
}


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: the files, a run, and copies of its best checkpoint and model."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "--config=base.yaml"]) == 0
    finally:
        os.chdir(before)
    for name in ("best.ckpt", "best.safetensors"):
        shutil.copy(folder / "lightning_logs/version_0/checkpoints" / name, folder / name)
    return folder


@pytest.fixture
def workplace(isolated: None, prepared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the working directory."""
    monkeypatch.chdir(prepared_folder)
    return prepared_folder

"""Shipped configs and reference curves, by name, in a clone and in an installed package."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nanogpt import resources
from nanogpt.errors import UserError
from nanogpt.resources import CONFIGS, REFERENCE_CURVES, find_config, shipped_configs

ROOT = Path(__file__).parents[1]


def test_all_configs_of_the_repository_are_shipped() -> None:
    assert set(shipped_configs().values()) == set((ROOT / "configs").rglob("*.yaml"))
    assert CONFIGS == ROOT / "configs"
    assert REFERENCE_CURVES == ROOT / "lightning_logs" / "reference"


def test_names_of_configs_are_distinct() -> None:
    stems = [path.stem for path in shipped_configs().values()]
    assert len(set(stems)) == len(stems)


@pytest.mark.parametrize(
    "given", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "./configs/quickstart"]
)
def test_config_by_name(given: str) -> None:
    assert find_config(given) == str(CONFIGS / "quickstart.yaml")


@pytest.mark.parametrize("given", ["04_heads", "ladder/04_heads", "configs\\ladder\\04_heads.yaml"])
def test_stage_of_the_ladder_by_name(given: str) -> None:
    assert find_config(given) == str(CONFIGS / "ladder" / "04_heads.yaml")


@pytest.mark.parametrize("given", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_existing_file_takes_precedence(given: str, tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()  # a folder does not count
    assert find_config("quickstart") == str(CONFIGS / "quickstart.yaml")
    (tmp_path / "quickstart").rmdir()
    Path(given).parent.mkdir(exist_ok=True)
    Path(given).touch()
    assert find_config(given) == given


@pytest.mark.parametrize("given", ["-", '{"model": {}}', "model:\n  n_layer: 3", "[]"])
def test_yaml_is_returned_unchanged(given: str) -> None:
    assert find_config(given) == given


@pytest.mark.parametrize(
    ("given", "suggestion"),
    [
        ("quickstrat", "did you mean quickstart? "),
        ("configs/gtp10m.yaml", "did you mean gpt10m? "),
        ("4_heads", "did you mean 04_heads? "),
        ("my/quickstart.yaml", "did you mean quickstart? "),
        ("missing.yml", ""),
        ("", ""),
        (".", ""),
        ("x" * 5000, ""),
    ],
)
def test_unknown_config_lists_all(given: str, suggestion: str) -> None:
    with pytest.raises(UserError) as error:
        find_config(given)
    message = str(error.value)
    assert message.startswith(f"no config {given[:100]!r}: {suggestion}--config takes ")
    assert message.endswith(", ".join(shipped_configs()))
    assert len(message) < 600


# packaging


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the installed package, as setuptools builds them."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("installed")
    options = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder)]
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", *options],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return folder


def test_package_contains_all_modules_templates_configs_and_curves(installed: Path) -> None:
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("nanogpt/**/*.*")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nanogpt").rglob("*.py")}
    templates = {f"nanogpt/insight/html_report.{kind}" for kind in ("css", "html", "js")}
    configs = {f"nanogpt/configs/{name}.yaml" for name in shipped_configs()}
    curves = {f"nanogpt/reference_curves/{name}/curve.csv" for name in ("bigram", "gpt10m")}
    assert files == modules | templates | {"nanogpt/insight/model_card.md"} | configs | curves


def test_installed_package_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    def nanogpt(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nanogpt", *argv],
            cwd=tmp_path,
            env={"PYTHONPATH": str(installed), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = ("--data.corpus=pastiche", "--trainer.max_steps=1", "--card=false")
    one_window = ("--data.batch_size=1", "--trainer.limit_val_batches=1")
    nanogpt("fit", "--config", "bigram", *small, *one_window)
    config = yaml.safe_load((tmp_path / "lightning_logs/version_0/config.yaml").read_text())
    assert config["reference"] == "bigram"
    assert "python -m nanogpt predict" in nanogpt("ladder", "--stages=1", *small, *one_window)
    assert len(nanogpt("predict", "--max_new_tokens=5")) == 6
    script = "from nanogpt.insight.reference import read_curve; print(len(read_curve('bigram')))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "17\n"


def test_folder_of_the_repository_is_used_without_package_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "nanogpt")
    assert resources._folder("configs", "configs") == tmp_path / "configs"
    (tmp_path / "nanogpt" / "configs").mkdir(parents=True)
    assert resources._folder("configs", "configs") == tmp_path / "nanogpt" / "configs"

"""The private parts of Lightning and jsonargparse that are used still exist and mean the same."""

import ast
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.cli import LightningCLI

import nanogpt
from nanogpt.training.lightning_cli import CLI
from nanogpt.training.lightning_internals import OneCommandCLI, set_loop_counters
from tests.command_lines import Run
from tests.training.oracles import curves, run_folder

ROOT = Path(nanogpt.__file__).parent
OVERRIDDEN = ("_prepare_subcommand_parser", "_parse_ckpt_path")


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_loop_counters_are_those_of_a_run_with_as_many_steps(micro_batches: int) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=9,
        accumulate_grad_batches=micro_batches,
    )  # fmt: skip
    set_loop_counters(trainer, 5)
    assert trainer.global_step == 5
    assert trainer.fit_loop.total_batch_idx == 5 * micro_batches - 1
    saved = trainer.fit_loop.state_dict()["epoch_loop.state_dict"]
    assert saved["_batches_that_stepped"] == 5


def test_resumed_run_logs_at_the_steps_of_an_uninterrupted_one(fit: Run, run: Run) -> None:
    fit("--trainer.max_steps=4", "--trainer.log_every_n_steps=3")
    run("fit", "--ckpt_path=last", "--trainer.max_steps=9")
    assert list(curves(run_folder())["loss/batch"]) == [3, 4, 6, 9]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_exist(name: str) -> None:
    assert callable(getattr(LightningCLI, name))
    assert name in vars(OneCommandCLI)


def test_only_one_command_is_built_and_its_parser_is_found(run: Run) -> None:
    outcome = run("fit", "--help")
    assert outcome.code == 0
    assert "best or last of the newest run, a run folder" in " ".join(outcome.out.split())
    assert issubclass(CLI, OneCommandCLI)


def private_names(path: Path) -> set[str]:
    """Return the private attributes of other objects than ``self`` that a module reads or sets."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def test_no_other_module_of_training_touches_private_attributes() -> None:
    modules = sorted((ROOT / "training").rglob("*.py"))
    assert len(modules) > 20
    touched = {path.name: private_names(path) for path in modules}
    assert {name for name, names in touched.items() if names} == {"lightning_internals.py"}
    assert touched["lightning_internals.py"] == {"_prepare_subcommand_parser", "_actions"}

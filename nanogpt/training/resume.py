"""Going on from a checkpoint, to the bit: where the run stands, and what of it is still owed.

A checkpoint holds a completed optimizer step. Which windows come next, where Lightning's
loops stand and what the learning rate is, all follow from that step's number and the settings;
so they are worked out here, and what Lightning saves of its loops is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import CORPUS_KEY, load_checkpoint
from nanogpt.notices import notice
from nanogpt.runs import Run, run_of
from nanogpt.training.checkpoints import command
from nanogpt.training.optimizer import is_scheduled, learning_rate_factor, peaks
from nanogpt.training.options import differences

KEY = "run"  # in a checkpoint: what the recorder keeps


@dataclass(frozen=True)
class Start:
    """What a run goes on from: a checkpoint, and the run that it lies in, if it lies in one.

    ``owed`` says that the evaluation of its step is due and was not recorded; ``about`` is what
    the checkpoint says of its model and its text.
    """

    checkpoint: Path
    run: Run | None
    step: int
    owed: bool
    about: dict[str, Any]
    written: int  # when, as the file system counts

    def logger(self) -> TensorBoardLogger | None:
        """Return the logger that goes on with the run's curves, if it lies in a run.

        TensorBoard is to forget what was logged after the checkpoint; and at its step, if the
        evaluation of that is done again.
        """
        if not self.run:
            return None
        folder, forget = self.run.folder, self.step if self.owed else self.step + 1
        place = (str(folder.parent.parent), folder.parent.name, folder.name)
        return TensorBoardLogger(*place, default_hp_metric=False, flush_secs=10, purge_step=forget)


def find_start(
    settings: Namespace, dump: Callable[[], str], parser: LightningArgumentParser
) -> Start | None:
    """Return what to go on from, if anything, and say which settings are other ones now.

    Args:
        settings: of ``fit``.
        dump: writes the same as YAML.
        parser: of ``fit``.

    Raises:
        UserError: if it is no checkpoint, or nothing is left to do.
    """
    if not settings.ckpt_path:
        return None
    found = load_checkpoint(settings.ckpt_path, of_folder="last")
    checkpoint, content = found.path, found.content
    written = checkpoint.stat().st_mtime_ns
    trainer, run = settings.trainer, run_of(checkpoint)
    run = near(run) if run else None
    step, last = content["global_step"], trainer.max_steps
    evaluates = trainer.limit_val_batches != 0
    owed = evaluates and is_owed(content, trainer.val_check_interval, last)
    if 0 <= last <= step and not (owed and step == last):
        way_on = f"`{command(run)} --trainer.max_steps MORE`" if run else "--trainer.max_steps MORE"
        raise UserError(f"{checkpoint} is at step {step} of {last} already: go on with {way_on}")
    if run:
        usual = parser.dump(parser.get_defaults(), skip_none=False)
        for line in differences(run.config.read_text(encoding="utf-8"), dump(), usual):
            notice(line)
    about = {name: content[name] for name in ("hyper_parameters", CORPUS_KEY)}
    return Start(checkpoint, run, step, owed, about, written)


def near(run: Run) -> Run:
    """Name a run's folder as one would from here."""
    here = Path.cwd()
    inside = run.folder.is_relative_to(here)
    return Run(run.folder.relative_to(here)) if inside else run


def is_owed(content: Mapping[str, Any], interval: int, max_steps: int) -> bool:
    """Whether the evaluation of a checkpoint's step is due, every so many steps, and missing."""
    step = content["global_step"]
    recorded = [losses[0] for losses in content.get(KEY, {}).get("history", ())]
    return (step % interval == 0 or step == max_steps) and step not in recorded


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that training draws from: a CPU's and the device's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put generators where they were; one that was not saved stays as it is."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


def set_position(trainer: L.Trainer, step: int) -> None:
    """Set the counters of Lightning's loops to the end of an optimizer step."""
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    stages = ("ready", "started", "processed", "completed")
    loop.batch_progress.total.load_state_dict(dict.fromkeys(stages, batches))
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop.on_load_checkpoint({"_batches_that_stepped": step})


def use_settings(trainer: L.Trainer, settings: Mapping[str, Any], content: dict[str, Any]) -> None:
    """Let the optimizer's settings of now replace those in a checkpoint's content.

    Args:
        trainer: with its optimizer not yet built.
        settings: of the model.
        content: of the checkpoint, of which the optimizer and the scheduler will be loaded.
    """
    step, schedule = content["global_step"], settings["schedule"]
    factor = learning_rate_factor(step, trainer.max_steps, schedule, settings["warmup_steps"])
    rates = [peak * factor for peak in peaks(settings)]
    groups = content["optimizer_states"][0]["param_groups"]
    for group, peak, rate in zip(groups, peaks(settings), rates, strict=True):
        group.pop("initial_lr", None)
        group |= {"lr": rate} | ({"initial_lr": peak} if is_scheduled(settings) else {})
        group["weight_decay"] = settings["weight_decay"]
        if "betas" in group:  # AdamW's
            group["betas"] = tuple(settings["betas"])
            group["fused"] = trainer.precision != "16-mixed"
    scheduler = {"base_lrs": peaks(settings), "last_epoch": step, "_step_count": step + 1}
    scheduler |= {"_last_lr": rates, "lr_lambdas": [None] * len(rates)}
    content["lr_schedulers"] = [scheduler] if is_scheduled(settings) else []

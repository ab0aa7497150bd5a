"""Places loggers in the folder of a run, and continues their curves when it resumes."""

import csv
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.runs import LOGS, Run
from nanogpt.training.resume import ResumePoint
from nanogpt.training.run_lock import FolderLockedError

Row = tuple[int, dict[str, Tensor | float]]  # the step of logged metrics, and the metrics

CURVES = ("metrics.csv", "events.out.tfevents.*", "hparams.yaml")
FILE_LOGGERS = (TensorBoardLogger, CSVLogger)  # they write to save_dir/name/version


def default_logger(folder: Path, purge_step: int | None) -> TensorBoardLogger:
    """Return the logger of a run without a configured one."""
    save_dir, name, version = folder.parent.parent, folder.parent.name, folder.name
    return TensorBoardLogger(
        save_dir, name, version, default_hp_metric=False, flush_secs=10, purge_step=purge_step
    )


def place_run(
    trainer: Namespace,
    point: ResumePoint | None,
    new_folder: Callable[[str], Path],
    lock: Callable[[Path], None],
) -> Path | None:
    """Choose and lock the folder of a run, and build the default logger.

    Args:
        trainer: settings of the trainer, with instances of loggers.
        point: where the run resumes; None for a new run.
        new_folder: returns the folder of a new run, given ``default_root_dir``.
        lock: locks a folder, or raises ``FolderLockedError``.

    Returns:
        The folder; None for ``fast_dev_run``, which leaves no files.

    Raises:
        UserError: if the folder has another run, or a logger would delete its curves.
    """
    if trainer.fast_dev_run:
        return None
    by_default = trainer.logger in (None, True)
    resumed = point.folder if point else None
    folder = resumed or folder_of(as_list(trainer.logger))
    if folder:
        lock(folder)
    else:
        folder = lock_new_folder(partial(new_folder, str(trainer.default_root_dir or ".")), lock)
    if not resumed:
        check_unused(folder, as_list(trainer.logger))
    if by_default:
        trainer.logger = default_logger(folder, point.purge_step if point else None)
    return folder


def lock_new_folder(new_folder: Callable[[], Path], lock: Callable[[Path], None]) -> Path:
    """Lock and return a new folder, another one if a command that starts now has locked it."""
    folder = new_folder()
    while True:
        try:
            lock(folder)
            return folder
        except FolderLockedError:
            taken, folder = folder, new_folder()
            if folder == taken:
                raise


def check_unused(folder: Path, loggers: Iterable[Any]) -> None:
    """Raise a ``UserError`` if a new run would overwrite another one."""
    if Run(folder).config.exists():
        raise UserError(
            f"{folder} has a run: resume it with --ckpt_path {folder}, or choose another version "
            "of the logger"
        )
    used = set()
    for logger in loggers:
        if isinstance(logger, FILE_LOGGERS):
            files = [file for name in CURVES for file in Path(logger.log_dir).glob(name)]
            if files or (type(logger), logger.log_dir) in used:
                raise UserError(
                    f"{logger.log_dir} has the curves of another run or logger: choose another "
                    f"name or version of {type(logger).__name__}"
                )
            used.add((type(logger), logger.log_dir))


def place_loggers(trainer: Namespace, point: ResumePoint | None) -> None:
    """Change the settings of configured loggers before they are built.

    Those that write to files share one version. Those of a resumed run continue in its folder, and
    TensorBoard discards the events after the checkpoint.

    Args:
        trainer: settings of the trainer; its loggers have ``class_path`` and ``init_args``.
        point: where the run resumes; None for a new run.
    """
    folder = point.folder if point else None
    files = [entry for entry in as_list(trainer.logger) if is_file_logger(entry)]
    for entry in files:
        entry.init_args.save_dir = entry.init_args.save_dir or trainer.default_root_dir or "."
    unplaced = [entry for entry in files if entry.init_args.get("version") is None]
    if point and folder:
        earlier = loggers_of_run(Run(folder))
        for i, entry in enumerate(files):
            if i == 0:
                place = {"save_dir": str(folder.parent.parent), "name": folder.parent.name}
                entry.init_args.update(Namespace(place))
            if i == 0 or (entry in unplaced and key_of(entry) in earlier):
                entry.init_args.version = folder.name
            if issubclass(locate(entry.class_path), TensorBoardLogger):  # type: ignore[arg-type]
                given = entry.get("dict_kwargs") or {}
                entry.dict_kwargs = {**given, "purge_step": point.purge_step}
    elif len(files) > 1:
        roots = {Path(entry.init_args.save_dir, entry.init_args.name or "") for entry in unplaced}
        given = files[0].init_args.version
        for entry in unplaced:
            numbers = [next_version(root) for root in roots]
            entry.init_args.version = max(numbers) if given is None else given


def loggers_of_run(run: Run) -> set[tuple[str, ...]]:
    """Return the keys of the loggers in the config of a run."""
    trainer = yaml.safe_load(run.config.read_text(encoding="utf-8")).get("trainer") or {}
    entries = as_list(trainer.get("logger"))
    return {key_of(entry) for entry in entries if isinstance(entry, dict) and "class_path" in entry}


def key_of(entry: Any) -> tuple[str, ...]:
    """Return the class and the place of a logger's settings, without its version."""
    arguments = entry.get("init_args") or {}
    return tuple(
        str(value)
        for value in (entry["class_path"], arguments.get("save_dir") or ".", arguments.get("name"))
    )


def is_file_logger(entry: Any) -> bool:
    """Return whether the settings of a logger are of one that writes to save_dir/name/version."""
    if not isinstance(entry, Namespace) or "class_path" not in entry:
        return False
    kind = locate(entry.class_path)
    places = {"save_dir", "name", "version"}
    return (
        isinstance(kind, type)
        and issubclass(kind, FILE_LOGGERS)
        and places <= vars(entry.get("init_args") or Namespace()).keys()
    )


def folder_of(loggers: Iterable[Logger]) -> Path | None:
    """Return the folder of the first logger that writes to files, if any."""
    for logger in loggers:
        if isinstance(logger, FILE_LOGGERS):
            version = logger.version
            name = version if isinstance(version, str) else f"version_{version}"
            return Path(logger.root_dir, name)
    return None


def next_version(root: Path) -> int:
    """Return the number after those of the folders ``version_N`` in a folder."""
    numbers = [path.name.removeprefix("version_") for path in root.glob("version_*")]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def new_folder(root: str) -> Path:
    """Return the folder of a new run whose loggers write no files."""
    logs = Path(root) / LOGS
    return logs / f"version_{next_version(logs)}"


def earlier_rows(loggers: Any, point: ResumePoint | None) -> dict[str, list[Row]]:
    """Return the metrics of the earlier part of a run, by folder of a ``CSVLogger``."""
    if point is None or point.folder is None:
        return {}
    files = [logger for logger in as_list(loggers) if isinstance(logger, CSVLogger)]
    for file in files:
        metrics, kept = Path(file.log_dir, "metrics.csv"), kept_file(file)
        with suppress(FileNotFoundError):
            if kept.exists():  # an earlier attempt to resume has failed
                shutil.copyfile(kept, metrics)
            shutil.copyfile(metrics, kept)
    return {file.log_dir: logged_rows(Path(file.log_dir), point.step) for file in files}


def as_list(value: Any) -> list[Any]:
    """Return a setting that may be one value, several or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def logged_rows(folder: Path, last_step: int) -> list[Row]:
    """Return the metrics in a folder's ``metrics.csv`` up to a step."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # cut off when the process was killed
    rows: list[Row] = []
    for row in csv.DictReader(lines):
        with suppress(ValueError, TypeError):  # a damaged line
            step = int(row.pop("step"))
            metrics: dict[str, Tensor | float]
            metrics = {name: float(value) for name, value in row.items() if value}
            rows += [(step, metrics)] if step <= last_step else []
    return rows


def continue_csv(logger: CSVLogger, rows: Iterable[Row]) -> None:
    """Log the metrics of an earlier part of a run again: CSVLogger has removed its file.

    Until that is done, they are in a file beside it.
    """
    for step, metrics in rows:
        logger.experiment.log_metrics(metrics, step)  # the logger would add its prefix again
    logger.save()
    kept_file(logger).unlink(missing_ok=True)


def kept_file(logger: CSVLogger) -> Path:
    """Return the path of the copy of a ``metrics.csv`` that ``CSVLogger`` is about to remove."""
    return Path(logger.log_dir, "metrics.before_resume.csv")

"""Places loggers in the folder of a run, and continues their curves when it resumes."""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.runs import LOGS, Run
from nanogpt.training.resume import ResumePoint

Row = tuple[int, dict[str, Tensor | float]]  # the step of logged metrics, and the metrics

FILE_LOGGERS = (TensorBoardLogger, CSVLogger)  # they write to save_dir/name/version


def default_logger(folder: Path, purge_step: int | None) -> TensorBoardLogger:
    """Return the logger of a run without a configured one."""
    save_dir, name, version = folder.parent.parent, folder.parent.name, folder.name
    return TensorBoardLogger(
        save_dir, name, version, default_hp_metric=False, flush_secs=10, purge_step=purge_step
    )


def place_run(
    trainer: Namespace, point: ResumePoint | None, new_folder: Callable[[str], Path]
) -> Path | None:
    """Choose the folder of a run, and build the default logger.

    Args:
        trainer: settings of the trainer, with instances of loggers.
        point: where the run resumes; None for a new run.
        new_folder: returns the folder of a new run, given ``default_root_dir``.

    Returns:
        The folder; None for ``fast_dev_run``, which leaves no files.

    Raises:
        UserError: if the folder has another run.
    """
    if trainer.fast_dev_run:
        return None
    by_default = trainer.logger in (None, True)
    resumed = point.folder if point else None
    folder = (
        resumed
        or folder_of(as_list(trainer.logger))
        or new_folder(str(trainer.default_root_dir or "."))
    )
    if not resumed and Run(folder).config.exists():
        raise UserError(
            f"{folder} has a run: resume it with --ckpt_path {folder}, or choose another version "
            "of the logger"
        )
    if by_default:
        trainer.logger = default_logger(folder, point.purge_step if point else None)
    return folder


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
        for i, entry in enumerate(files):
            if i == 0:
                place = {"save_dir": str(folder.parent.parent), "name": folder.parent.name}
                entry.init_args.update(Namespace(place))
            if i == 0 or entry in unplaced:
                entry.init_args.version = folder.name
            if issubclass(locate(entry.class_path), TensorBoardLogger):  # type: ignore[arg-type]
                given = entry.get("dict_kwargs") or {}
                entry.dict_kwargs = {**given, "purge_step": point.purge_step}
    elif len(files) > 1:
        roots = {Path(entry.init_args.save_dir, entry.init_args.name) for entry in unplaced}
        for entry in unplaced:
            entry.init_args.version = max(next_version(root) for root in roots)


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
    return {file.log_dir: logged_rows(Path(file.log_dir), point.step) for file in files}


def as_list(value: Any) -> list[Any]:
    """Return a setting that may be one value, several or none, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def logged_rows(folder: Path, last_step: int) -> list[Row]:
    """Return the metrics in a folder's ``metrics.csv`` up to a step."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(int(row.pop("step")), row) for row in csv.DictReader(file)]
    return [
        (step, {name: float(value) for name, value in row.items() if value})
        for step, row in rows
        if step <= last_step
    ]


def continue_csv(logger: CSVLogger, rows: Iterable[Row]) -> None:
    """Log the metrics of an earlier part of a run again: CSVLogger has removed its file."""
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    logger.save()

"""Find the shipped configs and reference curves: package data, or folders of a clone."""

import os
from difflib import get_close_matches
from pathlib import Path

from nanogpt.errors import UserError

PACKAGE = Path(__file__).parent


def _folder(installed: str, in_clone: str) -> Path:
    """Return a folder of the installed package or, in a clone, of the repository."""
    path = PACKAGE / installed
    return path if path.is_dir() else PACKAGE.parent / in_clone


CONFIGS = _folder("configs", "configs")
REFERENCE_CURVES = _folder("reference_curves", "lightning_logs/reference")


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs by name, such as ``quickstart`` or ``ladder/04_heads``."""
    paths = [*sorted(CONFIGS.glob("*.yaml")), *sorted(CONFIGS.glob("ladder/*.yaml"))]
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in paths}


def find_config(given: str) -> str:
    """Return the path of a config.

    Args:
        given: the path of a file, or a shipped config: ``quickstart``, ``configs/quickstart.yaml``,
            ``ladder/04_heads`` or ``04_heads``. A file takes precedence. YAML itself is returned
            unchanged.

    Raises:
        UserError: if there is neither a file nor a shipped config of that name.
    """
    is_yaml = given == "-" or set(given) & set("{[:\n")
    # Path.exists raises an error for a name that is too long
    if is_yaml or (os.path.exists(given) and not os.path.isdir(given)):  # noqa: PTH110, PTH112
        return given
    shipped = shipped_configs()
    configs = shipped | {path.stem: path for path in shipped.values()}
    name = given.replace("\\", "/").removeprefix("./").removeprefix("configs/")
    name = name.removesuffix(".yaml")
    if name in configs:
        return str(configs[name])
    close = get_close_matches(name, configs, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"no config {given[:100]!r}: {hint}--config takes the path of a file or one of "
        f"{', '.join(shipped)}"
    )

"""Run a script as `python SCRIPT OPTIONS` would, and write down what it took.

python benchmarks/run_and_record.py FILE.json SCRIPT [OPTIONS]
"""

import json
import re
import runpy
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any


def run(script: str, options: list[str]) -> int:
    """Run a script in this process; return its exit code."""
    sys.argv = [script, *options]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def memory() -> dict[str, int]:
    """Return the most memory that this process had: on the GPU, and by the system's count."""
    import torch

    used: dict[str, int] = {}
    if torch.cuda.is_available():
        used["gpu_allocated_bytes"] = torch.cuda.max_memory_allocated()
        used["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status")
    if status.exists():  # since this program began; getrusage counts what its parent held too
        (line,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
        used["resident_bytes"] = int(line) * 1024
    elif sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        used["resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return used


def main(target: Path, script: str, options: list[str]) -> int:
    """Run, and write the figures."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it
    begin = time.perf_counter()
    code = run(script, options)
    figures: dict[str, Any] = {"command": shlex.join(["python", script, *options])}
    figures |= {"exit_code": code, "seconds": time.perf_counter() - begin, **memory()}
    target.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))

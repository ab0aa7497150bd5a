"""Run a Python script and write its time, peak memory and exit code to a JSON file.

python benchmarks/run_and_record.py FILE.json SCRIPT [OPTIONS]
"""

import argparse
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
    """Run a script in this process as ``python SCRIPT OPTIONS`` would; return its exit code."""
    sys.argv = [script, *options]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except KeyboardInterrupt:
        return 130
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return exit_.code or 0
        print(exit_.code, file=sys.stderr)
        return 1
    return 0


def peak_memory() -> dict[str, int]:
    """Return the peak memory of this process in bytes: on the GPU, and resident."""
    import torch

    peak: dict[str, int] = {}
    if torch.cuda.is_available():
        peak["gpu_allocated_bytes"] = torch.cuda.max_memory_allocated()
        peak["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, VmHWM excludes the memory of the parent process
        (line,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
        peak["resident_bytes"] = int(line) * 1024
    elif sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak["resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def main(target: Path, script: str, options: list[str]) -> int:
    """Run a script and write the figures."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    start = time.perf_counter()
    code = run(script, options)
    figures: dict[str, Any] = {"command": shlex.join(["python", script, *options])}
    figures |= {"exit_code": code, "seconds": time.perf_counter() - start, **peak_memory()}
    target.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="the JSON file")
    parser.add_argument("script", help="the Python script")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the script")
    sys.exit(main(**vars(parser.parse_args())))

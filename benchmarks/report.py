"""Gather what benchmarks/gpu.sh measured into results.json and results.md.

python benchmarks/report.py FOLDER NAME=EXIT_CODE=SECONDS ...
"""

import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.insight.reference import read_curve
from nanogpt.text.corpora import TINY_SHAKESPEARE

TIMED_OUT = (124, 137)
EVALUATION = re.compile(r"^step (\d+): train loss ([\d.]+), val loss ([\d.]+)$", re.MULTILINE)


def gather(folder: Path, steps: list[str]) -> dict[str, Any]:
    """Return all that there is, and where it comes from."""
    device = torch.device(best_device())
    report: dict[str, Any] = {
        "machine": provenance.machine(device),
        "versions": provenance.versions(),
        "cuda": torch.version.cuda,
        "code": provenance.git_state(),
        "platform": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
        "steps": {},
    }
    for step in steps:
        name, code, seconds = step.split("=")
        output = (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        found: dict[str, Any] = {"exit_code": int(code), "seconds_in_all": int(seconds)}
        for key, file in (("run", f"{name}.run.json"), ("figures", f"{name}.json")):
            if (folder / file).is_file():
                found[key] = json.loads((folder / file).read_text(encoding="utf-8"))
        if losses := EVALUATION.findall(output):
            found["evaluations"] = [[int(s), float(train), float(val)] for s, train, val in losses]
            found["corpus"] = re.findall(r"^corpus (\S+):", output, re.MULTILINE)
        report["steps"][name] = found | {"output": output}
    return report


def markdown(report: dict[str, Any]) -> str:
    """Return the page of results."""
    facts = ("machine", "versions", "cuda", "code", "platform", "date")
    parts = ["# Measured by benchmarks/gpu.sh"]
    parts.append(table(("", ""), [(fact, str(report[fact])) for fact in facts]))
    for name, step in report["steps"].items():
        parts += [f"## {name}", how_it_went(step)]
        if "evaluations" in step:
            parts.append(losses(step))
        if name == "train" and "figures" in step:
            parts.append(loops(step["figures"]["loops"]))
        parts.append(f"```\n{step['output'].strip()}\n```")
    return "\n\n".join(parts) + "\n"


def how_it_went(step: dict[str, Any]) -> str:
    """Say what was run, for how long, in what memory, and whether it came to its end."""
    code, run = step["exit_code"], step.get("run", {})
    words = [f"`{run['command']}`" if run else "no figures of its own"]
    words.append(f"{run.get('seconds', step['seconds_in_all']):.1f} s")
    words += [
        f"{run[key] / 2**20:,.0f} MiB {what}"
        for key, what in (
            ("gpu_allocated_bytes", "of GPU memory allocated at most"),
            ("gpu_reserved_bytes", "reserved"),
            ("resident_bytes", "resident"),
        )
        if key in run
    ]
    if code:
        words.append("**ended by its time bound**" if code in TIMED_OUT else f"**failed: {code}**")
    return "; ".join(words) + "."


def losses(step: dict[str, Any]) -> str:
    """Return the losses of a run, beside the reference's if it was trained on its text."""
    curve = read_curve("gpt10m") if step["corpus"] == [TINY_SHAKESPEARE] else []
    theirs = {row.step: row for row in curve}
    rows = []
    for number, train, val in step["evaluations"]:
        row = theirs.get(number)
        beside = (f"{row.train:.4f}", f"{row.val:.4f}") if row else ("", "")
        rows.append((str(number), f"{train:.4f}", beside[0], f"{val:.4f}", beside[1]))
    return table(("step", "train", "reference", "val", "reference"), rows)


def loops(rows: list[dict[str, Any]]) -> str:
    """Return what benchmarks/train.py measured."""
    titles = ("config", "loop", "ms per step", "characters/s", "of peak", "a/c", "c/b", "GPU MiB")
    lines = []
    for row in rows:
        cells = [row["config"], row["loop"], row.get("failure", "")]
        if "ms_per_step" in row:
            cells[2:] = [f"{row['ms_per_step']:.2f}", f"{row['characters_per_second']:,.0f}"]
            cells.append(f"{row['of_peak']:.1%}" if "of_peak" in row else "")
            cells += [f"{row[key]:.2f}" if key in row else "" for key in ("a/c", "c/b")]
            memory = row.get("peak_memory")
            cells.append("" if memory is None else f"{memory / 2**20:,.0f}")
        lines.append((*cells, *[""] * (len(titles) - len(cells))))
    return table(titles, lines)


def main(folder: Path, steps: list[str]) -> None:
    """Write both files."""
    report = gather(folder, steps)
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(report), encoding="utf-8")
    print(f"results in {folder / 'results.md'} and {folder / 'results.json'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

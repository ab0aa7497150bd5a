"""Collect the results of benchmarks/gpu.sh in results.json and results.md.

python benchmarks/report.py FOLDER NAME=EXIT_CODE=SECONDS ...
"""

import argparse
import json
import platform
import re
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
    """Return the outputs and figures of all steps, with their provenance.

    Args:
        folder: where the steps have written their files.
        steps: name, exit code and seconds of each step, such as ``fit=0=13``.
    """
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
        result: dict[str, Any] = {"exit_code": int(code), "seconds_in_all": int(seconds)}
        for key, file in (("run", f"{name}.run.json"), ("figures", f"{name}.json")):
            if (folder / file).is_file():
                result[key] = json.loads((folder / file).read_text(encoding="utf-8"))
        if losses := EVALUATION.findall(output):
            result["evaluations"] = [[int(s), float(train), float(val)] for s, train, val in losses]
            result["corpus"] = re.findall(r"^corpus (\S+):", output, re.MULTILINE)
        report["steps"][name] = result | {"output": output}
    return report


def markdown(report: dict[str, Any]) -> str:
    """Return the page of results in Markdown."""
    facts = ("machine", "versions", "cuda", "code", "platform", "date")
    parts = ["# Results of benchmarks/gpu.sh"]
    parts.append(table(("", ""), [(fact, str(report[fact])) for fact in facts]))
    for name, step in report["steps"].items():
        parts += [f"## {name}", summary(step)]
        if "evaluations" in step:
            parts.append(losses_table(step))
        if isinstance(step.get("figures"), list):
            parts.append(rows_table(step["figures"]))
        if name == "train" and "figures" in step:
            parts.append(loops_table(step["figures"].get("loops", [])))
        parts.append(f"```\n{step['output'].strip()}\n```")
    return "\n\n".join(parts) + "\n"


def summary(step: dict[str, Any]) -> str:
    """Return a step's command, time, peak memory and, if it failed, how it ended."""
    code, run = step["exit_code"], step.get("run", {})
    parts = [f"`{run['command']}`" if run else "it left no figures"]
    parts.append(f"{run.get('seconds', step['seconds_in_all']):.1f} s")
    parts += [
        f"{run[key] / 2**20:,.0f} MiB {label}"
        for key, label in (
            ("gpu_allocated_bytes", "peak allocated GPU memory"),
            ("gpu_reserved_bytes", "peak reserved GPU memory"),
            ("resident_bytes", "peak resident memory"),
        )
        if key in run
    ]
    if code:
        parts.append("**timed out**" if code in TIMED_OUT else f"**failed with exit code {code}**")
    return "; ".join(parts) + "."


def losses_table(step: dict[str, Any]) -> str:
    """Return a run's losses, with the reference's if both were trained on the same text."""
    curve = read_curve("gpt10m") if step["corpus"] == [TINY_SHAKESPEARE] else []
    reference = {row.step: row for row in curve}
    rows = []
    for number, train, val in step["evaluations"]:
        row = reference.get(number)
        theirs = (f"{row.train:.4f}", f"{row.val:.4f}") if row else ("", "")
        rows.append((str(number), f"{train:.4f}", theirs[0], f"{val:.4f}", theirs[1]))
    return table(("step", "train", "reference", "val", "reference"), rows)


def rows_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows of benchmarks/gpu_checks.py."""
    lines = []
    for row in rows:
        figures = [f"{key}: {value}" for key, value in row.items() if key != "name"]
        lines.append((row["name"], "; ".join(figures)))
    return table(("", ""), lines)


def loops_table(rows: list[dict[str, Any]]) -> str:
    """Return the figures of benchmarks/train.py."""
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
    """Write results.json and results.md."""
    report = gather(folder, steps)
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(report), encoding="utf-8")
    print(f"results in {folder / 'results.md'} and {folder / 'results.json'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the steps have written their files")
    parser.add_argument("steps", nargs="*", metavar="NAME=EXIT_CODE=SECONDS")
    main(**vars(parser.parse_args()))

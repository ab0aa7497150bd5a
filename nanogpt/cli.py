"""Answers help and dispatches, without heavy imports."""

import sys


def main(argv: list[str]) -> int:
    from nanogpt.training.cli import run

    sys.argv = sys.argv[:1]
    run(argv)
    return 0

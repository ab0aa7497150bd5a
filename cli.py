"""The command line: ``python cli.py --help``."""

import sys

from nanogpt.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command line in a clone: ``python cli.py --help``."""

import sys

from nanogpt.commands.main import main

if __name__ == "__main__":
    sys.exit(main())

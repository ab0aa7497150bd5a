"""The command line of the installed package: ``python -m nanogpt --help``."""

import sys

from nanogpt.commands.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m plait`: the command line."""

import sys

from plait.api.cli import main

if __name__ == "__main__":
    sys.exit(main())

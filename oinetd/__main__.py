"""`python -m oinetd` is the same as `oinetd`."""

import sys

from oinetd.process.cli import main

if __name__ == "__main__":
    sys.exit(main())

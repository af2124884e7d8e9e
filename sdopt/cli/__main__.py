"""`python -m sdopt.cli` is `sdopt`, where the script is not on the PATH."""

import sys

from sdopt.cli.app import script

if __name__ == "__main__":
    sys.exit(script())

"""`sdopt evaluate` as a module: `accelerate launch -m sdopt.evaluate`, or `python -m`."""

from __future__ import annotations

import os
import sys

from sdopt.cli.app import main

if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main(["evaluate", *sys.argv[1:]]))

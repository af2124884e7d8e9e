"""`sdopt evaluate` as a module: `accelerate launch -m sdopt.evaluate`, or `python -m`."""

from __future__ import annotations

import os
import sys

from sdopt.cli.app import main


def run() -> int:
    """The command; its last word is its exit code, since launchers end with 1 for any but 0."""
    code = main(["evaluate", *sys.argv[1:]])
    if os.environ.get("RANK", "0") == "0":
        print(f"evaluate: ends with exit code {code}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(run())

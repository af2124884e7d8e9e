"""Show what was measured of the recipes: `python -m studies.peers ROWS_JSON`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sdopt.bench.report.results import write_table
from sdopt.errors import SdoptError
from studies.peers.stored import read_recipes
from studies.peers.table import peers_page
from studies.rows import heading


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and maybe write it into a page; 2 for a file that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m studies.peers", description=__doc__)
    parser.add_argument("rows", type=Path, metavar="ROWS_JSON")
    parser.add_argument(
        "--cost", type=Path, metavar="ROWS_JSON", help="rows of another source for the SSIM column"
    )
    parser.add_argument("--page", type=Path, help="page to write the table into")
    options = parser.parse_args(arguments)
    try:
        found = read_recipes(options.rows)
        costs = read_recipes(options.cost).rows if options.cost else None
        above, table = heading(found), peers_page(list(found.rows.values()), costs)
        if options.page:
            write_table(options.page, table, "peers")
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([above, "", *table]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The rows of the recipes as lines of a table, for a terminal or a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sdopt.bench.report.results import markdown_table
from sdopt.bench.report.terminal import aligned
from studies.peers.recipes import PLAIN, RECIPES
from studies.rows import Row, latency_ms, mean_ssim

HEADINGS = (
    "recipe",
    "sampler, steps",
    "ms",
    "rounds, ms",
    "speed-up",
    "first call, s",
    "allocated / reserved, MiB",
    "SSIM",
)


def peers_table(rows: Sequence[Row]) -> list[str]:
    """Aligned lines; speed-up and SSIM are over plain diffusers on the same ground.

    What went wrong stands below.
    """
    rows = in_order(rows)
    cells = [(_title(row), *_cells(row, rows, None)) for row in rows if "error" not in row]
    wrong = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    return [*(aligned([HEADINGS, *cells]) if cells else ()), *wrong]


def peers_page(rows: Sequence[Row], costs: Mapping[str, Row] | None = None) -> list[str]:
    """The same as a Markdown table that also says what work is done; errors in their rows.

    `costs` are rows by name that the SSIM is taken from, if it is another source's.
    """
    rows = in_order(rows)
    blanks = ("-",) * (len(HEADINGS) - 3)
    cells = [
        (
            f"`{_title(row)}`",
            *(
                (row["ground"], row["error"].split(" (all of it")[0], *blanks)
                if "error" in row
                else _cells(row, rows, costs)
            ),
            row["work"],
        )
        for row in rows
    ]
    return markdown_table((*HEADINGS, "work of an image"), cells)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows by the order of the recipes, however they came in; unknown recipes last."""
    places = {recipe.name: place for place, recipe in enumerate(RECIPES)}
    return sorted(rows, key=lambda row: places.get(row["recipe"], len(places)))


def _title(row: Row) -> str:
    return f"{row['recipe']} {row['version']}" if "version" in row else str(row["recipe"])


def _cells(row: Row, rows: Sequence[Row], costs: Mapping[str, Row] | None) -> tuple[str, ...]:
    own_ms, plain_ms = latency_ms(row), _plain_ms(row["ground"], rows)
    rounds = row["rounds_ms"]
    return (
        row["ground"],
        f"{median(rounds):.1f}",
        f"{min(rounds):.1f} to {max(rounds):.1f}",
        f"{plain_ms / own_ms:.2f}x" if own_ms and plain_ms else "-",
        f"{row['first_call_s']:.1f}",
        _memory(row),
        _likeness(row if costs is None else costs.get(row["name"], {})),
    )


def _likeness(row: Row) -> str:
    """The mean SSIM, or what is wrong with an image."""
    for name, fault in row.get("faults", {}).items():
        return f"{name}: {fault}"
    ssim = mean_ssim(row)
    return "-" if ssim is None else f"{ssim:.4f}"


def _plain_ms(ground: str, rows: Sequence[Row]) -> float | None:
    for row in rows:
        if row["recipe"] == PLAIN.name and row["ground"] == ground:
            return latency_ms(row)
    return None


def _memory(row: Mapping[str, Any]) -> str:
    if row["peak_allocated_mib"] is None:
        return "-"
    return f"{row['peak_allocated_mib']:.0f} / {row['peak_reserved_mib']:.0f}"

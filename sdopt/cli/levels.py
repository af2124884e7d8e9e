"""`sdopt levels`: the ladder, with its times and what runs here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdopt.cli.options import Json, check_baselines, print_json, shown
from sdopt.cli.progress import progress
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS, Level

if TYPE_CHECKING:
    import torch

BASELINES = Path("baselines")


def levels(
    baselines: Annotated[
        Path, typer.Option("--baselines", metavar="DIR", help="Whose histories hold the times.")
    ] = BASELINES,
    as_json: Json = False,
) -> int:
    """Show the ladder: why each level exists, its ms measured and published, what runs here.

    Measured is the median of the stored runs of this hardware; if there are none, of another that
    is named.
    """
    check_baselines(baselines, BASELINES)
    with progress("reading the stored runs", None):
        from sdopt.bench.report.published import published_seconds
        from sdopt.pipelines.pipeline import default_device
        from sdopt.util.hardware import hardware_of

        device = default_device()
        hardware = hardware_of(device)
        published, folder = published_seconds(), history(baselines / "history", hardware.key)
        measured = times(folder) if folder else {}
        rows = [
            {
                "level": level.name,
                "why": level.why,
                "reference": level.reference,
                "measured_ms": measured.get(level.name),
                "published_ms": [1e3 * seconds for seconds in published.get(level.name, [])],
                "hindrance": hindrance(level, device),
            }
            for level in LEVELS.values()
        ]
    head = {
        "hardware": str(hardware),
        "measured_on": folder and {"hardware": folder.parent.name, "source": folder.name},
    }
    if as_json:
        print_json({**head, "levels": rows})
    else:
        _print(rows, str(hardware), folder, hardware.key)
    return 0


def hindrance(level: Level, device: torch.device) -> str | None:
    """Why a level does not run on this device; None if it does."""
    from sdopt.pipelines.device_limits import check_capability, missing_compiler

    if level.whole_graph or level.fused:
        try:
            check_capability(level, device)
        except SdoptError as error:
            return str(error)
    return missing_compiler(level, device)


def history(root: Path, key: str) -> Path | None:
    """The folder of stored runs of this hardware, else of the newest; of the full model first."""
    folders = [path for path in root.glob("*/*") if path.is_dir() and any(path.glob("*.json"))]
    return max(
        folders,
        key=lambda one: (one.parent.name == key, "embedded" not in one.name, _last_run(one)),
        default=None,
    )


def _last_run(folder: Path) -> str:
    """When its last run was, in ISO 8601; runs through pointers are not what a GPU can do."""
    try:
        told = str(json.loads(max(folder.glob("*.json")).read_bytes())["datetime"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    return "" if folder.parent.name.endswith("-pointers") else told


def times(folder: Path) -> dict[str, float]:
    """Median ms of the stored runs by level."""
    from sdopt.bench.stored.judging import read_judging_runs

    found: dict[str, list[float]] = {}
    for run in read_judging_runs(folder):
        for level, metrics in run.metrics.items():
            if metrics.get("latency_ms") is not None:
                found.setdefault(level, []).append(metrics["latency_ms"])
    return {level: median(values) for level, values in found.items()}


def _print(rows: Sequence[dict[str, Any]], hardware: str, folder: Path | None, key: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("level", box=None)
    for heading in ("ms", "published"):
        table.add_column(heading, justify="right")
    for heading in ("runs here", "why"):
        table.add_column(heading)
    for row in rows:
        ms = row["measured_ms"]
        table.add_row(
            row["level"],
            "-" if ms is None else f"{ms:.1f}",
            " / ".join(f"{one:.0f}" for one in row["published_ms"]) or "-",
            "no" if row["hindrance"] else "yes",
            row["why"],
        )
    console = Console()
    console.print(table, markup=False)
    print(f"\nThis machine: {shown(hardware)}.")
    if folder is None:
        print("ms: no stored run; `sdopt bench --store` in a clone stores one.")
    else:
        here = "this machine" if folder.parent.name == key else "no run of this machine is stored"
        print(f"ms: source {folder.name} on {folder.parent.name} ({here}).")
    print("published: NVIDIA A100, Stable Diffusion 1.5, 512 x 512.")
    for reason in dict.fromkeys(row["hindrance"] for row in rows if row["hindrance"]):
        print(f"no: {reason}")

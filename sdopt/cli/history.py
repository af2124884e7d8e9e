"""`sdopt history`: what is stored of this machine over time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdopt.cli.options import Baselines, Json, print_json, shown
from sdopt.cli.suite import check_installed
from sdopt.errors import SdoptError

if TYPE_CHECKING:
    from sdopt.bench.review.stores import Place
    from sdopt.bench.review.timeline import Line

BASELINES = Path("baselines")


def history(
    levels: Annotated[
        list[str] | None,
        typer.Option("--level", metavar="LEVEL", help="Only this one; may be given again."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Only this one; may be given again."),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option("--hardware", metavar="KEY", help="Of another machine, or `all`."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Only of this baseline set.")
    ] = None,
    baselines: Baselines = BASELINES,
    as_json: Json = False,
) -> int:
    """Show the stored runs of this machine: median, spread and limit by level and metric.

    With --level or --metric also each run with its commit. Runs in parentheses do not judge any
    more; a star marks those that were accepted as a new baseline.
    """
    check_installed()
    from sdopt.bench.review.stores import chosen, places
    from sdopt.bench.review.timeline import timelines

    keys = [*dict.fromkeys(place.hardware for place in places(baselines))]
    key = _this_machine() if hardware is None else hardware
    if hardware is None and key not in keys:
        raise SdoptError(
            f"no run of this machine ({key}) is stored in {baselines}; --hardware names another: "
            f"{', '.join(keys) or 'none is stored'}"
        )
    wanted = chosen(baselines, None if key == "all" else key, source)
    found = timelines(wanted, levels or (), metrics or ())
    if as_json:
        rows = [{**_named(place), "lines": [*map(asdict, lines)]} for place, lines in found]
        print_json({"hardware": keys, "histories": rows})
        return 0
    for place, lines in found:
        _print(place, lines, bool(levels or metrics))
    if others := [one for one in keys if one not in {place.hardware for place, _ in found}]:
        print(f"other machines (--hardware): {', '.join(others)}")
    return 0


def _this_machine() -> str:
    import torch

    from sdopt.util.hardware import hardware_of

    # As `pipeline.default_device`, which imports diffusers: that takes seconds.
    return hardware_of(torch.device("cuda" if torch.cuda.is_available() else "cpu")).key


def _named(place: Place) -> dict[str, Any]:
    return {"hardware": place.hardware, "source": place.baseline_set}


def _print(place: Place, lines: list[Line], with_runs: bool) -> None:
    print(f"{place.hardware}, source {place.baseline_set}: {place.folder}")
    if not lines:
        print("  nothing of that is stored\n")
        return
    print(f"  {'level':18s} {'metric':20s} {'median':>10s} {'spread':>8s} {'limit':>10s}  runs")
    for line in lines:
        judging = sum(point.judges for point in line.points)
        spread = "-" if line.spread is None else f"{100 * line.spread:.2f} %"
        limit = "-" if line.limit is None else f"{line.limit:.6g}"
        print(
            f"  {line.level:18s} {line.metric:20s} {line.median:10.6g} {spread:>8s} {limit:>10s}  "
            f"{judging} judge, {len(line.points)} stored"
        )
        for point in line.points if with_runs else ():
            value = f"{point.value:.6g} {line.unit}".strip()
            value = value if point.judges else f"({value})"
            star = "*" if point.accepted else " "
            told = (
                f"    {star} {(point.date or '')[:10]:10s} {point.commit or '-':12s} {value:>16s}"
            )
            reason = f"  accepted: {shown(point.reason, 60)}" if point.reason else ""
            print(shown(f"{told}  {point.run}{reason}"))
    print()

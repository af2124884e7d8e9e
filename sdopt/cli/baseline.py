"""`sdopt baseline list`, `show` and `prune`: what is stored, and what of it may go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from sdopt.cli.accept import BASELINES, NOT_CONFIRMED, DryRun, Yes, confirmed
from sdopt.cli.options import Baselines, Json, named_run, print_json, shown
from sdopt.cli.suite import check_installed
from sdopt.errors import SdoptError
from sdopt.util.text import counted

MIB = 2**20

Hardware = Annotated[
    str | None, typer.Option("--hardware", metavar="KEY", help="Only of this machine.")
]
Set = Annotated[
    str | None, typer.Option("--source", metavar="NAME", help="Only of this baseline set.")
]


def list_(baselines: Baselines = BASELINES, as_json: Json = False) -> int:
    """List what is stored: the histories by machine and source, and the images of each source."""
    check_installed()
    from sdopt.bench.review.pruning import pruning
    from sdopt.bench.review.stores import image_sets, places, size, unfinished

    histories: list[dict[str, Any]] = [
        {
            "hardware": place.hardware,
            "source": place.baseline_set,
            "runs": len(found.runs),
            "prunable": len(found.removed),
            "newest": found.runs[-1].name,
            "bytes": size(found.runs),
        }
        for place in places(baselines)
        for found in [pruning(place)]
    ]
    images = [vars(one) for one in image_sets(baselines)]
    left = [str(path) for path in unfinished(baselines)]
    if as_json:
        print_json({"histories": histories, "images": images, "unfinished": left})
        return 0
    for row in histories:
        print(
            shown(
                f"{row['hardware']}, {row['source']}: {counted(row['runs'], 'run')}, "
                f"{_mib(row['bytes'])}, newest {row['newest']}; "
                f"{row['prunable']} judge{'s' * (row['prunable'] == 1)} nothing"
            )
        )
    for row in images:
        print(
            shown(
                f"{row['baseline_set']}: {counted(row['images'], 'image')} and "
                f"{row['latents']} latents of {counted(row['levels'], 'level')}, "
                f"{_mib(row['bytes'])}; "
                f"{_there(row['has_counts'], 'counts')}, {_there(row['has_limits'], 'limits')}"
            )
        )
    for name in left:
        print(shown(f"unfinished: {name}"))
    if not histories and not images:
        print(f"{baselines} holds no baseline; `sdopt bench --store` stores a run")
    return 0


def _mib(size: Any) -> str:
    return f"{size / MIB:.2f} MiB"


def _there(has: Any, what: str) -> str:
    return what if has else f"no {what}"


def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A file, or a run's number with --hardware.")
    ],
    hardware: Hardware = None,
    source: Set = None,
    baselines: Baselines = BASELINES,
    as_json: Json = False,
) -> int:
    """Show one stored run: when, of which commit, on what, why accepted, judging what, numbers."""
    check_installed()
    from sdopt.bench.metrics import METRICS
    from sdopt.bench.review.stores import chosen
    from sdopt.bench.review.timeline import judged_by
    from sdopt.bench.stored.history import find_run, read_run

    if Path(run).is_file():
        path = Path(run)
    else:
        places = chosen(baselines, hardware, source)
        if len(places) != 1:
            names = "; ".join(f"--hardware {p.hardware} --source {p.baseline_set}" for p in places)
            raise SdoptError(
                f"{run!r} is no file, and {len(places)} histories may have such a run; name a "
                f"file, or one of: {names or 'none is stored'}"
            )
        path = find_run(places[0].folder, run)
    with named_run(path, baselines):
        found, data = read_run(path)
    rows = {
        level: {name: row[name] for name in METRICS if row.get(name) is not None}
        for level, row in found.metrics.items()
    }
    about = {
        "file": str(path),
        "hardware": data["sdopt"]["hardware"],
        "source": data["sdopt"].get("baseline_set"),
        "date": found.date,
        "commit": found.commit,
        "accepted": found.accepted,
        "reason": found.reason,
        "judges": judged_by(path),
        "environment": dict(found.environment),
    }
    if as_json:
        print_json({**about, "levels": rows})
        return 0
    for name, value in about.items():
        print(shown(f"{name:12s} {_words(value)}"))
    for level, row in rows.items():
        print(level)
        for name, value in row.items():
            print(shown(f"  {name:24s} {value:12.6g} {METRICS[name].unit}".rstrip()))
    return 0


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "nothing"
    return {True: "yes", False: "no", None: "-"}.get(value, str(value))


def prune(
    hardware: Hardware = None,
    source: Set = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", help="The newest runs to keep of each level (default: 40)."
        ),
    ] = None,
    unsaved: Annotated[
        bool, typer.Option("--unsaved", help="Also runs that git does not hold as they are.")
    ] = False,
    baselines: Baselines = BASELINES,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Remove runs that judge nothing any more, and the middle of long histories.

    Each level keeps its first 5 and its newest 40 runs since it was last accepted. Git brings back
    what was removed.
    """
    check_installed()
    from sdopt.bench.review.pruning import prune as remove
    from sdopt.bench.review.pruning import pruning
    from sdopt.bench.review.stores import chosen, size
    from sdopt.bench.stored.history import NEWEST_RUNS

    newest = NEWEST_RUNS if keep is None else keep
    found = [pruning(place, newest) for place in chosen(baselines, hardware, source)]
    removed = [path for one in found for path in one.removed]
    told = {
        "removed": [*map(str, removed)],
        "bytes": size(removed),
        "kept": sum(len(one.runs) - len(one.removed) for one in found),
        "unsaved": [str(path) for one in found for path in one.unsaved],
    }
    if as_json:
        print_json(told)
    else:
        _print_paths(removed, {path for one in found for path in one.unsaved})
        print(
            f"{counted(len(removed), 'run')} of {_mib(told['bytes'])} may go, {told['kept']} stay"
        )
    if dry_run or not removed:
        return 0
    if told["unsaved"] and not unsaved:
        remove(next(one for one in found if one.unsaved))  # says so
    if not yes and not confirmed("remove them?", as_json):
        return NOT_CONFIRMED
    for one in found:
        remove(one, unsaved=unsaved)
    return 0


def _print_paths(paths: Iterable[Path], unsaved: set[Path]) -> None:
    for path in paths:
        print(shown(f"  {path}{' (not in git as it is)' if path in unsaved else ''}"))

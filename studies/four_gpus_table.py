"""What `studies.four_gpus` found, as Markdown, with what of the host is used most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdopt.bench.report.results import markdown_table
from studies.quality_gpus import goal_of, scaling_table
from studies.service_clients import LOOP

EVALUATION, SERVICE, ONE = "evaluation", "service", "service of one"
HEADINGS = (
    "workers",
    "clients",
    "images",
    "lost",
    "images / s",
    "engine times GPUs, images / s",
    "efficiency",
    "p50, ms",
    "p95, ms",
    "front, cpu ms / image",
    "of which its event loop",
    "clients, cpu ms / image",
)
NOT_YET = "not measured yet"
TOO_FEW = (
    "too few images were generated at once for a rate with {processes}: "
    "give more --captions (--scenes of embedded), and another --json and --out."
)


def shown(found: Mapping[str, Any]) -> list[str]:
    """The table of the evaluation and that of the service, and whether each reaches the goal."""
    processes = found["asked"]["processes"]
    gpus = ", ".join(f"{found['gpus'].count(name)} {name}" for name in dict.fromkeys(found["gpus"]))
    source = found["asked"]["source"]
    lines = [f"{gpus or 'No GPU'}, {found['cores']} cores, `{source}`.", "", "Evaluation:", ""]
    rows = found.get(EVALUATION, {}).get("rows", ())
    lines += [*scaling_table(rows), "", *_of_levels(found, rows, processes)] if rows else [NOT_YET]
    lines += ["", "Service:", ""]
    served = [(1, row) for row in found.get(ONE, {}).get("rows", ())]
    served += [(processes, row) for row in found.get(SERVICE, {}).get("rows", ())]
    if not served:
        return [*lines, NOT_YET]
    lines += [*markdown_table(HEADINGS, [_cells(count, row) for count, row in served]), ""]
    faults = [f"- {fault}" for part in (SERVICE, ONE) for fault in _faults(found, part)]
    return [*lines, _of_service(found, processes), *faults]


def _faults(found: Mapping[str, Any], part: str) -> Sequence[str]:
    faults: Sequence[str] = found.get(part, {}).get("faults", ())
    return faults


def _of_levels(
    found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], processes: int
) -> list[str]:
    """A line for each level: the goal, and where it is missed the largest share of the host."""
    lines = []
    for level in dict.fromkeys(row["level"] for row in rows):
        ours = [row for row in rows if (row["level"], row["processes"]) == (level, processes)]
        if ours and ours[0]["images_per_s"] is None:
            lines.append(f"- `{level}`: {TOO_FEW.format(processes=processes)}")
            continue
        factor = ours[0]["factor"] if ours else None
        line = f"- `{level}`: {_verdict(factor, processes)}"
        if factor is not None and factor < goal_of(processes) and ours[0].get("host"):
            line += f" Of the host, {_most(shares_of(ours[0], found['cores']))}."
        lines.append(line)
    return lines


def _verdict(factor: float | None, processes: int) -> str:
    if factor is None:
        return f"{NOT_YET} with {processes}."
    goal = goal_of(processes)
    word = "reached" if factor >= goal else "missed"
    return f"{factor:.2f} times one, goal {goal:g}: {word}."


def shares_of(row: Mapping[str, Any], cores: int) -> dict[str, float]:
    """How much of the cores each thing takes at that rate; of writing, of the processes' time."""
    host, rate = row["host"], row["images_per_s"]
    rest_s = host["cpu_s"] + host["scorers_cpu_s"] - host["png_s"] - host["score_s"]
    return {
        "scoring": host["score_s"] * rate / cores,
        "encoding PNGs": host["png_s"] * rate / cores,
        "generating (with waiting for the GPU)": max(0.0, rest_s) * rate / cores,
        "writing parts (of each process's time)": host["write_s"] * rate / row["processes"],
    }


def _most(shares: Mapping[str, float]) -> str:
    """The largest first."""
    ranked = sorted(shares, key=lambda name: -shares[name])
    first, *others = [f"{name} {100 * shares[name]:.1f} %" for name in ranked]
    return f"{first}, the largest share; {', '.join(others)}"


def _cells(workers: int, row: Mapping[str, Any]) -> tuple[str, ...]:
    engine, share, host = row["engine_images_per_s"], row["share"], row["cpu_s_per_image"]
    return (
        str(workers),
        str(row["clients"]),
        str(row["answered"]),
        str(row["lost"]),
        f"{row['images_per_s']:.2f}",
        f"{engine:.2f}" if engine else "-",
        f"{share:.3f}" if share else "-",
        f"{row['p50_ms']:.1f}",
        f"{row['p95_ms']:.1f}",
        f"{1e3 * host['front']:.1f}",
        f"{1e3 * host[LOOP]:.1f}" if LOOP in host else "-",
        f"{1e3 * host['clients']:.1f}",
    )


def _of_service(found: Mapping[str, Any], processes: int) -> str:
    """All workers under the most clients against one under its share of them."""
    rows, alone = (found.get(part, {}).get("rows", ()) for part in (SERVICE, ONE))
    if not rows or not alone:
        return f"Against one worker: {NOT_YET}."
    most, factor = rows[-1], rows[-1]["images_per_s"] / alone[-1]["images_per_s"]
    line = f"{most['clients']} clients: {_verdict(factor, processes)}"
    if factor < goal_of(processes):
        cores = {name: most["images_per_s"] * s for name, s in most["cpu_s_per_image"].items()}
        shares = {"the clients": cores["clients"], "a worker": cores["workers"] / processes}
        if LOOP in cores:
            shares["the front's event loop"] = cores[LOOP]
        whole = 100 * cores["front"] / found["cores"]
        line += f" Of one core, {_most(shares)}. The front, {whole:.1f} % of all cores."
    return line

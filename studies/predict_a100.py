"""Each level's time on an A100, computed from a newer GPU's: `python -m studies.predict_a100`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sdopt.bench.report.published import published_seconds
from sdopt.bench.report.results import markdown_table, write_table
from sdopt.bench.stored.history import read_run, run_paths
from sdopt.errors import BrokenFileError, SdoptError, UnknownNameError
from sdopt.levels import LEVELS

MARK = "a100"
POINTERS = "-pointers"
"""How the hardware key of a history ends whose kernels read as an A100's do."""
COMMAND = "sdopt bench --source sd15-random --level LEVEL --store"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """A card by its data sheet: dense float16 with float32 sums, memory, multiprocessors."""

    tflop_per_s: float
    tb_per_s: float
    multiprocessors: int


MEASURED_ON = {
    "nvidia-h100-80gb-hbm3": Peak(tflop_per_s=989, tb_per_s=3.35, multiprocessors=132),
    "nvidia-h200": Peak(tflop_per_s=989, tb_per_s=4.8, multiprocessors=132),
}
"""By how their hardware keys begin."""
A100 = {
    40: Peak(tflop_per_s=312, tb_per_s=1.55, multiprocessors=108),
    80: Peak(tflop_per_s=312, tb_per_s=2.0, multiprocessors=108),
}
"""By GB of memory."""
HEADINGS = (
    "level",
    "measured, ms",
    "through pointers, ms",
    "TFLOP",
    "of the peak",
    *(f"A100 {size} GB, ms" for size in A100),
    "published, ms",
)


@dataclass(frozen=True, kw_only=True)
class History:
    """The medians of a level's stored runs by metric, and what they were made on."""

    hardware: str
    baseline_set: str
    levels: Mapping[str, Mapping[str, float]]


METRICS = ("latency_ms", "gpu_busy_ms", "tflop")


def read_history(path: Path) -> History:
    """A stored run, or a folder of them. Raises BrokenFileError for runs that say nothing here."""
    paths = run_paths(path) if path.is_dir() else [path] if path.exists() else []
    if not paths:
        raise BrokenFileError(f"{path} holds no stored run; give history/<hardware>/<source>")
    read = [read_run(each) for each in paths]
    made_on = {(d["sdopt"]["hardware"], d["sdopt"]["baseline_set"]) for _, d in read}
    if len(made_on) > 1:
        kinds = ", ".join(f"{source} on {hardware}" for hardware, source in sorted(made_on))
        raise BrokenFileError(
            f"{path} holds runs of more than one machine or source: {kinds}; give a folder of one"
        )
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run, _ in read:
        for level, metrics in run.metrics.items():
            if run.accepted:
                found[level] = []  # it moved the baseline: earlier runs are of other code
            found.setdefault(level, []).append(metrics)
    hardware, baseline_set = made_on.pop()
    known = {level: runs for level, runs in found.items() if level in LEVELS}
    if not known:
        raise BrokenFileError(f"{path} holds no level of this ladder, only {', '.join(found)}")
    levels = {level: _medians(path, level, runs) for level, runs in known.items()}
    return History(hardware=hardware, baseline_set=baseline_set, levels=levels)


def _medians(path: Path, level: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if {run.get("dtype") for run in runs} != {"float16"}:
        raise BrokenFileError(f"{path}: level {level!r} was not measured in float16, as published")
    known = {name: [run[name] for run in runs if run.get(name)] for name in METRICS}
    return {name: float(median(values)) for name, values in known.items() if values}


def check_pair(history: History, pointers: History | None) -> Peak:
    """The peak of the card that both were made on. Raises SdoptError if they are of no pair."""
    if history.hardware.endswith(POINTERS):
        raise SdoptError(
            f"--history is of {history.hardware}: that is the history through pointers; give it as "
            "--pointers-history, and the card's own as --history"
        )
    found = [name for name in MEASURED_ON if history.hardware.startswith(name)]
    if not found:
        choices = MEASURED_ON
        raise UnknownNameError("card of --history", history.hardware, choices, "give one of those")
    wanted = (history.hardware + POINTERS, history.baseline_set)
    if pointers is not None and (pointers.hardware, pointers.baseline_set) != wanted:
        raise SdoptError(
            f"--pointers-history is of {pointers.hardware}, source {pointers.baseline_set}; beside "
            f"--history it has to be of {wanted[0]}, source {wanted[1]}: `sdopt bench --pointers`"
        )
    return MEASURED_ON[found[-1]]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A range in ms by GB of an A100's memory, and the efficiency that it starts from.

    `ms` is what is scaled: the time of an image where the host does nothing, else the GPU's alone.
    """

    level: str
    ms: float
    tflop: float
    efficiency: float
    ranges: Mapping[int, tuple[float, float]]


def predict(level: str, metrics: Mapping[str, float], peak: Peak) -> Prediction | None:
    """What the level takes on an A100 if it keeps its share of the peak; None if that is not known.

    One end scales with arithmetic, the other with memory: which of them a kernel waits for is not
    measured. Neither end is below the A100's own peak.
    """
    name = "latency_ms" if LEVELS[level].whole_graph else "gpu_busy_ms"
    if name not in metrics or "tflop" not in metrics:
        return None
    ms, tflop = metrics[name], metrics["tflop"]
    return Prediction(
        level=level,
        ms=ms,
        tflop=tflop,
        efficiency=1e3 * tflop / ms / peak.tflop_per_s,
        ranges={size: _range(ms, tflop, peak, card) for size, card in A100.items()},
    )


def _range(ms: float, tflop: float, peak: Peak, card: Peak) -> tuple[float, float]:
    ends = (peak.tflop_per_s / card.tflop_per_s, peak.tb_per_s / card.tb_per_s)
    floor = 1e3 * tflop / card.tflop_per_s
    low, high = (max(floor, ms * factor) for factor in sorted(ends))
    return low, high


def table(history: History, pointers: History | None) -> list[str]:
    """The page's lines: what was computed from what, the table, and what is not known."""
    peak = check_pair(history, pointers)
    known = (name for name in LEVELS if name in history.levels)
    names = [name for name in known if not LEVELS[name].float8]  # which an A100 has no unit for
    rows = [_cells(name, history, pointers, peak) for name in names]
    words = _words(peak, agreement(history, peak))
    return [*_head(history), *markdown_table(HEADINGS, rows), "", *words]


def agreement(history: History, peak: Peak) -> dict[int, str]:
    """'6 of 9' by GB: so many published times, of kernels that are not ours, lie in their range."""
    found = [predict(name, metrics, peak) for name, metrics in history.levels.items()]
    counts = {}
    for size in A100:
        inside = [
            round(one.ranges[size][0]) <= 1e3 * seconds <= round(one.ranges[size][1])
            for one in found
            if one is not None
            for seconds in published_seconds().get(one.level, [])
        ]
        counts[size] = f"{sum(inside)} of {len(inside)}"
    return counts


def _cells(name: str, history: History, pointers: History | None, peak: Peak) -> list[str]:
    own = history.levels[name]
    through = pointers.levels.get(name, {}) if pointers is not None else {}
    # Eager and Inductor's kernels are the same in both histories: they read as the card does.
    found = predict(name, through if LEVELS[name].fused else own, peak)
    seconds = published_seconds().get(name, [])
    published = " / ".join(f"{1e3 * one:.0f}" for one in seconds)
    return [
        f"`{name}`",
        _shown(own.get("latency_ms")),
        _shown(through.get("latency_ms")) if LEVELS[name].fused else "the same kernels",
        f"{own['tflop']:.1f}" if "tflop" in own else "-",
        f"{100 * found.efficiency:.0f} %" if found else "-",
        *(_ends(found, size) for size in A100),
        published or "-",
    ]


def _shown(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f}"


def _ends(found: Prediction | None, size: int) -> str:
    if found is None:
        return "-"
    low, high = (f"{end:.0f}" for end in found.ranges[size])
    return f"{low} to {high}" if low != high else low


def _head(history: History) -> list[str]:
    return [
        f"**Computed, never run on the card**, from `{history.hardware}`, source "
        f"`{history.baseline_set}`. On an A100 this replaces it:",
        *("", "```sh", COMMAND, "```", ""),
    ]


def _words(peak: Peak, agreement: Mapping[int, str]) -> list[str]:
    sizes = " and ".join(f"{card.tb_per_s:g} ({size} GB)" for size, card in A100.items())
    first = next(iter(A100.values()))
    return [
        f"Each range scales what was measured by the ratio of arithmetic ({peak.tflop_per_s:g} to "
        f"{first.tflop_per_s:g} TFLOP/s) and of memory ({peak.tb_per_s:g} TB/s to {sizes}), "
        "smaller one first, never below the A100's own peak. Levels without a CUDA graph wait for "
        "the host: for them the GPU's busy time is scaled, and theirs is longer.",
        "",
        "How far that can be believed: of the published times, whose card's memory is not told, "
        + ", ".join(f"{count} lie in the range of {size} GB" for size, count in agreement.items())
        + ".",
        "",
        "Not known:",
        "",
        "- which of the two ends holds: operations are counted, bytes are not;",
        f"- what {first.multiprocessors} multiprocessors in the place of "
        f"{peak.multiprocessors} leave idle in the last round of a kernel's programs;",
        "- how much nearer `mma.sync` comes to an A100's peak: it cannot reach a Hopper GPU's, "
        "which takes `wgmma`, so the end by arithmetic is too slow rather than too fast;",
        "- an A100's caches (40 MB of L2), clocks and power limit under this load;",
        "- the fixed time of a kernel in a graph, which hardly depends on the card.",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the prediction and maybe write it into a page; 2 for a mistake in the options."""
    parser = argparse.ArgumentParser(prog="python -m studies.predict_a100", description=__doc__)
    parser.add_argument(
        "--history", type=Path, required=True, help="a stored run, or a folder of them"
    )
    parser.add_argument(
        "--pointers-history",
        type=Path,
        help="the same of `sdopt bench --pointers` (without it: the levels without our kernels)",
    )
    parser.add_argument("--page", type=Path, help="page to write it into")
    options = parser.parse_args(arguments)
    try:
        pointers = read_history(options.pointers_history) if options.pointers_history else None
        lines = table(read_history(options.history), pointers)
        if options.page:
            write_table(options.page, lines, MARK)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

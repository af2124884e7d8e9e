"""Runs and recorded pairs as the bench stores them, made up for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sdopt.bench.stored.soundness import statistics_of
from studies.power.samples import Samples

RUNS: list[dict[str, dict[str, Any]]] = [
    {"baseline": {"latency_ms": 1000.0}, "final": {"latency_ms": 110.0, "gpu_busy_ms": 100.0}},
    {"baseline": {"latency_ms": 900.0}, "final": {"latency_ms": 100.0, "host_syncs": 2}},
    {"baseline": {"latency_ms": 1100.0}},
]


def stored(folder: Path) -> Path:
    entry = {"extra_info": {"level": "final"}, "stats": statistics_of([0.1, 0.3, 0.2])}
    run = {
        "sdopt": {"schema": 1, "hardware": "gpu", "judged": [], "environment": {}},
        "machine_info": {},
        "benchmarks": [entry],
    }
    folder.mkdir()
    (folder / "0001_a.json").write_text(json.dumps(run))
    return folder


NOISE = (0.001, -0.002, 0.0, 0.002, -0.001)


def sample(pair: int, fault: str, ratio: float, **fields: Any) -> dict[str, Any]:
    base = 100 * math.exp(NOISE[pair % 5])
    head = ratio * 100 * math.exp(NOISE[(3 * pair + 1) % 5])
    about = {"level": "final", "device": "cuda", "pair": pair, "fault": fault}
    return {**about, "base_rounds_ms": [base] * 12, "head_rounds_ms": [head] * 12, **fields}


def recorded(number: int = 24) -> Samples:
    """Unchanged pairs, a 5 % slowdown in each; 1 % more memory and a leak in every other one."""
    pairs = []
    for pair in range(1, number + 1):
        peaks = {"base_peak_mib": 4000.0, "head_peak_mib": 4000.0}
        pairs += [sample(pair, "none", 1.0, **peaks), sample(pair, "loop:0.05", 1.05)]
        fault, peak = ("memory:0.01", 4040.0) if pair % 2 else ("leak:64", 4192.0)
        about = {name: pairs[-1][name] for name in ("level", "device", "pair")}
        pairs.append({**about, **peaks, "fault": fault, "head_peak_mib": peak})
    return Samples(pairs=pairs, runs=[{"hardware": "a card", "command": "record it"}])

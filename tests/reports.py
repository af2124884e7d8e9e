"""Runs for reports, made up: as the suite stores them, and as somebody who means harm would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdopt.bench.stored.baselines import save_image
from sdopt.bench.stored.soundness import statistics_of
from sdopt.levels import LEVELS, Level

HARDWARE = "nvidia-test-80gib-700-w"
SCRIPT = "</script><script>window.harm = 1</script>"
IMAGE = "<img src=x onerror='window.harm = 1'>"
LINK = "<b>bold</b><a href='https://harm.test/'>here</a>"
MARKDOWN = "``` | @someone [x](https://harm.test/) #1 <img src=x>"
TICKS = "` | <img src=x> harm ` @someone `` | harm ``"
HOSTILE = (SCRIPT, IMAGE, LINK, MARKDOWN, TICKS)
ROOT = Path(__file__).parents[1]
H100 = ROOT / "baselines/history/nvidia-h100-80gb-hbm3-79gib-700-w/sd15-random/0015_h100-15.json"


def run_of(times_ms: Mapping[str, float], **changed: Any) -> dict[str, Any]:
    """A run of these levels; `changed` replaces what stands at its top."""
    benchmarks = [_entry(level, ms) for level, ms in times_ms.items()]
    block = {
        "schema": 1,
        "hardware": HARDWARE,
        "baseline_set": "sd15-random",
        "source": "sd15-random",
        "judged": [f"benchmarks/test_latency.py::test_latency[{one}]" for one in times_ms],
        "environment": {"torch": "2.13.0"},
        **changed.pop("sdopt", {}),
    }
    return {
        "datetime": "2026-11-29T12:00:00+00:00",
        "commit_info": {"id": "a" * 40, "branch": "main", "dirty": False},
        "machine_info": {"processor": "x86_64", "system": "Linux"},
        "benchmarks": benchmarks,
        "sdopt": block,
        **changed,
    }


def _entry(level: str, ms: float) -> dict[str, Any]:
    known = LEVELS.get(level) or Level(name=level, why="made up", reference="baseline")
    measured = {
        "stage_ms": {"text": 0.1 * ms, "denoise": 0.8 * ms, "decode": 0.1 * ms},
        "peak_allocated_mib": 2000.0,
        "peak_reserved_mib": 2500.0,
        "device_used_mib": 3000.0,
        "ssim_drift": 1.0,
        "ssim_ground_truth": 0.99,
        "recompiles": 0,
        "graph_breaks": 0,
    }
    about = {"level": level, "level_fields": known.as_dict(), "guidance_scale": 7.5, "size_px": 512}
    seconds = [ms / 1e3 * factor for factor in (0.999, 1.0, 1.001)]
    return {"extra_info": {**about, **measured}, "stats": statistics_of(seconds)}


def written(path: Path, run: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run), encoding="utf-8")
    return path


def stored(root: Path, runs: Sequence[Mapping[str, float]], **changed: Any) -> list[Path]:
    """A history of such runs below `root`, oldest first."""
    folder = root / "history" / HARDWARE / "sd15-random"
    return [
        written(folder / f"{number:04}_r{number}.json", run_of(times, **changed))
        for number, times in enumerate(runs, start=1)
    ]


def with_images(root: Path, levels: Sequence[str], prompts: Sequence[str] = ("cat",)) -> Path:
    """Stored images of these levels, of 32 pixels; each level's a little brighter."""
    gradient = np.tile(np.linspace(20, 200, 32), (32, 1))
    for number, level in enumerate(levels):
        image = np.stack([gradient + 10 * number] * 3, axis=2).astype(np.uint8)
        for prompt in prompts:
            save_image(root / "images" / "sd15-random" / level / f"{prompt}.png", image, {})
    return root


def hostile() -> dict[str, Any]:
    """A run in which every word that the schema leaves free is an attempt."""
    harm = " ".join(HOSTILE)
    run = run_of({"baseline": 100.0, **dict.fromkeys(HOSTILE, 50.0)})
    run["commit_info"] = {"id": harm, "branch": harm, "message": harm, "dirty": True}
    run["machine_info"] = {"processor": harm, "system": harm, "cpu": {"brand_raw": harm}}
    run["sdopt"]["environment"] = {"torch": harm, harm: harm}
    run["sdopt"]["judged"] = [harm]
    run["datetime"] = harm
    for entry in run["benchmarks"]:
        entry["extra_info"]["dtype"] = harm
        entry["extra_info"]["stage_ms"] = {harm: 1.0}
    return run

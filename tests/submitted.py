"""Baselines of two levels, and runs that are submitted to them, made up without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.stored.accepting import digest
from sdopt.bench.stored.baselines import (
    image_content,
    image_path,
    save_work,
    work_path,
)
from sdopt.bench.stored.history import kept_folder, save_run
from sdopt.bench.stored.latents import latents_content, latents_path
from sdopt.bench.stored.soundness import statistics_of
from sdopt.levels import LEVELS
from sdopt.util.files import write_whole

KEY, SET = "cpu-some-4gib-2-cores", "embedded"
COUNTS = {"unet_evaluations": 29, "tflop": 0.5, "calls": {"unet": 20}, "tflop_by_module": {}}
LEVEL_NAMES = ("baseline", "final")
PROMPTS = ("red-star", "blue-ring")


OWN = {"why": "a pipeline of theirs", "reference": None, "compiled": False, "steps": 3}


def row(level: str, **metrics: Any) -> dict[str, Any]:
    """Of a level of this package, or of a project of its own."""
    own = {"name": level, **OWN, "call": "{}"}
    about = LEVELS[level].as_dict() if level in LEVELS else own
    fields = {"level": level, "level_fields": about, "guidance_scale": 3.0}
    return {**fields, "unet_evaluations": 29, "tflop": 0.5, **metrics}


def a_run(ms: Mapping[str, float], block: Mapping[str, Any] | None = None, **metrics: Any) -> Any:
    """A run with that latency of each level; `block` adds to what the suite notes of it."""
    about = {
        "schema": 1,
        "hardware": KEY,
        "baseline_set": SET,
        "source": SET,
        "accepted": False,
        "judged": [],
        "environment": {"torch": "2.13.0"},
        **(block or {}),
    }
    entries = [
        {"extra_info": row(level, **metrics), "stats": statistics_of([value / 1e3] * 3)}
        for level, value in ms.items()
    ]
    return {
        "machine_info": {},
        "commit_info": {"id": "0123456789abcdef" * 2 + "01234567"},
        "datetime": "2026-11-29T10:00:00+00:00",
        "benchmarks": entries,
        "sdopt": about,
    }


def an_image(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)


def made_by(level: str, prompt: str) -> dict[str, Any]:
    about = {"prompt": prompt, "negative_prompt": "", "seed": 1, "source": SET, "dtype": "float32"}
    return {**row(level), **about, "size_px": 32, "generated_steps": 3}


def pictures(root: Path, level: str, seed: int = 0) -> dict[Path, bytes]:
    """The images and latents of a level below a root."""
    files = {}
    for number, prompt in enumerate(PROMPTS):
        about, values = made_by(level, prompt), np.ones((4, 4, 4), np.float32) * (1 + seed)
        image = an_image(seed + number)
        files[image_path(root, SET, level, prompt)] = image_content(image, about)
        files[latents_path(root, SET, level, prompt)] = latents_content(values, about)
    return files


def history(root: Path) -> Path:
    return root / "history" / KEY / SET


def a_store(root: Path, runs: int = 6, ms: float = 100.0) -> Path:
    """Baselines of `baseline` and `final`, with so many runs that judge."""
    for number in range(runs):
        noise = 1 + 0.01 * (number % 3 - 1)
        save_run(history(root), "nightly", a_run(dict.fromkeys(LEVEL_NAMES, ms * noise)))
    for level in LEVEL_NAMES:
        for path, content in pictures(root, level).items():
            write_whole(path, content)
        save_work(work_path(root, SET), level, COUNTS)
    return root


def submit(
    folder: Path,
    run: Mapping[str, Any],
    *,
    seed: int = 0,
    levels: tuple[str, ...] = LEVEL_NAMES,
    counts: Mapping[str, Any] = COUNTS,
) -> Path:
    """RUN.json with what it kept: images of that seed, latents and counts."""
    path = folder / "run.json"
    kept, files = kept_folder(path), dict[Path, bytes]()
    for level in levels:
        files |= pictures(kept, level, seed)
    for name, content in files.items():
        write_whole(name, content)
    for level in levels:
        save_work(work_path(kept, SET), level, counts)
    listed = {
        one.relative_to(kept).as_posix(): digest(one.read_bytes())
        for one in sorted(kept.rglob("*"))
        if one.is_file()
    }
    path.write_text(json.dumps({**run, "sdopt": {**run["sdopt"], "kept": listed}}))
    return path


def state(root: Path) -> dict[str, bytes]:
    """Every file with its content, but for the lock of a killed writer."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }

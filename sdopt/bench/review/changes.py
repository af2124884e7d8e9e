"""Which images, latents and counts of a run are other ones than those that are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.judge.counts import changed_work
from sdopt.bench.judge.gate import Gate
from sdopt.bench.measure.quality import compare, compare_latents
from sdopt.bench.metrics.metric import Subject
from sdopt.bench.review.submission import Kept, Submission
from sdopt.bench.stored.baselines import equal_counts, image_path, read_image
from sdopt.bench.stored.latents import FLOAT64, SAME, latents_path, read_latents
from sdopt.levels import changed_settings

MADE_WITH = ("prompt", "negative_prompt", "seed", "guidance_scale", "level_fields")
"""What images are compared by only if they share it."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A file that is new or takes the place of another one; `what` says in what it differs."""

    path: Path
    kept: Kept
    what: str
    is_new: bool


def changed_images(root: Path, given: Submission, gate: Gate) -> list[Change]:
    """The images that differ in a pixel or in how they were made, judged by the gate.

    Raises BrokenFileError for a stored one that is damaged: it is never written over.
    """
    changes = []
    images = (one for one in given.files if one.is_image)
    for level, kept in _by_level(given.levels, images):
        ours, others = dict[str, NDArray[Any]](), dict[str, NDArray[np.uint8]]()
        for one in kept:
            path = image_path(root, given.baseline_set, level, one.prompt)
            image, made_by = read_image(one.path)
            if not path.exists():
                changes.append(Change(path=path, kept=one, what="new", is_new=True))
                continue
            stored, before = read_image(path)
            if stored.shape != image.shape or (other := _other(made_by, before, MADE_WITH)):
                what = "another size" if stored.shape != image.shape else f"another {other}"
                changes.append(Change(path=path, kept=one, what=what, is_new=False))
                continue
            ours[one.prompt], others[one.prompt] = image.astype(np.float32) / 255, stored
            if count := int((stored != image).sum()):
                what = f"{count} of {image.size} values"
                changes.append(Change(path=path, kept=one, what=what, is_new=False))
        if ours:
            gate.drift(given.levels[level], compare(ours, others))
    return changes


def changed_latents(root: Path, given: Submission, gate: Gate) -> list[Change]:
    """The same of latents, in float32 and in float64."""
    changes = []
    for double in (False, True):
        of_kind = (one for one in given.files if not one.is_image and one.double is double)
        dtype = FLOAT64 if double else "float32"
        for level, kept in _by_level(given.levels, of_kind):
            ours, others = dict[str, NDArray[Any]](), dict[str, NDArray[Any]]()
            for one in kept:
                path = latents_path(root, given.baseline_set, level, one.prompt, double=double)
                values, made_by = read_latents(one.path, dtype)
                if not path.exists():
                    changes.append(Change(path=path, kept=one, what="new", is_new=True))
                    continue
                stored, before = read_latents(path, dtype)
                other = _other(made_by, before, (*MADE_WITH, *SAME))
                if stored.shape != values.shape or other:
                    what = f"another {other or 'size'}"
                    changes.append(Change(path=path, kept=one, what=what, is_new=False))
                    continue
                ours[one.prompt], others[one.prompt] = values, stored
                if count := int((stored != values).sum()):
                    what = f"{count} of {values.size} values"
                    changes.append(Change(path=path, kept=one, what=what, is_new=False))
            if ours and double:
                compared = compare_latents(ours, others, Subject.FLOAT64)
                gate.latents_float64(given.levels[level], compared)
            elif ours:
                gate.latents(given.levels[level], compare_latents(ours, others))
    return changes


def changed_counts(stored: Mapping[str, Mapping[str, Any]], given: Submission) -> dict[str, str]:
    """By level, in what its counts of work are other ones."""
    changes = {}
    for level, row in given.counts.items():
        before = stored.get(level)
        if before is None:
            changes[level] = "new"
        elif not equal_counts(before, row):
            told = changed_work(before, row) or [
                f"{name} {before.get(name)} -> {value}"
                for name, value in row.items()
                if not equal_counts(before.get(name), value)
            ]
            changes[level] = ", ".join(told) or "fewer details"
    return changes


def _by_level(levels: Iterable[str], files: Iterable[Kept]) -> list[tuple[str, list[Kept]]]:
    found: dict[str, list[Kept]] = {}
    for one in files:
        found.setdefault(one.level, []).append(one)
    return [(level, found[level]) for level in levels if level in found]


def _other(made_by: Mapping[str, Any], before: Mapping[str, Any], names: Iterable[str]) -> str:
    """What of these the two were not made with alike; fields of a level by their meaning."""
    differing = []
    for name in names:
        ours, theirs = made_by.get(name), before.get(name)
        if name == "level_fields" and isinstance(ours, dict) and isinstance(theirs, dict):
            same = not changed_settings(theirs, ours)
        else:
            same = ours == theirs
        if not same:
            differing.append(name.replace("_", " "))
    return ", ".join(differing)

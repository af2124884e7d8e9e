"""A run that somebody submits: its JSON and what lies beside it, untrusted and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt.bench.measure.quality import image_fault
from sdopt.bench.review.known import StoredLevel, level_of, work_set
from sdopt.bench.stored.accepting import digest
from sdopt.bench.stored.baselines import image_path, load_work, read_image, work_path
from sdopt.bench.stored.history import PARTIAL, RUN_NAME, StoredRun, kept_folder, read_run
from sdopt.bench.stored.latents import FLOAT64, latents_path, read_latents
from sdopt.errors import BrokenFileError, UnknownNameError
from sdopt.levels import LEVELS, Level
from sdopt.pipelines.workload import NAME_PATTERN
from sdopt.util.files import MOST_BYTES, read_plain

NAME = re.compile(r"[^/\\\x00]+")
KEY = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An image or latents of a run: its level and prompt, and its content."""

    level: str
    prompt: str
    content: bytes
    path: Path
    double: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it is a PNG; else latents."""
        return self.path.suffix == ".png"

    @property
    def kind(self) -> str:
        """What it is, in words: latents are stored in two precisions."""
        return "image" if self.is_image else f"{FLOAT64 if self.double else 'float32'} latents"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run, what it is filed under, and what it left to be stored with it.

    `has_kept` is whether it left anything: a run that stored itself did not.
    """

    path: Path
    digest: str
    data: Mapping[str, Any]
    run: StoredRun
    hardware: str
    baseline_set: str
    source: str
    is_partial: bool
    levels: Mapping[str, Level]
    files: tuple[Kept, ...]
    counts: Mapping[str, Mapping[str, Any]]
    has_kept: bool

    @property
    def name(self) -> str:
        """What its file in the history is called, without the number."""
        stem = self.path.stem.removesuffix(PARTIAL)
        if RUN_NAME.fullmatch(self.path.name):
            stem = stem.split("_", 1)[1]
        return re.sub(r"[^A-Za-z0-9.-]+", "-", stem).strip("-.") or "run"


def read_submission(path: Path) -> Submission:
    """Raises BrokenFileError for a run that cannot be stored, or whose files are not its own."""
    run, data = read_run(path)
    block = data["sdopt"]
    hardware, baseline_set = block.get("hardware"), block.get("baseline_set")
    source = block.get("source")
    for what, value, pattern in (
        ("hardware", hardware, KEY),
        ("baseline_set", baseline_set, NAME),
        ("source", source, NAME),
    ):
        if not isinstance(value, str) or not pattern.fullmatch(value) or value in (".", ".."):
            raise BrokenFileError(f"{path}: $.sdopt.{what} is {value!r}, expected a folder's name")
    levels = _levels(path, run, block)
    folder, listed = kept_folder(path), block.get("kept", {})
    files, counts = [], dict[str, Mapping[str, Any]]()
    for name, wanted in sorted(listed.items()):
        place, content = _read(folder, name, wanted)
        if name == work_path(Path(), work_set(source, baseline_set)).as_posix():
            counts = {level: row for level, row in load_work(place).items() if level in levels}
        else:
            files.append(_kept(place, name, baseline_set, content, levels))
    return Submission(
        path=path,
        digest=digest(path.read_bytes()),
        data=data,
        run=run,
        hardware=hardware,
        baseline_set=baseline_set,
        source=source,
        is_partial=block.get("partial", path.stem.endswith(PARTIAL)),
        levels=levels,
        files=tuple(files),
        counts=counts,
        has_kept=bool(listed),
    )


def _levels(path: Path, run: StoredRun, block: Mapping[str, Any]) -> dict[str, Level]:
    """The levels that the run may hold something of; raises SdoptError for an unfit run.

    Those of this package, as they are today; or those of a project of its own, as it measured them.
    """
    if block.get("fault"):
        raise BrokenFileError(
            f"{path} carried the fault {block['fault']!r} on purpose; accept a run without one"
        )
    if not run.metrics:
        raise BrokenFileError(f"{path} measured no level; accept a run of the benchmarks")
    found = dict[str, Level]()
    for name, row in run.metrics.items():
        level = level_of(name, row)
        if level is None:
            raise UnknownNameError("level", name, LEVELS, f"{path} has it")
        if changes := level.changed_since(row.get("level_fields") or {}):
            raise BrokenFileError(
                f"{path} measured another level {name!r} than this tree has: {', '.join(changes)}; "
                "accept it in the tree that it ran"
            )
        found[name] = level
    is_own = any(isinstance(level, StoredLevel) for level in found.values())
    return found if is_own else {**LEVELS}


def _read(folder: Path, name: str, wanted: str) -> tuple[Path, bytes]:
    """A file that the run lists, with the content that it had then."""
    place = folder / name
    home = folder.resolve()
    if not place.resolve().is_relative_to(home) or ".." in Path(name).parts:
        raise BrokenFileError(f"{place} is not inside {folder}; the run lists what is not its own")
    try:
        content = read_plain(place, MOST_BYTES)
    except FileNotFoundError as error:
        raise BrokenFileError(
            f"{place} is missing, and the run lists it; copy {folder.name}/ together with the JSON"
        ) from error
    except OSError as error:
        raise BrokenFileError(f"{place} cannot be read: {error.strerror}") from error
    if digest(content) != wanted:
        raise BrokenFileError(
            f"{place} is not what the run wrote: its SHA-256 is another one; copy {folder.name}/ "
            "and the JSON of the same run"
        )
    return place, content


def _kept(
    place: Path, name: str, baseline_set: str, content: bytes, levels: Mapping[str, Level]
) -> Kept:
    """The image or latents at a path that is where such a thing lies, each decoded once."""
    parts = Path(name).parts
    level, prompt = parts[2] if len(parts) > 3 else "", Path(name).stem
    double = FLOAT64 in parts[3:-1]
    expected = (
        image_path(Path(), baseline_set, level, prompt),
        latents_path(Path(), baseline_set, level, prompt, double=double),
    )
    if level not in levels or not NAME_PATTERN.fullmatch(prompt) or Path(name) not in expected:
        raise BrokenFileError(
            f"{place} is no place of an image or of latents of this run: expected "
            f"images/{baseline_set}/LEVEL/PROMPT.png or latents/{baseline_set}/LEVEL/..."
        )
    if place.suffix == ".png":
        if fault := image_fault(read_image(place)[0]):
            raise BrokenFileError(f"{place} is {fault}; such a thing is never stored")
    else:
        read_latents(place, FLOAT64 if double else "float32")
    return Kept(level=level, prompt=prompt, content=content, path=place, double=double)

"""What an evaluation is: levels, prompts and settings, and the parts that its work is cut into."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdopt.bench.evaluation.here import Here
from sdopt.bench.evaluation.parts import PARTS
from sdopt.bench.evaluation.places import Place
from sdopt.bench.evaluation.prompts import Prompts
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import WORDS_ONLY, Level
from sdopt.util.hardware import PACKAGES
from sdopt.weights.sources import Source

RUN = "run.json"
SCHEMA = "sdopt-evaluation-run/1"
MOST_PART, MOST_BATCH = 100_000, 256
NOISE = "float32"
"""What a seed's noise is drawn in before it is rounded: `portable_noise`."""
PART = 32
"""Prompts in a part: what a killed process loses at most."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Levels against a reference, over the same prompts and seeds.

    `part` is the number of prompts in a file of results; `batch` the most images generated at once.
    """

    source: Source
    reference: Level
    levels: tuple[Level, ...]
    prompts: Prompts
    part: int = PART
    batch: int | None = None

    @property
    def count(self) -> int:
        """Of prompts."""
        return len(self.prompts.texts)

    @property
    def blocks(self) -> int:
        """Of parts for each level."""
        return -(-self.count // self.part)

    def indices(self, block: int) -> range:
        """The prompts of a part."""
        return range(block * self.part, min((block + 1) * self.part, self.count))

    def all_levels(self) -> tuple[Level, ...]:
        """The reference first: the others are scored against its images."""
        return (self.reference, *self.levels)

    def settings(self, device: str, dtype: str) -> dict[str, Any]:
        """What may not change while results are added to the same place."""
        from importlib.metadata import version

        from sdopt import __version__

        return {
            "schema": SCHEMA,
            "source": self.source.name,
            "guidance_scale": self.source.guidance_scale,
            "size_px": self.source.size_px,
            "prompts": self.prompts.digest,
            "count": self.count,
            "part": self.part,
            "reference": self.reference.name,
            "device": device,
            "dtype": dtype,
            "noise": NOISE,
            "sdopt": __version__,
            **{package: version(package) for package in PACKAGES},
        }

    def made_with(self, level: Level, device: str, dtype: str) -> dict[str, Any]:
        """What a part of the level depends on: the settings, its fields and the reference's."""
        fields = {
            f"{one.name}: {name}": value
            for one in (self.reference, level)
            for name, value in _changing(one).items()
        }
        return {"level": level.name, **self.settings(device, dtype), **fields}


def evaluation_of(
    source: Source,
    prompts: Prompts,
    reference: Level,
    levels: Sequence[Level],
    *,
    guidance: float | None = None,
    steps: int | None = None,
    part: int = PART,
    batch: int | None = None,
) -> Evaluation:
    """An evaluation of checked settings. Raises SdoptError for a level that is named twice."""
    names = [reference.name, *(level.name for level in levels)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SdoptError(
            f"the level {twice[0]!r} is named twice; --levels are others than --reference, each "
            "once"
        )
    for name, value, most in (("--part", part, MOST_PART), ("--batch", batch, MOST_BATCH)):
        if value is not None and not 1 <= value <= most:
            raise SdoptError(f"{name} is {value}; give 1 to {most}")
    if guidance is not None:
        source = replace(source, guidance_scale=guidance)
    return Evaluation(
        source=source,
        reference=with_steps(reference, steps),
        levels=tuple(with_steps(level, steps) for level in levels),
        prompts=prompts,
        part=part,
        batch=batch,
    )


def with_steps(level: Level, steps: int | None) -> Level:
    """The level with another number of steps, or as it is."""
    return level if steps is None else replace(level, steps=steps)


def open_run(
    place: Place,
    evaluation: Evaluation,
    device: str,
    dtype: str,
    here: Here,
    say: Callable[[str], None],
) -> None:
    """Begin or go on with the evaluation there. Raises SdoptError if another one lies there."""
    stored: Mapping[str, Any] = {}
    ours = evaluation.settings(device, dtype)
    levels = {level.name: _changing(level) for level in evaluation.all_levels()}
    if RUN in place.files(""):
        stored = read_run(place)
        theirs = stored["levels"]
        changed = [
            f"{name} {_short(stored.get(name, 'unknown'))} -> {_short(ours[name])}"
            for name in ours
            if stored.get(name) != ours[name]
        ]
        changed += [
            f"{name}: {field} {theirs[name].get(field)} -> {value}"
            for name in levels.keys() & theirs.keys()
            for field, value in levels[name].items()
            if theirs[name].get(field) != value
        ]
        if changed:
            raise SdoptError(
                f"{place.name} holds another evaluation: {', '.join(changed)}; name another --out, "
                "or give the same settings"
            )
        levels = {**theirs, **levels}
        here.warn(stored, place.name, say)
    elif place.files(PARTS):
        raise BrokenFileError(f"{place.name} has {PARTS}/ and no {RUN}; name another --out")
    for name in ("", *(f"{PARTS}/{level}" for level in levels)):
        place.tidy(name)
    origin = {"origin": evaluation.prompts.origin}
    content = {**ours, **origin, **here.noted(stored), "levels": levels}
    place.write(RUN, json.dumps(content, indent=1).encode() + b"\n")


def read_run(place: Place) -> dict[str, Any]:
    """What `open_run` wrote. Raises BrokenFileError for anything else."""
    with place.open(RUN) as file:
        try:
            run: Any = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise _broken(place, f"is not JSON: {error}") from error
    levels = run.get("levels") if isinstance(run, dict) else None
    if not isinstance(levels, dict):
        raise _broken(place, "is not what an evaluation wrote: it names no levels")
    for name, fields in levels.items():
        if not isinstance(fields, dict):
            raise _broken(place, f"says {_short(fields)} of the level {name}, not its fields")
    told: dict[str, Any] = run
    return told


def _broken(place: Place, what: str) -> BrokenFileError:
    return BrokenFileError(
        f"{place.name}/{RUN} {what}; put back what was there, or name another --out"
    )


def _changing(level: Level) -> dict[str, Any]:
    """What makes the level's images."""
    fields: Mapping[str, Any] = level.as_dict()
    return {name: value for name, value in fields.items() if name not in WORDS_ONLY}


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else repr(value)

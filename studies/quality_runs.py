"""One process of `studies.quality_gpus lossy`: every evaluation after the other, loaded once."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sdopt.bench.evaluation.crew import Crew
from sdopt.bench.evaluation.evaluate import evaluate
from sdopt.bench.evaluation.places import place_of
from sdopt.bench.evaluation.plan import PART, Evaluation, evaluation_of
from sdopt.bench.evaluation.prompts import scene_prompts
from sdopt.bench.evaluation.summary import JSON, table
from sdopt.errors import SdoptError
from sdopt.levels import get_level
from sdopt.util.files import write_whole
from sdopt.weights.sources import resolve


@dataclass(frozen=True, kw_only=True)
class Lossy:
    """Levels against the one that they lose something to, at a guidance scale."""

    name: str
    reference: str
    levels: tuple[str, ...]
    guidance: float = 3.0

    def evaluation(self, scenes: int, batch: int | None, steps: int | None) -> Evaluation:
        """Over that many scenes of the miniature."""
        source = resolve("embedded")
        return evaluation_of(
            source,
            scene_prompts(scenes, source),
            get_level(self.reference),
            [get_level(name) for name in self.levels],
            guidance=self.guidance,
            batch=batch,
            steps=steps,
            part=max(PART, batch or 0),
        )


OF_DPM = ("dpm-20-cutoff", "final", "hoisted", "hoisted-cutoff", "express", "turbo")
LOSSY = (
    Lossy(name="dpm", reference="dpm-20", levels=OF_DPM),
    Lossy(name="dpm-guidance-7.5", reference="dpm-20", levels=OF_DPM, guidance=7.5),
    Lossy(name="euler-20", reference="euler-20", levels=("euler-20-cutoff",)),
    Lossy(
        name="euler-30",
        reference="compiled",
        levels=("compiled-tiny-vae", "euler-20", "dpm-20"),
    ),
)
"""What matters most first: each result is kept as soon as it is there."""


@dataclass
class Said:
    """Lines with the seconds since the start."""

    began: float = field(default_factory=time.monotonic)

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {line}", file=sys.stderr, flush=True)


def kept(folder: Path, name: str) -> Path:
    """Where a summary is kept."""
    return folder / f"quality-{name}.json"


def run(one: Lossy, options: argparse.Namespace, crew: Crew, say: Callable[[str], None]) -> None:
    """This process's share of an evaluation; the main one keeps the summary, too."""
    place = place_of(str(options.out / one.name))
    evaluation = one.evaluation(options.scenes, options.batch, options.steps)
    say(f"{one.name}: process {crew.number} of {crew.size} begins")
    told = partial(_told, say, one.name)
    if (outcome := evaluate(evaluation, place, crew, say=told)) is None:
        return
    summary = json.loads((options.out / one.name / JSON).read_text())
    write_whole(kept(options.keep, one.name), json.dumps(summary, indent=1).encode() + b"\n")
    say(f"{one.name}: kept {kept(options.keep, one.name)}")
    print("\n".join(["", *table(outcome[0]), ""]), flush=True)


def _told(say: Callable[[str], None], name: str, line: str) -> None:
    say(f"{name}: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """In each process that was launched; 2 if one of the evaluations fails."""
    parser = argparse.ArgumentParser(prog="python -m studies.quality_runs", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of results, one folder each")
    add("--keep", type=Path, required=True, help="folder that summaries are copied to")
    add("--scenes", type=int, required=True)
    add("--batch", type=int, help="most images at once")
    add("--steps", type=int, help="of every level (their own), to try the command")
    add("--only", nargs="*", choices=[one.name for one in LOSSY], help="(all)")
    options = parser.parse_args(arguments)
    say = Said()
    try:
        crew = Crew()
        for one in LOSSY:
            if not options.only or one.name in options.only:
                run(one, options, crew, say)
        crew.part()
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One process of `studies.quality_gpus`: its evaluations one after the other, loaded once."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdopt.bench.evaluation.crew import Crew
from sdopt.bench.evaluation.evaluate import Say, evaluate
from sdopt.bench.evaluation.places import place_of
from sdopt.bench.evaluation.plan import PART, Evaluation, evaluation_of
from sdopt.bench.evaluation.prompts import CAPTIONS_NAME, read_prompts, scene_prompts
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


REUSED = ("swift", "turbo", "express-float8", "turbo-float8")
OF_DPM = ("dpm-20-cutoff", "final", "hoisted", "hoisted-cutoff", "express")
LOSSY = (
    Lossy(name="express", reference="express", levels=REUSED),
    Lossy(name="express-guidance-7.5", reference="express", levels=REUSED, guidance=7.5),
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


SCALED = ("turbo", "final")
SCALING, WARM = "scaling", "warm"
SCALING_PART = 16
"""Prompts in a part: the first of each process, in which it compiles, is left out of a rate."""


class Few(Crew):
    """The first so many processes as if there were no others, which wait for them meanwhile.

    All processes make it, at the same point: a group of some is told to all.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.few = size
        if 1 < size < super().size:
            from torch import distributed

            self.group = distributed.new_group(list(range(size)), backend="gloo")

    @property
    def size(self) -> int:
        """So many."""
        return self.few

    @property
    def works(self) -> bool:
        """Whether this process is one of them."""
        return self.number < self.few

    def share(self, work: Sequence[int]) -> list[int]:
        """A stretch of it, as PartialState does it."""
        each, more = divmod(len(work), self.few)
        first = self.number * each + min(self.number, more)
        return list(work[first : first + each + (self.number < more)])

    def broadcast(self, told: list[Any]) -> None:
        """Among these."""
        import torch
        from torch import distributed

        device = torch.device("cpu")
        distributed.broadcast_object_list(told, src=0, group=self.group, device=device)


def counts_of(processes: int) -> list[int]:
    """Powers of two below the number, and the number: 1, 2, 4."""
    below = [2**power for power in range(processes.bit_length()) if 2**power < processes]
    return [*below, processes]


@dataclass
class Said:
    """Lines with the seconds since the start."""

    began: float = field(default_factory=time.monotonic)

    def __call__(self, line: str) -> None:
        """One more."""
        print(f"{time.monotonic() - self.began:6.1f} s  {line}", file=sys.stderr, flush=True)


def kept(folder: Path, name: str) -> Path:
    """Where a summary is kept."""
    return folder / f"quality-{name}.json"


def scaling(options: argparse.Namespace, most: int | None = None) -> Evaluation:
    """The levels over captions, or over scenes of the miniature; over so many at most."""
    source = resolve(options.source)
    if source.is_embedded:
        prompts = scene_prompts(options.scenes, source)
    else:
        prompts = read_prompts(Path(CAPTIONS_NAME), source)
        prompts = replace(prompts, texts=prompts.texts[: options.captions])
    prompts = replace(prompts, texts=prompts.texts[:most])
    first, *others = map(get_level, options.levels)
    return evaluation_of(source, prompts, first, others, part=SCALING_PART, steps=options.steps)


def run_lossy(options: argparse.Namespace, crew: Crew, say: Say) -> None:
    """This process's share of every evaluation; the main one keeps each summary at once."""
    for one in chosen(options.only):
        evaluation = one.evaluation(options.scenes, options.batch, options.steps)
        if run(options.out / one.name, evaluation, crew, say):
            keep(options.out / one.name, kept(options.keep, one.name), say)


def run_warm(options: argparse.Namespace, crew: Crew, say: Say) -> None:
    """A part for each process, made anew each time: this process takes what it has compiled."""
    folder = crew.told_by_main(lambda: tempfile.mkdtemp(prefix="sdopt-warm-"))
    run(Path(folder), scaling(options, SCALING_PART * crew.size), crew, say)
    if crew.is_main:
        shutil.rmtree(folder)


def chosen(names: Sequence[str] | None) -> list[Lossy]:
    """Those evaluations, or all."""
    return [one for one in LOSSY if not names or one.name in names]


def run_scaling(options: argparse.Namespace, crew: Crew, say: Say) -> None:
    """One process, then two, four and so on to all of them, all of which are warm from the start.

    A process that is still compiling would leave the others its cores, and its share of the host.
    """
    run_warm(options, crew, say)
    evaluation = scaling(options)
    crews = [*map(Few, counts_of(crew.size)[:-1]), crew]
    for one in crews:
        if not isinstance(one, Few) or one.works:
            run(options.out / f"{SCALING}-{one.size}", evaluation, one, say)


def run(folder: Path, evaluation: Evaluation, crew: Crew, say: Say) -> bool:
    """This process's share; whether it was the main one, which printed the table."""
    name = folder.name
    say(f"{name}: process {crew.number} of {crew.size} begins")
    outcome = evaluate(
        evaluation, place_of(str(folder)), crew, say=lambda line: say(f"{name}: {line}")
    )
    if outcome is None:
        return False
    print("\n".join(["", *table(outcome[0]), ""]), flush=True)
    return True


def keep(folder: Path, file: Path, say: Say) -> None:
    """A copy of the summary."""
    write_whole(file, (folder / JSON).read_bytes())
    say(f"{folder.name}: kept {file}")


WHAT = {"lossy": run_lossy, WARM: run_warm, SCALING: run_scaling}


def main(arguments: Sequence[str] | None = None) -> int:
    """In each process that was launched; 2 if one of the evaluations fails."""
    parser = argparse.ArgumentParser(prog="python -m studies.quality_runs", description=__doc__)
    add = parser.add_argument
    add("what", choices=WHAT)
    add("--out", type=Path, required=True, help="folder of results, one folder each")
    add("--keep", type=Path, help="folder that summaries of lossy levels are copied to")
    add("--source", default="sd15-random", help="of scaling (sd15-random)")
    add("--scenes", type=int, help="of the source embedded")
    add("--captions", type=int, default=500, help="of other sources, the first so many (500)")
    add("--batch", type=int, help="most images at once, of lossy")
    add("--levels", nargs="+", default=SCALED, help=f"of scaling ({' '.join(SCALED)})")
    add("--only", nargs="*", choices=[one.name for one in LOSSY], help="of lossy (all)")
    add("--steps", type=int, help="of every level (their own), to try the command")
    options = parser.parse_args(arguments)
    try:
        crew = Crew()
        WHAT[options.what](options, crew, Said())
        crew.part()
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`sdopt evaluate`: what levels cost over thousands of prompts, in every process there is."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdopt.cli import options
from sdopt.cli.options import check_numbers, checked_levels, print_json
from sdopt.errors import MissingToolError, SdoptError
from sdopt.levels import get_level

if TYPE_CHECKING:
    from sdopt.bench.evaluation.prompts import Prompts
    from sdopt.weights.sources import Source

NEEDED = ("jsonschema", "pyarrow", "scipy", "skimage")


def evaluate(
    levels: Annotated[
        str, typer.Option("--levels", metavar="LEVEL,...", help="What is evaluated.")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="DIR", help="A folder that all processes see, or a fsspec URL."
        ),
    ],
    reference: Annotated[
        str, typer.Option("--reference", metavar="LEVEL", help="What they are compared with.")
    ] = "dpm-20",
    source: options.Source = "auto",
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A .txt (one a line), .jsonl, .csv or .parquet file, or `captions`: the 500 that "
            "are shipped.",
        ),
    ] = None,
    column: Annotated[
        str, typer.Option("--column", metavar="NAME", help="Of --prompts, that holds them.")
    ] = "prompt",
    scenes: Annotated[
        int | None,
        typer.Option("--scenes", metavar="N", help="Captions of unseen scenes, for `embedded`."),
    ] = None,
    guidance: options.Guidance = None,
    steps: options.Steps = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            help="Most images at once (default: 8 on a GPU, 4 on a CPU); halved until they fit.",
        ),
    ] = None,
    part: Annotated[
        int, typer.Option("--part", metavar="N", help="Prompts in a file of results.")
    ] = 32,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="[LEVEL:]SCORE=X",
            help="What the interval's bound may not pass; may be given again.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Evaluate levels over many prompts: cost with intervals, worst prompts, a verdict.

    Killed or not, the same command goes on where it stopped. Seeds are the prompts' places in the
    file, whatever the number of processes.
    """
    names = checked_levels(levels)
    base = get_level(reference)
    check_numbers(guidance=guidance, steps=steps)
    if (prompts is None) == (scenes is None):
        raise SdoptError("give either --prompts FILE or --scenes N")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingToolError(
            f"an evaluation needs {', '.join(missing)}; in a clone of sdopt, "
            "pip install -c constraints.txt -e '.[evaluate]' brings them"
        )
    from sdopt.bench.evaluation.crew import Crew
    from sdopt.bench.evaluation.evaluate import evaluate as run
    from sdopt.bench.evaluation.judging import check_count, check_limits, parse_limit
    from sdopt.bench.evaluation.places import place_of
    from sdopt.bench.evaluation.plan import evaluation_of, with_steps
    from sdopt.bench.judge.verdict import exit_code
    from sdopt.weights.sources import resolve

    limits = [parse_limit(text, names) for text in limit or []]
    evaluated = [with_steps(get_level(name), steps) for name in names]
    check_limits(limits, evaluated, with_steps(base, steps))
    place = place_of(out)
    crew = Crew()
    digest = crew.told_by_main(lambda: _read(resolve(source), prompts, column, scenes).digest)
    found = resolve(source)  # after the main process, which has downloaded it
    ours = _read(found, prompts, column, scenes)
    check_count(limits, len(ours.texts))
    if ours.digest != digest:
        raise SdoptError(
            f"process {crew.number} finds other prompts in {ours.origin} than the main process; "
            "give a file that all nodes share"
        )
    evaluation = evaluation_of(
        found,
        ours,
        base,
        [get_level(name) for name in names],
        guidance=guidance,
        steps=steps,
        part=part,
        batch=batch,
    )

    def say(line: str) -> None:
        print(f"evaluate: {line}", file=sys.stderr, flush=True)

    outcome = run(
        evaluation,
        place,
        crew,
        limits=limits,
        say=say,
        again="the same command in another --out, once the cause is repaired",
    )
    crew.part()
    if outcome is None:
        return 0
    summary, verdicts = outcome
    if as_json:
        print_json(summary)
        for verdict in verdicts:
            if not verdict.passed:
                say(verdict.message)
    else:
        _tell(out, [verdict.message for verdict in verdicts])
    return int(exit_code(verdicts))


def _read(source: Source, prompts: Path | None, column: str, scenes: int | None) -> Prompts:
    from sdopt.bench.evaluation.prompts import read_prompts, scene_prompts

    if prompts is None:
        return scene_prompts(scenes or 0, source)
    return read_prompts(prompts, source, column)


def _tell(out: str, messages: list[str]) -> None:
    print("\n".join(messages))
    print(f"wrote {str(out).rstrip('/')}/summary.md, summary.json and the worst prompts' images")

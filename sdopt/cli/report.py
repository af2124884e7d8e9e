"""`sdopt report`: one run as an HTML file that opens anywhere, and as Markdown."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sdopt.cli.options import (
    Force,
    Json,
    check_baselines,
    named_run,
    print_json,
    refuse_existing,
)
from sdopt.cli.progress import progress
from sdopt.errors import MissingToolError, SdoptError

NEEDED = ("jinja2", "numpy", "PIL", "plotly", "ruptures", "scipy", "skimage")
BASELINES = Path("baselines")
HTML, MARKDOWN = ".html", ".md"


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.json", help="A stored run, or what --benchmark-json=FILE wrote."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="OTHER",
            help="Judge by that run (a file, or a stored run's number or name) and those before "
            "it. Default: by what was stored before this one.",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="An .html or .md file; may be given again. Default: report.html.",
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write Markdown too, beside each .html file.")
    ] = False,
    baselines: Annotated[
        Path, typer.Option("--baselines", metavar="DIR", help="Of histories, limits and images.")
    ] = BASELINES,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Of LEVEL/PROMPT.png with this run's images (default: the stored ones).",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            metavar="DIR",
            help="What `sdopt evaluate --out DIR` wrote (default: quality/ beside the run, if it "
            "is there).",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Judge a run and show it: verdicts, ladder, charts, images, history, environment.

    The HTML file needs no network and no other file.
    """
    files = _files(out or [Path("report.html")], markdown)
    for file in files:
        refuse_existing(file, force=force)
    check_baselines(baselines, BASELINES)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingToolError(
            f"a report needs {', '.join(missing)}; in a clone of sdopt, "
            "pip install -c constraints.txt -e '.[report]' brings them"
        )
    from sdopt.bench.report.page import charts, html
    from sdopt.bench.report.page import markdown as text
    from sdopt.bench.report.page.evaluation import evaluated
    from sdopt.bench.report.page.facts import gather
    from sdopt.bench.report.page.images import images_of
    from sdopt.bench.report.page.sentences import of_run
    from sdopt.bench.report.verdicts import as_dict
    from sdopt.util.files import write_whole

    contents = {}
    with progress("making the report", None), named_run(run, baselines):
        facts = gather(run, baselines, against)
        quality = evaluated(run, facts.run.source, evaluation)
        for file in files:
            if file.suffix == HTML:
                contents[file] = html.render(facts, images_of(facts, images), quality)
            else:
                contents[file] = text.render(facts, charts.histories(facts), quality)
    for file, content in contents.items():
        write_whole(file, content.encode())
    summary = of_run(facts)
    if as_json:
        verdicts = [as_dict(verdict) for verdict in facts.verdicts]
        outcome = {"outcome": summary.outcome.value, "summary": summary.text}
        print_json({"files": [str(file) for file in files], **outcome, "verdicts": verdicts})
        return 0
    print(f"{summary.sign} {summary.text}")
    print(f"wrote {', '.join(map(str, files))}")
    return 0


def _files(out: list[Path], markdown: bool) -> list[Path]:
    """What is written, each once."""
    for file in out:
        if file.suffix not in (HTML, MARKDOWN):
            raise SdoptError(f"-o is {str(file)!r}; name a file that ends in {HTML} or {MARKDOWN}")
    beside = [file.with_suffix(MARKDOWN) for file in out if markdown and file.suffix == HTML]
    return list(dict.fromkeys([*out, *beside]))

"""The report as one HTML file that needs nothing else: styles, scripts, charts and images inside.

Every value goes through jinja2's escaping, or stands in a JSON block that no script runs. On top of
that the page's own policy lets only the two scripts run whose hashes it names, and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sdopt import __version__
from sdopt.bench.report.page import charts, sentences, tables
from sdopt.bench.report.page.evaluation import Evaluated
from sdopt.bench.report.page.facts import Facts
from sdopt.bench.report.page.images import Images
from sdopt.bench.report.page.quality import Quality, front, quality_of
from sdopt.bench.report.page.tables import Cell, Table, number_cell
from sdopt.bench.report.published import published_memory_mib
from sdopt.util.text import shown

FILES = Path(__file__).parent / "files"
MOST_NAME = 80
MOST_TEXT = 400


def render(facts: Facts, images: Images, evaluation: Evaluated | None = None) -> str:
    """The whole page."""
    quality, histories = quality_of(facts), charts.histories(facts)
    plotly, own = get_plotlyjs(), _text("report.js")
    figures = _figures(facts, quality)
    data = {
        "charts": {name: _json_of(figure) for name, figure in figures.items()},
        "histories": [
            {"level": level, "figure": _json_of(figure)} for level, (figure, _) in histories.items()
        ],
        "dark": charts.DARK,
        "images": _image_data(images),
    }
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            policy=_policy(plotly, own),
            style=Markup(_text("report.css")),
            plotly=Markup(plotly),
            script=Markup(own),
            data=data,
            facts=facts,
            run=facts.run,
            version=__version__,
            summary=sentences.of_run(facts),
            levels=sentences.of_levels(facts),
            judged_by=judged_by(facts),
            ladder=tables.ladder(facts),
            quality=quality,
            quality_table=_quality_table(quality),
            front=front(quality.points),
            stages=tables.stages(facts),
            memory=tables.memory(facts),
            environment=tables.environment(facts),
            differing=tables.differing(facts),
            images=images,
            evaluation=evaluation,
            histories=histories,
            changes=tables.changes(
                facts, {level: found for level, (_, found) in histories.items()}
            ),
            first=_first(facts, list(histories)),
        )
    )
    return page


def judged_by(facts: Facts) -> list[str]:
    """In words, what the verdicts were reached by, and what they do not cover."""
    told = list(facts.notes)
    if facts.known.refusal:
        told.append(f"The history was refused: {facts.known.refusal}")
    if facts.known.comparing and facts.other:
        told.append(f"Time, memory and GPU work are judged by {facts.other.path}.")
    told.append(f"Images are judged by {facts.known.limits_file}, as it is today.")
    if facts.unjudged:
        count, first = len(facts.unjudged), ", ".join(facts.unjudged[:3])
        told.append(f"{count} tests that the stored run judged did not run in this one: {first}.")
    told.append(
        "Whether a level took effect and repeats bit for bit only the run itself can prove: its "
        "verdicts.json says so."
    )
    return told


def _quality_table(quality: Quality) -> Table:
    best = {point.level for point in front(quality.points)}
    rows = [
        [
            Cell(point.level, point.level),
            number_cell(point.ms, ".1f"),
            number_cell(point.quality, ".4f"),
            Cell("yes" if point.level in best else "no", float(point.level in best)),
        ]
        for point in quality.points
    ]
    return Table(headings=["level", "ms", "SSIM", "on the front"], rows=rows)


def _figures(facts: Facts, quality: Quality) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if quality.points:
        figures["pareto"] = charts.pareto(quality)
    if tables.stage_names(facts):
        figures["stages"] = charts.stages(facts)
    if tables.memory(facts).rows:
        figures["memory"] = charts.memory(facts, published_memory_mib())
    return figures


def _json_of(figure: Any) -> Any:
    """As plotly writes it: NaN, which JSON has none of, is null there."""
    return json.loads(figure.to_json())


def _image_data(images: Images) -> dict[str, Any]:
    """Each image once, and the pairs by index."""
    uris: dict[str, int] = {}
    pairs = [
        {
            "level": shown(pair.level, MOST_NAME),
            "reference": shown(pair.reference, MOST_NAME),
            "prompt": shown(pair.prompt, MOST_NAME),
            "words": pair.words,
            **{
                side: uris.setdefault(getattr(pair, side), len(uris))
                for side in ("image", "other", "difference")
            },
        }
        for pair in images.pairs
    ]
    return {"uris": list(uris), "pairs": pairs}


def _first(facts: Facts, levels: Sequence[str]) -> str:
    """The level whose history is shown first: one that failed, else the last of the ladder."""
    graves = [one for one in sentences.of_levels(facts) if one.kind in ("bad", "unsure")]
    found = [one.level for one in graves if one.level in levels]
    return found[-1] if found else levels[-1] if levels else ""


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["name"] = lambda text: shown(str(text), MOST_NAME)
    environment.filters["line"] = lambda text: shown(str(text), MOST_TEXT)
    return environment


def _policy(*scripts: str) -> str:
    """What the page may do: these scripts, its own styles and images, no request at all."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    # As a browser reads it: it makes one line end of each kind.
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")

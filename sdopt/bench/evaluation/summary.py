"""What an evaluation found, as JSON, as Markdown, and the worst prompts as sheets of images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdopt.bench.evaluation.checking import MadeWith, PartCheck
from sdopt.bench.evaluation.judging import NO_INTERVAL, judged_name
from sdopt.bench.evaluation.merging import NAMES, Merged, merge, score_named
from sdopt.bench.evaluation.parts import of_image, part_file, read_rows
from sdopt.bench.evaluation.pixels import Image, from_png, to_png
from sdopt.bench.evaluation.places import Place
from sdopt.bench.evaluation.plan import Evaluation, read_run
from sdopt.bench.evaluation.scores import SCORES, scene_of
from sdopt.bench.judge.verdict import Verdict, exit_code
from sdopt.bench.metrics.metric import Better
from sdopt.bench.report.results import markdown_table
from sdopt.bench.report.verdicts import as_dict
from sdopt.bench.stored.summaries import FEWEST
from sdopt.levels import Level, cost_is_comparable
from sdopt.miniature.scenes import render

SCHEMA = "sdopt-evaluation/1"
JSON, MARKDOWN = "summary.json", "summary.md"
BAR = 40
GAP_PX = 4


def summarize(
    place: Place,
    evaluation: Evaluation,
    absent: Mapping[str, str],
    fids: Mapping[str, float],
    made_with: MadeWith,
) -> dict[str, Any]:
    """Merge every level. Raises BrokenFileError for parts that do not fit together."""
    levels, reference_faulty = {}, None
    for level in evaluation.all_levels():
        ranked_by = _ranked_by(evaluation, level)
        check = PartCheck(
            place=place,
            evaluation=evaluation,
            level=level,
            made_with=made_with[level.name],
            reference_faulty=reference_faulty,
        )
        merged = merge(place, level.name, evaluation.count, ranked_by, check)
        if level.name == evaluation.reference.name:
            reference_faulty = merged.faulty
        levels[level.name] = _of_level(place, evaluation, level, merged, fids)
    run = read_run(place)
    return {
        "schema": SCHEMA,
        "run": {name: value for name, value in run.items() if name not in ("schema", "levels")},
        "settings": {level.name: level.as_dict() for level in evaluation.all_levels()},
        "reference": evaluation.reference.name,
        "prompts": evaluation.count,
        "absent": dict(absent),
        "levels": levels,
    }


def _ranked_by(evaluation: Evaluation, level: Level) -> str:
    """Prompts are the worse the lower this is."""
    if level.name == evaluation.reference.name:
        return "ssim_ground_truth"
    if cost_is_comparable(level, evaluation.reference) or not evaluation.source.is_embedded:
        return "ssim_cost"
    return "ssim_ground_truth_difference"


def _of_level(
    place: Place,
    evaluation: Evaluation,
    level: Level,
    merged: Merged,
    fids: Mapping[str, float],
) -> dict[str, Any]:
    scores = {name: _of_score(merged, name) for name in NAMES if _count(merged, name)}
    told: dict[str, Any] = {
        "comparable": cost_is_comparable(level, evaluation.reference),
        "fault_count": merged.fault_count,
        "faults": merged.faults,
        "rate": merged.rates.told(),
        "scores": scores,
        "ranked_by": merged.ranked_by,
        "worst": [
            {"index": index, "prompt": evaluation.prompts.texts[index], "value": value}
            for value, index, _ in merged.worst.ranked()
        ],
    }
    if level.name in fids:
        told["fid"] = fids[level.name]
    return told


def _count(merged: Merged, name: str) -> int:
    return int(merged.bootstrap.count[NAMES.index(name)])


def _of_score(merged: Merged, name: str) -> dict[str, Any]:
    mean, low, high = merged.bootstrap.interval(name)
    histogram = merged.histograms[name]
    lowest = SCORES[score_named(name)].better is Better.HIGHER
    return {
        "count": _count(merged, name),
        "mean": mean,
        "low": low,
        "high": high,
        "worst_percent": histogram.tail_mean(lowest=lowest),
        "histogram": histogram.shown(),
    }


def judged(summary: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The summary with its verdicts: what its schema describes."""
    return {
        **summary,
        "exit_code": int(exit_code(verdicts)),
        "verdicts": [as_dict(verdict) for verdict in verdicts],
    }


def write_summary(place: Place, content: Mapping[str, Any]) -> None:
    """What `judged` returns, as both files, whole."""
    text = json.dumps(content, indent=1, allow_nan=False)
    place.write(JSON, text.encode() + b"\n")
    place.write(MARKDOWN, "\n".join(markdown(content)).encode() + b"\n")


def markdown(summary: Mapping[str, Any]) -> list[str]:
    """The tables of a summary, and its verdicts."""
    run = summary["run"]
    where = ", ".join(run.get("cards", ())) or run["device"]
    lines = [
        f"{summary['prompts']} prompts ({run['origin']}), source `{run['source']}`, guidance "
        f"{run['guidance_scale']:g}, {run['size_px']} px, {run['dtype']} on {where}, "
        f"torch {run['torch']}. Reference: `{summary['reference']}`.",
        "",
        *table(summary),
    ]
    if summary["absent"]:
        lines += ["", *(f"- no `{name}`: {why}" for name, why in summary["absent"].items())]
    lines += ["", *(f"- {one['outcome']}: {one['reason']}" for one in summary["verdicts"])]
    for level, told in summary["levels"].items():
        lines += ["", f"## {level}", "", *_details(told)]
    return lines


def table(summary: Mapping[str, Any]) -> list[str]:
    """A row for each level: means with 95 % intervals, and the mean of the worst 1 %.

    The latter is of the score that a level's prompts are ranked by, named beside it.
    A `*_difference` is the level's less the reference's, prompt by prompt; the reference's own row
    has its values.
    """
    levels = summary["levels"]
    there = [name for name in NAMES if any(name in told["scores"] for told in levels.values())]
    shown = [name for name in there if name == judged_name(SCORES[score_named(name)])]
    has_fid = any("fid" in told for told in levels.values())
    head = ["level", "images / s", *shown, "worst 1 %, score", *(["FID"] if has_fid else [])]
    rows = [
        [
            f"`{level}`",
            _rate(told),
            *(_cell(told["scores"], name, level == summary["reference"]) for name in shown),
            _worst_share(told),
            *([f"{told['fid']:.2f}" if "fid" in told else "-"] if has_fid else []),
        ]
        for level, told in levels.items()
    ]
    return markdown_table(head, rows)


def _rate(told: Mapping[str, Any]) -> str:
    rate = told["rate"].get("images_per_s")
    return "-" if rate is None else f"{rate:.3g}"


def _cell(scores: Mapping[str, Any], name: str, is_reference: bool) -> str:
    """The reference differs in nothing from itself: its own value stands there."""
    found = scores.get(score_named(name) if is_reference else name)
    if found is None:
        return "-"
    if found["count"] < FEWEST:
        return f"{found['mean']:.4f} ({NO_INTERVAL})"
    return f"{found['mean']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


def _worst_share(told: Mapping[str, Any]) -> str:
    found = told["scores"].get(told["ranked_by"])
    return "-" if found is None else f"{found['worst_percent']:.4f} {told['ranked_by']}"


def _details(told: Mapping[str, Any]) -> list[str]:
    """The histogram of what the prompts are ranked by, and the worst of them."""
    found = told["scores"].get(told["ranked_by"])
    if found is None:
        return ["No prompt has a score."]
    rows = [
        [str(one["index"]), f"{one['value']:.4f}", one["prompt"].replace("|", "\\|")]
        for one in told["worst"]
    ]
    worst = ["| prompt | value | |", "|---:|---:|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return [f"`{told['ranked_by']}`:", "", "```", *bars(found["histogram"]), "```", "", *worst]


def bars(histogram: Mapping[str, Sequence[float]]) -> list[str]:
    """A line for each bin: where it begins, its bar, its count."""
    most = max(histogram["counts"], default=0)
    return [
        f"{edge:9.4f} {'#' * math.ceil(BAR * count / most):{BAR}s} {count:.0f}"
        for edge, count in zip(histogram["edges"], histogram["counts"], strict=False)
    ]


def write_worst(place: Place, evaluation: Evaluation, summary: Mapping[str, Any]) -> None:
    """A sheet for each level: the reference's image, the level's, and the true drawing if known."""
    reference = evaluation.reference.name
    for level, told in summary["levels"].items():
        indices = [one["index"] for one in told["worst"]]
        if level != reference and indices:
            rows = [_row(place, evaluation, level, index) for index in indices]
            place.write(f"worst/{level}.png", to_png(_joined(rows, axis=0)))


def _row(place: Place, evaluation: Evaluation, level: str, index: int) -> Image:
    images = []
    block = index // evaluation.part
    for name in (evaluation.reference.name, level):
        file = part_file(name, block)
        row = next(row for row in read_rows(place, file) if row.index == index)
        with of_image(place, file, index):
            images.append(from_png(row.png))
    scene = scene_of(evaluation.source, evaluation.prompts.texts[index])
    if scene is not None:
        images.append(render(scene, images[0].shape[0]))
    return _joined(images, axis=1)


def _joined(images: Sequence[Image], axis: int) -> Image:
    """One after the other with a white gap; a prompt without a ground truth is a shorter row."""
    other = 1 - axis
    most = max(image.shape[other] for image in images)
    parts: list[Image] = []
    for image in images:
        short = [(0, 0), (0, 0), (0, 0)]
        short[other] = (0, most - image.shape[other])
        short[axis] = (GAP_PX if parts else 0, 0)
        parts.append(np.pad(image, short, constant_values=255))
    return np.concatenate(parts, axis=axis)

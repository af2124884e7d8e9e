"""What a report says of a run: judged by the gate's own rules, complete, and safe to open."""

from __future__ import annotations

import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports import (
    H100,
    HARDWARE,
    HOSTILE,
    ROOT,
    hostile,
    run_of,
    stored,
    with_images,
    written,
)

from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.metrics.metric import Prior
from sdopt.bench.report.page import charts, html, markdown, sentences, tables
from sdopt.bench.report.page.changes import change_points
from sdopt.bench.report.page.facts import Facts, gather
from sdopt.bench.report.page.images import MOST_BYTES, Images, images_of
from sdopt.bench.report.page.quality import Point, front, quality_of
from sdopt.bench.report.published import published_seconds
from sdopt.errors import BrokenFileError

MOST_MB = 6
PRIOR = Prior(spread=0.02, least_effect=0.01)


def page(facts: Facts, folder: Path | None = None) -> str:
    return html.render(facts, images_of(facts, folder))


def as_markdown(facts: Facts) -> str:
    return markdown.render(facts, charts.histories(facts))


def outcomes(facts: Facts, metric: str = "latency_ms") -> dict[str, Outcome]:
    return {one.level: one.outcome for one in facts.verdicts if one.metric == metric}


# judging


def test_a_slower_run_is_a_regression_and_a_faster_one_better(tmp_path: Path) -> None:
    stored(tmp_path, [{"turbo": 30.0, "express": 90.0}] * 3)
    run = written(tmp_path / "run.json", run_of({"turbo": 45.0, "express": 60.0}))
    facts = gather(run, tmp_path)
    assert outcomes(facts) == {"turbo": Outcome.REGRESSION, "express": Outcome.IMPROVEMENT}
    assert sentences.of_run(facts).text == "Regression: 1 of 2 levels failed (turbo)."
    first, second = sentences.of_levels(facts)
    assert (first.level, first.word) == ("turbo", "regression")
    assert "latency_ms 45 ms, +50.0 % against the median of 3 stored runs (up to +" in first.text
    assert (second.level, second.word) == ("express", "better")


def test_a_run_within_the_noise_passes(tmp_path: Path) -> None:
    stored(tmp_path, [{"turbo": ms} for ms in (30.0, 30.1, 29.9)])
    facts = gather(written(tmp_path / "run.json", run_of({"turbo": 30.1})), tmp_path)
    assert outcomes(facts) == {"turbo": Outcome.PASS}
    assert sentences.of_run(facts).text == "No regression: 1 level passed."


def test_a_stored_run_is_judged_by_those_before_it(tmp_path: Path) -> None:
    *_, last = stored(tmp_path, [{"turbo": 30.0}, {"turbo": 30.1}, {"turbo": 45.0}])
    facts = gather(last, tmp_path)
    assert facts.other is not None
    assert facts.other.path.stem == "0002_r2"
    assert len(facts.past) == 2
    assert outcomes(facts) == {"turbo": Outcome.REGRESSION}


@pytest.mark.parametrize("named", ["1", "0001_r1", "path"])
def test_against_names_the_run_to_judge_by(named: str, tmp_path: Path) -> None:
    first, *_ = stored(tmp_path, [{"turbo": 45.0}, {"turbo": 30.0}, {"turbo": 30.0}])
    run = written(tmp_path / "run.json", run_of({"turbo": 45.0}))
    facts = gather(run, tmp_path, str(first) if named == "path" else named)
    assert outcomes(facts) == {"turbo": Outcome.PASS}


def test_another_machine_is_refused_by_name(tmp_path: Path) -> None:
    other = written(tmp_path / "b.json", run_of({"turbo": 30.0}, sdopt={"hardware": "nvidia-b"}))
    run = written(tmp_path / "a.json", run_of({"turbo": 30.0}))
    with pytest.raises(BrokenFileError, match="is of another hardware: 'nvidia-b'"):
        gather(run, tmp_path, str(other))


def test_a_broken_history_is_a_fault_and_no_pass(tmp_path: Path) -> None:
    stored(tmp_path, [{"turbo": 30.0}] * 2)[0].write_text("{", encoding="utf-8")
    facts = gather(written(tmp_path / "run.json", run_of({"turbo": 30.0})), tmp_path)
    assert outcomes(facts) == {"turbo": Outcome.FAULT}
    assert sentences.of_run(facts).text.startswith("No answer: what is needed to judge turbo")
    assert "cannot be read" in page(facts)


def test_without_a_history_times_are_recorded(tmp_path: Path) -> None:
    facts = gather(written(tmp_path / "run.json", run_of({"turbo": 30.0})), tmp_path)
    assert outcomes(facts) == {"turbo": Outcome.RECORDED}
    assert [one for one in facts.notes if one.startswith("No stored run of this hardware")]
    assert "No history: there is no stored run" in page(facts)


def test_a_level_that_was_redefined_is_not_compared(tmp_path: Path) -> None:
    stored(tmp_path, [{"turbo": 30.0}])
    run = run_of({"turbo": 30.0})
    run["benchmarks"][0]["extra_info"]["level_fields"]["steps"] = 25
    facts = gather(written(tmp_path / "run.json", run), tmp_path)
    assert outcomes(facts) == {"turbo": Outcome.FAULT}
    assert "steps 20 -> 25" in next(v.reason for v in facts.verdicts if v.metric == "latency_ms")


def test_what_did_not_run_is_named(tmp_path: Path) -> None:
    stored(tmp_path, [{"turbo": 30.0, "express": 90.0}])
    facts = gather(written(tmp_path / "run.json", run_of({"turbo": 30.0})), tmp_path)
    assert facts.unjudged == ["benchmarks/test_latency.py::test_latency[express]"]
    assert "test_latency[express]" in page(facts)


def test_a_real_run_is_judged_as_the_gate_judged_it() -> None:
    facts = gather(H100, ROOT / "baselines")
    assert facts.other is not None
    assert facts.other.path.name == "0009_h100-9.json"  # what --benchmark-compare took that day
    assert len(facts.past) == 14
    assert Outcome.REGRESSION not in outcomes(facts).values()
    assert Outcome.FAULT not in {one.outcome for one in facts.verdicts}


@pytest.mark.parametrize("what", ["hardware", "baseline_set"])
def test_no_word_of_a_run_leads_out_of_the_folder(what: str, tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    for folder in ("history", "images"):
        (root / folder).mkdir(parents=True)
    with_images(tmp_path, ["baseline", "tuned"])
    stored(tmp_path, [{"turbo": 30.0}])
    out = {
        "hardware": f"../../../history/{HARDWARE}",
        "baseline_set": "../../../images/sd15-random",
    }
    run = run_of({"baseline": 9.0, "tuned": 9.0}, sdopt={what: out[what]})
    with pytest.raises(BrokenFileError, match=f"sdopt.{what} is .*expected text like"):
        gather(written(tmp_path / "run.json", run), root)


@pytest.mark.parametrize("name", ["../cat", "..", "a/b"])
def test_no_level_leads_out_of_the_images(name: str, tmp_path: Path) -> None:
    run = written(tmp_path / "run.json", run_of({"baseline": 9.0, name: 9.0}))
    with_images(tmp_path, ["baseline", name])
    assert images_of(gather(run, tmp_path)).pairs == ()


def test_a_name_that_a_shell_would_run_is_in_no_command(tmp_path: Path) -> None:
    harm = 'x]"; touch harm #'
    stored(tmp_path, [{"turbo": 30.0, harm: 30.0}])
    facts = gather(written(tmp_path / "a.json", run_of({"turbo": 200.0, harm: 200.0})), tmp_path)
    steps = {one.level: one.next_step for one in facts.verdicts if not one.passed}
    assert "[turbo]" in steps["turbo"]
    assert steps[harm] == ""


@pytest.mark.parametrize("group", ["stage_ms", "gpu", "calls"])
def test_measurements_by_name_that_are_no_numbers_are_refused(group: str, tmp_path: Path) -> None:
    run = run_of({"turbo": 30.0})
    run["benchmarks"][0]["extra_info"][group] = {"text": {"deep": 1.0}}
    with pytest.raises(BrokenFileError, match="expected number"):
        gather(written(tmp_path / "run.json", run), tmp_path)


# tables, charts, changes


def test_the_ladder_has_the_published_column() -> None:
    table = tables.ladder(gather(H100, ROOT / "baselines"))
    assert {len(row) for row in table.rows} == {len(table.headings)}
    column = table.headings.index("A100 published, ms")
    there = {row[0].text: row[column].text for row in table.rows}
    assert there["compiled"] == "552 / 547"
    assert {name for name, text in there.items() if text != "-"} == set(published_seconds())


def test_a_count_that_is_no_integer_is_shown(tmp_path: Path) -> None:
    run = run_of({"turbo": 30.0})
    run["benchmarks"][0]["extra_info"]["unet_evaluations"] = 8.5
    table = tables.ladder(gather(written(tmp_path / "run.json", run), tmp_path))
    assert table.rows[0][table.headings.index("UNet evals")].text == "8.5"


def test_the_front_has_what_nobody_beats() -> None:
    points = [("a", 10.0, 0.9), ("b", 20.0, 0.95), ("c", 30.0, 0.94), ("d", 20.0, 0.95)]
    made = [Point(level=level, ms=ms, quality=quality) for level, ms, quality in points]
    assert [point.level for point in front(made)] == ["a", "b"]
    assert front([]) == []


def test_without_a_ground_truth_the_miniature_s_stands_in_and_is_named() -> None:
    quality = quality_of(gather(H100, ROOT / "baselines"))
    assert "miniature" in quality.what
    assert len(quality.points) == 15


def test_a_step_is_found_where_it_is_and_noise_is_none() -> None:
    noise = random.Random(0)
    values = [100 * math.exp(noise.gauss(0, 0.01)) for _ in range(16)]
    assert change_points(values, PRIOR) == []
    stepped = [value * (1.15 if at >= 9 else 1) for at, value in enumerate(values)]
    (found,) = change_points(stepped, PRIOR)
    assert found.index == 9
    assert found.percent == pytest.approx(15, abs=2)
    assert change_points(stepped[7:10], PRIOR) == []


def test_the_rate_of_false_change_points_is_what_is_told() -> None:
    noise = random.Random(1)
    found = [
        bool(change_points([100 * math.exp(noise.gauss(0, 0.02)) for _ in range(15)], PRIOR))
        for _ in range(200)
    ]
    assert sum(found) <= 3


def test_a_real_history_shows_when_kernels_changed() -> None:
    _, changes = charts.histories(gather(H100, ROOT / "baselines"))["turbo"]
    assert [round(change.percent) for change in changes] == [-8]


# images


def test_a_pair_has_two_images_and_their_difference(tmp_path: Path) -> None:
    with_images(tmp_path, ["baseline", "tuned"], ["cat", "dog"])
    run = written(tmp_path / "run.json", run_of({"baseline": 9.0, "tuned": 9.0}))
    images = images_of(gather(run, tmp_path))
    assert [(one.level, one.reference, one.prompt) for one in images.pairs] == [
        ("tuned", "baseline", "cat"),
        ("tuned", "baseline", "dog"),
    ]
    pair = images.pairs[0]
    assert len({pair.image, pair.other, pair.difference}) == 3
    assert "at most 10 of 255 apart" in pair.words
    assert "pixel by pixel" in images.note


def test_images_that_are_not_at_hand_are_said_to_be_missing(tmp_path: Path) -> None:
    run = written(tmp_path / "run.json", run_of({"baseline": 9.0, "tuned": 9.0}))
    facts = gather(run, tmp_path)
    assert "No images are at hand" in images_of(facts).note
    assert "No images are at hand" in page(facts)
    with pytest.raises(BrokenFileError, match="name a folder with <level>"):
        images_of(facts, tmp_path / "nowhere")


@pytest.fixture(scope="module")
def h100_images() -> Images:
    """Made once: it takes seconds."""
    return images_of(gather(H100, ROOT / "baselines"))


def test_images_are_made_smaller_until_they_fit(h100_images: Images) -> None:
    assert "half the size" in h100_images.note
    uris = {uri for one in h100_images.pairs for uri in (one.image, one.other, one.difference)}
    assert sum(map(len, uris)) <= 1.4 * MOST_BYTES


# the page


class Seen(HTMLParser):
    """Which elements and attributes a browser would find."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def seen(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Seen()
    parser.feed(text)
    return parser.elements


@pytest.fixture(scope="module")
def h100(h100_images: Images) -> str:
    return html.render(gather(H100, ROOT / "baselines"), h100_images)


def test_the_page_is_small_enough_and_in_the_order_that_is_promised(h100: str) -> None:
    assert len(h100.encode()) < MOST_MB * 1e6
    headings = re.findall(r"<h2[^>]*>([^<]+)", h100)
    assert headings == [
        "Verdicts",
        "The ladder",
        "Speed against quality",
        "Stages",
        "Memory",
        "Images",
        "History",
        "Environment",
    ]


def test_the_page_asks_nobody_for_anything(h100: str) -> None:
    elements = seen(h100)
    sources = [value for _, found in elements for name, value in found.items() if name == "src"]
    links = [found["href"] for _, found in elements if found.get("href")]
    assert sources == []
    assert [one for one in links if one and not one.startswith(("#", "data:"))] == []
    (policy,) = (found["content"] for _, found in elements if "http-equiv" in found)
    assert policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_what_a_run_says_stays_text_on_the_page(tmp_path: Path) -> None:
    kind = stored(tmp_path, [{"baseline": 100.0, **dict.fromkeys(HOSTILE, 50.0)}] * 5)
    run = written(tmp_path / "run.json", hostile())
    facts = gather(run, tmp_path)
    assert len(facts.past) == len(kind)
    elements = seen(page(facts))
    assert [tag for tag, _ in elements].count("script") == 3
    assert {tag for tag, _ in elements} & {"b", "iframe", "object", "svg"} == set()
    assert [found for tag, found in elements if tag == "img" and "src" in found] == []
    assert [found for _, found in elements if {"onerror", "onload"} & set(found)] == []
    assert [f["href"] for t, f in elements if t == "a" and not str(f["href"]).startswith("#")] == []


def test_plotly_is_given_no_markup_of_a_run(tmp_path: Path) -> None:
    stored(tmp_path, [{"baseline": 100.0, **dict.fromkeys(HOSTILE, 50.0)}] * 5)
    facts = gather(written(tmp_path / "run.json", hostile()), tmp_path)
    figures: list[Any] = [
        charts.pareto(quality_of(facts)),
        charts.stages(facts),
        charts.memory(facts, {}),
        *(figure for figure, _ in charts.histories(facts).values()),
    ]
    assert len(figures) == 4 + len(HOSTILE)
    for figure in figures:
        text = figure.to_json()
        assert "<a" not in text
        assert "\\u003ca" not in text
        assert "<img" not in text
        assert "<b>" not in text


# markdown


def test_markdown_begins_with_the_verdict_and_fits_a_comment() -> None:
    text = as_markdown(gather(H100, ROOT / "baselines"))
    assert text.startswith("### ✗ Regression: 5 of 15 levels failed")
    assert len(text) < 12_000
    assert text.count("<details>") == text.count("</details>") == 5


def outside_of_code(text: str) -> str:
    """The Markdown without its code spans, as CommonMark finds them."""
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)


def test_what_a_run_says_stays_text_in_markdown(tmp_path: Path) -> None:
    stored(tmp_path, [{"baseline": 100.0, **dict.fromkeys(HOSTILE, 50.0)}] * 5)
    text = as_markdown(gather(written(tmp_path / "run.json", hostile()), tmp_path))
    assert "harm" in text
    left = outside_of_code(text)
    assert "harm" not in left
    assert set(re.findall(r"</?(\w+)", left)) <= {"details", "summary"}
    assert "@someone" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        bars = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(bars) == 1  # no value ends a cell


@pytest.mark.parametrize(
    "text",
    [
        "see www.harm.test",
        "http://harm.test",
        ":tada:",
        "a@b",
        "#1",
        "<b>",
        "`a`",
        "[a](b)",
        "a|b",
        "*a*",
    ],
)
def test_a_sentence_that_markdown_would_change_becomes_code(text: str) -> None:
    assert markdown.prose(text).startswith("`")
    assert markdown.prose("11 metrics, 813.7 ms (+449 %)") == "11 metrics, 813.7 ms (+449 %)"


def test_markdown_of_many_levels_loses_whole_parts(tmp_path: Path) -> None:
    times = {f"level-{number}": 50.0 for number in range(600)}
    text = as_markdown(gather(written(tmp_path / "run.json", run_of(times)), tmp_path))
    assert len(text) <= markdown.MOST_CHARACTERS
    assert text.count("<details>") == text.count("</details>")

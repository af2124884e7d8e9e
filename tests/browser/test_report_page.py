"""The report in a real browser: it runs, asks nobody, works by keyboard, and is accessible."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import stub_evaluation as stub
from chromium import browser, found, load, opened
from reports import H100, HOSTILE, ROOT, hostile, stored, with_images, written

from sdopt.bench.report.page import html
from sdopt.bench.report.page.evaluation import evaluated
from sdopt.bench.report.page.facts import gather
from sdopt.bench.report.page.images import images_of

pytestmark = pytest.mark.skipif(
    found() is None
    and not os.environ.get("CI"),  # .ci/run installs it: there it may not be missing
    reason="needs Chromium: apt-get install chromium",
)

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
SCHEMES = ("light", "dark")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


def rendered(run: Path, baselines: Path, out: Path, folder: Path) -> Path:
    facts = gather(run, baselines)
    found = evaluated(run, facts.run.source, folder)
    out.write_text(html.render(facts, images_of(facts), found), encoding="utf-8")
    return out


def evaluation(folder: Path) -> Path:
    stub.run(stub.of(22), folder)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return rendered(
        H100, ROOT / "baselines", folder / "h100.html", evaluation(folder / "evaluation")
    )


@dataclass
class Watched:
    """A page, and what went wrong in it or left it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def watched(chromium: Any, file: Path, **options: Any) -> Watched:
    seen = Watched(page=chromium.new_page(**options))
    seen.page.on("console", lambda message: seen.errors.append(message.text))
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    load(seen.page, file)
    return seen


@pytest.fixture(scope="module")
def page(chromium: Any, report: Path) -> Any:
    return opened(chromium, report, viewport=DESKTOP)


def test_no_column_of_the_ladder_is_cut_on_a_laptop(page: Any) -> None:
    widths = (
        "(one => [one.scrollWidth, one.clientWidth])(document.querySelector('#ladder .scroll'))"
    )
    whole, visible = page.evaluate(widths)
    assert whole <= visible


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_is_wrong_and_nothing_is_asked_for(
    scheme: str, chromium: Any, report: Path
) -> None:
    seen = watched(chromium, report, viewport=DESKTOP, color_scheme=scheme)
    for select, value in (("#history-level", "0"), ("#stage-scale", "percent")):
        seen.page.select_option(select, value)
    seen.page.wait_for_timeout(200)
    assert seen.errors == []
    assert {url for url in seen.requests if not url.startswith("data:")} == {report.as_uri()}


def test_the_policy_of_the_page_forbids_requests_and_other_scripts(
    chromium: Any, report: Path
) -> None:
    seen = watched(chromium, report)
    answer = seen.page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.message)"
    )
    assert "Failed to fetch" in answer
    seen.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'window.harm = 1'}))"
    )
    assert seen.page.evaluate("window.harm") is None
    assert sum("Content Security Policy" in error for error in seen.errors) >= 2


def test_every_chart_is_drawn(page: Any) -> None:
    for chart in ("pareto", "stages", "memory", "history"):
        assert page.locator(f"#{chart} svg.main-svg").count() >= 1
        assert page.locator(f"#{chart} .points path, #{chart} .point path").count() > 3
    text = page.locator("#pareto").inner_text()
    assert "SSIM to the ground truth" in text
    assert "ms an image, log scale" in text


def test_an_evaluation_shows_its_distribution_and_its_worst_images(page: Any) -> None:
    page.locator("#evaluation details.judged summary").first.click()
    for shown in ("svg.histogram rect", "img.sheet", ".judged table"):
        box = page.locator(f"#evaluation {shown}").last.bounding_box()
        assert min(box["width"], box["height"]) > 5
    assert page.evaluate("document.querySelector('img.sheet').naturalWidth") > 0


def at(page: Any) -> str:
    return str(page.evaluate("document.getElementById('stack').style.getPropertyValue('--at')"))


def test_the_slider_moves_by_keyboard(page: Any) -> None:
    slider = page.locator("#slider")
    slider.focus()
    page.keyboard.press("Home")
    assert at(page) == "0%"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert at(page) == "3%"
    assert slider.get_attribute("aria-valuetext") == "3 % turbo"
    page.keyboard.press("End")
    assert at(page) == "100%"


def test_the_slider_moves_by_mouse_and_so_does_the_image(page: Any) -> None:
    for target in ("#slider", "#stack"):
        page.locator(target).scroll_into_view_if_needed()
        box = page.locator(target).bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 0.5 * box["width"], middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.25 * box["width"], middle, steps=5)
        page.mouse.up()
        assert 20 <= float(at(page).rstrip("%")) <= 30
        clip = page.evaluate("getComputedStyle(document.getElementById('image-own')).clipPath")
        assert re.match(r"inset\(0px calc\(100% - 2\d%\) 0px 0px\)|inset\(0px 7\d% 0px 0px\)", clip)
        page.keyboard.press("End")
        page.locator("#slider").fill("100")


def test_another_level_shows_other_images(page: Any) -> None:
    before = page.locator("#image-own").get_attribute("src")
    page.select_option("#pair-level", "express")
    assert page.locator("#image-own").get_attribute("src") != before
    assert page.locator("#name-own").inner_text() == "← express"
    assert page.locator("#name-other").inner_text() == "hoisted-cutoff →"
    for image in ("image-own", "image-other", "image-difference"):
        assert page.evaluate(f"document.getElementById('{image}').decode().then(() => true)")
    page.select_option("#pair-level", "turbo")


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"#ladder tbody tr > :nth-child({number + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def heading(page: Any, name: str) -> tuple[Any, int]:
    texts = [text.strip() for text in page.locator("#ladder thead th").all_inner_texts()]
    number = texts.index(name)
    return page.locator("#ladder thead th").nth(number), number


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_the_ladder_sorts_by_click_and_by_keyboard(how: str, chromium: Any, report: Path) -> None:
    page = opened(chromium, report, viewport=DESKTOP)
    head, number = heading(page, "ms")
    first = column(page, number)

    def press() -> None:
        if how == "click":
            head.locator("button").click()
        else:
            head.locator("button").focus()
            page.keyboard.press(how)

    press()
    assert head.get_attribute("aria-sort") == "ascending"
    ascending = [float(text) for text in column(page, number)]
    assert ascending == sorted(map(float, first))
    press()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, number)] == ascending[::-1]
    other, published = heading(page, "A100 published, ms")
    other.locator("button").click()
    assert head.get_attribute("aria-sort") is None
    assert column(page, published)[0] == "297"
    assert column(page, published)[-1] == "-"
    page.close()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Any) -> None:
    page.locator("nav a").first.focus()
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if page.evaluate("document.activeElement.tagName") == "BODY":
            break
    assert {"slider", "pair-level", "pair-prompt", "history-level", "stage-scale"} <= reached
    assert {"SUMMARY", "BUTTON", "DIV"} <= reached  # DIV: the tables that scroll


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_serious_fault(
    scheme: str, size: dict[str, int], chromium: Any, report: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(chromium, report, viewport=size, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    violations = Axe().run(page).response["violations"]
    page.close()
    told = [
        f"{one['id']} ({one['impact']}): {[node['target'] for node in one['nodes']][:4]}"
        for one in violations
        if one["impact"] in SERIOUS
    ]
    assert told == []


def test_axe_would_find_one(chromium: Any, report: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(chromium, report, viewport=DESKTOP)
    page.add_style_tag(content=".note { color: #cdd2d8 !important; }")
    violations = Axe().run(page).response["violations"]
    page.close()
    assert "color-contrast" in {one["id"] for one in violations if one["impact"] in SERIOUS}


def overflow(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_runs_out_of_a_phone(width: int, chromium: Any, report: Path) -> None:
    page = opened(chromium, report, viewport={"width": width, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait_for_timeout(200)
    assert overflow(page) <= 0
    page.evaluate("document.querySelector('.note').style.width = '500px'")
    assert overflow(page) > 0  # it would be seen
    page.close()


def test_the_scheme_may_change_while_the_page_is_open(chromium: Any, report: Path) -> None:
    page = opened(chromium, report, viewport=DESKTOP, color_scheme="light")
    color = "getComputedStyle(document.querySelector('#pareto .xtick text')).fill"
    light = page.evaluate(color)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate(color) != light
    page.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_hostile_run_shows_its_words_and_runs_none(
    scheme: str, chromium: Any, tmp_path: Path
) -> None:
    stored(tmp_path, [{"baseline": 100.0, **dict.fromkeys(HOSTILE, 50.0)}] * 5)
    with_images(tmp_path, ["baseline", "tuned"])
    run = hostile()
    run["benchmarks"] += [
        entry | {"extra_info": entry["extra_info"] | {"level": "tuned"}}
        for entry in run["benchmarks"][:1]
    ]
    stub.harm(evaluation(tmp_path / "evaluation"), HOSTILE, *HOSTILE)
    file = rendered(
        written(tmp_path / "run.json", run), tmp_path, tmp_path / "r.html", tmp_path / "evaluation"
    )
    seen = watched(chromium, file, viewport=PHONE, color_scheme=scheme)
    for number in range(5):
        seen.page.select_option("#history-level", str(number))
    seen.page.wait_for_timeout(200)
    assert seen.errors == []
    assert {url for url in seen.requests if not url.startswith("data:")} == {file.as_uri()}
    assert seen.page.evaluate("window.harm") is None
    assert seen.page.locator("a:not([href^='#']), .chart a, iframe, .chart b").count() == 0
    assert overflow(seen.page) <= 0
    for word in HOSTILE:
        assert word.split("'")[0] in seen.page.locator("body").inner_text()
    assert "<b>bold" in seen.page.locator("#stages").inner_text()

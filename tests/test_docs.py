"""The documentation says what the code does, and each of its links leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from markdown.extensions.toc import slugify

from sdopt.bench.judge.verdict import PASSING, ExitCode, Outcome, Verdict
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import Shown
from sdopt.bench.report.verdicts import SCHEMA, as_dict
from sdopt.levels import LEVELS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted(
    [*DOCS.rglob("*.md"), ROOT / "README.md", CONTRIBUTING, ROOT / "baselines" / "README.md"]
)
MOST_LINES_OF_README = 120
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]*`")
RECORDED = re.compile(r"<!-- (.+): begin -->.*?<!-- \1: end -->", re.DOTALL)
"""What a command wrote, with the commands of the day on which it was recorded."""


def _tables() -> ModuleType:
    """docs/tables.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = _tables()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below that heading, without its head."""
    below = text_of(page).split(f"\n{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert lines is not None, f"{page} has no table below {heading}"
    rows = lines.group().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_the_tables_of_the_reference_are_the_code_s() -> None:
    """`python docs/tables.py` writes them anew."""
    assert list(TABLES.stale(TABLES.made())) == []


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference, for docs/tables.py to write into."""
    shutil.copytree(REFERENCE, tmp_path / "reference")
    there = {
        name: (tmp_path / "reference" / page.name, lines)
        for name, (page, lines) in TABLES.TABLES.items()
    }
    monkeypatch.setattr(TABLES, "TABLES", there)
    monkeypatch.setattr(TABLES, "SCHEMAS", tmp_path / "reference" / "schemas")
    return tmp_path / "reference"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def test_what_is_stale_is_named_by_check_and_written_without(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contents(copied)
    assert TABLES.main(["--check"]) == 0
    page = copied / "levels.md"
    page.write_text(text_of(page).replace("| `final` |", "| `finale` |"), encoding="utf-8")
    (copied / "schemas" / "run.json").unlink()
    harmed = contents(copied)
    assert TABLES.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert [line.split(" is stale")[0] for line in told.splitlines()] == [
        str(page),
        str(copied / "schemas" / "run.json"),
    ]
    assert contents(copied) == harmed
    assert TABLES.main([]) == 0
    assert contents(copied) == whole


def test_help_writes_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = copied / "levels.md"
    page.write_text(text_of(page).replace("| `final` |", "| `finale` |"), encoding="utf-8")
    before = contents(copied)
    with pytest.raises(SystemExit, match=r"^0$"):
        TABLES.main(["--help"])
    assert "--check" in capsys.readouterr().out
    assert contents(copied) == before


def test_a_page_without_its_marks_is_named_and_none_is_written(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "levels.md").write_text("stale", encoding="utf-8")
    (copied / "commands.md").write_text("no marks", encoding="utf-8")
    before = contents(copied)
    assert TABLES.main([]) == 2
    assert re.match(r"error: \S+levels.md has no <!-- levels: begin -->", capsys.readouterr().err)
    assert contents(copied) == before


def test_the_fields_of_a_level_are_all_told() -> None:
    told = " ".join(cells[0] for cells in table(REFERENCE / "levels.md", "## Fields"))
    fields = set(LEVELS["baseline"].as_dict()) - {"name", "why", "reference"}
    assert set(re.findall(r"`(\w+)`", told)) == fields


def plugin_options() -> set[str]:
    return {row.split("`")[1] for row in TABLES.options()[2:]}


def test_the_options_share_one_prefix_and_are_few() -> None:
    options = plugin_options()
    assert [name for name in options if not name.startswith("--sdopt-")] == []
    assert 1 <= len(options) <= 7


def test_no_page_names_an_option_that_does_not_exist() -> None:
    for page in PAGES:
        assert set(re.findall(r"--sdopt-[a-z-]*[a-z]", text_of(page))) <= plugin_options(), page


def test_the_table_of_outcomes_is_the_code_s() -> None:
    told = [row[:2] for row in table(REFERENCE / "verdicts.md", "## Outcomes")]
    passes = {True: "yes", False: "no"}
    assert sorted(told) == sorted([f"`{o.value}`", passes[o in PASSING]] for o in Outcome)


def test_the_table_of_exit_codes_is_the_code_s() -> None:
    told = [row[:2] for row in table(REFERENCE / "verdicts.md", "## Exit codes")]
    assert sorted(told) == sorted([str(int(code)), f"`{code.name.lower()}`"] for code in ExitCode)


def test_the_keys_of_a_verdict_are_all_told() -> None:
    page = text_of(REFERENCE / "verdicts.md")
    below = page.split("\nOne verdict:\n", 1)[1]
    told = {key for row in re.findall(r"^\| (`.*?) \|", below, re.M) for key in names_in(row)}
    verdict = Verdict(level="final", metric="effect", outcome=Outcome.PASS, reason="why")
    assert told == set(as_dict(verdict))
    assert f"`{SCHEMA}`" in page


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_each_metric_says_what_is_measured() -> None:
    assert [name for name, metric in METRICS.items() if not metric.about.strip()] == []


def test_each_judged_metric_belongs_to_a_benchmark() -> None:
    rows = [row.split("|")[1:3] for row in TABLES.benchmarks()[2:]]
    told = {name for row in rows for name in names_in(row[1])}
    judged = {name for name, metric in METRICS.items() if not isinstance(metric.rule, Shown)}
    assert told == judged - {"pipeline"}  # that any benchmark may judge
    named = {name for row in rows for name in names_in(row[0])}
    sources = "".join(map(text_of, (ROOT / "benchmarks").glob("test_*.py")))
    assert named == set(re.findall(r"def (test_\w+)\(", sources)) - {"test_peer"}


def test_the_readme_is_short_and_has_two_commands() -> None:
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= MOST_LINES_OF_README
    pattern = re.compile(r"^python3 -m venv .*pytest (benchmarks/|tests/)")
    assert [found.group(1) for line in lines if (found := pattern.search(line))] == [
        "benchmarks/",
        "tests/",
    ]


def prose_of(page: Path) -> str:
    """The page without its code, which holds no links and no headings."""
    return SPAN.sub("", FENCE.sub("", text_of(page)))


def anchors_of(page: Path) -> set[str]:
    """As mkdocs makes them, and GitHub for headings as plain as these."""
    seen: list[str] = []
    for heading in HEADING.findall(FENCE.sub("", text_of(page))):
        name = slugify(heading.replace("`", ""), "-")
        seen.append(f"{name}_{seen.count(name)}" if name in seen else name)
    return set(seen)


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", link):
            continue  # another site's: no test may fetch it
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no {target}"
        elif anchor and anchor not in anchors_of(target):
            yield f"{link}: {target} has no such heading; it has {sorted(anchors_of(target))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_somewhere(page: Path) -> None:
    assert [*broken_links(page)] == []


def test_a_dead_link_and_a_dead_anchor_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](none.md) [b](#one) [c](#two) `[d](code.md)` [e](https://x.org/)\n")
    assert [line.split(":")[0] for line in broken_links(page)] == ["none.md", "#two"]


def test_each_page_is_in_the_navigation() -> None:
    navigation = text_of(ROOT / "mkdocs.yml")
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation, page


def test_what_is_in_the_repository_and_named_exists() -> None:
    """Files and folders in code spans that begin with a folder of the repository."""
    folders = "sdopt|studies|tests|benchmarks|baselines|docs"
    named = re.compile(rf"`((?:{folders})/[\w./-]*)`")
    for page in PAGES:
        of_killed_runs = {"baselines/unfinished/"}
        for path in set(named.findall(text_of(page))) - of_killed_runs:
            assert (ROOT / path).exists(), f"{page}: there is no {path}"


def test_each_module_that_is_run_exists() -> None:
    run = re.compile(r"(?:python -m|-p) ((?:sdopt|studies)[\w.]*\w)")
    for page in PAGES:
        for module in run.findall(RECORDED.sub("", text_of(page))):
            place = ROOT / module.replace(".", "/")
            runs = place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
            assert runs, f"{page}: python -m {module} is no module"

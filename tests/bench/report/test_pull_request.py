"""A pull request is told what its run found, and nothing that the run wrote does any harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import github_server
import pytest
from github_server import FakeGitHub
from markdown_it import MarkdownIt

from sdopt.bench.judge.verdict import ExitCode, Outcome, Verdict
from sdopt.bench.report import pull_request, untrusted
from sdopt.bench.report.comment import MARKER, MOST_CHARACTERS, code, comment
from sdopt.bench.report.github import ApiError, GitHub
from sdopt.bench.report.untrusted import read_run
from sdopt.bench.report.verdicts import write_verdicts
from sdopt.errors import BrokenFileError, SdoptError

COMMIT, OTHER = "a" * 40, "b" * 40
TOKEN = "a token of the test"
EVIL = [
    "@octocat look",
    "<img src=x onerror=alert(1)>",
    "<!-- sdopt gate -->",
    "](javascript:alert(1)) [x](https://evil.example)",
    "` ``` </code></details> | cell | \\| next",
    "fixes #1\n\n# heading\n- [ ] task",
    "\u202eright to left\u0000",
    "![x](https://evil.example/pixel.png)",
    "\\",
    "half a character \ud800 @octocat",
]


def verdict(reason: str = "why", outcome: Outcome = Outcome.PASS, **fields: Any) -> Verdict:
    defaults: dict[str, Any] = {"level": "final", "metric": "latency_ms", "measured": 12.5}
    return Verdict(**{**defaults, **fields}, outcome=outcome, reason=reason)


def artifact(folder: Path, *verdicts: Verdict, commit: str = COMMIT, unjudged: Any = ()) -> Path:
    """As the job that measures leaves it."""
    failed = [one for one in verdicts if not one.passed]
    outcome = ExitCode.REGRESSION if failed else ExitCode.PASS
    run = {"source": "embedded", "hardware": "cpu-x"}
    folder.mkdir(exist_ok=True)
    write_verdicts(folder / "verdicts.json", verdicts, outcome, unjudged, run)
    (folder / "commit").write_text(commit + "\n")
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "verdicts.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.fixture
def server() -> Iterator[FakeGitHub]:
    with github_server.serving() as github:
        github.head = COMMIT
        yield github


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def github(server: FakeGitHub, waits: list[float]) -> GitHub:
    return GitHub(repository="owner/name", token=TOKEN, url=server.url, sleep=waits.append)


def test_the_comment_is_created_once_and_then_edited(
    server: FakeGitHub, github: GitHub, tmp_path: Path
) -> None:
    folder = artifact(tmp_path / "a", verdict())
    server.add("hello", "somebody")
    assert pull_request.tell(github, 7, COMMIT, folder, succeeded=True, link="https://run")
    server.head = OTHER
    worse = artifact(tmp_path / "b", verdict("slow", Outcome.REGRESSION), commit=OTHER)
    assert not pull_request.tell(github, 7, OTHER, worse, succeeded=False)
    assert [one["body"].startswith(MARKER) for one in server.comments] == [False, True]
    assert "Regression" in server.comments[1]["body"]
    assert server.statuses[COMMIT]["state"] == "success"
    assert server.statuses[OTHER]["state"] == "failure"
    assert {token for _, _, token in server.log} == {f"Bearer {TOKEN}"}


def test_the_own_comment_is_found_on_a_later_page(server: FakeGitHub, github: GitHub) -> None:
    for number in range(230):
        server.add(f"talk {number}", "somebody")
    server.add(f"{MARKER}\nold")
    server.add("more", "somebody")
    assert github.tell(7, f"{MARKER}\nnew") == "edited"
    assert server.comments[230]["body"].endswith("new")
    assert len(server.comments) == 232


def test_a_comment_of_somebody_else_with_the_marker_is_left_alone(
    server: FakeGitHub, github: GitHub
) -> None:
    server.add(f"{MARKER}\nplanted", "mallory")
    assert github.tell(7, f"{MARKER}\nnew") == "created"
    assert server.comments[0]["body"].endswith("planted")


def test_it_tries_again_and_waits_as_long_as_it_is_asked(
    server: FakeGitHub, github: GitHub, waits: list[float]
) -> None:
    server.failures = [
        ("GET", 502, {}, False),
        ("GET", 429, {"Retry-After": "7"}, False),
        ("GET", 403, {"Retry-After": "9999"}, False),
    ]
    assert github.head_of(7) == COMMIT
    assert waits == [1.0, 7.0, 60.0]


def test_a_comment_that_got_through_in_spite_of_an_error_is_not_written_twice(
    server: FakeGitHub, github: GitHub
) -> None:
    server.failures = [("POST", 502, {}, True)]
    assert github.tell(7, f"{MARKER}\nnew") == "edited"
    assert len(server.comments) == 1


def test_it_gives_up_and_does_not_try_what_is_refused(
    server: FakeGitHub, github: GitHub, waits: list[float]
) -> None:
    server.failures = [("GET", 500, {}, False)] * 9
    with pytest.raises(ApiError, match="status 500"):
        github.head_of(7)
    assert len(waits) == 4
    server.failures = [("POST", 403, {}, False)]
    with pytest.raises(ApiError, match="status 403"):
        github.tell(7, MARKER)
    assert [method for method, _, _ in server.log].count("POST") == 1


def test_the_token_follows_no_redirection_and_goes_nowhere_in_the_clear(
    server: FakeGitHub, github: GitHub
) -> None:
    with github_server.serving() as elsewhere:
        server.failures = [("GET", 302, {"Location": f"{elsewhere.url}/"}, False)]
        with pytest.raises(ApiError, match="status 302"):
            github.head_of(7)
        assert elsewhere.log == []
    with pytest.raises(ApiError, match="no https"):
        GitHub(repository="owner/name", token=TOKEN, url="http://api.example")


def test_only_the_newest_commit_of_an_open_pull_request_is_measured(
    server: FakeGitHub, github: GitHub
) -> None:
    pull_request.check(github, 7, COMMIT)
    with pytest.raises(SdoptError, match=r"is at a{40}, not at b{40}: read what is new"):
        pull_request.check(github, 7, OTHER)
    server.state = "closed"
    with pytest.raises(SdoptError, match="not open"):
        pull_request.check(github, 7, COMMIT)


def test_a_head_that_has_moved_on_is_said(
    server: FakeGitHub, github: GitHub, tmp_path: Path
) -> None:
    server.head = OTHER
    pull_request.tell(github, 7, COMMIT, artifact(tmp_path, verdict()), succeeded=True)
    assert f"moved on to {OTHER[:12]}" in server.comments[0]["body"]
    assert list(server.statuses) == [COMMIT]


def test_a_run_that_calls_itself_passed_does_not_pass_without_its_job(
    server: FakeGitHub, github: GitHub, tmp_path: Path
) -> None:
    folder, summary = artifact(tmp_path / "a", verdict()), tmp_path / "summary.md"
    assert not pull_request.tell(github, 7, COMMIT, folder, succeeded=False, summary=summary)
    assert server.statuses[COMMIT]["state"] == "failure"
    assert "the job that made them did not" in summary.read_text()


def too_large(folder: Path) -> None:
    with (folder / "verdicts.json").open("a") as file:
        file.write(" " * untrusted.MOST_BYTES)


def a_link(folder: Path) -> None:
    (folder / "verdicts.json").unlink()
    (folder / "verdicts.json").symlink_to(__file__)


DAMAGE: dict[str, tuple[Any, str]] = {
    "too large": (too_large, "larger than"),
    "no UTF-8": (lambda at: (at / "verdicts.json").write_bytes(b"\xff\xfe{}"), "no UTF-8"),
    "of another commit": (lambda at: (at / "commit").write_text(OTHER), "another commit: b"),
    "no commit": (lambda at: (at / "commit").write_text("<b>@you"), "something that is no commit"),
    "missing": (lambda at: (at / "commit").unlink(), "missing"),
    "a link": (a_link, "no plain file"),
    "no JSON": (lambda at: (at / "verdicts.json").write_text("{"), "no JSON"),
    "nested": (lambda at: (at / "verdicts.json").write_text("[" * 99999), "no JSON"),
    "another schema": (lambda at: edited(at, schema="x"), "another schema"),
    "outcome": (lambda at: edited(at, outcome="<b>"), "outcome is none of"),
    "verdicts": (lambda at: edited(at, verdicts=[1]), "a verdict is no object"),
    "many": (lambda at: edited(at, failed_without_verdict=["x"] * 9999), "no list of"),
    "long": (lambda at: edited(at, failed_without_verdict=["x" * 9999]), "no text of"),
    "run": (lambda at: edited(at, run=None), "run is no object"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_an_artifact_that_is_not_what_a_run_leaves_is_refused(
    what: str, server: FakeGitHub, github: GitHub, tmp_path: Path
) -> None:
    folder = artifact(tmp_path, verdict())
    damage, message = DAMAGE[what]
    damage(folder)
    with pytest.raises(BrokenFileError, match=message):
        read_run(folder, COMMIT)
    assert not pull_request.tell(github, 7, COMMIT, folder, succeeded=True)
    assert "cannot be used" in server.comments[0]["body"]
    assert server.statuses[COMMIT]["state"] == "failure"


@pytest.mark.parametrize("value", [True, [1], 10**400])
def test_a_number_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    folder = artifact(tmp_path, verdict())
    rows = json.loads((folder / "verdicts.json").read_text())["verdicts"]
    with pytest.raises(BrokenFileError, match="measured is no"):
        read_run(edited(folder, verdicts=[{**rows[0], "measured": value}]), COMMIT)


def tokens_of(markdown: str) -> list[Any]:
    """Every token of the text as CommonMark with tables and bare links, which GitHub speaks."""
    parser = MarkdownIt("commonmark").enable("table")
    found = []
    for token in parser.parse(markdown):
        found += [token, *(token.children or ())]
    return found


@pytest.mark.parametrize("evil", EVIL)
def test_what_a_run_wrote_stays_text(evil: str, tmp_path: Path) -> None:
    bad = verdict(evil, Outcome.REGRESSION, level=evil, metric=evil, next_step=evil)
    good = verdict(evil, level=evil, metric=evil)
    folder = artifact(tmp_path, bad, good, unjudged=[evil])
    edited(folder, run={"source": evil, "hardware": evil})
    text = comment(read_run(folder, COMMIT), COMMIT)
    tokens = tokens_of(text)
    html = [one.content.strip() for one in tokens if one.type.startswith("html")]
    folds = ["<details><summary>1 verdicts passed</summary>", "</details>"]
    assert html == [MARKER, *folds]
    assert {one.type for one in tokens} & {"link_open", "image"} == set()
    assert [one.content for one in tokens if one.tag in ("h1", "h2")] == []
    outside = re.sub(r"\u200b", "", "".join(one.content for one in tokens if one.type == "text"))
    assert "@" not in outside
    assert "evil" not in outside
    assert not re.search(r"@\w", text)
    cells = [one for one in tokens if one.type == "td_open"]
    assert len(cells) == 2 * 7


def test_half_a_character_still_leaves_a_comment_and_a_status(
    server: FakeGitHub, github: GitHub, tmp_path: Path
) -> None:
    folder = artifact(tmp_path / "a", verdict("x\ud800y", Outcome.REGRESSION), unjudged=["\udfff"])
    edited(folder, run={"source": "\ud800", "hardware": "\udc80"})
    summary = tmp_path / "summary.md"
    assert not pull_request.tell(github, 7, COMMIT, folder, succeeded=True, summary=summary)
    assert "x?y" in server.comments[0]["body"]
    assert "x?y" in summary.read_text(encoding="utf-8")


def test_the_checks_of_the_text_would_see_what_is_not_a_code_span() -> None:
    tokens = tokens_of("<img src=x> [x](https://evil.example)")
    assert {"html_block", "html_inline"} & {one.type for one in tokens}
    assert code("a`b``c") == "``` a`b``c ```"


def test_a_comment_is_never_longer_than_github_takes(tmp_path: Path) -> None:
    bad = [verdict("x" * 900, Outcome.REGRESSION, level=f"bad-{n}") for n in range(300)]
    good = [verdict("y" * 900, level=f"good-{n}") for n in range(300)]
    for verdicts in ([*bad[:5], *good], bad):
        text = comment(read_run(artifact(tmp_path, *verdicts), COMMIT), COMMIT)
        assert MOST_CHARACTERS - 2000 < len(text) <= MOST_CHARACTERS
        assert "lines were left out" in text
        assert text.count("<details>") == text.count("</details>")
    assert "`bad-0`" in text


def test_the_program_takes_its_word_from_the_workflow(
    server: FakeGitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    summary = tmp_path / "summary.md"
    given = {"TOKEN": TOKEN, "REPOSITORY": "owner/name", "API_URL": server.url}
    for name, value in {**given, "STEP_SUMMARY": str(summary)}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    about = ["--pull-request", "7", "--commit", COMMIT]
    folder = artifact(tmp_path / "a", verdict())
    assert pull_request.main(["check", *about]) == 0
    assert pull_request.main(["tell", *about, "--folder", str(folder)]) == 0
    assert summary.read_text().strip() == server.comments[0]["body"]
    server.head = OTHER
    assert pull_request.main(["check", *about]) == 2
    monkeypatch.delenv("GITHUB_TOKEN")
    assert pull_request.main(["check", *about]) == 2
    assert "$GITHUB_TOKEN is not set" in capsys.readouterr().err
    assert "GITHUB_TOKEN" not in os.environ


def test_the_reporting_job_needs_no_package_installed() -> None:
    """It may write to the repository: so nothing is installed there."""
    root = str(Path(__file__).parents[3])
    code = "import sdopt.bench.report.pull_request"
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run((sys.executable, "-S", "-c", code), env=environment, check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--pull-request", "7; ls", "--commit", COMMIT],
        ["check", "--pull-request", "7", "--commit", "main"],
        ["check", "--pull-request", "7", "--commit", "abc123"],
    ],
)
def test_anything_but_a_number_and_a_full_commit_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        pull_request.main(arguments)

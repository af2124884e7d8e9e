"""Tell a pull request what its run found: `python -m sdopt.bench.report.pull_request`.

`check` ends with 2 unless the commit is the newest one of the open pull request: what a maintainer
read is then what runs. `tell` reads what the run left behind, comments, sets the commit's status
and writes the step summary. Both are told the pull request and the commit by the workflow, never by
the run. $GITHUB_TOKEN, $GITHUB_REPOSITORY and $GITHUB_API_URL are GitHub's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdopt.bench.report.comment import SENTENCES, comment, refused
from sdopt.bench.report.github import GitHub
from sdopt.bench.report.untrusted import SHA, ReportedRun, read_run
from sdopt.errors import BrokenFileError, SdoptError


def check(github: GitHub, pull_request: int, commit: str) -> None:
    """Raise SdoptError unless `commit` is the newest one of the open pull request."""
    newest = github.head_of(pull_request)
    if newest != commit:
        raise SdoptError(
            f"pull request {pull_request} is at {newest}, not at {commit}: read what is new, then "
            "start the gate for that commit"
        )


def tell(
    github: GitHub,
    pull_request: int,
    commit: str,
    folder: Path,
    *,
    succeeded: bool,
    link: str = "",
    summary: Path | None = None,
) -> bool:
    """Report the run in `folder`; whether it passed.

    It passed if it says so and its job `succeeded`, which the run cannot write itself.
    """
    run: ReportedRun | None = None
    try:
        run = read_run(folder, commit)
        newest = github.head_of(pull_request)
        body, words = comment(run, commit, newest=newest, link=link), SENTENCES[run.outcome]
    except BrokenFileError as error:
        body, words = refused(str(error), commit, link), "what the run left cannot be used"
    passed = run is not None and run.outcome == "pass" and succeeded
    if run is not None and run.outcome == "pass" and not succeeded:
        words = "the verdicts passed, the job did not"
        body += "\n\nThe verdicts passed, but the job that made them did not: see its log."
    if summary:
        with summary.open("a", encoding="utf-8") as file:
            file.write(body + "\n")
    github.tell(pull_request, body)
    github.set_status(commit, passed=passed, words=words, link=link)
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if it was done, 2 if not: an error of the gate's own, whatever the run found."""
    options = _parser().parse_args(arguments)
    try:
        github = GitHub(
            repository=os.environ["GITHUB_REPOSITORY"],
            token=os.environ["GITHUB_TOKEN"],
            url=os.environ.get("GITHUB_API_URL", "https://api.github.com"),
        )
        if options.action == "check":
            check(github, options.pull_request, options.commit)
            return 0
        name = os.environ.get("GITHUB_STEP_SUMMARY")
        passed = tell(
            github,
            options.pull_request,
            options.commit,
            options.folder,
            succeeded=options.job_result == "success",
            link=options.link,
            summary=Path(name) if name else None,
        )
        print("passed" if passed else "did not pass")
    except KeyError as error:
        print(f"error: ${error.args[0]} is not set; a workflow passes it on", file=sys.stderr)
        return 2
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sdopt.bench.report.pull_request", description=__doc__
    )
    parser.add_argument("action", choices=("check", "tell"))
    parser.add_argument("--pull-request", type=_number, required=True, metavar="NUMBER")
    parser.add_argument("--commit", type=_sha, required=True, metavar="SHA")
    parser.add_argument("--folder", type=Path, help="of the unpacked artifact", default=Path())
    parser.add_argument("--job-result", default="success", help="of the job that measured")
    parser.add_argument("--link", default="", help="to the run")
    return parser


def _sha(text: str) -> str:
    if not SHA.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no full commit: 40 hexadecimal digits")
    return text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a pull request")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

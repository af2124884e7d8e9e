"""A revision of a git repository, checked out into a temporary folder and removed again."""

from __future__ import annotations

import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdopt.bench.ab.cleanup import Janitor, without_git_variables
from sdopt.errors import RevisionError


@contextmanager
def checked_out(repository: Path, revision: str) -> Iterator[Path]:
    """The tree of that revision in a fresh folder, which is gone afterwards, even after SIGKILL.

    For a `repository` below the top of its git repository it is the same folder of the checkout.
    Git keeps no record of it. Raises RevisionError if there is no such revision, repository or
    folder, or no git.
    """
    top, below = _top(repository)
    commit = commit_of(repository, revision)
    keeper = Janitor()
    folder = Path(tempfile.gettempdir()).resolve() / f"sdopt-ab-{secrets.token_hex(8)}"
    try:
        keeper.remove(folder)  # before it exists: there is no moment at which nobody would
        folder.mkdir(mode=0o700)
        _fill(folder, top, commit, keeper, revision)
        if not (folder / below).is_dir():
            raise RevisionError(f"{revision!r} has no folder {below}; give a revision that has it")
        yield folder / below
    finally:
        is_clean = keeper.dismiss()
    if not is_clean:
        raise RevisionError(f"{folder} could not be removed; delete it")


def _fill(folder: Path, top: Path, commit: str, keeper: Janitor, revision: str) -> None:
    """Check the commit out there, by an index of its own, without the repository's hooks."""
    index = folder / ".sdopt-index"
    git = subprocess.Popen(
        ("git", "-C", str(top), f"--work-tree={folder}", "read-tree", "--reset", "-u", commit),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**without_git_variables(), "GIT_INDEX_FILE": str(index)},
        start_new_session=True,
    )
    keeper.guard(git.pid)
    _, said = git.communicate()
    keeper.forget(git.pid)
    index.unlink(missing_ok=True)
    if git.returncode:
        raise RevisionError(
            f"{revision!r} cannot be checked out from {top}: {said.strip()}; repair that, then run "
            "this again"
        )


def commit_of(repository: Path, revision: str) -> str:
    """The full name of the revision's commit. Raises RevisionError if there is none."""
    _top(repository)
    # git would take a leading dash for an option of its own.
    is_option = revision.startswith("-")
    found = (
        None if is_option else _git(repository, "rev-parse", "--verify", f"{revision}^{{commit}}")
    )
    if found is None or found.returncode:
        raise RevisionError(
            f"{repository} has no revision {revision!r}; it is a branch, a tag or a commit, such "
            f"as main, v1.0 or HEAD~1; fetch it first: git -C {repository} fetch origin {revision}"
            " (git fetch --unshallow in a shallow clone)"
        )
    return found.stdout.strip()


def _top(repository: Path) -> tuple[Path, Path]:
    """The top folder of its git repository, and the way from there."""
    found = _git(repository, "rev-parse", "--show-toplevel")
    if found.returncode:
        raise RevisionError(
            f"{repository} is not in a git working tree: {found.stderr.strip()}; an A/B run "
            "compares with a revision of its repository: run it in a clone"
        )
    top = Path(found.stdout.removesuffix("\n")).resolve()
    return top, repository.resolve().relative_to(top)


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ("git", "-C", str(repository), *arguments)
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=without_git_variables(),
        )
    except FileNotFoundError as error:
        raise RevisionError(
            "there is no git command here, and an A/B run checks its base out with it; install "
            "git, or put it on the PATH"
        ) from error

"""Where an evaluation is made: the revision of sdopt, the card and the date, noted in its run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.util.children import OWN_TREE

if TYPE_CHECKING:
    import torch

CHANGED = " with uncommitted changes"


@dataclass(frozen=True, kw_only=True)
class Here:
    """What may differ between the parts of one evaluation, and is told.

    `commit` is None where sdopt does not run from a clone, `card` on a CPU.
    """

    commit: str | None
    card: str | None
    date: str

    def noted(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What a run notes of it, beside what it noted before."""
        noted: dict[str, Any] = {"date": stored.get("date", self.date)}
        for name, value in (("commits", self.commit), ("cards", self.card)):
            before = _texts(stored.get(name))
            if values := [*before, *([value] if value and value not in before else [])]:
                noted[name] = values
        return noted

    def warn(self, stored: Mapping[str, Any], name: str, say: Callable[[str], None]) -> None:
        """Say that parts of several revisions may mix, where a run goes on."""
        others = [commit for commit in _texts(stored.get("commits")) if commit != self.commit]
        if self.commit is None or not (others or self.commit.endswith(CHANGED)):
            return
        before = f"; parts there were made at {', '.join(others)}" if others else ""
        say(
            f"warning: sdopt is at commit {self.commit}{before}: if images differ between these, "
            f"{name} mixes them; name another --out to be sure"
        )


def here_of(device: torch.device) -> Here:
    """Of this process."""
    import torch

    return Here(
        commit=commit_of(OWN_TREE),
        card=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def commit_of(tree: Path) -> str | None:
    """The commit of a clone of sdopt, and whether its code was changed since; None elsewhere."""
    if not (tree / ".git").exists():  # a repository around an installation is not sdopt's
        return None
    commit = _git(tree, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    return commit + CHANGED * bool(_git(tree, "status", "--porcelain", "--", "sdopt"))


def _git(tree: Path, *arguments: str) -> str:
    """What git says; nothing where there is no git, or it refuses."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ("git", "--no-optional-locks", "-C", str(tree), *arguments)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False
        )
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def _texts(value: Any) -> list[str]:
    """A list of texts, whatever a file holds there."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []

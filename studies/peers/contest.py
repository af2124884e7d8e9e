"""Run recipes, each in a fresh process with a time limit, and collect their rows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdopt.bench.ab.cleanup import janitor
from sdopt.bench.session import RunContext
from sdopt.errors import SdoptError
from sdopt.util.children import python_path
from sdopt.weights.sources import NAMED_SOURCES
from studies.peers.recipes import RECIPES, Recipe
from studies.rows import Rows, continue_rows, set_aside

LIMIT_VARIABLE = "SDOPT_PEERS_LIMIT_S"
LIMIT_S = 600.0
"""A process that has not finished by then is ended: a search for kernels may take far longer."""
INSTALL = "pip install -c constraints.txt -e '.[peers]'"
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit|Unsupported)\b.*")
ERROR_CHARACTERS = 200


@dataclass(kw_only=True)
class Contest:
    """The recipes of one run on one device.

    `folder` holds the rows, the images that costs are measured against, and the logs.
    """

    run: RunContext
    folder: Path
    program: tuple[str, ...] = ("-m", "studies.peers.worker")
    limit_s: float = field(default_factory=lambda: limit_s())
    measured: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        path, made_on = self.folder / "rows.json", self.run.made_on()
        if aside := set_aside(path, made_on):
            told = f"{aside} keeps the rows of other hardware or versions"
            print(told, file=self.run.progress.stream)
        self.rows: Rows = continue_rows(path, made_on)

    def missing(self, recipe: Recipe) -> str | None:
        """Why the recipe is not measured, and what to install, if it is not."""
        if self.run.settings.unfit:
            return self.run.settings.unfit
        if recipe.package and not installed(recipe.package):
            return f"needs {recipe.package}: {INSTALL}"
        if not any(installed(other.package) for other in RECIPES if other.package):
            return f"needs the peers that it stands beside: {INSTALL}"
        return None

    def measure(self, recipe: Recipe) -> str | None:
        """Run the recipe and keep its rows; what went wrong, if something did."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own_file = self.folder / recipe.rows_file
        own_file.unlink(missing_ok=True)
        with self.run.progress.during(f"[{recipe}] in a process of its own"):
            error = self._run(recipe)
        found = json.loads(own_file.read_text(encoding="utf-8")) if own_file.exists() else []
        known = {row["name"]: row for row in found}
        for ground in recipe.grounds:
            name = recipe.row_name(ground)
            row = known.get(name) or {"name": name, "error": error or "no result"}
            self.rows.put({**row, **_described(recipe, str(ground))})
            self.measured.append(name)
        return error

    def _run(self, recipe: Recipe) -> str | None:
        """Run the worker to its end, or to that of the time limit."""
        settings, log_path = self.run.settings, self.folder / f"{recipe}.log"
        source = settings.source
        if source not in NAMED_SOURCES and Path(source).exists():
            source = str(Path(source).resolve())
        prompts = str(settings.prompts.resolve()) if settings.prompts else ""
        command = (*self.program, recipe.name, source, prompts, str(self.folder))
        with janitor() as keeper, log_path.open("w+b") as log:
            process = subprocess.Popen(
                (sys.executable, *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": python_path()},
                start_new_session=True,
            )
            keeper.guard(process.pid)
            try:
                status = process.wait(self.limit_s)
            except subprocess.TimeoutExpired:
                return f"did not finish in {self.limit_s:g} s"
            finally:
                _end(process)
                keeper.forget(process.pid)
        return _error_of(log_path, status) if status else None


def _described(recipe: Recipe, ground: str) -> dict[str, Any]:
    described = {"recipe": recipe.name, "ground": ground, "work": recipe.work, "docs": recipe.docs}
    if recipe.package:
        described["version"] = version(recipe.package)
    return described


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process and of those that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _error_of(log: Path, status: int) -> str:
    """The last line of the log that names an error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    said = (errors or lines or ["no output"])[-1][:ERROR_CHARACTERS]
    return f"status {status}: {said} (all of it: {log})"


def installed(package: str) -> bool:
    """Whether a distribution of that name is there."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def limit_s() -> float:
    """The time limit of one recipe in seconds. Raises SdoptError for one that is no number."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise SdoptError(f"{LIMIT_VARIABLE} is {text!r}; it is a number of seconds, more than 0")
    return seconds

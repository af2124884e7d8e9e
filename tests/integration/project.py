"""A folder with benchmarks and baselines, and runs of pytest in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder with benchmarks/ and baselines/, and the runs in it."""

    pytester: pytest.Pytester
    source: Path

    @property
    def path(self) -> Path:
        return self.pytester.path

    @property
    def baselines(self) -> Path:
        return self.path / "baselines"

    @property
    def images(self) -> Path:
        return self.baselines / "images" / "micro" / "baseline"

    def run(
        self, *arguments: str, tests: str = "benchmarks", level: str = "baseline"
    ) -> pytest.RunResult:
        """Run the benchmarks of one level in this process."""
        source = ("--sdopt-source", str(self.source))
        return self.pytester.runpytest(tests, "-k", f"[{level}]", *source, *arguments)

    def latency(self, *arguments: str) -> pytest.RunResult:
        """Run the latency benchmark alone."""
        return self.run(*arguments, tests="benchmarks/test_latency.py")

    def histories(self) -> list[Path]:
        """The stored runs, oldest first."""
        return sorted(self.baselines.glob("history/*/*/*.json"))

    def edit_history(self, change: Callable[[dict[str, Any]], None]) -> Path:
        """Change the newest stored run."""
        path = self.histories()[-1]
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        return path

    def edit_benchmark(self, name: str, old: str, new: str) -> None:
        """Change one of this project's own copies of the benchmarks."""
        path = self.path / "benchmarks" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def scale_latency(factor: float) -> Callable[[dict[str, Any]], None]:
    """A change of a stored run: as if the machine had been that much slower then."""

    def change(data: dict[str, Any]) -> None:
        for entry in data["benchmarks"]:
            entry["stats"]["data"] = [factor * seconds for seconds in entry["stats"]["data"]]

    return change

"""A folder with benchmarks and baselines, and runs of pytest in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.stored.soundness import statistics_of

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
FAKE_LATENCY = """
from sdopt.bench.measure.timing import FirstCall, Latency

def test_latency(level, gate):
    record = Latency(rounds_ms=({milliseconds},), stage_ms={{}}, disturbances={disturbances!r})
    verdict = gate.latency(level, record, FirstCall(seconds=1.0, compile_cache="eager"))
    assert verdict.passed, verdict.message
"""


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

    @property
    def work_file(self) -> Path:
        """The stored counts of work."""
        return self.baselines / "work" / "micro.json"

    def edit_work(self, **counts: Any) -> Path:
        """Change the stored counts of `baseline`; None removes one."""
        data = json.loads(self.work_file.read_text())
        row = {**data["levels"]["baseline"], **counts}
        data["levels"]["baseline"] = {k: v for k, v in row.items() if v is not None}
        self.work_file.write_text(json.dumps(data))
        return self.work_file

    def stored_counts(self) -> dict[str, Any]:
        """The stored counts of work by level."""
        levels: dict[str, Any] = json.loads(self.work_file.read_text())["levels"]
        return levels

    def verdicts(self) -> dict[str, Any]:
        """What the last run wrote for other programs."""
        content: dict[str, Any] = json.loads((self.path / "verdicts.json").read_text())
        return content

    def fake_latency(self, milliseconds: float | str, disturbances: tuple[str, ...] = ()) -> None:
        """Let the latency benchmark judge that time: no pipeline, no noise."""
        text = FAKE_LATENCY.format(milliseconds=milliseconds, disturbances=disturbances)
        (self.path / "benchmarks" / "test_latency.py").write_text(text)

    def edit_benchmark(self, name: str, old: str, new: str) -> None:
        """Change one of this project's own copies of the benchmarks."""
        path = self.path / "benchmarks" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def set_latency(milliseconds: float) -> Callable[[dict[str, Any]], None]:
    """A change of a stored run: as if every round had taken that long."""

    def change(data: dict[str, Any]) -> None:
        for entry in data["benchmarks"]:
            entry["stats"] |= statistics_of([milliseconds / 1e3])

    return change


def scale_latency(factor: float) -> Callable[[dict[str, Any]], None]:
    """A change of a stored run: as if the machine had been that much slower then."""

    def change(data: dict[str, Any]) -> None:
        for entry in data["benchmarks"]:
            rounds = [factor * seconds for seconds in entry["stats"]["data"]]
            entry["stats"] |= statistics_of(rounds)

    return change

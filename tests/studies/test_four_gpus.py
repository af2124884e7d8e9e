"""One call measures an evaluation by several processes and the service, goes on, and refuses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from sdopt.bench.report.results import marks
from studies import four_gpus, four_gpus_table
from studies.four_gpus import MARK, ended_within, main
from studies.service_load import so_far

TRIED = (
    *("--source", "embedded", "--processes", "2", "--levels", "turbo", "--steps", "1"),
    *("--scenes", "64", "--clients", "1,4"),
)
HOST = {"cpu_s": 0.1, "scorers_cpu_s": 0.2, "png_s": 0.04, "score_s": 0.16, "write_s": 0.001}
CHILDREN = "import subprocess; subprocess.run(['sleep', '60'], start_new_session=True)"


def load(clients: int, rate: float) -> dict[str, Any]:
    """A row of the service."""
    figures = dict.fromkeys(("p50_ms", "p95_ms", "images_a_batch"), 1.0)
    counts = {"clients": clients, "answered": 40, "lost": 0}
    shares = {"engine_images_per_s": 2 * rate, "share": 0.5}
    host = {"front": 0.004, "front_loop": 0.002, "clients": 0.001, "workers": 0.002}
    return {**counts, **figures, **shares, "images_per_s": rate, "cpu_s_per_image": host}


class Service:
    """In the place of commands of the service: rows of the clients that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 9, code: int = 0) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.most, self.code, self.real = most, code, ended_within
        monkeypatch.setattr(four_gpus, "ended_within", self)

    def __call__(self, command: Sequence[str], limit_s: float) -> int | None:
        if "studies.service_load" not in command:
            return self.real(command, limit_s)
        devices, clients, json_file = (
            command[command.index(name) + 1] for name in ("--devices", "--clients", "--json")
        )
        self.asked.append((devices, clients))
        wanted = [int(count) for count in clients.split(",")]
        rows = [load(count, 10.0 * int(devices)) for count in wanted][: self.most]
        whole = len(rows) == len(wanted) and not self.code
        file = Path(json_file)
        if rows:
            target = file if whole else so_far(file)
            target.write_text(json.dumps({"rows": rows, "faults": []}))
        return self.code or (0 if whole else None)


def test_two_processes_and_their_service_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    service = Service(monkeypatch)
    file, page = tmp_path / "four.json", tmp_path / "page.md"
    page.write_text("\n".join(marks(MARK.format(2))))
    given = [*TRIED, "--json", str(file), "--out", str(tmp_path / "out"), "--page", str(page)]
    assert main(given) == 0
    rows = json.loads(file.read_text())["evaluation"]["rows"]
    assert [(row["level"], row["processes"]) for row in rows] == [("turbo", 1), ("turbo", 2)]
    alone, both = (row["images_per_s"] for row in rows)
    assert rows[1]["efficiency"] == pytest.approx(both / (2 * alone))
    assert min(rows[1]["host"][name] for name in ("cpu_s", "png_s", "score_s", "write_s")) > 0
    assert service.asked == [("2", "1,4"), ("1", "2")]
    text = page.read_text()
    assert text.count("| `turbo` |") == 2
    assert "4 clients: 2.00 times one, goal 1.9: reached." in text
    monkeypatch.setattr(four_gpus, "ended_within", None)  # nothing is run again
    assert main(given) == 0
    assert page.read_text() == text
    page.write_text("\n".join(marks(MARK.format(2))))
    assert main(["--show", "--json", str(file), "--page", str(page)]) == 0
    assert page.read_text() == text
    assert main([*given, "--steps", "2"]) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.fixture
def evaluated(tmp_path: Path) -> list[str]:
    """The arguments of a run whose evaluation is there."""
    file = tmp_path / "four.json"
    given = [*TRIED, "--json", str(file), "--out", str(tmp_path / "out")]
    run = four_gpus.begun(four_gpus._parser().parse_args(given))
    run.keep(evaluation={"rows": [row(1, 10.0), row(2, 15.0)]})
    return given


def row(processes: int, rate: float) -> dict[str, Any]:
    factor = rate / 10
    counts = {"level": "turbo", "processes": processes, "images_per_s": rate}
    return {**counts, "factor": factor, "efficiency": factor / processes, "host": HOST}


def test_what_a_part_found_before_its_limit_is_kept_and_it_goes_on(
    evaluated: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service(monkeypatch, most=1)
    assert main(evaluated) == 1
    assert "missing yet: service; run this again" in capsys.readouterr().err
    assert main(evaluated) == 0
    assert service.asked == [("2", "1,4"), ("1", "2"), ("2", "4")]


def test_without_time_nothing_is_begun(
    evaluated: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service(monkeypatch)
    assert main([*evaluated, "--minutes", "0.1"]) == 1
    assert service.asked == []
    told = capsys.readouterr()
    assert "service: 6 s are left, too few" in told.err
    assert "Service:\n\nnot measured yet" in told.out


def test_a_part_that_fails_is_told(
    evaluated: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Service(monkeypatch, most=0, code=7)
    assert main(evaluated) == 2
    assert "error: service ended with 7" in capsys.readouterr().err


def test_a_missed_goal_names_the_largest_share_of_the_host(evaluated: list[str]) -> None:
    found = json.loads(Path(evaluated[evaluated.index("--json") + 1]).read_text())
    found |= {"cores": 4, "service": {"rows": [load(64, 30.0)], "faults": ["it lost one"]}}
    found["service of one"] = {"rows": [load(32, 20.0)]}
    text = "\n".join(four_gpus_table.shown(found))
    assert "`turbo`: 1.50 times one, goal 1.9: missed. Of the host, scoring 60.0 %, the l" in text
    assert (
        "64 clients: 1.50 times one, goal 1.9: missed. Of one core, the front's event loop 6.0 %, "
        "the largest share; the clients 3.0 %, a worker 3.0 %. The front, 3.0 % of all cores."
    ) in text
    assert "| 4.0 | 2.0 | 1.0 |" in text
    assert "- it lost one" in text
    del found["service"]["rows"][0]["cpu_s_per_image"]["front_loop"]  # as older files have it
    text = "\n".join(four_gpus_table.shown(found))
    assert "Of one core, the clients 3.0 %, the largest share; a worker 3.0 %." in text
    assert "| 4.0 | - | 1.0 |" in text


def test_an_evaluation_too_short_for_a_rate_says_so(evaluated: list[str]) -> None:
    found = json.loads(Path(evaluated[evaluated.index("--json") + 1]).read_text())
    without = {"images_per_s": None, "factor": None, "efficiency": None}
    found["evaluation"]["rows"][1] |= without
    text = "\n".join(four_gpus_table.shown(found))
    assert "`turbo`: too few images were generated at once for a rate with 2: give more " in text


def test_without_gpus_a_trial_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "none.json"]) == 2
    told = capsys.readouterr().err
    assert "there is none here; run it on a host with 4, or try it on this CPU: --source " in told
    assert "--steps 2 --size 64x64" in told


def test_what_takes_too_long_ends_with_all_that_it_started() -> None:
    before = set(psutil.Process().children(recursive=True))
    began = time.monotonic()
    assert ended_within([sys.executable, "-c", CHILDREN], 1.0) is None
    assert time.monotonic() - began < 20
    assert set(psutil.Process().children(recursive=True)) <= before
    assert ended_within([sys.executable, "-c", "raise SystemExit(3)"], 30.0) == 3

"""What the front takes, with workers that only wait: a real service, its clients, its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from sdopt.bench.report.results import marks
from studies import four_gpus, service_front, service_load
from studies.service_clients import LOOP, Load
from studies.service_front import MARK, main

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def test_a_real_front_passes_on_what_waiting_workers_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file, page = tmp_path / "front.json", tmp_path / "page.md"
    page.write_text("\n".join(marks(MARK)))
    given = ["--workers", "2", "--clients", "2", "--ms", "20", "--images", "24"]
    assert main([*given, "--json", str(file), "--page", str(page)]) == 0
    [row] = json.loads(file.read_text())["rows"]
    assert (row["workers"], row["clients"], row["workers_images_per_s"]) == (2, 4, 200)
    assert 0 < row["images_per_s"] <= 200
    host = row["cpu_s_per_image"]
    assert 0 < host[LOOP] < host["front"]
    bound = f"alone would allow {1 / host[LOOP]:.0f} images a second or more."
    assert bound in page.read_text()
    shown = page.read_text()
    assert main(["--show", "--json", str(file), "--page", str(page)]) == 0
    assert page.read_text() == shown
    assert "| 2 | 4 | 200 |" in capsys.readouterr().out


class Fake:
    """A service without processes: what its clients saw, and a clock of processor time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lost: int) -> None:
        self.lost, self.spent = list(lost), 5.0
        monkeypatch.setattr(service_front, "served", self.served)
        monkeypatch.setattr(service_front, "under_load", self.load)

    @contextmanager
    def served(self, *_: Any) -> Iterator[Fake]:
        yield self

    def cpu_s(self) -> dict[str, float]:
        return dict.fromkeys((LOOP, "front", "workers", "clients"), self.spent)

    def load(self, service: Fake, body: Any, clients: int, images: int, limit_s: float) -> Load:
        self.spent += images * clients / 1e3
        lost = self.lost.pop(0) if body["prompt"] == "noise" else 0
        return Load(
            clients=clients,
            answered=images - lost,
            lost=lost,
            errors=("503: busy",) * lost,
            images_per_s=1.0,
            p50_ms=1.0,
            p95_ms=1.0,
            images_a_batch=1.0,
        )


def test_rows_of_before_a_lost_answer_are_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Fake(monkeypatch, 0, 0, 1)
    file = tmp_path / "front.json"
    given = ["--workers", "1", "2", "3", "--clients", "2", "--images", "24", "--json", str(file)]
    assert main(given) == 2
    told = capsys.readouterr()
    assert "error: 1 of 48 requests were lost: 503: busy" in told.err
    rows = json.loads(file.read_text())["rows"]
    assert [row["cpu_s_per_image"][LOOP] for row in rows] == pytest.approx([0.002, 0.004])
    assert "| 1 | 2 | 25 | 1.0 | 2.00 |" in told.out
    assert "alone would allow 250 images a second or more." in told.out


def test_ctrl_c_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(service_front, "measure", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "1 worker ...\ninterrupted\n"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--workers", "0"], "0 is no count; give 1 to 1000000"),
        (["--images", "1.5"], "1.5 is no count; give 1 to 1000000"),
        (["--ms", "0"], "0 ms is no batch's time; give 1 to 10000"),
        (["--ms", "nan"], "nan ms is no batch's time"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--show"], "--show needs --json FILE"),
        (["--workers", "40"], "40 workers with 16 clients each are more than the 512 connections"),
        (["--workers", "513", "--clients", "1"], "give fewer --workers or --clients"),
        (["--json", "."], "--json . is a folder; name a file"),
        (["--page", "none.md"], "none.md cannot be read"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(
    given: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service_front, "measure", None)
    monkeypatch.setattr(service_front, "most_connections", lambda workers: 512)
    assert main(given) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("study", [service_front, service_load, four_gpus])
def test_another_programs_file_is_not_shown(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"schema": "another/1"}')
    assert study.main(["--show", "--json", str(file)]) == 2
    assert f"{file} holds no {study.SCHEMA}, which `python -m {study.__name__}` w" in (
        capsys.readouterr().err
    )


SHOWN = [
    (four_gpus, "docs/evidence/scaling.md", "gpus-2-h200.json", ()),
    (service_front, "docs/how-to/serve.md", "service-front-cpu.json", ()),
    (service_load, "docs/how-to/serve.md", "service-load-cpu.json", ()),
    (service_load, "docs/how-to/serve.md", "service-load-h200.json", ("service-load-h200",)),
]


@pytest.mark.parametrize(("study", "page", "sample", "mark"), SHOWN, ids=lambda one: str(one))
def test_a_page_shows_what_its_sample_holds(
    study: ModuleType, page: str, sample: str, mark: tuple[str, ...], tmp_path: Path
) -> None:
    copy = tmp_path / "page.md"
    copy.write_bytes((ROOT / page).read_bytes())
    more = ["--mark", *mark] if mark else []
    file = ROOT / "docs" / "samples" / sample
    study.main(["--show", "--json", str(file), "--page", str(copy), *more])
    assert copy.read_text() == (ROOT / page).read_text()


def test_a_killed_study_leaves_no_service(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "studies.service_front", "--workers", "1", "--ms", "200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as study:
        family: list[psutil.Process] = []
        until = time.monotonic() + PATIENCE_S
        while len(family) < 2 and time.monotonic() < until:
            family = psutil.Process(study.pid).children(recursive=True)
            time.sleep(0.1)
        assert len(family) == 2, "a front and its worker"
        study.kill()
    assert psutil.wait_procs(family, PATIENCE_S)[1] == []
